"""The files of a module, as a person reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from attrs import frozen

from config.code import code_files
from protocol.errors import ErrorKind, error

MAX_SHOWN: Final = 256 * 1024
"""Bytes of a file that is shown as text."""
_MAX_TOTAL: Final = 4 * 1024 * 1024
"""Bytes of all texts of a module together; later files are listed only."""


@frozen
class CodeFile:
    """A file of a module."""

    name: str
    """Relative to its folder, with `/` between folders."""
    size: int
    text: str | None
    """None for a file that is large, or no UTF-8."""


def read_code(root: Path) -> tuple[CodeFile, ...]:
    """Return the files of a module, by name. Blocks. Raises RunnerError `unavailable`."""
    found, left = list[CodeFile](), _MAX_TOTAL
    try:
        for path in sorted(code_files(root)):
            size = path.stat().st_size
            text = _text(path.read_bytes()) if size <= min(MAX_SHOWN, left) else None
            left -= 0 if text is None else size
            found.append(CodeFile(path.relative_to(root).as_posix(), size, text))
    except OSError as problem:
        raise error(ErrorKind.UNAVAILABLE, f"the files of the module cannot be read: {problem.strerror}") from problem
    return tuple(found)


def _text(data: bytes) -> str | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
