"""How far this runner has come in the streams of the engine, and in its own history: `cluster.db`.

Everything here blocks, and may be called by several threads: the outbox and the projection have a task each.
"""

from __future__ import annotations

import threading
from typing import Final

import msgspec
import sqlalchemy as sa
from attrs import define, field
from sqlalchemy.dialects import sqlite

from actors.damage import Copied
from actors.one_file import OneFile, mending, sealed

POSITIONS_FILE: Final = "cluster.db"
"""Its name in the data directory."""

_metadata = sa.MetaData()
_meta = sa.Table(
    "meta",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_positions = sa.Table(
    "positions",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),  # JSON of a Position
    sa.Column("digest", sa.LargeBinary, nullable=False),  # SHA-256 of the content
)


class Position(msgspec.Struct, frozen=True):
    """A place in a stream, or in the history."""

    number: int = 0
    """Everything up to this is done: a sequence, or a revision."""
    of: str = ""
    """Which stream it was: one that was made again has other sequences."""


@define
class Positions(OneFile):
    """The open file. Without a place, or after damage to it, reading begins anew, which changes nothing."""

    WHAT = "positions in the cluster"
    METADATA = _metadata
    META = _meta
    SCHEMA = 1
    COPIED = (Copied("positions", "id"),)
    _turn: threading.Lock = field(factory=threading.Lock, init=False)
    """All use one connection."""

    @mending
    def get(self, name: str) -> Position:
        """Return a place; the begin if it is not known."""
        with self._turn, self._transaction() as link:
            return next((at for row, at in self._sealed_rows(link, _positions, Position) if row.id == name), Position())

    @mending
    def put(self, name: str, position: Position) -> None:
        """Remember a place."""
        insert = sqlite.insert(_positions).values(id=name, **sealed(position))
        changed = {"content": insert.excluded.content, "digest": insert.excluded.digest}
        with self._turn, self._transaction() as link:
            link.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changed))
