"""Values read from what a user wrote: the first complaint as one line that quotes it and says what is expected."""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from benchbench.errors import BenchError, unknown

M = TypeVar("M", bound=BaseModel)

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a table",
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
}

Where = Callable[[tuple[str | int, ...]], str]


def read(kind: type[M], data: dict[str, Any], where: Where | str, what: str = "") -> M:
    """`kind` built from `data`.

    Args:
        kind: The model; its aliases are the keys a user writes.
        data: What was written.
        where: Where it was written, given the path to the key at fault.
        what: What holds the keys, `[[cases]]` say, for the message about one that does not exist.

    Raises:
        BenchError: A key is unknown or missing, or a value is of the wrong type or range.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
        # A misspelt key also leaves one missing: the misspelling is what to mend.
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        place = where if isinstance(where, str) else where(first["loc"])
        raise _complaint(first, keys_of(kind), place, what) from None


def keys_of(kind: type[BaseModel]) -> list[str]:
    """The keys a user writes for `kind`, sorted."""
    return sorted(field.alias or name for name, field in kind.model_fields.items())


def unknown_key(given: str, keys: list[str], where: str, what: str) -> BenchError:
    """The error for a key that does not exist: `my.toml:14: [[cases]] has no key 'seq_length'. Did you mean ...`."""
    message = unknown("key", given, keys).message
    return BenchError(f"{where}: {what} has {message}" if what else f"{where}: {message}", f"Keys: {', '.join(keys)}.")


def expected(error: ErrorDetails) -> str:
    """What a value should have been, in words."""
    if words := _EXPECTED.get(error["type"]):
        return words.format(**error.get("ctx", {}))
    return error["msg"].removeprefix("Input should be ")


def _complaint(error: ErrorDetails, keys: list[str], where: str, what: str) -> BenchError:
    key = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return unknown_key(key, keys, where, what)
    if error["type"] == "missing":
        return BenchError(f"{where}: {what or 'this'} needs '{key}'.", f"Keys: {', '.join(keys)}.")
    if error["type"] == "value_error":
        # A validator may say what to do in a second line.
        reason, _, hint = error["msg"].removeprefix("Value error, ").partition("\n")
        return BenchError(f"{where}: {f'{key}: ' if key else ''}{reason}", hint)
    return BenchError(f"{where}: {key} = {written(error['input'])}: expected {expected(error)}.")


def written(value: object) -> str:
    """A value as a user would write it in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
