"""History: what ran, what runs and what became of it.

Record-keeping is on the path of every call, so `finish` writes one journal record (the page cache survives the death
of the process) and returns; the row follows into the database with the next group commit, in a thread, by the only
write connection. Journal segments are deleted when the commit that covers them is done. Events of what still runs
follow by the same commits, without the journal.
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
from actors.history.queries import Page, Query
from actors.history.rollups import ModuleStats
from actors.history.segments import NOTHING, Segment, joined
from actors.sqlite import TROUBLE, reason_of
from config.settings import HistorySettings
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Execution

T = TypeVar("T")


class History:
    """The actor. All methods are called on the event loop and, but for those that say so, while `run` runs."""

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

        Never blocks nor raises, at any time. They are stored with the next group commit, best effort: when the runner
        dies after that, they are what is known. `forget` is a half-open range of numbers: what was added before and
        lies in it as a whole is not kept any longer. With `max_pending` pieces behind the oldest are dropped, and
        counted. Nothing is done for an execution that has ended.
        """
        self._pending.append(Segment(name, first_seq, events), forget)
        self._committer.wake()

    async def finish(self, execution: Execution) -> None:
        """Record the end of `execution`; when this returns the record survives `kill -9` (`disk`: power loss too).

        Its `events` are all that are kept, in the place of what was added by `append`. Does not checkpoint on its
        usual way; with `max_pending` rows behind it waits for the database, at most 30 seconds. Raises `RunnerError`
        (`unavailable`) when it cannot be recorded: then the result must not be acknowledged. Cancellation is noticed
        only in the waits: the execution is in the journal by then.
        """
        archive, entry = self._opened(), self._entry(execution)
        try:
            await self._append(archive, entry)
        except RunnerError:
            if len(self._pending) < self._settings.max_pending:
                # The caller is told that it is not safe; it may still reach the database.
                self._committer.put(entry)
            raise
        self._committer.put(entry)
        # Without `disk` it is safe by now, so this only slows down the callers of a slow database.
        await (self._committer.wait_for_disk() if self.waits_for_disk else self._committer.wait_for_room())

    async def submit(self, execution: Execution) -> None:
        """Record an accepted `execution` that is queued, or runs under an idempotency key, as safe as by `finish`.

        Raises `RunnerError` (`unavailable`) when it cannot be recorded, or when there is no room within 30 seconds.
        Nothing is kept then, nor after cancellation, unless durability is `disk` and it was the commit that took too
        long or was cancelled: then the caller ends the execution by `finish`.
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

        The events of one that runs are those that came by `append`. Raises `RunnerError` (`unavailable`) when the
        database cannot be read. Cancellation waits for the read's end.
        """
        await trio.lowlevel.checkpoint()
        known = self._pending.find(name)
        if known is not None and known.status.final:
            return known
        waiting = self._pending.segments.find(name)
        if known is not None and known.events != NOTHING:
            waiting = (known.events, *waiting)
        stored = await self._read(lambda link: queries.fetch(link, name, waiting))
        latest = self._pending.find(name) or known
        if latest is None or latest.status.final:
            return latest or stored
        return evolve(latest, events=joined(waiting) if stored is None else stored.events)

    async def find_keyed(self, subject: str, module: str, key: str, since: float) -> Execution | None:
        """Return a caller's newest call of `module` with this idempotency key since then, whole; None without one.

        `since` is compared with `created_at`, in seconds since the epoch. Raises `RunnerError` as `get`. It reserves
        nothing: two calls that both find None must be kept apart by who asks.
        """
        wanted = (subject, module, key)
        waiting = self._pending.find_keyed(wanted)
        stored = await self._read(lambda link: queries.find_keyed(link, wanted, since))
        found = [execution for execution in (waiting, stored) if execution and execution.created_at >= since]
        if not found:
            return None
        newest = max(found, key=lambda execution: (execution.created_at, execution.id))
        # In memory it may be further on.
        return await self.get(newest.id) or newest

    async def list(self, query: Query) -> Page:
        """Return one page of executions, newest first, without input, result, traceback, events, failed attempts.

        What was recorded before the call is in it, unless the database cannot be written now. A page may hold fewer
        than `limit`, or none at all, and have a `next_cursor`: then there is more to look through. Raises
        `RunnerError`: `bad_input` for limit and cursor, `unavailable` as `get`.
        """
        await self._committer.catch_up()
        return await self._read(lambda link: queries.page(link, query))

    async def stats(self, module: str, *, since: float | None = None, until: float | None = None) -> ModuleStats:
        """Return how the executions of `module` ended that ended in `since` <= time < `until`; None for no bound.

        Durations are within 2 %. The window is widened to whole spans of 5 minutes, of an hour where it is more than
        2 days ago, and of a day after 60 days; the answer says what it was. Executions that were deleted because
        there were too many count as well. Raises `RunnerError`: `bad_input` for a bound that is not a number,
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
        """Return the ids of what the last runner left, oldest first: what was queued, and what it lost.

        Those that were running failed as `lost` when the history was opened, with the events that were stored. One that
        is tried again numbers its events from `events_count`, which is 1,000,000 above the next multiple of 1,000,000
        over the highest stored number: a reader may have seen more than was stored, and no number may come twice.
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
            segments=len(pending.segments),
            segments_dropped=counted.segments_dropped + pending.segments.dropped,
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
