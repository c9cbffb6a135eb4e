"""Deleting executions that are too old or too many, in small chunks. Synchronous; runs on the write connection."""

from __future__ import annotations

import math
from typing import Any, Final

import sqlalchemy as sa
from attrs import define, frozen

from actors import outbox
from actors.history.tables import add_rows, count_rows, events, executions, payloads, rollups
from actors.rollups import expired
from config.settings import HistorySettings
from protocol.model import Status

CHUNK: Final = 100
"""Executions in one transaction: few, so that a commit that comes meanwhile is not delayed."""
PAUSE_SECONDS: Final = 60.0
"""Between two searches for old executions; the number of rows is checked at every commit."""
SLOW_SECONDS: Final = 0.1
"""A chunk that took longer is followed by one of half its size."""
_SHRINK_PAGES: Final = 1000
_FREE_SHARE: Final = 8
"""One part in so many may stay free for later rows; more is returned to the file system."""
_FINAL: Final = tuple(status.value for status in Status if status.final)


@frozen
class Kept:
    """The state after a chunk."""

    deleted: int
    more: bool
    """Whether there is more to delete or to return to the file system now."""
    rows: int
    size: int
    """Bytes of the database that hold something."""


@define
class Pace:
    """When and how much to delete: fast enough to keep up with new rows, and without delaying commits. Pure."""

    at: float = 0.0
    """The time of the next search, by the clock of the event loop."""
    size: int = CHUNK
    """Executions in the next chunk."""
    _in_vain: bool = False

    def chunks(self, now: float, rows: int, *, over: bool) -> int:
        """Return the number of chunks due after a commit of `rows`; `over`: the record is over its limits."""
        return 1 + rows // CHUNK if now >= self.at or (over and not self._in_vain) else 0

    def note(self, kept: Kept, begun: float, ended: float) -> None:
        """Adjust to the outcome of a chunk."""
        self.size = max(1, self.size // 2) if ended - begun > SLOW_SECONDS else min(CHUNK, self.size * 2)
        # Nothing was deleted: all executions run or are queued, so a search at every commit would be wasted.
        self._in_vain = not kept.deleted
        self.at = ended if kept.more else ended + PAUSE_SECONDS


def size_of(connection: sa.Connection) -> int:
    """Return the bytes of the database that hold something; cheap."""
    sql = (
        "select (pages.page_count - free.freelist_count) * size.page_size"
        " from pragma_page_count pages, pragma_freelist_count free, pragma_page_size size"
    )
    return int(connection.exec_driver_sql(sql).scalar_one())


def over_limits(settings: HistorySettings, rows: int, size: int) -> bool:
    """Whether the record is over its limits."""
    return rows > settings.max_rows or size > settings.max_bytes


def retain(connection: sa.Connection, settings: HistorySettings, now: float, chunk: int = CHUNK) -> Kept:
    """Delete at most `chunk` ended executions, oldest first, and return some of their space to the file system.

    Deleted are executions that ended more than `retention_seconds` before `now`, and the oldest while there are more
    than `max_rows` or `max_bytes`. Running and queued ones stay.
    """
    rows, size = count_rows(connection), size_of(connection)
    connection.rollback()
    # Assumes equal sizes: when the oldest are larger, the next chunks become smaller.
    too_large = math.ceil(rows * max(0, size - settings.max_bytes) / size)
    excess = min(chunk, max(too_large, rows - settings.max_rows, 0))
    with connection.begin():
        if excess:
            old = _ended_before(math.inf, excess)
        else:
            before = now - settings.retention_seconds
            ended = sa.func.coalesce(executions.c.finished_at, executions.c.created_at) < before
            old = _ended_before(before, chunk).where(ended)
        names = list(connection.execute(old).scalars())
        if names:
            for table in (events, payloads, executions):
                connection.execute(sa.delete(table).where(table.c.id.in_(names)))
            add_rows(connection, -len(names))
        outbox.forget(connection, names, now - settings.retention_seconds, chunk)
        limits = expired(now, settings.retention_seconds)
        forgotten = sum(connection.execute(_expired_rollups(width, start)).rowcount for width, start in limits)
    shrinking = _shrink(connection)
    rows, size = rows - len(names), size_of(connection)
    connection.rollback()
    more = bool(names) and (over_limits(settings, rows, size) or (not excess and len(names) == chunk))
    return Kept(len(names), more or shrinking or forgotten > 0, rows, size)


def _ended_before(created_before: float, most: int) -> sa.Select[tuple[str]]:
    """Return the ids of the oldest ended executions, by the time of creation, which is indexed."""
    columns = executions.c
    # Wrapped so that SQLite does not take the index of the status, which is not in the order of time.
    ended = sa.func.coalesce(columns.status, "").in_(_FINAL)
    wanted = sa.select(columns.id).where(columns.created_at < created_before, ended)
    return wanted.order_by(columns.created_at, columns.id).limit(most)


def _expired_rollups(width: int, start: int) -> sa.Delete:
    """Delete the oldest spans of a level, of all modules, when they begin before `start`."""
    columns = rollups.c
    oldest = sa.select(sa.func.min(columns.start)).where(columns.width == width).scalar_subquery()
    return sa.delete(rollups).where(columns.width == width, columns.start == oldest, columns.start < start)


def _shrink(connection: sa.Connection) -> bool:
    """Return some free pages to the file system; return whether there are more."""
    free = int(connection.exec_driver_sql("pragma freelist_count").scalar_one())
    pages = int(connection.exec_driver_sql("pragma page_count").scalar_one())
    connection.rollback()
    surplus = free - pages // _FREE_SHARE
    if surplus <= 0:
        return False
    raw: Any = connection.connection.driver_connection
    # `execute` steps this pragma once and frees one page a call; a script runs it to its end.
    raw.executescript(f"pragma incremental_vacuum({min(surplus, _SHRINK_PAGES)})")
    return surplus > _SHRINK_PAGES
