"""The open files of a running history: lock, journal and database. Disk work runs in threads."""

from __future__ import annotations

import fcntl
import math
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog
import trio
from attrs import define, field, frozen
from sqlalchemy.pool import QueuePool, StaticPool

from actors.history import retention, storage, tables
from actors.history.journal import Entry, Journal, write_segment
from actors.history.pending import Batch
from actors.history.retention import Kept
from actors.history.storage import Stored
from actors.sqlite import TROUBLE, open_reader, open_writer, reason_of
from config.settings import HistorySettings
from protocol.errors import ErrorKind, error
from protocol.model import Execution

T = TypeVar("T")
log: Any = structlog.get_logger(__name__)

INLINE_BYTES: Final = 256 * 1024
"""Larger records are encoded and written in a thread, so that they do not block the event loop."""
READERS: Final = 4
_MEASURE_SECONDS: Final = 1.0
_WAL_BYTES: Final = 64 * 1024 * 1024


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
    _settings: HistorySettings
    _database: Database
    _closer: ExitStack
    _measured: float = -math.inf
    # Threads of its own: work that fills Trio's common thread limit must not delay the record.
    _readers: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(READERS))
    _appenders: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(4))
    _writers: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))

    @classmethod
    async def open(cls, settings: HistorySettings, data_dir: Path, now: float, past: Past | None) -> Archive:
        """Open everything and bring the database up to the journal; `past` is known when the actor is restarted.

        Raises `RunnerError` (`unavailable`). Shielded from cancellation: files that were opened must be closed.
        """
        with trio.CancelScope(shield=True):
            opened = await trio.to_thread.run_sync(_open, settings, data_dir, now, past)
        return opened

    async def append(self, entry: Entry) -> None:
        """Write one journal record; does not checkpoint for a small one."""
        if _weight(entry.execution) <= INLINE_BYTES:
            self.journal.append(entry)
            return
        # A segment of its own: a failed write in a thread cannot damage records that the loop appends meanwhile.
        path = self.journal.next_path()
        with trio.CancelScope(shield=True):
            size = await trio.to_thread.run_sync(write_segment, path, entry, limiter=self._appenders)
        self.journal.adopt(path, size)

    async def commit(self, batch: Batch, *, again: bool) -> Stored:
        """Store a batch and delete the journal segments that it covers. `again`: the last attempt failed."""
        segments = self.journal.rotate()
        measure = trio.current_time() > self._measured + _MEASURE_SECONDS
        work = partial(_commit, self._database, batch, segments, again=again, measure=measure)
        # Shielded: the outcome of a started commit must be known. SQLite's busy timeout bounds it.
        with trio.CancelScope(shield=True):
            stored, size = await trio.to_thread.run_sync(work, limiter=self._writers)
        if size is not None:
            self.size, self._measured = size, trio.current_time()
        self.journal.forget(segments)
        self.rows = stored.rows
        return stored

    async def retain(self, now: float, chunk: int) -> Kept:
        """Delete one chunk of executions that are too old or too many."""
        work = partial(self._database.write, lambda link: retention.retain(link, self._settings, now, chunk))
        with trio.CancelScope(shield=True):
            kept = await trio.to_thread.run_sync(work, limiter=self._writers)
        self.rows, self.size = kept.rows, kept.size
        return kept

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Return the result of `work` on a connection that cannot write. Cancellation waits for its end."""
        return await trio.to_thread.run_sync(self._database.read, work, limiter=self._readers)

    async def aclose(self) -> None:
        """Close everything."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._closer.close)


def _weight(execution: Execution) -> int:
    return len(execution.input) + len(execution.result or b"") + len(execution.events)


