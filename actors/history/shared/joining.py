"""The questions of a cluster. Synchronous; run in threads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Final

import sqlalchemy as sa
from attrs import frozen

from actors.history.pending import Stage
from actors.history.tables import executions
from protocol.model import Execution, Status

_MANY: Final = 500
"""Ids in one statement."""
_columns: Final = executions.c
_ENDS: Final = tuple(status.value for status in Status if status.final)
_OPEN: Final = tuple(status.value for status in Status if not status.final)


@frozen
class Ended:
    """One execution of this runner that has ended."""

    id: str
    revision: int
    shared: bool
    """Its states were published when they were recorded; others only have an end."""


def is_elsewhere(execution: Execution, node: str | None) -> bool:
    """Return whether it is open what became of an execution in the cluster that a runner, now without `node`, left."""
    return node is None and execution.node is not None and not execution.status.final


def join(connection: sa.Connection) -> None:
    """Prepare a record for the questions of a cluster. A runner alone has no use for this index."""
    wanted = sa.text("create index if not exists executions_by_origin on executions (node, revision)")
    connection.execute(wanted)


def own(connection: sa.Connection, node: str, names: Sequence[str]) -> None:
    """Give executions from before the join the name of this runner."""
    for at in range(0, len(names), _MANY):
        wanted = _columns.id.in_(names[at : at + _MANY]), _columns.node.is_(None)
        connection.execute(sa.update(executions).where(*wanted).values(node=node))


def ended_after(connection: sa.Connection, node: str, after: int, until: int, most: int) -> list[Ended]:
    """Return ended executions of this runner by their revisions in `after` < revision <= `until`, the oldest first."""
    found: list[Ended] = []
    for owner in (_columns.node == node, _columns.node.is_(None)):
        wanted = (
            sa.select(_columns.id, _columns.revision, _columns.asynchronous, _columns.idempotency_key)
            .where(owner, _columns.revision > after, _columns.revision <= until, _columns.status.in_(_ENDS))
            .order_by(_columns.revision)
            .limit(most)
        )
        rows = connection.execute(wanted)
        found += [Ended(row[0], row[1], bool(row[2]) or row[3] is not None) for row in rows]
    return sorted(found, key=lambda ended: ended.revision)[:most]


def last_ended(connection: sa.Connection, nodes: Sequence[str], before: int, since: float, most: int) -> list[Ended]:
    """Return ended executions of some runners by their revisions before one, the last first, up to one before `since`.

    `since` is a time of day.
    """
    found: list[Ended] = []
    for node in nodes:
        wanted = (
            sa.select(_columns.id, _columns.revision, _columns.asynchronous, _columns.finished_at)
            .where(_columns.node == node, _columns.revision < before, _columns.status.in_(_ENDS))
            .order_by(_columns.revision.desc())
            .limit(most)
        )
        rows = takewhile(lambda row: (row[3] or 0) >= since, connection.execute(wanted))
        found += [Ended(row[0], row[1], bool(row[2])) for row in rows]
    return sorted(found, key=lambda ended: -ended.revision)[:most]


def origins(connection: sa.Connection) -> list[str]:
    """Return the names of all runners that have run or accepted executions."""
    found: list[str] = []
    while True:
        wanted = sa.select(sa.func.min(_columns.node)).where(_columns.node > (found[-1] if found else ""))
        node = connection.execute(wanted).scalar()
        if node is None:
            return found
        found.append(node)


def open_ones(connection: sa.Connection, after: str, most: int) -> list[tuple[str, str | None]]:
    """Return accepted executions that have not ended, with their runners, by their ids after one."""
    wanted = (
        sa.select(_columns.id, _columns.node)
        .where(_columns.status.in_(_OPEN), _columns.asynchronous, _columns.id > after)
        .order_by(_columns.id)
        .limit(most)
    )
    return [(row[0], row[1]) for row in connection.execute(wanted)]


def stages(connection: sa.Connection, names: Sequence[str]) -> dict[str, Stage]:
    """Return how far executions have come, those that exist, by id."""
    found: dict[str, Stage] = {}
    for at in range(0, len(names), _MANY):
        wanted = sa.select(_columns.id, _columns.status, _columns.attempts, _columns.finished_at)
        for row in connection.execute(wanted.where(_columns.id.in_(names[at : at + _MANY]))):
            found[row.id] = Stage(Status(row.status), row.attempts, row.finished_at)
    return found
