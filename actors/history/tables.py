"""The tables of history, in one SQLite file.

Metadata, payloads and events of executions are in separate tables: a cold scan of metadata does not read the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Final, get_args, get_type_hints

import sqlalchemy as sa

from actors import outbox
from actors.sqlite import begin, check_schema
from protocol.model import Execution, Status, Timings

SCHEMA_VERSION: Final = 7
"""Raise it with every change here, and add the step from the schema before it to `STEPS`."""
STEPS: Final = {
    2: (
        "alter table executions add column summary boolean not null default 0",
        "alter table executions add column input_bytes bigint",
        "alter table executions add column result_bytes bigint",
        "alter table executions add column output_bytes bigint not null default 0",
        "alter table executions add column input_hash text",
    ),
    3: (
        "alter table executions add column priority bigint not null default 5",
        "alter table executions add column run_at double",
        "alter table executions add column schedule text",
        "alter table executions add column scheduled_for double",
        "alter table executions add column rerun_of text",
        "alter table executions add column rerun_root text",
        'alter table executions add column "group" text',
        "alter table executions add column on_end text",
    ),
    4: (
        "alter table executions add column parent text",
        "alter table executions add column root text",
        "alter table executions add column depth bigint not null default 0",
        "alter table executions add column reach text",
    ),
    5: (
        "alter table executions add column via text",
        "alter table executions add column approval text",
    ),
    6: ("alter table executions add column node text",),
}
"""Statements that make of a database with this schema one with the next. Missing indexes are made after all steps."""
PHASES: Final = Timings.__struct_fields__
_TYPES: Final[dict[Any, type[sa.types.TypeEngine[Any]]]] = {
    str: sa.Text,
    float: sa.Double,
    int: sa.BigInteger,
    bool: sa.Boolean,
}


def _plain() -> Iterator[sa.Column[Any]]:
    """Yield a column for each field of an execution whose values SQLite stores as they are."""
    for name, kind in get_type_hints(Execution).items():
        kinds = set(get_args(kind) or (kind,))
        stored = kinds - {NoneType}
        if len(stored) == 1 and stored <= _TYPES.keys():
            yield sa.Column(name, _TYPES[stored.pop()], primary_key=name == "id", nullable=NoneType in kinds)


metadata = sa.MetaData()

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
"""`schema`, the highest `revision` ever stored, the number of `rows`, which would be slow to count, and
`journal_salt` and `journal_at`: the records of this segment of the journal before this offset are stored."""

_PLAIN: Final = tuple(_plain())
PLAIN: Final = tuple(column.name for column in _PLAIN)
"""Fields of an execution with a column of the same name and value."""

executions = sa.Table(
    "executions",
    metadata,
    *_PLAIN,
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("module", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("env", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("failure_kind", sa.Text),
    sa.Column("failure", sa.Text),  # JSON, without the traceback
    sa.Column("on_end", sa.Text),  # JSON of a Telling; null for no notices
    sa.Column("approval", sa.Text),  # JSON of an Approval; null without a decision
    *(sa.Column(f"{phase}_seconds", sa.Double, nullable=False) for phase in PHASES),
    # `queries` leads with one of these, each in the order of the pages.
    sa.Index("executions_by_time", "created_at", "id"),
    sa.Index("executions_by_module", "module", "created_at", "id"),
    sa.Index("executions_by_status", "status", "created_at", "id"),
    sa.Index("executions_by_module_status", "module", "status", "created_at", "id"),
    sa.Index("executions_by_subject", "subject", "created_at", "id"),
    sqlite_with_rowid=False,  # ids rise, so rows are appended; and the id needs no second index
)
# Partial indexes: most executions are in none of them.
for _name, _columns in (("kind", ("failure_kind",)), ("module_kind", ("module", "failure_kind"))):
    _some = executions.c.failure_kind.is_not(None)
    sa.Index(
        f"executions_by_{_name}",
        *(executions.c[column] for column in (*_columns, "created_at", "id")),
        sqlite_where=_some,
    )
_keyed = executions.c.idempotency_key.is_not(None)
sa.Index(
    "executions_by_key",
    *(executions.c[column] for column in ("subject", "module", "idempotency_key", "created_at", "id")),
    sqlite_where=_keyed,
)

for _name in ("schedule", "rerun_of", "parent", "root", "node"):
    _some = executions.c[_name].is_not(None)
    sa.Index(
        f"executions_by_{_name}", executions.c[_name], executions.c.created_at, executions.c.id, sqlite_where=_some
    )
_root = executions.c.rerun_root
sa.Index("executions_by_rerun_root", _root, executions.c.id, sqlite_where=_root.is_not(None))
_scheduled = executions.c.status == sa.literal_column(f"'{Status.SCHEDULED.value}'")
sa.Index("executions_by_due", executions.c.run_at, executions.c.id, sqlite_where=_scheduled)

payloads = sa.Table(
    "payloads",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("input", sa.LargeBinary, nullable=False),
    sa.Column("result", sa.LargeBinary),
    sa.Column("traceback", sa.Text),
    sa.Column("failed_attempts", sa.Text),  # JSON; null for none
    sa.Column("killed", sa.Text),  # likewise
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("first_seq", sa.BigInteger, primary_key=True),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("events", sa.LargeBinary, nullable=False),  # a JSON array; a single row once the execution has ended
)

rollups = sa.Table(
    "rollups",
    metadata,
    sa.Column("module", sa.Text, primary_key=True),
    sa.Column("width", sa.Integer, primary_key=True),
    sa.Column("start", sa.BigInteger, primary_key=True),
    sa.Column("counts", sa.LargeBinary, nullable=False),  # msgpack of `rollups.Rollup`
    sa.Index("rollups_by_age", "width", "start"),
    sqlite_with_rowid=False,
)


def prepare(connection: sa.Connection, path: Path) -> int:
    """Make the schema where it is missing or older, in one transaction; return the highest revision ever stored.

    Raises `RunnerError` (`unavailable`), naming `path`, when the database has another schema.
    """
    with connection.begin():
        begin(connection)
        metadata.create_all(connection)
        outbox.metadata.create_all(connection)
        values = {row.name: int(row.value) for row in connection.execute(sa.select(meta))}
        found = values.get("schema", SCHEMA_VERSION)
        while found in STEPS:
            for statement in STEPS[found]:
                connection.exec_driver_sql(statement)
            found += 1
            connection.execute(sa.update(meta).where(meta.c.name == "schema").values(value=found))
        check_schema(path, found, SCHEMA_VERSION)
        for index in executions.indexes:
            index.create(connection, checkfirst=True)
        for name, value in (("schema", SCHEMA_VERSION), ("revision", 0), ("rows", 0)):
            if name not in values:
                connection.execute(sa.insert(meta).values(name=name, value=value))
    return values.get("revision", 0)


_ROWS: Final = sa.select(meta.c.value).where(meta.c.name == "rows")
_ADD_ROWS: Final = sa.update(meta).where(meta.c.name == "rows").values(value=meta.c.value + sa.bindparam("more"))


def count_rows(connection: sa.Connection) -> int:
    """Return the number of executions."""
    return int(connection.execute(_ROWS).scalar_one())


def add_rows(connection: sa.Connection, more: int) -> None:
    """Add `more` (negative after deleting) to the number of executions, in the transaction that changed them."""
    connection.execute(_ADD_ROWS, {"more": more})


_POSITION: Final = ("journal_salt", "journal_at")


def journal_position(connection: sa.Connection) -> tuple[bytes, int]:
    """Return the salt of a segment, and the offset before which its records are stored; no bytes when unknown."""
    found = {row.name: int(row.value) for row in connection.execute(sa.select(meta).where(meta.c.name.in_(_POSITION)))}
    connection.rollback()
    if found.keys() != set(_POSITION) or not found["journal_at"]:
        return b"", 0
    return found["journal_salt"].to_bytes(4, "big"), found["journal_at"]


def set_journal_position(connection: sa.Connection, salt: bytes, at: int) -> None:
    """Note in the transaction that stores records which records of the journal it covers."""
    values = {"salt": int.from_bytes(salt, "big"), "at": at}
    connection.exec_driver_sql(
        "insert into meta (name, value) values ('journal_salt', :salt), ('journal_at', :at)"
        " on conflict (name) do update set value = excluded.value",
        values,
    )
