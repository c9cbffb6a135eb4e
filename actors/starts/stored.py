"""The SQLite file of schedules: those of the API, and how far each schedule has come. Each row has a digest.

Everything here blocks and is called by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from attrs import define

from actors.damage import Copied
from actors.one_file import OneFile, mending, sealed

STARTS_FILE: Final = "starts.db"
"""Its name in the data directory."""

_metadata = sa.MetaData()
_meta = sa.Table(
    "meta",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)


def _table(name: str) -> sa.Table:
    return sa.Table(
        name,
        _metadata,
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("content", sa.LargeBinary, nullable=False),  # JSON
        sa.Column("digest", sa.LargeBinary, nullable=False),  # SHA-256 of the content
    )


_schedules, _states = _table("schedules"), _table("states")


class StoredSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule of the API. `fields` are those of `ScheduleSpec`; times are seconds since the epoch."""

    id: str
    module: str
    version: str | None = None
    """None is the version that is active when it starts."""
    fields: Mapping[str, Any]
    created_at: float
    created_by: str
    updated_at: float
    updated_by: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How far a schedule has come. Instants are seconds since the epoch."""

    id: str
    identity: str
    """Of its instants: with others it begins anew."""
    cursor: float
    """All instants up to this one are settled: started, left out by policy, or in `pending`."""
    pending: tuple[float, ...] = ()
    """Instants that wait for the end of the last execution."""
    paused_by: str | None = None
    last_execution: str | None = None
    last_for: float | None = None
    """The instant of the last execution; None if it was started by a caller."""
    started: int = 0
    skipped: int = 0
    """Instants left out because the last execution had not ended."""
    missed: int = 0
    """Instants that passed while nothing could start."""
    failed: int = 0
    """Instants that could not start: without the module or version, or with an input that it refuses."""
    problem: str | None = None
    """Why the last instant did not start."""


@define
class StartsFile(OneFile):
    """An open file of schedules."""

    WHAT = "schedules"
    METADATA = _metadata
    META = _meta
    SCHEMA = 1
    COPIED = (Copied("schedules", "id"), Copied("states", "id"))

    @mending
    def load(self) -> tuple[list[StoredSchedule], list[State]]:
        """Return all schedules of the API and all states that can be read."""
        with self._engine.connect() as link:
            schedules = [schedule for _, schedule in self._sealed_rows(link, _schedules, StoredSchedule)]
            return schedules, [state for _, state in self._sealed_rows(link, _states, State)]

    @mending
    def write(
        self, states: Iterable[State] = (), schedules: Iterable[StoredSchedule] = (), deleted: Iterable[str] = ()
    ) -> None:
        """Add or change rows, and delete schedules with their states, in one transaction."""
        with self._transaction() as link:
            _write(link, states, schedules, deleted)
            self._apart(link)

    @mending
    def forget(self, names: Iterable[str]) -> None:
        """Delete states of schedules that are not here any more."""
        with self._transaction() as link:
            _write(link, (), (), names)

    @mending
    def adopt(
        self,
        cluster: int,
        place: int,
        states: Iterable[State] = (),
        schedules: Iterable[StoredSchedule] = (),
        deleted: Iterable[str] = (),
    ) -> None:
        """Apply changes of a cluster, as `write`, all up to the one with the number `place`."""
        with self._transaction() as link:
            _write(link, states, schedules, deleted)
            self._place(link, cluster, place)


def _write(
    link: sa.Connection, states: Iterable[State], schedules: Iterable[StoredSchedule], deleted: Iterable[str]
) -> None:
    for name in deleted:
        for table in (_schedules, _states):
            link.execute(sa.delete(table).where(table.c.id == name))
    _put(link, _states, states)
    _put(link, _schedules, schedules)


def _put(link: sa.Connection, table: sa.Table, values: Iterable[StoredSchedule | State]) -> None:
    rows = [{"id": value.id, **sealed(value)} for value in values]
    if rows:
        link.execute(sa.insert(table).prefix_with("or replace"), rows)
