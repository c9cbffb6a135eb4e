"""Executions in a database: tables, statements, row <-> model. Synchronous; its owner runs it in a thread.

The SQL is portable (PostgreSQL is to come); what only SQLite needs is in the functions that say so. Three tables
with at most one row for each execution: a cold scan over metadata does not read payloads and outputs.
"""

from __future__ import annotations

import base64
import binascii
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
import sqlalchemy as sa
from attrs import evolve, frozen
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import QueuePool, StaticPool

from actors.journal import Entry, cleaned
from protocol.errors import ErrorKind, Failure, error
from protocol.model import Execution, Kind, ModuleRef, OutputChunk, Status, Timings

T = TypeVar("T")
SCHEMA_VERSION: Final = 1
MAX_PAGE: Final = 500
READERS: Final = 4
_BUSY_SECONDS: Final = 5.0
_SHRINK_PAGES: Final = 1000
_FINAL: Final = tuple(status.value for status in Status if status.final)
_PHASES: Final = ("queue", "build", "start", "load", "run")
# Fields that are kept as they are, in columns of the same name.
_PLAIN: Final = ("id", "subject", "created_at", "started_at", "finished_at", "exit_code", "attempts", "output_dropped")
LOST: Final = Failure(ErrorKind.LOST, "the runner ended while this was running")

metadata = sa.MetaData()

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

executions = sa.Table(
    "executions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("module", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("env", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("failure_kind", sa.Text),
    sa.Column("failure", sa.Text),  # JSON, without the traceback
    sa.Column("exit_code", sa.BigInteger),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("output_dropped", sa.BigInteger, nullable=False),
    *(sa.Column(f"{phase}_seconds", sa.Double, nullable=False) for phase in _PHASES),
    # Every combination of filters has its index, each in the order of the pages.
    sa.Index("executions_by_time", "created_at", "id"),
    sa.Index("executions_by_module", "module", "created_at", "id"),
    sa.Index("executions_by_status", "status", "created_at", "id"),
    sa.Index("executions_by_module_status", "module", "status", "created_at", "id"),
    sqlite_with_rowid=False,  # the ids rise, so the rows are appended, and no second index on the id is needed
)

payloads = sa.Table(
    "payloads",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("input", sa.LargeBinary, nullable=False),
    sa.Column("result", sa.LargeBinary),
    sa.Column("traceback", sa.Text),
)

outputs = sa.Table(
    "outputs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("chunks", sa.LargeBinary, nullable=False),  # all chunks as msgpack: one row, however often it printed
)

_chunks_encoder = msgspec.msgpack.Encoder()
_chunks_decoder = msgspec.msgpack.Decoder(tuple[OutputChunk, ...])
_failure_decoder = msgspec.json.Decoder(Failure)


@frozen
class Query:
    """What to list, newest first: `since <= created_at < until` in seconds since the epoch; `limit` is 1 to 500."""

    module: str | None = None
    status: Status | None = None
    since: float | None = None
    until: float | None = None
    limit: int = 50
    cursor: str | None = None


@frozen
class Page:
    """Executions without input, result, traceback and output; `next_cursor` is None on the last page."""

    items: tuple[Execution, ...]
    next_cursor: str | None = None


def sqlite_path(url: str | None, data_dir: Path) -> Path:
    """Return the database file; raises `RunnerError` (`unavailable`) for a URL that is not of a SQLite file."""
    if url is None:
        return data_dir / "history.db"
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise error(ErrorKind.UNAVAILABLE, "the history is kept in SQLite only: sqlite:///PATH", field="database")
    return Path(str(parsed.database))


class Database:
    """A SQLite file. Every method blocks; those that write are called one at a time, in any thread.

    One writer that owns all checkpoints is what keeps SQLite before 3.51.3 clear of its WAL-reset bug. What cannot be
    done raises `sqlalchemy.exc.SQLAlchemyError` or `OSError`.
    """

    def __init__(self, path: Path) -> None:
        """Open nothing yet; the file is made by the first write."""
        self._path = path
        self._writer = sa.create_engine("sqlite://", creator=self._connect_writer, poolclass=StaticPool)
        self._reader = sa.create_engine(
            "sqlite://", creator=self._connect_reader, poolclass=QueuePool, pool_size=READERS, max_overflow=0
        )

    def _connect_writer(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, check_same_thread=False)
        # auto_vacuum counts only before the first table, so it comes first.
        for pragma in ("auto_vacuum=incremental", "journal_mode=wal", "synchronous=full", "temp_store=memory"):
            connection.execute(f"pragma {pragma}").close()
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self._path))}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, check_same_thread=False)

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Return what `work` does with the write connection."""
        with self._writer.connect() as link:
            return work(link)

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Return what `work` finds with one of `READERS` connections that cannot write."""
        with self._reader.connect() as link:
            return work(link)

    def renew(self) -> None:
        """Replace the write connection: whatever was wrong with it, or with the file, a new one does not have it."""
        self._writer.dispose()
        self.write(prepare)

    def close(self) -> None:
        """Close all connections, the writer last: its end empties the write-ahead log."""
        self._reader.dispose()
        self._writer.dispose()


