"""Writing the record: model to rows. Synchronous; runs in a thread, one call at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import sqlalchemy as sa
from attrs import define, evolve, field
from sqlalchemy.dialects import sqlite

from actors.history.journal import Entry, cleaned
from actors.history.pending import Batch
from actors.history.pieces import NOTHING, Piece, seqs_of
from actors.history.rollups import Changes, Ended, Rollup, Span, ended_of
from actors.history.tables import (
    PHASES,
    PLAIN,
    SCHEMA_VERSION,
    add_rows,
    count_rows,
    events,
    executions,
    meta,
    metadata,
    payloads,
    rollups,
)
from actors.sqlite import begin, check_schema
from protocol.errors import ErrorKind, Failure
from protocol.model import Execution, Status

T = TypeVar("T")
LOST: Final = Failure(ErrorKind.LOST, "the runner ended while this was running")
LOST_SEQS: Final = 1_000_000
_MANY: Final = 500
"""Keys in one statement."""
_CACHE: Final = "rollups"
"""The key under which the write connection caches the rollups that it wrote last; dropped when a transaction fails."""
_CACHED: Final = 1000

_rollup_encoder = msgspec.msgpack.Encoder()
_rollup_decoder = msgspec.msgpack.Decoder(Rollup)


@define
class Stored:
    """The outcome of a batch."""

    refused: dict[str, str] = field(factory=dict)
    """Reasons by id of executions that the database refuses in every form; they are left out."""
    refused_pieces: dict[str, str] = field(factory=dict)
    rows: int = 0
    """Executions in the database now."""


def prepare(connection: sa.Connection, path: Path) -> int:
    """Make the schema where it is missing, in one transaction; return the highest revision ever stored.

    Raises `RunnerError` (`unavailable`), naming `path`, when the database has another schema.
    """
    with connection.begin():
        begin(connection)
        metadata.create_all(connection)
        values = {row.name: int(row.value) for row in connection.execute(sa.select(meta))}
        check_schema(path, values.get("schema", SCHEMA_VERSION), SCHEMA_VERSION)
        for name, value in (("schema", SCHEMA_VERSION), ("revision", 0), ("rows", 0)):
            if name not in values:
                connection.execute(sa.insert(meta).values(name=name, value=value))
    return values.get("revision", 0)


def store(connection: sa.Connection, batch: Batch) -> Stored:
    """Write a batch in one transaction; an entry replaces the earlier state of its execution.

    Raises `sqlalchemy.exc.OperationalError` when the database cannot write now; nothing is stored then.
    """
    stored = _store(connection, batch)
    stored.rows = count_rows(connection)
    connection.rollback()
    return stored


def _store(connection: sa.Connection, batch: Batch) -> Stored:
    try:
        with connection.begin():
            _write(connection, batch)
    except sa.exc.OperationalError:
        connection.info.pop(_CACHE, None)
        raise
    except Exception as problem:  # noqa: BLE001 - one bad row must not keep all others from being stored
        connection.info.pop(_CACHE, None)
        parts = batch.parts()
        if len(parts) == 1:
            return _store_cleaned(connection, batch, f"{type(problem).__name__}: {problem}")
        stored = Stored()
        for part in parts:
            one = _store(connection, part)
            stored.refused |= one.refused
            stored.refused_pieces |= one.refused_pieces
        return stored
    return Stored()


def _store_cleaned(connection: sa.Connection, batch: Batch, why: str) -> Stored:
    """Store the only part of a batch, which was refused, in a cleaned form if there is one."""
    if batch.entries:
        (entry,) = batch.entries
        again = cleaned(entry)
        if again != entry:
            return _store(connection, Batch((again,)))
        return Stored(refused={entry.execution.id: why})
    return Stored(refused_pieces={piece.name: why for piece in batch.pieces})


def _write(connection: sa.Connection, batch: Batch) -> None:
    """Write a batch inside of a transaction."""
    entries = {entry.execution.id: entry.execution for entry in batch.entries}
    known = _known(connection, {*entries, *(piece.name for piece in batch.pieces)})
    if entries:
        _upsert(connection, executions, [_execution_row(entry) for entry in batch.entries])
        _upsert(connection, payloads, [_payload_row(execution) for execution in entries.values()])
        _write_events(connection, entries, known)
        changes = Changes()
        for name, execution in entries.items():
            # Each execution is counted once: a lost one that ends after a retry is no longer counted as lost.
            if name in known and known[name].status.final:
                changes.remove(known[name])
            if execution.status.final:
                changes.add(ended_of(execution))
        _count(connection, changes)
        add_rows(connection, len(entries.keys() - known.keys()))
        connection.execute(_RAISE_REVISION, {"highest": max(entry.revision for entry in batch.entries)})
    statuses = {name: ended.status for name, ended in known.items()}
    statuses |= {name: execution.status for name, execution in entries.items()}
    # The record of an ended execution has all of its events.
    running = {name for name, status in statuses.items() if not status.final}
    _write_pieces(connection, [piece for piece in batch.pieces if piece.name in running])
    for gone in batch.forgotten:
        connection.execute(_FORGET_PIECES, {"name": gone.name, "start": gone.seqs[0], "end": gone.seqs[1]})


def _known(connection: sa.Connection, names: Iterable[str]) -> dict[str, Ended]:
    """Return the stored states of executions by id, in the form in which ends are counted."""
    found = {}
    for some in _parts(names):
        for row in connection.execute(_KNOWN, {"names": some}):
            kind = None if row.failure_kind is None else ErrorKind(row.failure_kind)
            found[row.id] = Ended(row.module, row.at, Status(row.status), kind, row.run_seconds)
    return found


def _parts(things: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(things)
    while some := list(itertools.islice(rest, _MANY)):
        yield some


def _write_events(connection: sa.Connection, entries: Mapping[str, Execution], known: Mapping[str, Ended]) -> None:
    """Replace the pieces of ended executions by all of their events; add the events of the others."""
    ended = {name: execution for name, execution in entries.items() if execution.status.final}
    again = [{"name": name} for name in ended if name in known]
    if again:
        connection.execute(_FORGET_ALL, again)
    rows = [
        {"id": name, "first_seq": 0, "last_seq": execution.events_count, "events": execution.events}
        for name, execution in ended.items()
        if execution.events != NOTHING
    ]
    _upsert(connection, events, rows)
    for name, execution in entries.items():
        if name not in ended and (seqs := seqs_of(execution.events)) is not None:
            connection.execute(_FORGET_PIECES, {"name": name, "start": seqs[0], "end": seqs[1]})
            _write_pieces(connection, [Piece(name, seqs[0], execution.events)])


def _write_pieces(connection: sa.Connection, pieces: Sequence[Piece]) -> None:
    rows = [
        {"id": piece.name, "first_seq": piece.first_seq, "last_seq": seqs[1] - 1, "events": piece.events}
        for piece in pieces
        if (seqs := seqs_of(piece.events)) is not None
    ]
    _upsert(connection, events, rows)


def _count(connection: sa.Connection, changes: Changes) -> None:
    """Add the changes to the rollups."""
    cache = connection.info.setdefault(_CACHE, {})
    missing = [span for span in changes.rollups if span not in cache]
    # Grouped by time: for a list of keys of several columns SQLite would scan the whole table.
    for (width, start), spans in itertools.groupby(sorted(missing, key=_time_of), key=_time_of):
        for some in _parts(spans):
            keys = {"modules": [span.module for span in some], "width": width, "start": start}
            stored = {row.module: _rollup_decoder.decode(row.counts) for row in connection.execute(_ROLLUPS, keys)}
            cache.update((span, stored.get(span.module) or Rollup()) for span in some)
    rows = []
    for span in changes.rollups:
        total = cache[span] = changes.apply(span, cache.pop(span))
        counts = _rollup_encoder.encode(total)
        rows.append({"module": span.module, "width": span.width, "start": span.start, "counts": counts})
    _upsert(connection, rollups, rows)
    for span in list(itertools.islice(cache, max(0, len(cache) - _CACHED))):
        del cache[span]


def _time_of(span: Span) -> tuple[int, int]:
    return span.width, span.start


def newer(connection: sa.Connection, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the latest entry of each execution that is newer than its stored state."""
    latest: dict[str, Entry] = {}
    for entry in entries:
        known = latest.get(entry.execution.id)
        if known is None or known.revision < entry.revision:
            latest[entry.execution.id] = entry
    stored: dict[str, int] = {}
    for names in _parts(latest):
        wanted = sa.select(executions.c.id, executions.c.revision).where(executions.c.id.in_(names))
        stored.update((row.id, row.revision) for row in connection.execute(wanted))
    connection.rollback()
    return tuple(entry for name, entry in latest.items() if entry.revision > stored.get(name, -1))


