"""The open files of a running history: lock, journal and database. Disk work runs in threads."""

from __future__ import annotations

import errno
import fcntl
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog
import trio
from attrs import define, field, frozen

from actors.damage import is_damage
from actors.history import queries, retention, storage, tables
from actors.history.database import READERS, Database, database_path
from actors.history.pending import Batch, weight
from actors.history.retention import Kept
from actors.history.storage import Stored
from actors.journal import Entry, Journal, Mark, write_segment
from actors.sqlite import TROUBLE, begin, reason_of
from config.settings import HistorySettings
from protocol.errors import ErrorKind, error

T = TypeVar("T")
log: Any = structlog.get_logger(__name__)

INLINE_BYTES: Final = 256 * 1024
"""Larger records are encoded and written in a thread, so that they do not block the event loop."""
LEAST_FREE_BYTES: Final = 512 * 1024
"""With less space on the disk no execution begins: the next commit would fail."""
_MEASURE_SECONDS: Final = 1.0
_CHECK_SECONDS: Final = 0.1
"""For the check of the database at the start; a large one is checked while the runner serves."""
_LONG_CHECK_SECONDS: Final = 120.0


@frozen
class Past:
    """Ids of the executions that the last runner left unfinished, oldest first."""

    queued: tuple[str, ...]
    lost: tuple[str, ...]


