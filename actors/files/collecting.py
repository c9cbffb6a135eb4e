"""`Collecting`: which files no execution uses any more, found and deleted in short steps."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from attrs import define, field

from actors.files.elsewhere import Elsewhere
from actors.files.index import Collected, Row, Viewer
from actors.files.store import Store
from actors.files.verifying import Verifying
from config.settings import FilesSettings
from protocol.errors import ErrorKind, error

NEW_SECONDS: Final = 120.0
"""A use so young counts, although its execution may not be known yet."""
EXECUTIONS: Final = 500
"""Executions that one step asks for."""
Existing = Callable[[Collection[str]], Awaitable[set[str]]]
"""Returns those of the ids that are executions, live or in the history."""
log: Any = structlog.get_logger("files")


@define(eq=False)
class Collecting:
    """Deletes files of a store. Methods are called on the event loop unless they say otherwise."""

    _store: Store
    _verifying: Verifying
    _existing: Existing
    _settings: FilesSettings
    _kept_seconds: float
    """For how long the history keeps executions."""
    _lock: trio.Lock = field(factory=trio.Lock, init=False)

    async def collect(self, *, contents: bool = True) -> Collected:
        """Delete the files that no execution uses and that are older than `file_retention`; return the deleted.

        With `contents`, contents without a file are removed too, as a killed runner may leave one. Raises RunnerError
        `unavailable`: then it is unknown whether more is unused.
        """
        async with self._lock:
            await self._forget_executions()
            files = size = 0
            start: str | None = ""
            while start is not None:
                rows, start = await self._store.run(partial(self._delete_some, start))
                files, size = files + len(rows), size + sum(row[1] for row in rows)
                for row in rows:
                    self._verifying.forget(row[0])
            if contents:
                for folder in await self._store.run(self._store.content.folders):
                    await self._remove_strays(folder)
        if files:
            log.info("files were deleted that no execution uses", files=files, bytes=size)
        return Collected(files, size)

    async def remove(self, name: str, viewer: Viewer | None, elsewhere: Elsewhere | None) -> bool:
        """Delete a file, as `Files.remove`."""
        found = await self._store.ask(lambda link: self._store.index.executions_of(link, name, EXECUTIONS))
        gone = {each for each, at in found if at <= self._store.clock() - NEW_SECONDS}
        gone -= await self._existing(gone) if gone else set()
        await self._forget(gone)
        if elsewhere is not None:
            if not await self._store.ask(lambda link: self._removable(link, name, viewer, shared=True)):
                return False
            await elsewhere.withdraw(name, viewer.subject if viewer is not None else "")

        def change(link: sqlite3.Connection) -> tuple[bool, bool]:
            row = self._removable(link, name, viewer)
            if row is None:
                return False, False
            if viewer is not None and self._store.index.withdraw(link, name, viewer.subject):
                return True, False
            self._store.index.delete(link, row)
            return True, True

        def work() -> bool:
            known, deleted = self._store.transact(change)
            if deleted:
                self._store.content.remove(name)
            return known

        known = await self._store.run(work)
        if known:
            self._verifying.forget(name)
        return known or elsewhere is not None

    def _removable(
        self, link: sqlite3.Connection, name: str, viewer: Viewer | None, *, shared: bool = False
    ) -> Row | None:
        """Return a file that the viewer sees, of others too with `shared`. Raises RunnerError `conflict`."""
        row = self._store.index.get(link, name, viewer)
        if row is None and shared:
            row = self._store.index.get(link, name, viewer, "shared")
        used = self._store.index.executions_of(link, name, 1)
        if row is not None and used:
            # A limited caller may not know the execution.
            user = f"the execution {used[0][0]}" if viewer is None else "an execution"
            text = f"{user} uses the file; it is kept as long as the history has the execution"
            raise error(ErrorKind.CONFLICT, text, field="id")
        return row

    async def _forget_executions(self) -> None:
        after, before = "", self._store.clock() - NEW_SECONDS
        while found := await self._next_executions(after, before):
            after, gone = found[-1], set(found) - await self._existing(found)
            if gone:
                await self._forget(gone)

    async def _next_executions(self, after: str, before: float) -> list[str]:
        return await self._store.ask(lambda link: self._store.index.executions_after(link, after, before, EXECUTIONS))

    async def _forget(self, gone: set[str]) -> None:
        await self._store.ask(lambda link: self._store.index.forget(link, gone))

    def _delete_some(self, start: str) -> tuple[list[Row], str | None]:
        """Delete what is unused of some files after `start`, in the thread for changes; return the next start too."""
        now, lost = self._store.clock(), self._store.index.lost_at
        # Which of the files from before a loss of uses are used is unknown, until all executions of that time are gone.
        after = lost if lost and now < lost + self._kept_seconds else 0.0

        def change(link: sqlite3.Connection) -> tuple[list[Row], str | None]:
            rows, following = self._store.index.unused(link, start, now - self._settings.file_retention_seconds, after)
            for row in rows:
                self._store.index.delete(link, row)
            return rows, following

        rows, following = self._store.transact(change)
        for row in rows:  # a runner that is killed before this leaves a stray content
            self._store.content.remove(row[0])
        return rows, following

    async def _remove_strays(self, folder: Path) -> None:
        def work() -> None:
            names = [name for name, _ in self._store.content.names_in(folder)]
            for name in self._store.transact(lambda link: self._store.index.unknown(link, names)):
                self._store.content.remove(name)

        await self._store.run(work)
