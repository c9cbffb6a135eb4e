"""The SQLite file of API keys. Each row has a digest of its content: a damaged one gives no rights.

Everything here blocks and is called by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import sqlalchemy as sa
from attrs import define

from actors.damage import Copied
from actors.one_file import OneFile, mending, sealed

KEYS_FILE: Final = "keys.db"
"""Its name in the data directory."""

_metadata = sa.MetaData()
_meta = sa.Table(
    "meta",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_keys = sa.Table(
    "keys",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),  # JSON of a StoredKey
    sa.Column("digest", sa.LargeBinary, nullable=False),  # SHA-256 of the content
    sa.Column("used_at", sa.Double),
)


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key, without its secret. Times are seconds since the epoch; `modules` are globs, () for all modules."""

    id: str
    name: str
    hash: str
    """SHA-256 of the whole key, in hexadecimal. It needs no salt: a key is random, and no list of keys exists."""
    scopes: tuple[str, ...]
    modules: tuple[str, ...] = ()
    created_at: float
    created_by: str
    expires_at: float | None = None
    revoked_at: float | None = None
    revoked_by: str | None = None


@define
class KeyFile(OneFile):
    """An open file of keys."""

    WHAT = "API keys"
    METADATA = _metadata
    META = _meta
    SCHEMA = 1
    COPIED = (Copied("keys", "id"),)

    @mending
    def load(self) -> list[tuple[StoredKey, float | None]]:
        """Return all keys that can be read, each with its last use."""
        with self._engine.connect() as link:
            return [(key, row.used_at) for row, key in self._sealed_rows(link, _keys, StoredKey)]

    @mending
    def write(self, key: StoredKey, forgotten: Iterable[str] = ()) -> None:
        """Add or change a key, and delete the `forgotten` ones."""
        with self._transaction() as link:
            _write(link, key, forgotten)
            self._apart(link)

    @mending
    def adopt(self, cluster: int, place: int, changes: Iterable[tuple[StoredKey, Iterable[str]]]) -> None:
        """Apply changes of a cluster, as `write`, all up to the one with the number `place`."""
        with self._transaction() as link:
            for key, forgotten in changes:
                _write(link, key, forgotten)
            self._place(link, cluster, place)

    @mending
    def used(self, times: Mapping[str, float]) -> None:
        """Note when keys were last used."""
        with self._transaction() as link:
            for name, at in times.items():
                link.execute(sa.update(_keys).where(_keys.c.id == name).values(used_at=at))


def _write(link: sa.Connection, key: StoredKey, forgotten: Iterable[str]) -> None:
    values = sealed(key)
    if not link.execute(sa.update(_keys).where(_keys.c.id == key.id).values(**values)).rowcount:
        link.execute(sa.insert(_keys).values(id=key.id, **values))
    for each in forgotten:
        link.execute(sa.delete(_keys).where(_keys.c.id == each))