class Database:
    """A SQLite file. Every method blocks; those that write are called one at a time, in any thread.

    A single writer owns all checkpoints: this avoids the WAL-reset bug of SQLite before 3.51.3. Methods raise
    `sqlalchemy.exc.SQLAlchemyError` and `OSError`.
    """

    def __init__(self, path: Path) -> None:
        """Open nothing yet; the file is made by the first write."""
        self._path = path
        self._writer = sa.create_engine("sqlite://", creator=self._connect_writer, poolclass=StaticPool)
        self._reader = sa.create_engine(
            "sqlite://", creator=lambda: open_reader(path), poolclass=QueuePool, pool_size=READERS, max_overflow=0
        )

    def _connect_writer(self) -> sqlite3.Connection:
        # auto_vacuum counts only before the first table, so it comes first.
        after = ("temp_store=memory", f"journal_size_limit={_WAL_BYTES}")
        return open_writer(self._path, before=["auto_vacuum=incremental"], after=after)

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Return the result of `work` on the write connection."""
        with self._writer.connect() as link:
            return work(link)

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Return the result of `work` on one of `READERS` read-only connections, in one snapshot of the database."""
        with self._reader.connect() as link:
            # The driver begins no transaction for reading: each statement would see another state.
            link.exec_driver_sql("begin")
            return work(link)

    def prepare(self) -> int:
        """Make the schema where it is missing and return the highest revision ever stored; raises `RunnerError`."""
        return self.write(lambda link: storage.prepare(link, self._path))

    def renew(self) -> None:
        """Replace the write connection, so that a fault of the old one, or of a replaced file, does not persist."""
        self._writer.dispose()
        self.prepare()

    def close(self) -> None:
        """Close all connections, the writer last: closing it empties the write-ahead log."""
        self._reader.dispose()
        self._writer.dispose()


def database_path(url: str | None, data_dir: Path) -> Path:
    """Return the database file; raises `RunnerError` (`unavailable`) for a URL that is not of a SQLite file."""
    if url is None:
        return data_dir / "history.db"
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise error(ErrorKind.UNAVAILABLE, "the history is kept in SQLite only: sqlite:///PATH", field="database")
    return Path(str(parsed.database))


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


def _open(settings: HistorySettings, data_dir: Path, now: float, past: Past | None) -> Archive:
    with ExitStack() as stack:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            database = Database(database_path(settings.database, data_dir))
            stack.enter_context(locked(data_dir / "history.lock"))
            stack.callback(database.close)
            journal = Journal(data_dir / "journal")
            stack.callback(journal.close)
            revision = max(database.prepare(), _replay(database, journal)) + 1
            if past is None:
                lost = database.write(lambda link: storage.mark_lost(link, now, revision))
                past = Past(database.write(storage.queued), lost)
            rows, size = database.write(_measure)
        except TROUBLE as problem:
            message = f"the history in {data_dir} cannot be opened: {reason_of(problem)}"
            raise error(ErrorKind.UNAVAILABLE, message) from problem
        closer = stack.pop_all()
    return Archive(past, revision, rows, size, journal, settings, database, closer)


def _measure(connection: sa.Connection) -> tuple[int, int]:
    return tables.count_rows(connection), retention.size_of(connection)


def _replay(database: Database, journal: Journal) -> int:
    """Store the records that only the segments have, and return the highest revision in them."""

    def store(entries: tuple[Entry, ...]) -> dict[str, str]:
        return database.write(lambda link: storage.store(link, Batch(storage.newer(link, entries)))).refused

    revision = 0
    for path, segment in journal.replay(store):
        revision = max([revision, *(entry.revision for entry in segment.entries)])
        log.info("journal replayed", segment=path.name, executions=len(segment.entries), torn=segment.torn_bytes)
        if path.suffix == ".damaged":
            damage = [f"{part.start}-{part.end}: {part.reason}" for part in segment.damage]
            log.error("journal damaged: what cannot be read or stored is skipped", kept=str(path), damage=damage)
    return revision


def _commit(
    database: Database, batch: Batch, segments: tuple[Path, ...], *, again: bool, measure: bool
) -> tuple[Stored, int | None]:
    """Commit, then delete the journal segments that this covers; return the database size too if `measure`."""
    if again:
        database.renew()
    stored = database.write(lambda link: storage.store(link, batch))
    for path in segments:
        # A segment that cannot be deleted is replayed at the next start, which changes nothing.
        with suppress(OSError):
            path.unlink()
    return stored, database.write(retention.size_of) if measure else None
