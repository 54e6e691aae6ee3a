"""Files as they are written: whole or not at all."""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from benchbench.errors import unwritable


def draft_of(name: str) -> str:
    """What a file is called until it is whole."""
    return f"{name}.tmp"


@contextmanager
def whole(path: Path) -> Generator[Path, None, None]:
    """A draft to write instead of `path`, which it replaces at the end; if anything fails, `path` is as it was.

    Raises:
        BenchError: It cannot be written.
    """
    # A device or a pipe is written to, and never replaced.
    draft = path if path.exists() and not path.is_file() else path.with_name(draft_of(path.name))
    try:
        yield draft
        if draft != path:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        if draft != path:
            with suppress(OSError):
                draft.unlink()


def write_whole(path: Path, text: str) -> None:
    """Puts a text file in place whole or not at all, with the folders it is in.

    Raises:
        BenchError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path.parent, error) from None
    with whole(path) as draft:
        draft.write_text(text, "utf-8")


def require_writable(folder: Path, hint: str = "") -> None:
    """Raises `BenchError` if no file can be made in `folder`, and leaves nothing behind that was not there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise unwritable(folder, error, hint) from None
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
