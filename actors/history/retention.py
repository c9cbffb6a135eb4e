"""Deleting what is too old or too much, a small chunk at a time. Synchronous; run by the one who writes."""

from __future__ import annotations

import math
from typing import Any, Final

import sqlalchemy as sa
from attrs import define, frozen

from actors.history.rollups import expired
from actors.history.tables import add_rows, count_rows, events, executions, payloads, rollups
from config.settings import HistorySettings
from protocol.model import Status

CHUNK: Final = 100
"""Executions in one transaction: few enough that a commit which comes meanwhile is not held up."""
PAUSE_SECONDS: Final = 60.0
"""Between two looks at what has become too old; what is too much is seen at every commit."""
SLOW_SECONDS: Final = 0.1
"""A chunk that took longer is followed by one of half its size."""
_SHRINK_PAGES: Final = 1000
_FREE_SHARE: Final = 8
"""One part in so many may be free for what comes next; more is given back to the file system."""
_FINAL: Final = tuple(status.value for status in Status if status.final)


@frozen
class Kept:
    """What is left after a chunk."""

    deleted: int
    more: bool
    """Whether there is more to delete or to give back now."""
    rows: int
    size: int
    """Bytes of the database that hold something."""


@define
class Pace:
    """When and how much to delete, so that it keeps up with what is stored and holds nobody up. Pure."""

    at: float = 0.0
    """When to look next, by the clock of the event loop."""
    size: int = CHUNK
    """Executions in the next chunk."""
    _in_vain: bool = False

    def chunks(self, now: float, rows: int, *, over: bool) -> int:
        """Return how many chunks are due after a commit of `rows`; `over`: there is more than there may be."""
        return 1 + rows // CHUNK if now >= self.at or (over and not self._in_vain) else 0

    def note(self, kept: Kept, begun: float, ended: float) -> None:
        """Take in what became of a chunk."""
        self.size = max(1, self.size // 2) if ended - begun > SLOW_SECONDS else min(CHUNK, self.size * 2)
        # Where nothing could be deleted all that there is runs or is queued: that changes in its own time.
        self._in_vain = not kept.deleted
        self.at = ended if kept.more else ended + PAUSE_SECONDS


def size_of(connection: sa.Connection) -> int:
    """Return the bytes of the database that hold something; cheap, SQLite only."""
    sql = (
        "select (pages.page_count - free.freelist_count) * size.page_size"
        " from pragma_page_count pages, pragma_freelist_count free, pragma_page_size size"
    )
    return int(connection.exec_driver_sql(sql).scalar_one())


def over_limits(settings: HistorySettings, rows: int, size: int) -> bool:
    """Whether the record is larger than it may be."""
    return rows > settings.max_rows or size > settings.max_bytes


def retain(connection: sa.Connection, settings: HistorySettings, now: float, chunk: int = CHUNK) -> Kept:
    """Delete at most `chunk` executions that have ended, oldest first, and give some of their room back.

    Those that ended more than `retention_seconds` before `now`, and the oldest ones while there are more than
    `max_rows`, or more than `max_bytes`. What runs or is queued stays.
    """
    rows, size = count_rows(connection), size_of(connection)
    connection.rollback()
    # Taken as equally large: when the oldest are larger than that, the next chunks are smaller.
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
        limits = expired(now, settings.retention_seconds)
        forgotten = sum(connection.execute(_expired_rollups(width, start)).rowcount for width, start in limits)
    shrinking = _shrink(connection)
    rows, size = rows - len(names), size_of(connection)
    connection.rollback()
    more = bool(names) and (over_limits(settings, rows, size) or (not excess and len(names) == chunk))
    return Kept(len(names), more or shrinking or forgotten > 0, rows, size)


def _ended_before(created_before: float, most: int) -> sa.Select[tuple[str]]:
    """Return the ids of the oldest executions that have ended. The time of creation is what has the index."""
    columns = executions.c
    # Wrapped so that its own index is of no use: it is not in the order of time.
    ended = sa.func.coalesce(columns.status, "").in_(_FINAL)
    wanted = sa.select(columns.id).where(columns.created_at < created_before, ended)
    return wanted.order_by(columns.created_at, columns.id).limit(most)


def _expired_rollups(width: int, start: int) -> sa.Delete:
    """Delete the oldest spans of a level, those of all modules, when they are from before `start`."""
    columns = rollups.c
    oldest = sa.select(sa.func.min(columns.start)).where(columns.width == width).scalar_subquery()
    return sa.delete(rollups).where(columns.width == width, columns.start == oldest, columns.start < start)


def _shrink(connection: sa.Connection) -> bool:
    """Give some free pages back to the file system, SQLite only; return whether there are more to give."""
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
