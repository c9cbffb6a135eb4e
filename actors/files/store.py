"""`Store`: the folder of contents and the database of files together, changed by one thread at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio
from attrs import define, field

from actors.files.content import Content, failed
from actors.files.index import Index
from protocol.errors import ErrorKind, RunnerError, error

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]


@define(eq=False)
class Store:
    """The open store. `ask` and `run` are called on the event loop, everything else in the thread of `run`."""

    content: Content
    index: Index
    clock: Callable[[], float]
    is_open: bool = field(default=False, init=False)
    _swept: bool = field(default=False, init=False)
    # A thread of its own: work that fills Trio's common limit must not delay the store.
    _changes: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1), init=False)

    async def ask(self, work: Operation[T]) -> T:
        """Return the result of a transaction. Raises RunnerError."""
        return await self.run(lambda: self.transact(work))

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work` in the thread for changes. Raises RunnerError. Cancellation waits for its end."""
        if not self.is_open:
            raise error(ErrorKind.UNAVAILABLE, "the store of files is not open", retry_after=1.0)
        return await self._in_thread(work)

    async def open(self) -> None:
        """Open everything. Raises RunnerError. Shielded from cancellation: files that were opened must be closed."""
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._open, limiter=self._changes)
        except (sqlite3.Error, OSError) as problem:
            text = f"the store of files {self.content.root} cannot be opened: {problem}"
            raise error(ErrorKind.UNAVAILABLE, text, field="data_dir") from problem
        self.is_open = True

    async def aclose(self) -> None:
        """Close everything."""
        self.is_open = False
        with trio.CancelScope(shield=True):
            await self._in_thread(self.index.close)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._changes)
        except sqlite3.Error as problem:
            raise _unrecorded(problem) from problem
        except OSError as problem:
            raise failed(problem) from problem

    # In the thread for changes

    def transact(self, work: Operation[T]) -> T:
        """Return the result of a transaction. It is repeated if the database was mended, so it repeats nothing else."""
        found = self.index.run(self.clock(), work)
        if self.index.lacking:
            self._adopt()
            return self.index.run(self.clock(), work)
        return found

    def _open(self) -> None:
        if not self._swept:  # after a restart of the actor, unfinished contents may have a writer
            self.content.sweep()
            self._swept = True
        self.index.open(self.clock(), contents=bool(self.content.folders()))
        if self.index.lacking:
            self._adopt()

    def _adopt(self) -> None:
        """Make rows that were lost from the contents."""
        self.index.lacking = False
        for folder in self.content.folders():
            self._adopt_in(folder)
        self.index.count_again()

    def _adopt_in(self, folder: Path) -> None:
        self.index.run(self.clock(), lambda link: self.index.adopt(link, self.content.names_in(folder)))


def _unrecorded(problem: sqlite3.Error) -> RunnerError:
    code = getattr(problem, "sqlite_errorcode", None) or 0
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return error(ErrorKind.OUT_OF_STORAGE, f"files cannot be recorded: {problem}; make room on the disk")
    return error(ErrorKind.UNAVAILABLE, f"files cannot be recorded: {problem}", retry_after=5.0)
