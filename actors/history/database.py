"""The SQLite file of history: its connections, its check, and its replacement when it is damaged or gone."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.pool import QueuePool, StaticPool

from actors.damage import Copied, check, salvage, set_aside
from actors.history import storage
from actors.history.tables import add_rows, count_rows, executions, prepare
from actors.sqlite import identity_of, open_reader, open_writer
from protocol.errors import ErrorKind, error

T = TypeVar("T")
log: Any = structlog.get_logger(__name__)
READERS: Final = 4
_WAL_BYTES: Final = 64 * 1024 * 1024
_SALVAGE_SECONDS: Final = 30.0
_SALVAGED: Final = (
    Copied("executions", "id"),
    Copied("payloads", "id"),
    Copied("events", "id"),
    Copied("rollups", "module"),
    Copied("notices", "id"),
)


class Database:
    """A SQLite file. Every method blocks; those that write are called one at a time, in any thread.

    A single writer owns all checkpoints: this avoids the WAL-reset bug of SQLite before 3.51.3. Methods raise
    `sqlalchemy.exc.SQLAlchemyError` and `OSError`.
    """

    def __init__(self, path: Path) -> None:
        """Open nothing yet; the file is made by the first write."""
        self._path = path
        self._opened: tuple[int, int] | None = None
        self._writer = sa.create_engine("sqlite://", creator=self._connect_writer, poolclass=StaticPool)
        self._reader = sa.create_engine(
            "sqlite://", creator=lambda: open_reader(path), poolclass=QueuePool, pool_size=READERS, max_overflow=0
        )

    def _connect_writer(self) -> sqlite3.Connection:
        # auto_vacuum counts only before the first table, so it comes first.
        after = ("temp_store=memory", f"journal_size_limit={_WAL_BYTES}")
        link = open_writer(self._path, before=["auto_vacuum=incremental"], after=after)
        self._opened = identity_of(self._path)
        return link

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
        return self.write(lambda link: prepare(link, self._path))

    def replaced(self) -> bool:
        """Whether the file was deleted or replaced by others since it was opened for writing."""
        return self._opened is not None and identity_of(self._path) != self._opened

    def look(self, least_free: int) -> None:
        """Raise OSError when the file is gone, or less than `least_free` bytes are free."""
        if self.replaced():
            raise FileNotFoundError(errno.ENOENT, f"{self._path} was deleted or replaced")
        found = os.statvfs(self._path)
        free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
        if found.f_blocks and free < least_free:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {free} bytes are free at {self._path.parent}")

    def check(self, seconds: float) -> str | None:
        """Return the damage that a check finds, "" for none, None when it takes longer than `seconds`."""
        with closing(open_reader(self._path)) as link:
            return check(link, seconds)

    def mend(self) -> Path:
        """Set the file aside and copy what can be read into a fresh one; return the name of the old one."""
        with suppress(sa.exc.SQLAlchemyError, sqlite3.Error):
            self.close()
        aside = set_aside(self._path)
        self.prepare()
        self.write(lambda link: _salvage(link, aside))
        return aside

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


def _salvage(connection: sa.Connection, aside: Path) -> None:
    """Copy what can be read of a damaged database into this fresh one, the newest first, for at most 30 seconds."""
    raw: Any = connection.connection.driver_connection
    whole = salvage(raw, aside, _SALVAGED, _SALVAGE_SECONDS)
    with connection.begin():
        total, highest = connection.execute(sa.select(sa.func.count(), sa.func.max(executions.c.revision))).one()
        add_rows(connection, total - count_rows(connection))
        connection.execute(storage.RAISE_REVISION, {"highest": highest or 0})
    log.info("copied from the damaged database", executions=total, whole=whole)
