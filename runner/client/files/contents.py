"""Bodies of calls that are no JSON: forms with files, and files as they are. No file is in memory as a whole."""

from __future__ import annotations

import mimetypes
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import trio
from attrs import field, frozen

_PIECE_BYTES: Final = 256 * 1024
_PLAIN: Final = "application/octet-stream"


@frozen
class Part:
    """A part of a form: a text, or the file at a path."""

    name: str
    value: str | Path


@frozen
class Form:
    """A form, which can be sent several times."""

    parts: Sequence[Part]
    _boundary: str = field(factory=lambda: secrets.token_hex(16), init=False)

    @property
    def type(self) -> str:
        """Its media type."""
        return f"multipart/form-data; boundary={self._boundary}"

    async def size(self) -> int:
        """Return the number of its bytes. Raises OSError for a file that cannot be read."""
        total = len(self._end)
        for part in self.parts:
            total += len(self._head(part)) + 2
            total += len(part.value.encode()) if isinstance(part.value, str) else await _size(part.value)
        return total

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield its bytes. Raises OSError."""
        for part in self.parts:
            yield self._head(part)
            if isinstance(part.value, str):
                yield part.value.encode()
            else:
                async for piece in _pieces(part.value):
                    yield piece
            yield b"\r\n"
        yield self._end

    @property
    def _end(self) -> bytes:
        return f"--{self._boundary}--\r\n".encode()

    def _head(self, part: Part) -> bytes:
        shown = f'form-data; name="{_quoted(part.name)}"'
        kind = ""
        if isinstance(part.value, Path):
            shown += f'; filename="{_quoted(part.value.name)}"'
            kind = f"Content-Type: {_type_of(part.value)}\r\n"
        return f"--{self._boundary}\r\nContent-Disposition: {shown}\r\n{kind}\r\n".encode()


@frozen
class Raw:
    """A file as the whole body."""

    path: Path
    given_type: str | None = None

    @property
    def type(self) -> str:
        """Its media type, by its name if none is given."""
        return self.given_type or _type_of(self.path)

    async def size(self) -> int:
        """Return the number of its bytes. Raises OSError."""
        return await _size(self.path)

    def pieces(self) -> AsyncIterator[bytes]:
        """Yield its bytes. Raises OSError."""
        return _pieces(self.path)


async def _size(path: Path) -> int:
    async with await trio.open_file(path, "rb") as file:  # which fails now, if it fails, and not in the request
        return await file.seek(0, 2)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    async with await trio.open_file(path, "rb") as file:
        while data := await file.read(_PIECE_BYTES):
            yield data


def _quoted(text: str) -> str:
    """Return a name within quotes, as browsers write it."""
    return (
        text.encode("utf-8", "replace")
        .decode()
        .replace('"', "%22")
        .replace("\r", quote("\r"))
        .replace("\n", quote("\n"))
    )


def _type_of(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or _PLAIN
