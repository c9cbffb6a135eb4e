"""History: what ran, what runs and what became of it.

Record-keeping is on the path of every call, so `finish` writes one journal record (the page cache survives the death
of the process) and returns; the row follows into the database with the next group commit, in a thread, by the only
write connection. Journal segments are deleted when the commit that covers them is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog
import trio
from attrs import evolve, field, frozen

from actors import storage
from actors.journal import Entry, Journal, Pending, locked, write_segment
from actors.storage import Database, Page, Query
from config.settings import HistorySettings
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Execution, Status

T = TypeVar("T")
log: Any = structlog.get_logger(__name__)

GROUP_SECONDS: Final = 0.025
"""A commit gathers rows for this long, and a running execution must be this old to be written: 50 ms together."""
INLINE_BYTES: Final = 256 * 1024
"""Larger records are encoded and written in a thread, so that they do not hold up the loop."""
WAIT_SECONDS: Final = 30.0
"""How long `finish` and `submit` wait for room or for the disk."""
FLUSH_SECONDS: Final = 10.0
LIST_WAIT_SECONDS: Final = 1.0
RETENTION_SECONDS: Final = 60.0
RETENTION_CHUNK: Final = 100
_BACKOFF: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_TROUBLE: Final = (OSError, sa.exc.SQLAlchemyError)


@frozen
class HistoryStatistics:
    """`pending` rows are recorded and not in the database yet, `running` ones are known in memory only."""

    pending: int = 0
    running: int = 0
    journal_bytes: int = 0
    committed: int = 0
    """Rows written since the start, by `commits` transactions."""
    commits: int = 0
    rejected: int = 0
    """Rows that the database would never take, each logged with its reason."""
    last_commit_seconds: float = 0.0
    last_error: str | None = None
    """Why the database cannot be written now; None while it can."""


@frozen
class _Past:
    """Ids of what the last runner left, oldest first."""

    queued: tuple[str, ...]
    lost: tuple[str, ...]


@frozen
class _Resources:
    """What is open while the history runs."""

    closer: ExitStack
    journal: Journal
    database: Database
    past: _Past
    revision: int
    # Threads of its own: whoever fills Trio's common ones does not hold up the record.
    readers: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(storage.READERS))
    appenders: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(4))
    writers: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))


class History:
    """The actor. All methods are called on the event loop; but for `aclose` and `statistics`, while `run` runs."""

    def __init__(self, settings: HistorySettings, data_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Keep the record in `data_dir`; `clock` is the time of day, for retention and for lost executions."""
        self._settings = settings
        self._data_dir = data_dir
        self._clock = clock
        self._resources: _Resources | None = None
        self._past: _Past | None = None
        self._pending = Pending()
        self._revision = 0
        self._closing = False
        self._closed: trio.Event | None = None
        self._wake = trio.Event()  # there is something to store
        self._hurry = trio.Event()  # somebody waits for it
        self._settled = trio.Event()  # the commit on its way has ended, well or not
        self._take_all = False
        self._started_commits = self._stored_commits = 0
        self._retain_at = 0.0
        self._counted = HistoryStatistics()

    # Recording

    def begin(self, execution: Execution) -> None:
        """Remember `execution` as running; never blocks. Its row is written within about 50 ms unless it ends first.

        Raises `RunnerError` (`unavailable`) when the history is not open.
        """
        self._opened()
        self._pending.begin(trio.current_time(), self._entry(execution))
        self._wake.set()

    async def finish(self, execution: Execution) -> None:
        """Record the end of `execution`; when this returns the record survives `kill -9` (`disk`: power loss too).

        Does not checkpoint on its usual way; with `max_pending` rows behind it waits for the database, at most 30
        seconds. Raises `RunnerError` (`unavailable`) when it cannot be recorded: then the result must not be
        acknowledged. Cancellation is noticed only in the waits: the execution is in the journal by then.
        """
        resources, entry = self._opened(), self._entry(execution)
        try:
            await self._append(resources, entry)
        except RunnerError:
            if len(self._pending) < self._settings.max_pending:
                # The caller is told that it is not safe; it may still reach the database.
                self._put(entry)
            raise
        self._put(entry)
        # Without `disk` it is safe by now, so this only slows down the callers of a slow database.
        await (self._wait_for_disk() if self._settings.durability == "disk" else self._wait_for_room())

    async def submit(self, execution: Execution) -> None:
        """Record an accepted asynchronous `execution` (status queued), as safe as by `finish`.

        Raises `RunnerError` (`unavailable`) when it cannot be recorded, or when there is no room within 30 seconds.
        Nothing is kept then, nor after cancellation, unless durability is `disk` and it was the commit that took too
        long or was cancelled: then the caller ends the execution by `finish`.
        """
        resources = self._opened()
        if not await self._wait_for_room():
            raise self._unwritable(f"{len(self._pending)} rows wait for the database")
        entry = self._entry(execution)
        await self._append(resources, entry)
        self._put(entry)
        if self._settings.durability == "disk":
            await self._wait_for_disk()

    async def _append(self, resources: _Resources, entry: Entry) -> None:
        journal = resources.journal
        try:
            if _weight(entry.execution) <= INLINE_BYTES:
                journal.append(entry)
                return
            # A file of its own: a failed write in a thread cannot damage what the loop appends meanwhile.
            path = journal.next_path()
            with trio.CancelScope(shield=True):
                size = await trio.to_thread.run_sync(write_segment, path, entry, limiter=resources.appenders)
            journal.adopt(path, size)
        except OSError as problem:
            raise _unavailable("written", _reason(problem)) from problem

    def _put(self, entry: Entry) -> None:
        self._pending.put(entry)
        self._wake.set()

    async def _wait_for_disk(self) -> None:
        self._hurry.set()
        if not await self._wait_for_commit(self._started_commits + 1, WAIT_SECONDS):
            raise self._unwritable(f"the database took more than {WAIT_SECONDS:g} seconds")

    async def _wait_for_commit(self, number: int, seconds: float) -> bool:
        """Wait until the commit with this number, or a later one that took over its rows, is done."""
        with trio.move_on_after(seconds):
            while self._stored_commits < number:
                await self._settled.wait()
        return self._stored_commits >= number

    async def _wait_for_room(self) -> bool:
        with trio.move_on_after(WAIT_SECONDS):
            while len(self._pending) > self._settings.max_pending:
                self._hurry.set()
                await self._settled.wait()
        return len(self._pending) <= self._settings.max_pending

    def _entry(self, execution: Execution) -> Entry:
        self._revision += 1
        return Entry(self._revision, execution)

    def _opened(self) -> _Resources:
        if self._resources is None:
            raise error(ErrorKind.UNAVAILABLE, "the history is not open", retry_after=1.0)
        return self._resources

    def _unwritable(self, reason: str) -> RunnerError:
        return _unavailable("written", self._counted.last_error or reason)

    # Asking

    async def get(self, name: str) -> Execution | None:
        """Return the whole execution with this id in its latest state, or None.

        Raises `RunnerError` (`unavailable`) when the database cannot be read. Cancellation waits for the read's end.
        """
        await trio.lowlevel.checkpoint()
        return self._pending.find(name) or await self._read(lambda link: storage.fetch(link, name))

    async def list(
        self,
        *,
        module: str | None = None,
        status: Status | None = None,
        since: float | None = None,
        until: float | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Return one page of executions, newest first, without input, result, traceback and output.

        `since <= created_at < until` in seconds since the epoch; `limit` is 1 to 500; `cursor` is the `next_cursor`
        of the page before, with the same filters. What was recorded before the call is in it, unless the database
        cannot be written now. Raises `RunnerError`: `bad_input` for limit and cursor, `unavailable` as `get`.
        """
        query = Query(module, status, since, until, limit, cursor)
        waiting = self._pending.begun or self._pending.done
        if (waiting or self._pending.taken) and self._counted.last_error is None:
            self._take_all = True
            self._hurry.set()
            # A commit that is on its way does not hold what came after its start.
            await self._wait_for_commit(self._started_commits + (1 if waiting else 0), LIST_WAIT_SECONDS)
        return await self._read(lambda link: storage.page(link, query))

    async def unfinished(self) -> tuple[Execution, ...]:
        """Return the executions that were queued when the history was opened, whole and oldest first, to be run."""
        return await self._get_all(self._opened().past.queued)

    async def lost(self) -> tuple[Execution, ...]:
        """Return what was running when the last runner ended, whole and oldest first; these failed as `lost`."""
        return await self._get_all(self._opened().past.lost)

    async def _get_all(self, names: tuple[str, ...]) -> tuple[Execution, ...]:
        found = [await self.get(name) for name in names]
        return tuple(execution for execution in found if execution is not None)

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        resources = self._opened()
        try:
            return await trio.to_thread.run_sync(resources.database.read, work, limiter=resources.readers)
        except _TROUBLE as problem:
            raise _unavailable("read", _reason(problem)) from problem

    def statistics(self) -> HistoryStatistics:
        """Return the counters; cheap."""
        size = 0 if self._resources is None else self._resources.journal.size
        return evolve(self._counted, pending=len(self._pending), running=len(self._pending.begun), journal_bytes=size)

    # The actor's own task

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open, replay the journal, report started, and commit until `aclose` or cancellation.

        Both ends store all that is pending first, for at most about 10 seconds; what is not stored by then stays in
        the journal for the next start. Raises `RunnerError` (`unavailable`) when the data directory is in use or
        cannot be used, or when the database was made by a newer runner. May run again after it ended.
        """
        self._closed = trio.Event()
        try:
            # Not to be cancelled: what was opened must be known here in order to be closed.
            with trio.CancelScope(shield=True):
                opened = await trio.to_thread.run_sync(_open, self._settings, self._data_dir, self._clock(), self._past)
            self._resources, self._past = opened, opened.past
            # After a restart in the same process the memory may be ahead of the disk.
            self._revision = max(self._revision, opened.revision)
            self._retain_at = trio.current_time()
            task_status.started()
            await self._work()
        finally:
            try:
                with trio.CancelScope(shield=True):
                    await self._shut()
            finally:
                self._closed.set()

    async def aclose(self) -> None:
        """Stop `run` and wait until all is stored and closed; bounded as `run` says.

        Cancellation leaves the closing to `run`.
        """
        self._closing = True
        self._wake.set()
        self._hurry.set()
        if self._closed is not None:
            await self._closed.wait()

    async def _work(self) -> None:
        failures = 0
        while not self._closing:
            await (self._pause(_BACKOFF[min(failures, len(_BACKOFF)) - 1]) if failures else self._wait_until_due())
            failures = 0 if await self._commit() else failures + 1
            if not failures:
                await self._retain()

    async def _pause(self, seconds: float) -> None:
        """Wait after a failure; nobody's hurry shortens that, but closing does."""
        with trio.move_on_after(seconds):
            while not self._closing:
                self._hurry = trio.Event()
                await self._hurry.wait()

    async def _wait_until_due(self) -> None:
        if not (self._pending.begun or self._pending.done):
            self._wake = trio.Event()
            with trio.move_on_at(self._retain_at):
                await self._wake.wait()
        with trio.move_on_after(GROUP_SECONDS):
            await self._hurry.wait()

    async def _commit(self, *, everything: bool = False) -> bool:
        """Store what is due; return whether the database took it."""
        ripe = trio.current_time() - (0 if everything or self._take_all else GROUP_SECONDS)
        self._hurry, self._take_all = trio.Event(), False
        self._started_commits += 1
        number, stored, batch = self._started_commits, False, self._pending.take(ripe)
        try:
            if batch:
                await self._store(batch)
            stored, self._stored_commits = True, number
        except _TROUBLE as problem:
            if self._counted.last_error is None:
                log.warning("the history cannot be stored: journal and memory keep it", reason=_reason(problem))
            self._counted = evolve(self._counted, last_error=_reason(problem))
        finally:
            self._pending.settle(stored=stored)
            settled, self._settled = self._settled, trio.Event()
            settled.set()
        return stored

    async def _store(self, batch: tuple[Entry, ...]) -> None:
        resources, so_far = self._opened(), self._counted
        segments, begun = resources.journal.rotate(), trio.current_time()
        again = so_far.last_error is not None
        # Shielded: a commit that was begun is accounted for. It is bounded by SQLite's own waits.
        with trio.CancelScope(shield=True):
            refused = await trio.to_thread.run_sync(
                _store, resources.database, batch, segments, again, limiter=resources.writers
            )
        resources.journal.forget(segments)
        for name, why in refused.items():
            log.error("an execution cannot be stored and is dropped", execution=name, reason=why)
        if again:
            log.info("the history is stored again", rows=len(batch))
        self._counted = evolve(
            so_far,
            committed=so_far.committed + len(batch) - len(refused),
            commits=so_far.commits + 1,
            rejected=so_far.rejected + len(refused),
            last_commit_seconds=trio.current_time() - begun,
            last_error=None,
        )

    async def _retain(self) -> None:
        """Delete one chunk of old executions when it is time; the next chunk follows after the next commit."""
        now = trio.current_time()
        if now < self._retain_at or self._closing:
            return
        resources, limit = self._opened(), self._clock() - self._settings.retention_seconds
        work = partial(resources.database.write, lambda link: storage.retain(link, limit, RETENTION_CHUNK))
        try:
            with trio.CancelScope(shield=True):
                deleted = await trio.to_thread.run_sync(work, limiter=resources.writers)
        except _TROUBLE as problem:
            log.warning("old executions cannot be deleted", reason=_reason(problem))
            deleted = 0
        self._retain_at = now if deleted == RETENTION_CHUNK else now + RETENTION_SECONDS

    async def _shut(self) -> None:
        """Store the rest, for a bounded time, and close."""
        resources = self._resources
        if resources is None:
            return
        try:
            with trio.move_on_after(FLUSH_SECONDS):
                while self._pending.begun or self._pending.done:
                    if not await self._commit(everything=True):
                        await trio.sleep(_BACKOFF[0])
        finally:
            self._resources = None
            await trio.to_thread.run_sync(resources.closer.close)


def _weight(execution: Execution) -> int:
    return len(execution.input) + len(execution.result or b"") + sum(len(chunk.text) for chunk in execution.output)


def _reason(problem: Exception) -> str:
    original = getattr(problem, "orig", None) or problem
    return getattr(original, "strerror", None) or str(original)


def _unavailable(verb: str, reason: str) -> RunnerError:
    return error(ErrorKind.UNAVAILABLE, f"the history cannot be {verb}: {reason}", retry_after=1.0)


# In threads


def _open(settings: HistorySettings, data_dir: Path, now: float, past: _Past | None) -> _Resources:
    """Open everything and bring the database up to the journal; `past` is known when the actor is restarted."""
    with ExitStack() as stack:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            database = Database(storage.sqlite_path(settings.database, data_dir))
            stack.enter_context(locked(data_dir / "history.lock"))
            stack.callback(database.close)
            journal = Journal(data_dir / "journal")
            stack.callback(journal.close)
            revision = max(database.write(storage.prepare), _replay(database, journal)) + 1
            if past is None:
                lost = database.write(lambda link: storage.mark_lost(link, now, revision))
                past = _Past(database.write(storage.queued), lost)
        except _TROUBLE as problem:
            message = f"the history in {data_dir} cannot be opened: {_reason(problem)}"
            raise error(ErrorKind.UNAVAILABLE, message) from problem
        closer = stack.pop_all()
    return _Resources(closer, journal, database, past, revision)


def _replay(database: Database, journal: Journal) -> int:
    """Store what the segments hold and the database does not, and return the highest revision in them."""

    def store(entries: tuple[Entry, ...]) -> dict[str, str]:
        return database.write(lambda link: storage.store(link, storage.newer(link, entries)))

    revision = 0
    for path, segment in journal.replay(store):
        revision = max([revision, *(entry.revision for entry in segment.entries)])
        log.info("journal replayed", segment=path.name, executions=len(segment.entries), torn=segment.torn_bytes)
        if path.suffix == ".damaged":
            damage = [f"{part.start}-{part.end}: {part.reason}" for part in segment.damage]
            log.error("journal damaged: what cannot be read or stored is skipped", kept=str(path), damage=damage)
    return revision


def _store(database: Database, batch: tuple[Entry, ...], segments: tuple[Path, ...], again: bool) -> dict[str, str]:
    """Commit, then delete the segments that this covers. `again`: the attempt before failed."""
    if again:
        database.renew()
    refused = database.write(lambda link: storage.store(link, batch))
    for path in segments:
        # One that stays is replayed at the next start, which changes nothing.
        with suppress(OSError):
            path.unlink()
    return refused
