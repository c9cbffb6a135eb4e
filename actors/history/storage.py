"""Writing the record: model to rows. Synchronous; runs in a thread, one call at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgspec
import sqlalchemy as sa
from attrs import define, evolve, field
from sqlalchemy.dialects import sqlite

from actors import outbox
from actors.damage import is_damage
from actors.history import queries
from actors.history.pending import Batch, stage_of
from actors.history.pieces import NOTHING, Piece, seqs_of
from actors.history.shared import stages
from actors.history.tables import (
    PHASES,
    PLAIN,
    add_rows,
    count_rows,
    events,
    executions,
    meta,
    payloads,
    rollups,
    set_journal_position,
)
from actors.journal import Entry, Mark, cleaned
from actors.rollups import Changes, Ended, Rollup, Span, changed, ended_of
from protocol.errors import ErrorKind, Failure
from protocol.model import Execution, Status

T = TypeVar("T")
LOST: Final = Failure(ErrorKind.LOST, "the runner ended while this was running")
LOST_SEQS: Final = 1_000_000
_MANY: Final = 500
"""Keys in one statement."""
_TOGETHER: Final = (100, 10, 1)
"""Rows in one statement; few sizes, so that all statements stay prepared."""
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
    notices: int = 0
    """Notices that it added."""
    rows: int = 0
    """Executions in the database now."""


def store(connection: sa.Connection, batch: Batch, mark: Mark | None = None) -> Stored:
    """Write a batch in one transaction; an entry replaces the earlier state of its execution.

    With it is stored that the database has what the journal held at `mark`. Raises `sqlalchemy.exc.OperationalError`
    when the database cannot write now, and `DatabaseError` when it is damaged; nothing is stored then.
    """
    stored = _store(connection, batch, mark)
    stored.rows = count_rows(connection)
    connection.rollback()
    return stored


def _store(connection: sa.Connection, batch: Batch, mark: Mark | None = None) -> Stored:
    try:
        with connection.begin():
            notices = _write(connection, batch)
            if mark is not None:
                set_journal_position(connection, mark.salt, mark.at)
    except sa.exc.OperationalError:
        connection.info.pop(_CACHE, None)
        raise
    except Exception as problem:
        connection.info.pop(_CACHE, None)
        if is_damage(problem):
            raise
        if not batch.all_known:
            return _store(connection, evolve(batch, all_known=True), mark)
        # One bad row must not keep all others from being stored.
        parts = batch.parts()
        if len(parts) == 1:
            return _store_cleaned(connection, batch, f"{type(problem).__name__}: {problem}")
        stored = Stored()
        for part in parts:
            one = _store(connection, part)
            stored.refused |= one.refused
            stored.refused_pieces |= one.refused_pieces
            stored.notices += one.notices
        if mark is not None:
            with connection.begin():
                set_journal_position(connection, mark.salt, mark.at)
        return stored
    return Stored(notices=notices)


def _store_cleaned(connection: sa.Connection, batch: Batch, why: str) -> Stored:
    """Store the only part of a batch, which was refused, in a cleaned form if there is one."""
    if batch.entries:
        (entry,) = batch.entries
        again = cleaned(entry)
        if again != entry:
            return _store(connection, Batch((again,), all_known=True))
        return Stored(refused={entry.execution.id: why})
    return Stored(refused_pieces={piece.name: why for piece in batch.pieces})


def _write(connection: sa.Connection, batch: Batch) -> int:
    """Write a batch inside of a transaction, with the notices about ends; return how many these are."""
    notices, wanted = 0, _without_older(connection, batch.entries)
    entries = {entry.execution.id: entry.execution for entry in wanted}
    names = {*entries, *(piece.name for piece in batch.pieces)}
    known = _known(connection, names if batch.all_known else names & batch.known)
    if entries:
        # An unexpected state of an execution is in the way of its row: then each is stored alone, and looked up.
        fresh = [_execution_row(entry) for entry in wanted if entry.execution.id not in known]
        _insert(connection, executions, fresh, replacing=False)
        later = [_execution_row(entry) for entry in wanted if entry.execution.id in known]
        _upsert(connection, executions, later)
        _upsert(connection, payloads, list(map(_payload_row, entries.values())))
        _write_events(connection, entries, known)
        changes = Changes()
        for name, execution in entries.items():
            before = known.get(name)
            if before is not None and before.status.final:
                changes.remove(before)
            if execution.status.final:
                changes.add(ended_of(execution))
        _count(connection, changes)
        notices = outbox.write(connection, (entry.execution for entry in wanted if not entry.adopted), known)
        add_rows(connection, len(entries.keys() - known.keys()))
        connection.execute(RAISE_REVISION, {"highest": max(entry.revision for entry in wanted)})
    if batch.pieces:
        statuses = {name: ended.status for name, ended in known.items()}
        statuses |= {name: execution.status for name, execution in entries.items()}
        # The record of an ended execution has all of its events.
        running = {name for name, status in statuses.items() if not status.final}
        _write_pieces(connection, [piece for piece in batch.pieces if piece.name in running])
    for gone in batch.forgotten:
        connection.execute(_FORGET_PIECES, {"name": gone.name, "start": gone.seqs[0], "end": gone.seqs[1]})
    return notices


def _without_older(connection: sa.Connection, entries: Sequence[Entry]) -> Sequence[Entry]:
    """Leave out the states of a cluster's log of which the database has this one or a later one."""
    adopted = [entry.execution for entry in entries if entry.adopted]
    found = stages(connection, [execution.id for execution in adopted])
    passed = {one.id for one in adopted if not stage_of(one).follows(found.get(one.id))}
    return [entry for entry in entries if entry.execution.id not in passed] if passed else entries


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
        (name, 0, execution.events_count, execution.events)
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
        (piece.name, piece.first_seq, seqs[1] - 1, piece.events)
        for piece in pieces
        if (seqs := seqs_of(piece.events)) is not None
    ]
    _upsert(connection, events, rows)


