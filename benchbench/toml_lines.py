"""Where each key of a TOML file stands, which tomllib does not say."""

import re

_TOKENS = re.compile(
    r'"""(?:\\[\s\S]|[^\\])*?"""+'
    r"|'''[\s\S]*?'''+"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
)
_HEADER = re.compile(r"^\s*(\[\[?)(.+?)\]\]?\s*$")
_KEY = re.compile(r"^\s*([^\[\]{}=]+?)\s*=")

Path = tuple[str | int, ...]


class TomlLines:
    """Line numbers of the keys in a text that tomllib has accepted.

    A path is the keys from the top, with a number after the name of an array of tables:
    `("cases", 1, "seq_len")` is `seq_len` in the second `[[cases]]`.
    """

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {}
        counts: dict[Path, int] = {}
        table: Path = ()
        depth = 0
        for number, line in enumerate(_TOKENS.sub(_blank, text).splitlines(), start=1):
            header = _HEADER.match(line) if depth == 0 else None
            if header:
                table = _resolve(_split(header[2]), header[1] == "[[", counts)
                self._lines.setdefault(table, number)
                continue
            if depth == 0 and (key := _KEY.match(line)):
                path = table
                for part in _split(key[1]):
                    path = (*path, part)
                    self._lines.setdefault(path, number)
            depth += sum(line.count(opening) for opening in "[{") - sum(line.count(closing) for closing in "]}")

    def line(self, path: Path) -> int:
        """The line of the key at `path`, or of the nearest table or value around it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)


def _blank(token: re.Match[str]) -> str:
    """A string without what could be taken for syntax; a comment as nothing. Lines keep their number."""
    text = token[0]
    if text[0] == "#":
        return ""
    if text[:3] in ('"""', "'''"):
        return "\n" * text.count("\n")
    return text[0] + re.sub(r"[\[\]{}=#.]", "_", text[1:-1]) + text[-1]


def _split(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]


def _resolve(names: list[str], is_array: bool, counts: dict[Path, int]) -> Path:
    """The path of a header; a new element where it is `[[array]]`."""
    path: Path = ()
    for place, name in enumerate(names, start=1):
        path = (*path, name)
        if is_array and place == len(names):
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path