def mark_lost(connection: sa.Connection, now: float, revision: int) -> tuple[str, ...]:
    """Fail all running executions as `lost` at `now`; return their ids, oldest first.

    Their pieces stay. A reader may have seen events that were never stored, and no number may come twice: so
    `events_count`, from which a retry numbers its events, is `LOST_SEQS` above the next multiple of `LOST_SEQS` over
    the highest known number.
    """
    columns, changes = executions.c, Changes()
    highest = sa.select(sa.func.max(events.c.last_seq)).where(events.c.id == columns.id).scalar_subquery()
    wanted = sa.select(columns.id, columns.module, columns.run_seconds, columns.events_count, highest.label("last"))
    with connection.begin():
        running = wanted.where(columns.status == Status.RUNNING.value).order_by(columns.created_at, columns.id)
        rows = connection.execute(running).all()
        for row in rows:
            last = max(row.events_count - 1, -1 if row.last is None else row.last)
            count = (last // LOST_SEQS + 2) * LOST_SEQS
            connection.execute(_LOSE, {"name": row.id, "revision": revision, "now": now, "count": count})
            changes.add(Ended(row.module, now, Status.FAILED, LOST.kind, row.run_seconds))
        _count(connection, changes)
        connection.execute(_RAISE_REVISION, {"highest": revision})
    return tuple(row.id for row in rows)


def queued(connection: sa.Connection) -> tuple[str, ...]:
    """Return the ids of all queued executions, oldest first."""
    wanted = sa.select(executions.c.id).where(executions.c.status == Status.QUEUED.value)
    names = tuple(connection.execute(wanted.order_by(executions.c.created_at, executions.c.id)).scalars())
    connection.rollback()
    return names


def _failure_text(failure: Failure) -> str:
    return msgspec.json.encode(evolve(failure, traceback=None)).decode()


def _upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows; a row replaces the one with its key."""
    if rows:
        sql, order = _upsert_sql(table, connection.dialect)
        connection.exec_driver_sql(sql, list(map(itemgetter(*order), rows)))


@lru_cache
def _upsert_sql(table: sa.Table, dialect: sa.Dialect) -> tuple[str, tuple[str, ...]]:
    """Return the text and the order of its parameters.

    SQLAlchemy would compile these statements each time: half of the time of a small commit.
    """
    insert = sqlite.insert(table)
    keys = [column.name for column in table.primary_key]
    changed = {column.name: insert.excluded[column.name] for column in table.columns if not column.primary_key}
    compiled = insert.on_conflict_do_update(index_elements=keys, set_=changed).compile(dialect=dialect)
    return str(compiled), tuple(compiled.positiontup or ())


_KNOWN: Final = sa.select(
    executions.c.id,
    executions.c.module,
    executions.c.status,
    executions.c.failure_kind,
    executions.c.run_seconds,
    sa.func.coalesce(executions.c.finished_at, executions.c.created_at).label("at"),
).where(executions.c.id.in_(sa.bindparam("names", expanding=True)))
_ROLLUPS: Final = sa.select(rollups.c.module, rollups.c.counts).where(
    rollups.c.module.in_(sa.bindparam("modules", expanding=True)),
    rollups.c.width == sa.bindparam("width"),
    rollups.c.start == sa.bindparam("start"),
)
_FORGET_ALL: Final = sa.delete(events).where(events.c.id == sa.bindparam("name"))
_FORGET_PIECES: Final = sa.delete(events).where(
    events.c.id == sa.bindparam("name"),
    events.c.first_seq >= sa.bindparam("start"),
    events.c.first_seq < sa.bindparam("end"),
    events.c.last_seq < sa.bindparam("end"),
)
_RAISE_REVISION: Final = (
    sa.update(meta)
    .where(meta.c.name == "revision", meta.c.value < sa.bindparam("highest"))
    .values(value=sa.bindparam("highest"))
)
_LOSE: Final = (
    sa.update(executions)
    .where(executions.c.id == sa.bindparam("name"))
    .values(
        status=Status.FAILED.value,
        failure_kind=LOST.kind.value,
        failure=_failure_text(LOST),
        finished_at=sa.bindparam("now"),
        revision=sa.bindparam("revision"),
        events_count=sa.bindparam("count"),
    )
)


def _execution_row(entry: Entry) -> dict[str, Any]:
    execution, failure = entry.execution, entry.execution.failure
    return {
        **{name: getattr(execution, name) for name in PLAIN},
        **{f"{phase}_seconds": getattr(execution.timings, phase) for phase in PHASES},
        "revision": entry.revision,
        "module": execution.module.name,
        "version": execution.module.version,
        "env": execution.env.value,
        "status": execution.status.value,
        "failure_kind": None if failure is None else failure.kind.value,
        "failure": None if failure is None else _failure_text(failure),
    }


def _payload_row(execution: Execution) -> dict[str, Any]:
    attempts = msgspec.json.encode(execution.failed_attempts).decode() if execution.failed_attempts else None
    traceback = None if execution.failure is None else execution.failure.traceback
    return {
        "id": execution.id,
        "input": execution.input,
        "result": execution.result,
        "traceback": traceback,
        "failed_attempts": attempts,
        "killed": msgspec.json.encode(execution.killed).decode() if execution.killed else None,
    }