def _count(connection: sa.Connection, changes: Changes) -> None:
    """Add the changes to the rollups."""
    cache, spans_changed = connection.info.setdefault(_CACHE, {}), changes.by_span()
    missing = [span for span in spans_changed if span not in cache]
    # Grouped by time: for a list of keys of several columns SQLite would scan the whole table.
    for (width, start), spans in itertools.groupby(sorted(missing, key=_time_of), key=_time_of):
        for some in _parts(spans):
            keys = {"modules": [span.module for span in some], "width": width, "start": start}
            stored = {row.module: _counts(row.counts) for row in connection.execute(_ROLLUPS, keys)}
            cache.update((span, stored.get(span.module) or Rollup()) for span in some)
    rows = []
    for span, (added, removed) in spans_changed.items():
        total = cache[span] = changed(cache.pop(span), added, removed)
        rows.append((span.module, span.width, span.start, _rollup_encoder.encode(total)))
    _upsert(connection, rollups, rows)
    for span in list(itertools.islice(cache, max(0, len(cache) - _CACHED))):
        del cache[span]


def _counts(stored: bytes) -> Rollup:
    """Return stored counts; damaged ones begin anew."""
    try:
        return _rollup_decoder.decode(stored)
    except (msgspec.MsgspecError, TypeError):
        return Rollup()


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