@define
class Archive:
    """The open files. Methods are called on the event loop; they raise `TROUBLE`."""

    past: Past
    revision: int
    """Above every stored revision."""
    rows: int
    size: int
    """Bytes of the database that hold something."""
    journal: Journal
    damaged: set[str]
    """The parts that were found damaged since the start: `history`, `journal`."""
    checked: bool
    """Whether the check of the database was completed at the start."""
    _settings: HistorySettings
    _database: Database
    _closer: ExitStack
    full: str | None = None
    """Why no end can be recorded but those that have a place."""
    suspected: str | None = None
    """What showed that the database is damaged; the next commit mends it."""
    _told_rows: bool = False
    _measured: float = -math.inf
    # Threads of its own: work that fills Trio's common thread limit must not delay the record.
    _readers: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(READERS))
    _appenders: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(4))
    _writers: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))

    @classmethod
    async def open(
        cls,
        settings: HistorySettings,
        data_dir: Path,
        now: float,
        past: Past | None,
        node: str | None,
        joined: bool,
    ) -> Archive:
        """Open everything and bring the database up to the journal; `past` is known when the actor is restarted.

        `node` is the name of this runner in its cluster, or, not `joined`, in the one that it has left. Raises
        `RunnerError` (`unavailable`). Shielded from cancellation: files that were opened must be closed.
        """
        with trio.CancelScope(shield=True):
            opened = await trio.to_thread.run_sync(_open, settings, data_dir, now, past, node, joined)
        return opened

    async def append(self, entry: Entry) -> bool:
        """Write one journal record, and return whether it is whole; does not checkpoint for a small one."""
        if weight(entry.execution) <= INLINE_BYTES:
            return self.journal.append(entry)
        # A segment of its own: a failed write in a thread cannot damage records that the loop appends meanwhile.
        path = self.journal.next_path()
        work = partial(write_segment, path, entry, durable=self.journal.durable)
        try:
            with trio.CancelScope(shield=True):
                size = await trio.to_thread.run_sync(work, limiter=self._appenders)
        except OSError:
            if self.journal.append_reduced(entry):
                return False
            raise
        self.journal.adopt(path, size, entry.execution.id if entry.execution.status.final else "")
        return True

    async def sync(self) -> None:
        """Bring the journal to the disk."""
        fd = self.journal.sync()
        if fd is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_bring_to_disk, fd, limiter=self._appenders)

    async def commit(self, batch: Batch, *, again: bool) -> Stored:
        """Store a batch and delete the journal segments that it covers. `again`: the last attempt failed."""
        mark = self.journal.mark()
        measure = trio.current_time() > self._measured + _MEASURE_SECONDS
        work = partial(_commit, self._database, batch, mark, again=again, measure=measure)
        # Shielded: the outcome of a started commit must be known. SQLite's busy timeout bounds it.
        with trio.CancelScope(shield=True):
            stored, size = await trio.to_thread.run_sync(work, limiter=self._writers)
        if size is not None:
            self.size, self._measured = size, trio.current_time()
        self.journal.forget(mark)
        self.rows = stored.rows
        if self.journal.lacks_spare:
            await self.look()
        return stored

    async def look(self) -> None:
        """Find out whether more can be recorded: make what the journal lacks, and look at the files and the disk."""
        try:
            if self.journal.missing():
                raise FileNotFoundError(errno.ENOENT, "files of the journal were deleted")
            while self.journal.lacks_spare:
                with trio.CancelScope(shield=True):
                    spare = await trio.to_thread.run_sync(self.journal.make, limiter=self._appenders)
                self.journal.add_spare(spare)
            await trio.to_thread.run_sync(self._database.look, LEAST_FREE_BYTES, limiter=self._appenders)
        except OSError as problem:
            self._fill(reason_of(problem))
        else:
            if self.full is not None:
                log.info("executions can be recorded again")
            self.full = None

    def _fill(self, reason: str) -> None:
        if self.full is None:
            log.error("no execution begins, as its end could not be recorded", reason=reason)
        self.full = reason

    def suspect(self, problem: Exception) -> bool:
        """Return whether a failure shows damage of the database; then the next commit mends it."""
        if not is_damage(problem):
            return False
        self.suspected = reason_of(problem)
        return True

    async def check(self) -> None:
        """Check the whole database, in a thread, for at most two minutes."""
        found = await trio.to_thread.run_sync(self._database.check, _LONG_CHECK_SECONDS, limiter=self._readers)
        if found:
            self.suspected = found
        self.checked = found is not None

    async def mend(self) -> None:
        """Set the damaged database aside and go on with a fresh one that has what could be read."""
        reason = self.suspected or ""
        with trio.CancelScope(shield=True):
            aside = await trio.to_thread.run_sync(self._database.mend, limiter=self._writers)
        _tell_damage(aside, reason)
        self.damaged.add("history")
        self.suspected = None
        self._measured = -math.inf

    async def retain(self, now: float, chunk: int) -> Kept:
        """Delete one chunk of executions that are too old or too many."""
        work = partial(self._database.write, lambda link: retention.retain(link, self._settings, now, chunk))
        with trio.CancelScope(shield=True):
            kept = await trio.to_thread.run_sync(work, limiter=self._writers)
        self.rows, self.size = kept.rows, kept.size
        return kept

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Return the result of `work` on a connection that cannot write. Cancellation waits for its end."""
        found, unreadable = await trio.to_thread.run_sync(self._database.read, _noting(work), limiter=self._readers)
        if unreadable and not self._told_rows:
            self._told_rows = True
            self.damaged.add("history")
            log.error("rows of the history cannot be read and are left out", first=unreadable[0])
        return found

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Return the result of `work` in a transaction of its own. Cancellation waits for its end."""
        transaction = partial(self._database.write, partial(_within, work))
        with trio.CancelScope(shield=True):
            found = await trio.to_thread.run_sync(transaction, limiter=self._writers)
        return found

    async def aclose(self) -> None:
        """Close everything."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._closer.close)


def _tell_damage(aside: Path, reason: str) -> None:
    remedy = "what could be read was copied into a fresh database"
    log.error("the history database was damaged", reason=reason, kept=str(aside), remedy=remedy)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the directory of `path` for this process, by a file lock that the kernel releases when the process ends.

    Raises `RunnerError` (`unavailable`), naming the process that holds it, or `OSError`.
    """
    # Keep the file: after deleting it, two processes could lock two files of the same name.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            held = f"the data directory {path.parent} is in use by the runner with pid {holder}"
            message = f"{held}; stop it, or use another --data-dir"
            raise error(ErrorKind.UNAVAILABLE, message) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)


