"""From the schema of an earlier version to that of this one, a step at a time. Imported only when there is a step.

A step is a function and no script in a folder, so that it runs from a zip file too. It describes the tables as they
were and became then, whatever `actors.tables` says by now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from actors.history import former
from actors.history.rollups import Changes, Ended, Rollup
from actors.history.tables import SCHEMA_VERSION
from protocol.errors import ErrorKind
from protocol.model import Status

_ROWS: Final = 1000
"""Rows read at a time."""
_chunks_decoder = msgspec.msgpack.Decoder(tuple[former.Chunk, ...])


def upgrade(connection: sa.Connection, version: int) -> None:
    """Take every step from `version` on, within the transaction of the caller."""
    operations = Operations(MigrationContext.configure(connection))
    for number in range(version, SCHEMA_VERSION):
        _STEPS[number](operations)
    meta = sa.table("meta", sa.column("name"), sa.column("value"))
    connection.execute(sa.update(meta).where(meta.c.name == "schema").values(value=SCHEMA_VERSION))


def _to_2(operations: Operations) -> None:
    """Events in the place of output, attempts that failed, keys, and rollups."""
    connection = operations.get_bind()
    with operations.batch_alter_table("executions") as batch:
        batch.add_column(sa.Column("timeout", sa.Double))
        batch.add_column(sa.Column("idempotency_key", sa.Text))
        batch.add_column(sa.Column("asynchronous", sa.Boolean, nullable=False, server_default=sa.false()))
        batch.add_column(sa.Column("peak_memory", sa.BigInteger))
        batch.add_column(sa.Column("events_count", sa.BigInteger, nullable=False, server_default=sa.text("0")))
        batch.create_index("executions_by_subject", ["subject", "created_at", "id"])
    for name, columns, needed in (
        ("kind", ["failure_kind"], "failure_kind"),
        ("module_kind", ["module", "failure_kind"], "failure_kind"),
        ("key", ["subject", "module", "idempotency_key"], "idempotency_key"),
    ):
        where = sa.text(f"{needed} IS NOT NULL")
        operations.create_index(
            f"executions_by_{name}",
            "executions",
            [*columns, "created_at", "id"],
            sqlite_where=where,
            postgresql_where=where,
        )
    with operations.batch_alter_table("payloads") as batch:
        batch.add_column(sa.Column("failed_attempts", sa.Text))
        batch.add_column(sa.Column("killed", sa.Text))
    events = operations.create_table(
        "events",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("first_seq", sa.BigInteger, primary_key=True),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("events", sa.LargeBinary, nullable=False),
    )
    rollups = operations.create_table(
        "rollups",
        sa.Column("module", sa.Text, primary_key=True),
        sa.Column("width", sa.Integer, primary_key=True),
        sa.Column("start", sa.BigInteger, primary_key=True),
        sa.Column("counts", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    operations.create_index("rollups_by_age", "rollups", ["width", "start"])
    _turn_output_into_events(connection, events)
    rows = _count_all(connection, rollups)
    meta = sa.table("meta", sa.column("name"), sa.column("value"))
    connection.execute(sa.insert(meta).values(name="rows", value=rows))
    operations.drop_table("outputs")


def _turn_output_into_events(connection: sa.Connection, events: sa.Table) -> None:
    sql = (
        "select e.id, o.chunks, e.output_dropped, coalesce(e.started_at, e.created_at) as at"
        " from outputs o join executions e on e.id = o.id where o.id > :after order by o.id limit :most"
    )
    after = ""
    while rows := connection.execute(sa.text(sql), {"after": after, "most": _ROWS}).all():
        made = []
        for row in rows:
            data, count = former.events_of(_chunks_decoder.decode(row.chunks), row.output_dropped, row.at)
            made.append({"id": row.id, "first_seq": 0, "last_seq": count - 1, "events": data})
        connection.execute(sa.insert(events), made)
        counts = [{"name": row["id"], "count": row["last_seq"] + 1} for row in made]
        connection.execute(sa.text("update executions set events_count = :count where id = :name"), counts)
        after = rows[-1].id


def _count_all(connection: sa.Connection, rollups: sa.Table) -> int:
    """Count every execution that has ended, and return how many executions there are."""
    sql = (
        "select id, module, status, failure_kind, run_seconds, coalesce(finished_at, created_at) as at"
        " from executions where id > :after order by id limit :most"
    )
    after, seen = "", 0
    totals: dict[Any, Rollup] = {}
    while rows := connection.execute(sa.text(sql), {"after": after, "most": _ROWS}).all():
        changes = Changes()
        for row in rows:
            status = Status(row.status)
            if status.final:
                kind = None if row.failure_kind is None else ErrorKind(row.failure_kind)
                changes.add(Ended(row.module, row.at, status, kind, row.run_seconds))
        for span in changes.rollups:
            totals[span] = changes.apply(span, totals.get(span) or Rollup())
        after, seen = rows[-1].id, seen + len(rows)
    made = [
        {"module": span.module, "width": span.width, "start": span.start, "counts": msgspec.msgpack.encode(total)}
        for span, total in totals.items()
    ]
    if made:
        connection.execute(sa.insert(rollups), made)
    return seen


_STEPS: Final[Mapping[int, Callable[[Operations], None]]] = {1: _to_2}
