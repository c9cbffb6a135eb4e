"""A store of files for tests without doors, and what it has."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from actors.files import Files
from config.settings import FilesSettings


def id_of(data: bytes) -> str:
    """Return the id of a file with this content."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@attrs.define
class Stored:
    """A store, and how a test looks into it."""

    path: Path
    files: Files

    @property
    def store(self) -> Any:
        """What a call gets to store the files of its result."""
        return partial(self.files.writing, execution="e", module="m")

    async def add(self, data: bytes, name: str = "a.txt") -> tuple[Path, str]:
        """Store a file as an upload; return what a call gets of it."""
        async with self.files.writing(name, "") as writing:
            await writing.write(data)
            kept = await writing.finish()
        return kept.path, kept.name

    def content(self, value: Any) -> bytes:
        """Return the content of a file in a result."""
        assert value.keys() == {"$file"}
        described = value["$file"]
        digest = described["id"].removeprefix("sha256:")
        data = (self.path / "files" / digest[:2] / digest).read_bytes()
        assert (described["id"], described["size"]) == (id_of(data), len(data))
        return data

    def contents(self) -> list[bytes]:
        """Return everything below the folder of the store, unfinished files included."""
        return [path.read_bytes() for path in sorted((self.path / "files").rglob("*")) if path.is_file()]


@asynccontextmanager
async def open_store(path: Path, **settings: Any) -> AsyncIterator[Stored]:
    """Run a store of files with its data under `path`."""

    async def existing(_names: object) -> set[str]:
        await trio.lowlevel.checkpoint()
        return {"e"}

    files = Files(FilesSettings(**settings), path, existing)
    async with trio.open_nursery() as nursery:
        await nursery.start(files.run)
        yield Stored(path, files)
        assert files.statistics().writing == 0, "a file is still being written"
        nursery.cancel_scope.cancel()