# In threads


def _noting(work: Callable[[sa.Connection], T]) -> Callable[[sa.Connection], tuple[T, list[str]]]:
    """Return the work with, as its second result, what of the rows it could not read."""

    def both(link: sa.Connection) -> tuple[T, list[str]]:
        link.info.pop(queries.UNREADABLE, None)
        return work(link), link.info.pop(queries.UNREADABLE, [])

    return both


def _open(
    settings: HistorySettings, data_dir: Path, now: float, past: Past | None, node: str | None, joined: bool
) -> Archive:
    with ExitStack() as stack:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            database = Database(database_path(settings.database, data_dir))
            stack.enter_context(locked(data_dir / "history.lock"))
            stack.callback(database.close)
            journal = Journal(data_dir / "journal", durable=settings.durability == "disk")
            stack.callback(journal.close)
            damaged: set[str] = set()
            revision, checked = _prepare(database, damaged)
            revision = max(revision, _replay(database, journal, damaged)) + 1
            if past is None:
                lost = database.write(lambda link: storage.mark_lost(link, now, revision, node))
                past = Past(database.write(lambda link: storage.queued(link, node, joined=joined)), lost)
            rows, size = database.write(_measure)
            with suppress(OSError):  # `look` reports it
                journal.add_spare(journal.make())
        except TROUBLE as problem:
            message = f"the history in {data_dir} cannot be opened: {reason_of(problem)}"
            raise error(ErrorKind.UNAVAILABLE, message) from problem
        closer = stack.pop_all()
    return Archive(past, revision, rows, size, journal, damaged, checked, settings, database, closer)


def _prepare(database: Database, damaged: set[str]) -> tuple[int, bool]:
    """Open the database, mended if it is damaged; return its highest revision, and whether it was checked."""
    try:
        revision = database.prepare()
        found = database.check(_CHECK_SECONDS)
    except sa.exc.DatabaseError as problem:
        if not is_damage(problem):
            raise
        found = reason_of(problem)
    if not found:
        return revision, found is not None
    _tell_damage(database.mend(), found)
    damaged.add("history")
    return database.prepare(), True


def _measure(connection: sa.Connection) -> tuple[int, int]:
    return tables.count_rows(connection), retention.size_of(connection)


def _replay(database: Database, journal: Journal, damaged: set[str]) -> int:
    """Store the records that only the segments have, and return the highest revision in them."""

    def store(entries: tuple[Entry, ...]) -> dict[str, str]:
        return database.write(
            lambda link: storage.store(link, Batch(storage.newer(link, entries), all_known=True))
        ).refused

    revision = 0
    for path, segment in journal.replay(store, database.write(tables.journal_position)):
        revision = max([revision, *(entry.revision for entry in segment.entries)])
        log.info("journal replayed", segment=path.name, executions=len(segment.entries), torn=segment.torn_bytes)
        if path.suffix == ".damaged":
            damage = [f"{part.start}-{part.end}: {part.reason}" for part in segment.damage]
            log.error("journal damaged: what cannot be read or stored is skipped", kept=str(path), damage=damage)
            damaged.add("journal")
    return revision


def _within(work: Callable[[sa.Connection], T], connection: sa.Connection) -> T:
    with connection.begin():
        begin(connection)
        return work(connection)


def _commit(database: Database, batch: Batch, mark: Mark, *, again: bool, measure: bool) -> tuple[Stored, int | None]:
    """Commit, then delete the journal segments that this covers; return the database size too if `measure`."""
    if again or database.replaced():
        database.renew()
    stored = database.write(lambda link: storage.store(link, batch, mark))
    for path in mark.closed:
        # A segment that cannot be deleted is replayed at the next start, which changes nothing.
        with suppress(OSError):
            path.unlink()
    return stored, database.write(retention.size_of) if measure else None


def _bring_to_disk(fd: int) -> None:
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)
