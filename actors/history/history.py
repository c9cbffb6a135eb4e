"""`History`, the actor that records executions and answers questions about them.

Every call waits for its record, so `finish` writes one journal record (the page cache survives the death of the
process) and returns; the row is stored by the next group commit, in a thread, over the only write connection. A commit
deletes the journal segments that it covers. Events of running executions are stored by the same commits, without the
journal.

An execution begins only with a place in the journal for its end, so a full disk refuses calls before their handlers and
never after them.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
import trio
from attrs import evolve
from msgspec.structs import replace

from actors.history.answers import MEND_SECONDS, Answers
from actors.history.archive import Archive, Past
from actors.history.committer import Committer, HistoryStatistics
from actors.history.pending import is_large, stage_of, unavailable, weight
from actors.history.pieces import Piece
from actors.journal import Entry
from actors.sqlite import TROUBLE, reason_of
from config.settings import HistorySettings
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Execution, Status

T = TypeVar("T")
LOOK_SECONDS: Final = 1.0
"""How often the files and the space on the disk are looked at."""
_RETRY_AFTER: Final = 5.0

log: Any = structlog.get_logger(__name__)


class History(Answers):
    """The actor. Call all methods on the event loop; call them while `run` runs unless they say otherwise."""

    def __init__(
        self,
        settings: HistorySettings,
        data_dir: Path,
        *,
        clock: Callable[[], float] = time.time,
        node: str | None = None,
        left: str | None = None,
    ) -> None:
        """Keep the record in `data_dir`; `clock` is the time of day, for retention and for lost executions.

        `node` is the name of this runner in its cluster, None for a single machine; `left` that in a cluster before.
        """
        super().__init__(settings, clock, node)
        self._data_dir, self._origin = data_dir, (node or left, node is not None)
        self._past: Past | None = None
        self.revision = 0
        """The number of the last record."""
        self._closed: trio.Event | None = None

    # Recording

    def admit(self) -> None:
        """Raise `RunnerError` (`unavailable`, with the reason) while no execution may begin."""
        self._admitting()

    def _admitting(self) -> Archive:
        archive = self._opened()
        refusing = _refusing(archive, self._committer)
        if refusing is not None:
            raise error(ErrorKind.UNAVAILABLE, f"nothing can be recorded: {refusing}", retry_after=_RETRY_AFTER)
        return archive

    def begin(self, execution: Execution) -> None:
        """Remember `execution` as running; never blocks. Its row is written within about 50 ms unless it ends first.

        Its end has a place in the journal from now on, until `finish` or `release`. Raises `RunnerError`
        (`unavailable`) when no space is left for one, or the history is not open: then its handler must not be called.
        """
        archive = self._admitting()
        self._claim(archive, execution)
        self._pending.begin(trio.current_time(), self._entry(execution))
        self._committer.wake()

    def _claim(self, archive: Archive, execution: Execution) -> None:
        try:
            archive.journal.claim(execution.id)
        except OSError as problem:
            raise unavailable("written", reason_of(problem)) from problem

    def release(self, name: str) -> None:
        """Give back the place of an execution that has no end here; does nothing without one."""
        if self._archive is not None:
            self._archive.journal.release(name)

    def append(self, name: str, events: bytes, first_seq: int, forget: tuple[int, int] | None = None) -> None:
        """Add events of the running execution with the id `name`: a JSON array, the first with number `first_seq`.

        Never blocks nor raises, also while `run` does not run. The next group commit stores them, best effort: they
        are the known events if the runner dies later. `forget` is a half-open range of event numbers: pieces added
        before that lie in it as a whole are deleted. While `max_pending` pieces wait, the oldest are dropped and
        counted. An execution that has ended ignores further events.
        """
        self._pending.append(Piece(name, first_seq, events), forget)
        self._committer.gather()

    async def finish(self, execution: Execution) -> None:
        """Record the end of `execution`; when this returns the record survives `kill -9` (`disk`: power loss too).

        Its `events` replace those added by `append`. Usually does not checkpoint; while `max_pending` rows wait, it
        waits for the database, at most 30 seconds. Raises `RunnerError` (`unavailable`) when the end cannot be
        recorded: then the result must not be acknowledged. Only the waits can be cancelled: by then the execution is
        in the journal.
        """
        archive, entry = self._opened(), self._entry(execution)
        if is_large(entry.execution):
            self.room.note(entry.execution)
        try:
            whole = await self._append(archive, entry)
        except RunnerError:
            if not self.room.scarce:
                # The caller gets an error, as the record is not safe; it may still reach the database.
                self._committer.put(entry)
            raise
        finally:
            archive.journal.release(execution.id)
        if not whole:
            reason = "input, result and output are kept in memory only until the database can be written"
            log.warning("the disk is full: an end is recorded without its payload", execution=execution.id, note=reason)
        self._committer.put(entry)
        if self.waits_for_disk:
            await self._reach_disk(archive)
        else:
            # The record is safe by now: this only slows callers down when the database is slow.
            await self.room.wait_for_rows()

    async def _reach_disk(self, archive: Archive) -> None:
        """Wait until the record is on the disk: in the database, or in the journal while the database fails."""
        try:
            await self._committer.wait_for_disk()
        except RunnerError:
            if not self._committer.failing:
                raise
            try:
                await archive.sync()
            except OSError as problem:
                raise unavailable("written", reason_of(problem)) from problem

    async def submit(self, execution: Execution) -> None:
        """Record an accepted `execution` that is queued, or runs under an idempotency key, as safely as `finish`.

        One that runs has a place for its end from now on, as by `begin`. Raises `RunnerError` (`unavailable`) when it
        cannot be recorded, or when there is no room within 30 seconds.
        Then, and after cancellation, nothing is recorded, with one exception: with durability `disk` the wait for the
        commit may time out or be cancelled after the record was made; the caller then ends the execution by `finish`.
        """
        archive = self._admitting()
        await self.room.take(execution, growing=False)
        self._pending.expect(() if self.node is None else (execution.id,))  # it may have come from another runner
        if execution.status is Status.RUNNING:
            self._claim(archive, execution)
        entry = self._entry(execution)
        await self._append(archive, entry)
        if execution.status is not Status.RUNNING:
            archive.journal.release(execution.id)
        self._committer.put(entry)
        if self.waits_for_disk:
            await self._committer.wait_for_disk()

    async def adopt(self, executions: Sequence[Execution]) -> None:
        """Store states from the log of a cluster; when this returns they are in the database.

        A state that is here already, or was followed by a later one, changes nothing. They are not in the journal, and
        lead to no notices. Give at most about a thousand. Raises `RunnerError` (`unavailable`); some may be stored.
        """
        self._opened()
        before = self.revision
        for execution in executions:
            known = self._pending.find(execution.id)
            if known is None or stage_of(execution).follows(stage_of(known)):
                self._pending.expect((execution.id,))
                self._committer.put(evolve(self._entry(execution), adopted=True))
        if self.revision > before:
            await self._committer.wait_for_disk()

    async def _append(self, archive: Archive, entry: Entry) -> bool:
        size = weight(entry.execution)
        self.room.arriving += size
        self.room.coming.add(entry.revision)
        try:
            return await archive.append(entry)
        except OSError as problem:
            self.room.free()
            raise unavailable("written", reason_of(problem)) from problem
        finally:
            self.room.arriving -= size
            self.room.coming.discard(entry.revision)

    @property
    def waits_for_disk(self) -> bool:
        """Whether a refused record may exist all the same: with `disk` it is written before it is safe."""
        return self._settings.durability == "disk"

    def _entry(self, execution: Execution) -> Entry:
        self.revision += 1
        return Entry(self.revision, summary_of(execution) if execution.summary else execution)

    def statistics(self) -> HistoryStatistics:
        """Return the counters; cheap, at any time."""
        archive, pending, counted = self._archive, self._pending, self._committer.counted
        return evolve(
            counted,
            pending=len(pending),
            running=len(pending.begun),
            unwritten_bytes=self.room.taken,
            pieces=len(pending.pieces),
            pieces_dropped=counted.pieces_dropped + pending.pieces.dropped,
            journal_bytes=0 if archive is None else archive.journal.size,
            rows=0 if archive is None else archive.rows,
            database_bytes=0 if archive is None else archive.size,
            refusing="the history is not open" if archive is None else _refusing(archive, self._committer),
            damaged=() if archive is None else tuple(sorted(archive.damaged)),
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
            opened = await Archive.open(self._settings, self._data_dir, self._clock(), self._past, *self._origin)
            self._archive, self._past = opened, opened.past
            # After a restart in the same process the memory may be ahead of the disk.
            self.revision = max(self.revision, opened.revision)
            self._pending.expect((*opened.past.queued, *opened.past.lost))
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, opened)
                await self._committer.work(opened)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._shut()

    async def _watch(self, archive: Archive) -> None:
        """Check a large database once, and look at the files and the space on the disk until cancelled."""
        if not archive.checked:
            await self._check(archive)
        while True:
            await archive.look()
            await trio.sleep(LOOK_SECONDS)

    async def _check(self, archive: Archive) -> None:
        try:
            await archive.check()
        except (*TROUBLE, sqlite3.Error) as problem:
            log.warning("the history database cannot be checked", reason=str(problem))
        if archive.suspected is not None:
            await self._committer.wait_mended(MEND_SECONDS)

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


def _refusing(archive: Archive, committer: Committer) -> str | None:
    """Return why no end can be recorded now, None while it can."""
    if archive.full is not None:
        return archive.full
    return committer.counted.last_error if committer.failing else None


def summary_of(execution: Execution) -> Execution:
    """Return an execution without its payload. An asynchronous one has its input until its end, as it may run again."""
    waits = execution.asynchronous and not execution.status.final
    return replace(
        execution,
        input=execution.input if waits else b"null",
        result=None,
        events=b"[]",
        output_dropped=execution.output_bytes,
    )