def prepare(connection: sa.Connection) -> int:
    """Make or check the schema; return the highest revision ever stored.

    Raises `RunnerError` (`unavailable`) when the database was made by a newer runner.
    """
    with connection.begin():
        values = {}
        if sa.inspect(connection).has_table("meta"):
            values = {row.name: int(row.value) for row in connection.execute(sa.select(meta))}
        version = values.get("schema", SCHEMA_VERSION)
        if version > SCHEMA_VERSION:
            message = f"the history has schema {version}, this runner knows up to {SCHEMA_VERSION}: use a newer runner"
            raise error(ErrorKind.UNAVAILABLE, message)
        # Alembic's place: `version < SCHEMA_VERSION` is to be upgraded here, and only then is Alembic imported.
        metadata.create_all(connection)
        for name, value in (("schema", SCHEMA_VERSION), ("revision", 0)):
            if name not in values:
                connection.execute(sa.insert(meta).values(name=name, value=value))
    return values.get("revision", 0)


def _upsert(table: sa.Table, dialect: str) -> sa.Executable:
    insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    # Both constructs have the same method, but no common type that says so.
    changed = {column.name: insert.excluded[column.name] for column in table.columns if not column.primary_key}
    return insert.on_conflict_do_update(index_elements=["id"], set_=changed)


_UPSERTS: Final = {
    (table.name, dialect): _upsert(table, dialect)
    for table in (executions, payloads, outputs)
    for dialect in ("sqlite", "postgresql")
}
_FORGET_OUTPUT: Final = sa.delete(outputs).where(outputs.c.id == sa.bindparam("name"))


def store(connection: sa.Connection, entries: Sequence[Entry]) -> dict[str, str]:
    """Write all entries in one transaction, each over what its execution had before; at most one for each id.

    Returns why by id for entries that cannot be stored whatever is tried (they are left out). Raises
    `sqlalchemy.exc.OperationalError` when the database cannot write now; nothing is stored then.
    """
    try:
        with connection.begin():
            _write(connection, entries)
    except sa.exc.OperationalError:
        raise
    except Exception as problem:  # noqa: BLE001 - one bad row must not keep all others from being stored
        if len(entries) > 1:
            return {name: why for entry in entries for name, why in store(connection, [entry]).items()}
        again = cleaned(entries[0])
        if again == entries[0]:
            return {again.execution.id: f"{type(problem).__name__}: {problem}"}
        return store(connection, [again])
    return {}


def _write(connection: sa.Connection, entries: Sequence[Entry]) -> None:
    if not entries:
        return
    dialect = connection.dialect.name
    connection.execute(_UPSERTS["executions", dialect], [_execution_row(entry) for entry in entries])
    connection.execute(_UPSERTS["payloads", dialect], [_payload_row(entry.execution) for entry in entries])
    printed = [_output_row(entry.execution) for entry in entries if entry.execution.output]
    if printed:
        connection.execute(_UPSERTS["outputs", dialect], printed)
    # An execution that is tried again after a restart may have printed before, and not this time.
    silent = [{"name": entry.execution.id} for entry in entries if not entry.execution.output]
    if silent:
        connection.execute(_FORGET_OUTPUT, silent)
    highest = max(entry.revision for entry in entries)
    connection.execute(sa.update(meta).where(meta.c.name == "revision", meta.c.value < highest).values(value=highest))


def newer(connection: sa.Connection, entries: Iterable[Entry]) -> list[Entry]:
    """Return the latest entry of each execution, without those that the database has in that state or a later one."""
    latest: dict[str, Entry] = {}
    for entry in entries:
        known = latest.get(entry.execution.id)
        if known is None or known.revision < entry.revision:
            latest[entry.execution.id] = entry
    stored: dict[str, int] = {}
    names = list(latest)
    for start in range(0, len(names), MAX_PAGE):
        wanted = sa.select(executions.c.id, executions.c.revision).where(
            executions.c.id.in_(names[start : start + MAX_PAGE])
        )
        stored.update((row.id, row.revision) for row in connection.execute(wanted))
    connection.rollback()
    return [entry for name, entry in latest.items() if entry.revision > stored.get(name, -1)]


def mark_lost(connection: sa.Connection, now: float, revision: int) -> tuple[str, ...]:
    """End all running executions as failed with kind `lost` at `now`; return their ids, oldest first."""
    running = executions.c.status == Status.RUNNING.value
    with connection.begin():
        ordered = sa.select(executions.c.id).where(running).order_by(executions.c.created_at, executions.c.id)
        names = tuple(connection.execute(ordered).scalars())
        values = {"failure_kind": LOST.kind.value, "failure": _failure_text(LOST), "finished_at": now}
        connection.execute(
            sa.update(executions).where(running).values(status=Status.FAILED.value, revision=revision, **values)
        )
        connection.execute(sa.update(meta).where(meta.c.name == "revision").values(value=revision))
    return names


