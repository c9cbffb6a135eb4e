"""`Writing`: one file on its way into the store. Disk work and digest run in threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import trio

from actors.files.content import PIECE_BYTES, Content, failed, name_of
from actors.files.model import StoredFile, check_digest

T = TypeVar("T")
GATHERED_BYTES: Final = 256 * 1024
"""Smaller pieces are gathered up to this size, as each step to a thread costs as much as the digest of some KiB."""


class Writing:
    """Takes the content piece by piece; without `finish` nothing remains of it."""

    def __init__(
        self,
        content: Content,
        threads: trio.CapacityLimiter,
        reserve: Callable[[int], None],
        place: Callable[[Path, str, int], Awaitable[StoredFile]],
    ) -> None:
        """Begin. `reserve` takes bytes of the store or raises RunnerError; `place` makes an unfinished content a file.

        Both belong to the store, as do the threads.
        """
        self.size = 0
        self._content = content
        self._threads = threads
        self._reserve = reserve
        self._place = place
        self._gathered = bytearray()
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._path: Path | None = None

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes. Raises RunnerError: `too_large`, `out_of_storage`, `unavailable`; then nothing can be added.

        At most 1 MiB is kept in memory besides `data`. Cancelled, the file cannot be finished.
        """
        size = len(data)
        self._reserve(size)
        self.size += size
        if len(self._gathered) + size <= GATHERED_BYTES:
            self._gathered += data
            return
        await self._flush()
        view = memoryview(data)
        for at in range(0, size, PIECE_BYTES):
            await self._put(view[at : at + PIECE_BYTES])

    async def finish(self, expected: str | None = None) -> StoredFile:
        """Return the file, which survives a loss of power from now on. `expected` is its id, if the sender gave one.

        Raises RunnerError as `write`, and `bad_input` for another digest. Cancelled, it is stored or not.
        """
        await self._flush()
        path, name = await self._run(self._sync), name_of(self._digest.hexdigest())
        check_digest(expected, name)
        stored = await self._place(path, name, self.size)
        self._path = None
        return stored

    async def close(self) -> None:
        """Remove what is not finished. Shielded from cancellation; it takes milliseconds."""
        self._gathered.clear()
        if self._file is not None or self._path is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._discard, limiter=self._threads)

    async def _flush(self) -> None:
        if self._gathered:
            data, self._gathered = self._gathered, bytearray()
            await self._put(data)

    async def _put(self, data: bytearray | memoryview) -> None:
        await self._run(partial(self._append, data))

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._threads)
        except OSError as problem:
            raise failed(problem) from problem

    # In threads

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file, self._path = self._content.make()
        return self._file

    def _append(self, data: bytearray | memoryview) -> None:
        self._content.check_room(len(data))
        self._digest.update(data)
        file, view = self._opened(), memoryview(data)
        while view:
            view = view[file.write(view) :]

    def _sync(self) -> Path:
        file = self._opened()
        os.fsync(file.fileno())
        file.close()
        self._file = None
        assert self._path is not None  # noqa: S101  (`_opened` set it)
        return self._path

    def _discard(self) -> None:
        file, path, self._file, self._path = self._file, self._path, None, None
        if file is not None:
            file.close()
        if path is not None:
            path.unlink(missing_ok=True)
