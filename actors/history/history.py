"""`History`, the actor that records executions and answers questions about them.

Every call waits for its record, so `finish` writes one journal record (the page cache survives the death of the
process) and returns; the row is stored by the next group commit, in a thread, over the only write connection. A commit
deletes the journal segments that it covers. Events of running executions are stored by the same commits, without the
journal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
import trio
from attrs import evolve

from actors.history import queries, rollups
from actors.history.archive import Archive, Past
from actors.history.committer import Committer, HistoryStatistics, unavailable
from actors.history.journal import Entry
from actors.history.pieces import NOTHING, Piece, joined
from actors.history.queries import Page, Query
from actors.history.rollups import ModuleStats
from actors.sqlite import TROUBLE, reason_of
from config.settings import HistorySettings
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Execution

T = TypeVar("T")


class History:
    """The actor. Call all methods on the event loop; call them while `run` runs unless they say otherwise."""

    def __init__(self, settings: HistorySettings, data_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Keep the record in `data_dir`; `clock` is the time of day, for retention and for lost executions."""
        self._settings = settings
        self._data_dir = data_dir
        self._clock = clock
        self._archive: Archive | None = None
        self._past: Past | None = None
        self._committer = Committer(settings, clock)
        self._pending = self._committer.pending
        self._revision = 0
        self._closed: trio.Event | None = None

    # Recording

    def begin(self, execution: Execution) -> None:
        """Remember `execution` as running; never blocks. Its row is written within about 50 ms unless it ends first.

        Raises `RunnerError` (`unavailable`) when the history is not open.
        """
        self._opened()
        self._pending.begin(trio.current_time(), self._entry(execution))
        self._committer.wake()

    def append(self, name: str, events: bytes, first_seq: int, forget: tuple[int, int] | None = None) -> None:
        """Add events of the running execution with the id `name`: a JSON array, the first with number `first_seq`.

        Never blocks nor raises, also while `run` does not run. The next group commit stores them, best effort: they
        are the known events if the runner dies later. `forget` is a half-open range of event numbers: pieces added
        before that lie in it as a whole are deleted. While `max_pending` pieces wait, the oldest are dropped and
        counted. An execution that has ended ignores further events.
        """
        self._pending.append(Piece(name, first_seq, events), forget)
        self._committer.wake()

    async def finish(self, execution: Execution) -> None:
        """Record the end of `execution`; when this returns the record survives `kill -9` (`disk`: power loss too).

        Its `events` replace those added by `append`. Usually does not checkpoint; while `max_pending` rows wait, it
        waits for the database, at most 30 seconds. Raises `RunnerError` (`unavailable`) when the end cannot be
        recorded: then the result must not be acknowledged. Only the waits can be cancelled: by then the execution is
        in the journal.
        """
        archive, entry = self._opened(), self._entry(execution)
        try:
            await self._append(archive, entry)
        except RunnerError:
            if len(self._pending) < self._settings.max_pending:
                # The caller gets an error, as the record is not safe; it may still reach the database.
                self._committer.put(entry)
            raise
        self._committer.put(entry)
        # Without `disk` the record is safe by now: this only slows callers down when the database is slow.
        await (self._committer.wait_for_disk() if self.waits_for_disk else self._committer.wait_for_room())

    async def submit(self, execution: Execution) -> None:
        """Record an accepted `execution` that is queued, or runs under an idempotency key, as safely as `finish`.

        Raises `RunnerError` (`unavailable`) when it cannot be recorded, or when there is no room within 30 seconds.
        Then, and after cancellation, nothing is recorded, with one exception: with durability `disk` the wait for the
        commit may time out or be cancelled after the record was made; the caller then ends the execution by `finish`.
        """
        archive = self._opened()
        if not await self._committer.wait_for_room():
            reason = f"{len(self._pending)} rows wait for the database"
            raise unavailable("written", self._committer.counted.last_error or reason)
        entry = self._entry(execution)
        await self._append(archive, entry)
        self._committer.put(entry)
        if self.waits_for_disk:
            await self._committer.wait_for_disk()

    async def _append(self, archive: Archive, entry: Entry) -> None:
        try:
            await archive.append(entry)
        except OSError as problem:
            raise unavailable("written", reason_of(problem)) from problem

    @property
    def waits_for_disk(self) -> bool:
        """Whether a refused record may exist all the same: with `disk` it is written before it is safe."""
        return self._settings.durability == "disk"

    def _entry(self, execution: Execution) -> Entry:
        self._revision += 1
        return Entry(self._revision, execution)

    def _opened(self) -> Archive:
        if self._archive is None:
            raise error(ErrorKind.UNAVAILABLE, "the history is not open", retry_after=1.0)
        return self._archive

    # Asking

    async def get(self, name: str) -> Execution | None:
        """Return the whole execution with this id in its latest state, or None.

        A running execution has the events added by `append`. Raises `RunnerError` (`unavailable`) when the database
        cannot be read. Cancellation waits for the end of the read.
        """
        await trio.lowlevel.checkpoint()
        known = self._pending.find(name)
        if known is not None and known.status.final:
            return known
        waiting = self._pending.pieces.find(name)
        if known is not None and known.events != NOTHING:
            waiting = (known.events, *waiting)
        stored = await self._read(lambda link: queries.fetch(link, name, waiting))
        latest = self._pending.find(name) or known
        if latest is None or latest.status.final:
            return latest or stored
        return evolve(latest, events=joined(waiting) if stored is None else stored.events)

    async def find_keyed(self, subject: str, module: str, key: str, since: float) -> Execution | None:
        """Return a caller's newest execution of `module` with this idempotency key, whole, or None.

        Only executions created at or after `since` (seconds since the epoch) count. Raises `RunnerError` as `get`.
        Nothing is reserved: when two calls with one key both get None, the caller of this method must serialize them.
        """
        wanted = (subject, module, key)
        waiting = self._pending.find_keyed(wanted)
        stored = await self._read(lambda link: queries.find_keyed(link, wanted, since))
        found = [execution for execution in (waiting, stored) if execution and execution.created_at >= since]
        if not found:
            return None
        newest = max(found, key=lambda execution: (execution.created_at, execution.id))
        # The copy in memory may have a later state.
        return await self.get(newest.id) or newest

    async def list(self, query: Query) -> Page:
        """Return one page of executions, newest first, without input, result, traceback, events, failed attempts.

        Executions recorded before the call are included, unless the database cannot be written now. A page with fewer
        than `limit` executions, or none, may have a `next_cursor`: then the search continues there. Raises
        `RunnerError`: `bad_input` for limit and cursor, `unavailable` as `get`.
        """
        await self._committer.catch_up()
        return await self._read(lambda link: queries.page(link, query))

    async def stats(self, module: str, *, since: float | None = None, until: float | None = None) -> ModuleStats:
        """Return statistics of the executions of `module` that ended in `since` <= time < `until`; None is no bound.

        Durations are within 2 %. The window is widened to whole spans of 5 minutes, of an hour where it is more than
        2 days ago, and of a day after 60 days; the answer has the widened bounds. Executions that were deleted because
        there were too many are counted too. Raises `RunnerError`: `bad_input` for a bound that is not a number,
        `unavailable` as `get`.
        """
        for name, bound in (("since", since), ("until", until)):
            if bound is not None and math.isnan(bound):
                raise error(ErrorKind.BAD_INPUT, f"{name} must be a number of seconds since the epoch", field=name)
        await self._committer.catch_up()
        over = rollups.window(since, until, self._clock(), self._settings.retention_seconds)
        total = await self._read(lambda link: queries.total(link, module, over.parts))
        return rollups.summary(module, over, total)

    def left(self) -> Past:
        """Return the ids of the executions that the last runner left queued, and of those that it lost, oldest first.

        Running executions were failed as `lost` when the history was opened; they keep their stored events. A retry
        numbers its events from `events_count`, which is 1,000,000 above the next multiple of 1,000,000 over the highest
        stored number: a reader may have seen events that were never stored, and no number may come twice.
        """
        return self._opened().past

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        archive = self._opened()
        try:
            return await archive.read(work)
        except TROUBLE as problem:
            raise unavailable("read", reason_of(problem)) from problem

    def statistics(self) -> HistoryStatistics:
        """Return the counters; cheap, at any time."""
        archive, pending, counted = self._archive, self._pending, self._committer.counted
        return evolve(
            counted,
            pending=len(pending),
            running=len(pending.begun),
            pieces=len(pending.pieces),
            pieces_dropped=counted.pieces_dropped + pending.pieces.dropped,
            journal_bytes=0 if archive is None else archive.journal.size,
            rows=0 if archive is None else archive.rows,
            database_bytes=0 if archive is None else archive.size,
        )

    # The actor's own task

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open, replay the journal, report started, and commit until `aclose` or cancellation.

        Both ends store all that is pending first, for at most about 10 seconds; the journal keeps the rest for the next
        start. Raises `RunnerError` (`unavailable`) when the data directory is in use or cannot be used, or when the
        database has another schema. May run again after it ended.
        """
        self._closed = trio.Event()
        try:
            opened = await Archive.open(self._settings, self._data_dir, self._clock(), self._past)
            self._archive, self._past = opened, opened.past
            # After a restart in the same process the memory may be ahead of the disk.
            self._revision = max(self._revision, opened.revision)
            task_status.started()
            await self._committer.work(opened)
        finally:
            with trio.CancelScope(shield=True):
                await self._shut()

    async def aclose(self) -> None:
        """Stop `run`, if it runs, and wait until all is stored and closed; bounded as `run` says.

        Cancellation leaves the closing to `run`.
        """
        self._committer.close()
        if self._closed is not None:
            await self._closed.wait()

    async def _shut(self) -> None:
        """Store the rest, for a bounded time, and close."""
        archive = self._archive
        try:
            if archive is not None:
                try:
                    await self._committer.flush(archive)
                finally:
                    self._archive = None
                    await archive.aclose()
        finally:
            if self._closed is not None:
                self._closed.set()