def queued(connection: sa.Connection) -> tuple[str, ...]:
    """Return the ids of all queued executions, oldest first."""
    wanted = sa.select(executions.c.id).where(executions.c.status == Status.QUEUED.value)
    names = tuple(connection.execute(wanted.order_by(executions.c.created_at, executions.c.id)).scalars())
    connection.rollback()
    return names


def fetch(connection: sa.Connection, name: str) -> Execution | None:
    """Return the whole execution with the id `name`, or None."""
    joined = executions.outerjoin(payloads, executions.c.id == payloads.c.id).outerjoin(
        outputs, executions.c.id == outputs.c.id
    )
    wanted = sa.select(executions, payloads.c.input, payloads.c.result, payloads.c.traceback, outputs.c.chunks)
    row = connection.execute(wanted.select_from(joined).where(executions.c.id == name)).mappings().first()
    return None if row is None else _execution(row)


def page(connection: sa.Connection, query: Query) -> Page:
    """Return one page, newest first. Raises `RunnerError` (`bad_input`) for a limit or cursor that is not valid."""
    if not 1 <= query.limit <= MAX_PAGE:
        raise error(ErrorKind.BAD_INPUT, f"limit must be from 1 to {MAX_PAGE}", field="limit")
    columns = executions.c
    wanted = sa.select(executions).order_by(columns.created_at.desc(), columns.id.desc()).limit(query.limit + 1)
    if query.module is not None:
        wanted = wanted.where(columns.module == query.module)
    if query.status is not None:
        wanted = wanted.where(columns.status == query.status.value)
    if query.since is not None:
        wanted = wanted.where(columns.created_at >= query.since)
    if query.until is not None:
        wanted = wanted.where(columns.created_at < query.until)
    if query.cursor is not None:
        created_at, name = _read_cursor(query.cursor)
        wanted = wanted.where(
            sa.tuple_(columns.created_at, columns.id) < sa.tuple_(sa.literal(created_at), sa.literal(name))
        )
    rows = connection.execute(wanted).mappings().all()
    items = tuple(_execution(row) for row in rows[: query.limit])
    more = len(rows) > query.limit
    return Page(items, _cursor(items[-1]) if more else None)


def _cursor(last: Execution) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((last.created_at, last.id))).decode("ascii").rstrip("=")


def _read_cursor(cursor: str) -> tuple[float, str]:
    try:
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(data, type=tuple[float, str])
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise error(ErrorKind.BAD_INPUT, "the cursor is not one of this server", field="cursor") from None


def retain(connection: sa.Connection, before: float, chunk: int) -> int:
    """Delete at most `chunk` executions that ended before `before`, with their room on the disk; return how many."""
    ended = sa.func.coalesce(executions.c.finished_at, executions.c.created_at) < before
    # The time of creation says nothing more, but has the index.
    old = sa.select(executions.c.id).where(executions.c.created_at < before, executions.c.status.in_(_FINAL), ended)
    with connection.begin():
        names = list(connection.execute(old.order_by(executions.c.created_at).limit(chunk)).scalars())
        for table in (outputs, payloads, executions) if names else ():
            connection.execute(sa.delete(table).where(table.c.id.in_(names)))
    if names and connection.dialect.name == "sqlite":
        raw: Any = connection.connection.driver_connection
        # `execute` steps this pragma once and frees one page a call; a script runs it to its end.
        raw.executescript(f"pragma incremental_vacuum({_SHRINK_PAGES})")
    return len(names)


def _failure_text(failure: Failure) -> str:
    return msgspec.json.encode(evolve(failure, traceback=None)).decode()


def _execution_row(entry: Entry) -> dict[str, Any]:
    execution, failure = entry.execution, entry.execution.failure
    return {
        **{name: getattr(execution, name) for name in _PLAIN},
        **{f"{phase}_seconds": getattr(execution.timings, phase) for phase in _PHASES},
        "revision": entry.revision,
        "module": execution.module.name,
        "version": execution.module.version,
        "env": execution.env.value,
        "status": execution.status.value,
        "failure_kind": None if failure is None else failure.kind.value,
        "failure": None if failure is None else _failure_text(failure),
    }


def _payload_row(execution: Execution) -> dict[str, Any]:
    traceback = None if execution.failure is None else execution.failure.traceback
    return {"id": execution.id, "input": execution.input, "result": execution.result, "traceback": traceback}


def _output_row(execution: Execution) -> dict[str, Any]:
    return {"id": execution.id, "chunks": _chunks_encoder.encode(execution.output)}


def _execution(row: Mapping[Any, Any]) -> Execution:
    failure = None
    if row["failure"] is not None:
        failure = evolve(_failure_decoder.decode(row["failure"]), traceback=row.get("traceback"))
    payload = {"input": row["input"], "result": row["result"]} if row.get("input") is not None else {}
    chunks = row.get("chunks")
    return Execution(
        **{name: row[name] for name in _PLAIN},
        **payload,
        module=ModuleRef(row["module"], row["version"]),
        env=Kind(row["env"]),
        status=Status(row["status"]),
        failure=failure,
        output=() if chunks is None else _chunks_decoder.decode(chunks),
        timings=Timings(*(row[f"{phase}_seconds"] for phase in _PHASES)),
    )