def mark_lost(connection: sa.Connection, now: float, revision: int, node: str | None = None) -> tuple[str, ...]:
    """Fail running executions as `lost` at `now`; return their ids, oldest first.

    These are all of them on a single machine. Of a cluster, which may have been left, they are the calls of this
    `node`; the cluster decides about the others.

    Their notices are added, and withdrawn if they run again. Their pieces stay. A reader may have seen events that were
    never stored, and no number may come twice: so `events_count`, from which a retry numbers its events, is `LOST_SEQS`
    above the next multiple of `LOST_SEQS` over the highest known number.
    """
    columns, changes = executions.c, Changes()
    highest = sa.select(sa.func.max(events.c.last_seq)).where(events.c.id == columns.id).scalar_subquery()
    wanted = sa.select(
        columns.id, columns.module, columns.run_seconds, columns.events_count, columns.on_end, highest.label("last")
    )
    with connection.begin():
        running = wanted.where(columns.status == Status.RUNNING.value, _left_by(node))
        rows = connection.execute(running.order_by(columns.created_at, columns.id)).all()
        for row in rows:
            last = max(row.events_count - 1, -1 if row.last is None else row.last)
            count = (last // LOST_SEQS + 2) * LOST_SEQS
            connection.execute(_LOSE, {"name": row.id, "revision": revision, "now": now, "count": count})
            changes.add(Ended(row.module, now, Status.FAILED, LOST.kind, row.run_seconds))
        _count(connection, changes)
        telling = [queries.fetch(connection, row.id) for row in rows if row.on_end is not None]
        outbox.write(connection, filter(None, telling))
        connection.execute(RAISE_REVISION, {"highest": revision})
    return tuple(row.id for row in rows)


def queued(connection: sa.Connection, node: str | None = None, *, joined: bool = False) -> tuple[str, ...]:
    """Return the ids of the queued executions that the last runner left, oldest first; if `joined`, only calls."""
    calls = (sa.not_(executions.c.asynchronous),) if joined else ()
    wanted = sa.select(executions.c.id).where(executions.c.status == Status.QUEUED.value, _left_by(node), *calls)
    names = tuple(connection.execute(wanted.order_by(executions.c.created_at, executions.c.id)).scalars())
    connection.rollback()
    return names


def _left_by(node: str | None) -> sa.ColumnElement[bool]:
    """Return the condition of executions about which no cluster decides."""
    columns = executions.c
    return sa.or_(columns.node.is_(None), sa.and_(columns.node == node, sa.not_(columns.asynchronous)))


def _failure_text(failure: Failure) -> str:
    return msgspec.json.encode(evolve(failure, traceback=None)).decode()


def _upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows; a row replaces the one with its key."""
    _insert(connection, table, rows, replacing=True)


def _insert(connection: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]], *, replacing: bool) -> None:
    """Insert rows, with values in the order of the columns.

    Many rows in one statement: between two statements SQLite gives the interpreter back, which the event loop wants.
    """
    at = 0
    while at < len(rows):
        size = next(size for size in _TOGETHER if size <= len(rows) - at)
        sql = _insert_sql(table, size, connection.dialect, replacing=replacing)
        connection.exec_driver_sql(sql, tuple(itertools.chain.from_iterable(rows[at : at + size])))
        at += size


@lru_cache
def _insert_sql(table: sa.Table, rows: int, dialect: sa.Dialect, *, replacing: bool) -> str:
    """Return the text for so many rows. SQLAlchemy would compile it each time: half of the time of a small commit."""
    insert = sqlite.insert(table)
    if replacing:
        keys = [column.name for column in table.primary_key]
        changed = {column.name: insert.excluded[column.name] for column in table.columns if not column.primary_key}
        insert = insert.on_conflict_do_update(index_elements=keys, set_=changed)
    one = "(" + ", ".join("?" * len(table.columns)) + ")"
    return str(insert.compile(dialect=dialect)).replace(one, ", ".join([one] * rows), 1)


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
RAISE_REVISION: Final = (
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


def _execution_row(entry: Entry) -> tuple[Any, ...]:
    """Return the values in the order of the columns."""
    execution, failure = entry.execution, entry.execution.failure
    return (
        *_plain_of(execution),
        entry.revision,
        execution.module.name,
        execution.module.version,
        execution.env.value,
        execution.status.value,
        None if failure is None else failure.kind.value,
        None if failure is None else _failure_text(failure),
        outbox.telling_text(execution.on_end),
        None if execution.approval is None else msgspec.json.encode(execution.approval).decode(),
        *_phases_of(execution.timings),
    )


_plain_of: Final = attrgetter(*PLAIN)
_phases_of: Final = attrgetter(*PHASES)


def _payload_row(execution: Execution) -> tuple[Any, ...]:
    attempts = msgspec.json.encode(execution.failed_attempts).decode() if execution.failed_attempts else None
    traceback = None if execution.failure is None else execution.failure.traceback
    killed = msgspec.json.encode(execution.killed).decode() if execution.killed else None
    return execution.id, execution.input, execution.result, traceback, attempts, killed
