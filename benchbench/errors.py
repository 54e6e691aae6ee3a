"""Errors a user can act on: one line that says what is wrong, one that says what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class BenchError(Exception):
    """What is wrong, in the user's own words, and `hint`, what to do about it."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UnsupportedError(BenchError):
    """The case is well formed, but this model, path or machine cannot do it: an answer, not a failure."""


def unwritable(path: object, error: OSError, hint: str = "") -> BenchError:
    """The error for a file or folder that the system does not let be written."""
    return BenchError(f"cannot write to '{path}': {error.strerror or error}.", hint)


def unknown(what: str, given: str, known: Iterable[str], hint: str = "") -> BenchError:
    """The error for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = get_close_matches(given, names, n=1)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    return BenchError(f"no {what} '{given}'.{guess}", hint or f"Known: {', '.join(names)}.")
