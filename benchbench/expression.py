"""`-k` expressions: words that a case's id must hold, joined by and, or, not and parentheses."""

import re
from collections.abc import Callable

from benchbench.errors import BenchError

Test = Callable[[str], bool]


def parse(text: str) -> Test:
    """`mamba and not (decode or train)`: whether a case's id has the words, upper and lower case alike.

    Raises:
        BenchError: The expression is not one.
    """
    words = re.findall(r"[()]|[^\s()]+", text)
    place = 0

    def wrong(what: str) -> BenchError:
        return BenchError(
            f"-k '{text}': {what}.", "Write words with and, or, not and parentheses: -k 'mamba and not decode'."
        )

    def peek() -> str | None:
        return words[place] if place < len(words) else None

    def take() -> str:
        nonlocal place
        if place == len(words):
            raise wrong("a word is missing at the end")
        place += 1
        return words[place - 1]

    def either() -> Test:
        parts = [both()]
        while peek() == "or":
            take()
            parts.append(both())
        return lambda name: any(part(name) for part in parts)

    def both() -> Test:
        parts = [one()]
        while peek() == "and":
            take()
            parts.append(one())
        return lambda name: all(part(name) for part in parts)

    def one() -> Test:
        word = take()
        if word == "not":
            negated = one()
            return lambda name: not negated(name)
        if word == "(":
            inner = either()
            if peek() != ")":
                raise wrong("a ')' is missing")
            take()
            return inner
        if word in ("and", "or", ")"):
            raise wrong(f"'{word}' stands where a word belongs")
        return lambda name: word.lower() in name.lower()

    whole = either()
    if peek() is not None:
        raise wrong(f"'{peek()}' is one too many")
    return whole
