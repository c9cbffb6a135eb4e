"""`Files`, the actor that keeps files: contents in a folder by digest, everything else about them in one database.

All changes of database and folder, except unfinished contents, are made by one thread at a time. So a file is never
deleted between the look at its uses and a new use, and a content never while the same one is stored again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from attrs import frozen

from actors.files.collecting import Collecting, Existing
from actors.files.content import Content, Stamp
from actors.files.elsewhere import Elsewhere, Load, Shared, Sharing, stored_file
from actors.files.index import FILE_NAME, Collected, Index, Place, Row, Viewer
from actors.files.model import StoredFile, checked_id, checked_name, checked_type
from actors.files.store import Store
from actors.files.verifying import Verifying
from actors.files.writing import Writing
from config.settings import FilesSettings
from protocol.errors import ErrorKind, RunnerError, error

COLLECT_SECONDS: Final = 3600.0
"""Time between two collections; a store without room hurries the next one."""
_HURRIED_SECONDS: Final = 10.0
_THREADS: Final = 4
log: Any = structlog.get_logger("files")


@frozen
class FilesStatistics:
    """`bytes` of `limit_bytes` are taken by files; `writing_bytes` more by `writing` unfinished ones.

    `refused` counts files without room, `collected` deleted ones, `fetched` those that came from other runners.
    `damaged` has the names of damaged files, and `files.db` if that was damaged.
    """

    files: int = 0
    bytes: int = 0
    limit_bytes: int = 0
    writing: int = 0
    writing_bytes: int = 0
    refused: int = 0
    collected: int = 0
    damaged: tuple[str, ...] = ()
    fetched: int = 0


class Files:
    """The actor. Call its methods on the event loop, while `run` runs; else they raise RunnerError `unavailable`."""

    def __init__(
        self,
        settings: FilesSettings,
        data_dir: Path,
        existing: Existing,
        *,
        kept_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep files in `data_dir`. `kept_seconds` is the time for which the history keeps executions."""
        self._settings = settings
        self._content = Content(data_dir / "files")
        self._index = Index(data_dir / FILE_NAME)
        self._store = Store(self._content, self._index, clock)
        self._verifying = Verifying(trio.CapacityLimiter(_THREADS))
        self._existing = existing
        self._clock = clock
        self._writing = self._writing_bytes = self._refused = self._collected = 0
        self._hurried = trio.Event()
        self._collecting = Collecting(self._store, self._verifying, existing, settings, kept_seconds)
        self._disk = trio.CapacityLimiter(_THREADS)
        self.sharing = Sharing(self._store, self._verifying)
        self.elsewhere: Elsewhere | None = None
        """The other runners; None for a runner alone."""

    # Writing

    @asynccontextmanager
    async def writing(
        self, name: str, media_type: str, *, subject: str = "", execution: str = "", module: str = ""
    ) -> AsyncIterator[Writing]:
        """Yield the writer of a file; left without its `finish`, nothing remains.

        `subject` uploads it, or `execution` of `module` makes it and uses it. Raises RunnerError `bad_input` for name
        and type.
        """
        shown, kind = checked_name(name), checked_type(media_type)
        if not self._store.is_open:
            raise error(ErrorKind.UNAVAILABLE, "the store of files is not open", retry_after=1.0)
        taken = 0

        def reserve(size: int) -> None:
            nonlocal taken
            self.check_size(size, taken)
            taken += size
            self._writing_bytes += size

        async def place(path: Path, found: str, size: int) -> StoredFile:
            row = (found, size, kind, shown, self._clock())

            def work() -> Stamp:
                stamp = self._content.place(path, found)
                self._store.transact(partial(self._add, row, subject, execution, module))
                return stamp

            self._verifying.remember(found, await self._store.run(work))
            stored = self._stored(row)
            if self.elsewhere is not None:
                await self.elsewhere.offer(stored, subject, execution)
            return stored

        self._writing += 1
        writer = Writing(self._content, self._disk, reserve, place)
        try:
            yield writer
        finally:
            self._writing -= 1
            self._writing_bytes -= taken
            await writer.close()

    def _add(self, row: Row, subject: str, execution: str, module: str, link: sqlite3.Connection) -> None:
        self._index.add(link, row, subject, execution, module)
        if self.elsewhere is not None:
            self.sharing.forget(link, row[0])

    def check_size(self, size: int, before: int = 0) -> None:
        """Raise RunnerError `too_large` or `out_of_storage` if `size` bytes after those `before` cannot be taken."""
        largest, limit = self._settings.max_file_bytes, self._settings.max_files_bytes
        if before + size > largest:
            raise error(ErrorKind.TOO_LARGE, f"the file is over {largest} bytes; the limit is `max_file`", field="$")
        if self._index.total_bytes + self._writing_bytes + size > limit:
            self._refused += 1
            self._hurried.set()
            text = f"files take {self._index.total_bytes} of {limit} bytes; the limit is `max_files_bytes`"
            raise error(ErrorKind.OUT_OF_STORAGE, f"{text}; delete files that are not used")

    # Reading

    async def find(self, name: str, viewer: Viewer | None = None) -> StoredFile | None:
        """Return a file by its id, with its content verified, or None where the viewer sees no such file.

        Raises RunnerError `unavailable` if it is damaged. Cancellation ends the check.
        """
        row = await self._store.ask(lambda link: self._index.get(link, name, viewer))
        if row is None and await self._brought(name, viewer):
            row = await self._store.ask(lambda link: self._index.get(link, name, viewer))
        return None if row is None else await self._whole(row)

    async def use(
        self, execution: str, module: str, ids: Collection[str], viewer: Viewer | None = None
    ) -> dict[str, StoredFile]:
        """Keep files for an execution as long as it exists; return them, verified, by id.

        Repeating it changes nothing. Raises RunnerError: `bad_input` with the id that there is not, or that the viewer
        does not see, keeping nothing; `unavailable` if one is damaged. Cancelled, they may be kept.
        """
        names, now = sorted(map(checked_id, ids)), self._clock()
        if not names:
            return {}
        rows, missing = await self._store.ask(lambda link: self._index.use(link, execution, module, names, viewer, now))
        while missing is not None and await self._brought(missing, viewer):
            rows, missing = await self._store.ask(
                lambda link: self._index.use(link, execution, module, names, viewer, now)
            )
        if missing is not None:
            text = f"there is no file {missing}; upload it: a file that no execution uses is deleted"
            raise error(ErrorKind.BAD_INPUT, f"{text} after `file_retention`", field="$file.id")
        found = [await self._whole(row) for row in rows.values()]
        return {stored.id: stored for stored in found if stored is not None}  # all of them: no used file is deleted

    async def _brought(self, name: str, viewer: Viewer | None) -> bool:
        return self.elsewhere is not None and await self.elsewhere.bring(name, viewer)

    async def _whole(self, row: Row) -> StoredFile | None:
        """Return a file with its content verified; a damaged one is brought from others, if they have it."""
        try:
            return await self._verifying.check(self._stored(row), self._exists)
        except RunnerError:
            if not await self._brought(row[0], None):
                raise
        return await self._verifying.check(self._stored(row), self._exists)

    async def _exists(self, name: str) -> bool:
        return await self._store.ask(lambda link: self._index.get(link, name, None)) is not None

    async def receive(self, shared: Shared, load: Load) -> bool:
        """Store a file of other runners, whose content `load` writes, as `Sharing.receive`.

        Raises RunnerError `too_large` or `out_of_storage` if there is no room for it.
        """
        self.check_size(shared.size)
        self._writing_bytes += shared.size
        try:
            return await self.sharing.receive(shared, load)
        finally:
            self._writing_bytes -= shared.size

    async def page(
        self, viewer: Viewer | None, limit: int, before: Place | None
    ) -> tuple[list[StoredFile], Place | None]:
        """Return at most `limit` files that the viewer sees, newest first, and where the next page begins.

        A page may be short, or empty, with another one after it.
        """
        rows, after = await self._store.ask(lambda link: self._index.page(link, viewer, limit, before))
        return [self._stored(row) for row in rows], after

    def statistics(self) -> FilesStatistics:
        """Return the counters; cheap, at any time."""
        index = self._index
        return FilesStatistics(
            index.count,
            index.total_bytes,
            self._settings.max_files_bytes,
            self._writing,
            self._writing_bytes,
            self._refused,
            self._collected,
            (*([FILE_NAME] if index.damaged else []), *sorted(self._verifying.damaged)),
            self.sharing.received,
        )

    def _stored(self, row: Row) -> StoredFile:
        return stored_file(self._content, row)

    # Deleting

    async def remove(self, name: str, viewer: Viewer | None = None) -> bool:
        """Delete a file, or the upload of this viewer if others have uploaded it too; return False without such a file.

        Raises RunnerError: `conflict` if an execution uses it, `unavailable` if other runners cannot be asked.
        """
        return await self._collecting.remove(name, viewer, self.elsewhere)

    async def collect(self, *, contents: bool = True) -> Collected:
        """Delete files that nothing uses, as `Collecting.collect`. Raises RunnerError `unavailable`."""
        found = await self._collecting.collect(contents=contents)
        self._collected += found.files
        return found

    # The actor's own task

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open, report started, and collect now and then until cancelled. Raises RunnerError `unavailable`.

        May run again after it ended.
        """
        await self._store.open()
        try:
            if self.elsewhere is None:
                await self.sharing.position(0)  # after it has left a cluster
            task_status.started()
            contents = True
            while True:
                self._hurried = trio.Event()
                await self._collect_safely(contents=contents)
                contents = False
                with trio.move_on_after(COLLECT_SECONDS):
                    await self._hurried.wait()
                await trio.sleep(_HURRIED_SECONDS)  # the next file without room need not collect again
        finally:
            await self._store.aclose()

    async def _collect_safely(self, *, contents: bool) -> None:
        try:
            await self.collect(contents=contents)
        except RunnerError as problem:
            log.warning("files are not collected now", reason=problem.failure.message)
