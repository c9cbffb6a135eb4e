"""The way of recorded executions into the database: group commits, callers who wait for one, and retention.

Everything here runs on the event loop; the work on the disk is done by `Archive`, in threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio
from attrs import evolve, frozen

from actors.history import pending, retention
from actors.history.archive import Archive
from actors.history.pending import Batch, Pending, Room, unavailable
from actors.history.retention import Pace
from actors.journal import Entry
from actors.sqlite import TROUBLE, is_busy, reason_of
from config.settings import HistorySettings

log: Any = structlog.get_logger(__name__)

GROUP_SECONDS: Final = 0.025
"""A running execution must be this old to be written, and its commit gathers more for as long: 50 ms together."""
LAZY_SECONDS: Final = 0.25
"""Ended executions, which the journal has, wait for so long unless a caller waits for their commit."""
MANY_ROWS: Final = 1000
"""So many do not wait."""
MANY_BYTES: Final = 16 * 1024 * 1024
"""Nor do so many bytes."""
FLUSH_SECONDS: Final = 10.0
LIST_WAIT_SECONDS: Final = 1.0
_BACKOFF: Final = (0.1, 0.2, 0.5, 1.0, 2.0)


@frozen
class HistoryStatistics:
    """`pending` rows are recorded and not in the database yet, `running` ones are known in memory only."""

    pending: int = 0
    running: int = 0
    unwritten_bytes: int = 0
    """Inputs, results and events in the pending rows, and in ends on their way into the journal."""
    pieces: int = 0
    """Pieces of events that wait for the database."""
    pieces_dropped: int = 0
    """Pieces of events for which there was no room, or that could not be stored."""
    journal_bytes: int = 0
    rows: int = 0
    """Executions in the database."""
    database_bytes: int = 0
    """Bytes of the database that hold something: executions, their events and all else."""
    committed: int = 0
    """Rows written since the start, by `commits` transactions."""
    commits: int = 0
    rejected: int = 0
    """Rows that the database would never take, each logged with its reason."""
    deleted: int = 0
    """Executions deleted since the start because they were too old or too many."""
    last_commit_seconds: float = 0.0
    last_error: str | None = None
    """Why the database cannot be written now; None while it can."""
    refusing: str | None = None
    """Why no execution may begin now; None while they may."""
    damaged: tuple[str, ...] = ()
    """The parts that were found damaged since the start, in order: `history`, `journal`."""


class Committer:
    """Commits what is pending, a group at a time, and deletes old executions; callers can wait for their commit.

    Commits are numbered, so that a caller can wait for the one that holds what it recorded.
    """

    def __init__(self, settings: HistorySettings, clock: Callable[[], float]) -> None:
        self.pending = Pending(settings.max_pending)
        self.room = Room(self.pending, settings, self._commit_soon)
        self.counted = HistoryStatistics()
        """The counters that rise; the rest of the fields is not set."""
        self._settings = settings
        self._clock = clock
        self._pace = Pace()
        self._started = 0
        self._stored = 0
        self._take_all = False
        self._oldest: float | None = None  # since when ended executions wait for a commit
        self.failing = False
        """The database cannot be written for another reason than that somebody else is writing."""
        self._closing = trio.Event()
        self._wake = trio.Event()  # there is something to store
        self._hurry = trio.Event()  # a caller waits for the next commit
        self._settled = trio.Event()  # the commit on its way has ended
        self._mended = trio.Event()  # a damaged database was replaced
        self.noticed = trio.Event()
        """Set, and replaced, when notices were stored."""

    def put(self, entry: Entry) -> None:
        """Add a recorded state to what is pending."""
        self.pending.put(entry)
        self.gather()
        if len(self.pending.done) == MANY_ROWS or self.pending.bytes > MANY_BYTES:
            self._hurry.set()
        self._wake.set()

    def gather(self) -> None:
        """Commit what is pending before long."""
        if self._oldest is None:
            self._oldest = trio.current_time()
        self._wake.set()

    def wake(self) -> None:
        """Look again at what is pending."""
        self._wake.set()

    def close(self) -> None:
        """Let `work` end."""
        self._closing.set()
        self._wake.set()
        self._hurry.set()

    def notice(self) -> None:
        """Let those that wait for notices look."""
        noticed, self.noticed = self.noticed, trio.Event()
        noticed.set()

    def _commit_soon(self) -> None:
        self._hurry.set()

    # For callers

    async def wait_settled(self) -> None:
        """Wait until the next commit has ended, stored or not."""
        await self._settled.wait()

    async def _wait_stored(self, number: int, seconds: float) -> bool:
        """Wait for the commit with this number, or a later one that took over its rows; return whether it is stored.

        Returns early when the database cannot be written.
        """
        with trio.move_on_after(seconds):
            while self._stored < number and not (self.failing and self._started >= number):
                await self._settled.wait()
        return self._stored >= number

    async def wait_for_disk(self) -> None:
        """Wait until everything that is pending is stored. Raises `RunnerError` (`unavailable`) after 30 seconds."""
        self._hurry.set()
        if not await self._wait_stored(self._started + 1, pending.WAIT_SECONDS):
            reason = f"the database took more than {pending.WAIT_SECONDS:g} seconds"
            raise unavailable("written", self.counted.last_error or reason)

    async def catch_up(self) -> None:
        """Wait, at most a second, until everything recorded so far is in the database; at once while it fails."""
        waiting = self.pending.begun or self.pending.done
        if (waiting or self.pending.taken) and self.counted.last_error is None:
            self._take_all = True
            self._hurry.set()
            # A running commit does not contain rows that came after its start.
            await self._wait_stored(self._started + (1 if waiting else 0), LIST_WAIT_SECONDS)

    # The loop

    async def work(self, archive: Archive) -> None:
        """Commit due rows, and delete executions that are too old or too many, until `close`."""
        self._pace.at = trio.current_time()
        failures = 0
        while not self._closing.is_set():
            if failures:
                # Waiting callers must not shorten the back-off.
                with trio.move_on_after(_BACKOFF[min(failures, len(_BACKOFF)) - 1]):
                    await self._closing.wait()
            else:
                await self._wait_until_due()
            await self._mend(archive)
            before = self.counted.committed
            failures = 0 if await self._commit(archive) else failures + 1
            if not failures:
                await self._retain(archive, self.counted.committed - before)

    async def flush(self, archive: Archive) -> None:
        """Store everything that is pending, for at most 10 seconds; the journal keeps the rest."""
        with trio.move_on_after(FLUSH_SECONDS):
            while self.pending.due:
                if not await self._commit(archive, everything=True):
                    await trio.sleep(_BACKOFF[0])

    async def _wait_until_due(self) -> None:
        if not self.pending.due:
            self._wake = trio.Event()
            with trio.move_on_at(self._pace.at):
                await self._wake.wait()
        with trio.move_on_after(GROUP_SECONDS):
            await self._hurry.wait()
        while not self._hurry.is_set() and (due := self._due_at()) > trio.current_time():
            with trio.move_on_at(due):
                await self._hurry.wait()

    def _due_at(self) -> float:
        """Return when the next commit is due unless somebody hurries; what waits for it may change meanwhile."""
        due = math.inf if self._oldest is None else self._oldest + LAZY_SECONDS
        for begun, _ in self.pending.begun.values():
            return min(due, begun + 2 * GROUP_SECONDS)  # the oldest
        return due if self.pending.due else -math.inf

    async def _mend(self, archive: Archive) -> None:
        """Replace a damaged database, and let those who wait for that go on."""
        if archive.suspected is None:
            return
        try:
            await archive.mend()
        except TROUBLE as problem:
            log.warning("the damaged history database cannot be replaced", reason=reason_of(problem))
        mended, self._mended = self._mended, trio.Event()
        mended.set()

    async def wait_mended(self, seconds: float) -> None:
        """Wait until a damaged database was replaced, or could not be, for at most so many seconds."""
        self._wake.set()
        self._hurry.set()
        with trio.move_on_after(seconds):
            await self._mended.wait()

    async def _commit(self, archive: Archive, *, everything: bool = False) -> bool:
        """Store what is due; return whether the database took it."""
        ripe = trio.current_time() - (0 if everything or self._take_all else GROUP_SECONDS)
        self._take_all, self._oldest = False, None
        self._hurry = trio.Event()  # callers that hurry from now on wait for another commit
        self._started += 1
        number, stored, batch = self._started, False, self.pending.take(ripe)
        try:
            if batch:
                await self._store(archive, batch)
            stored = True
        except TROUBLE as problem:
            if self.counted.last_error is None:
                log.warning("the history cannot be stored: journal and memory keep it", reason=reason_of(problem))
            self.counted = evolve(self.counted, last_error=reason_of(problem))
            self.room.reason = reason_of(problem)
            self.failing = not is_busy(problem) and not archive.suspect(problem)
        finally:
            self.pending.settle(stored=stored)
            if not stored and self._oldest is None and self.pending.due:
                self._oldest = trio.current_time()
            if stored:
                self._stored = number
                self.room.reason = None
            self.room.free()
            settled, self._settled = self._settled, trio.Event()
            settled.set()
        return stored

    async def _store(self, archive: Archive, batch: Batch) -> None:
        begun, again = trio.current_time(), self.counted.last_error is not None
        stored = await archive.commit(batch, again=again)
        for name, why in stored.refused.items():
            log.error("an execution cannot be stored and is dropped", execution=name, reason=why)
        for name, why in stored.refused_pieces.items():
            log.error("events cannot be stored and are dropped", execution=name, reason=why)
        if stored.notices:
            self.notice()
        self.failing = False
        if again:
            log.info("the history is stored again", rows=len(batch.entries))
        counted = self.counted
        self.counted = evolve(
            counted,
            committed=counted.committed + len(batch.entries) - len(stored.refused),
            commits=counted.commits + 1,
            rejected=counted.rejected + len(stored.refused),
            pieces_dropped=counted.pieces_dropped + len(stored.refused_pieces),
            last_commit_seconds=trio.current_time() - begun,
            last_error=None,
        )

    async def _retain(self, archive: Archive, rows: int) -> None:
        """Delete one chunk of old executions, and as many more as keep up with the `rows` just stored."""
        pace = self._pace
        over = retention.over_limits(self._settings, archive.rows, archive.size)
        chunks = pace.chunks(trio.current_time(), rows, over=over)
        while chunks > 0 and not self._closing.is_set():
            begun = trio.current_time()
            try:
                kept = await archive.retain(self._clock(), pace.size)
            except TROUBLE as problem:
                log.warning("old executions cannot be deleted", reason=reason_of(problem))
                kept = retention.Kept(0, more=False, rows=archive.rows, size=archive.size)
            self.counted = evolve(self.counted, deleted=self.counted.deleted + kept.deleted)
            pace.note(kept, begun, trio.current_time())
            chunks = chunks - 1 if kept.more else 0
