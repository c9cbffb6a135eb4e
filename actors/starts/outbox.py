"""`Outbox`: the stored notices, as their sender and their readers see them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
import trio
from attrs import define, field, frozen

from actors.history import History
from actors.outbox import DEAD, DELIVERED, PENDING, SECONDS, STATES, notices
from actors.sqlite import matching, open_reader
from protocol.errors import ErrorKind, error
from protocol.model import Recipient

_columns: Final = notices.c
_SHOWN: Final = tuple(column for column in _columns if column.name not in ("recipient", "body"))
_LOOKED_AT: Final = 5_000
"""Rows that one page reads at most."""
_UNSENT: Final = "select state, count(*) from notices where state in ('pending', 'dead') group by state"
_recipients: Final = msgspec.json.Decoder(Recipient)


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One message for one recipient. Times are seconds since the epoch."""

    id: str
    """The same in all attempts, by which a receiver knows a message that it has already."""
    execution: str
    module: str
    """Of the execution."""
    target: str
    """The recipient without what could be secret: where its URL leads, or `module NAME`."""
    depth: int
    state: str
    """`pending`, `delivered` or `dead`."""
    created_at: float
    due_at: float
    until: float
    attempts: int
    reason: str | None = None
    """Why the last attempt failed."""
    ended_at: float | None = None


class Outgoing(Notice, frozen=True, kw_only=True):
    """A notice with what its sender needs."""

    recipient: Recipient
    body: bytes


@frozen
class NoticeQuery:
    """The filters of a list, newest first; None is no filter. `modules` are globs, () for all."""

    state: str | None = None
    module: str | None = None
    execution: str | None = None
    modules: tuple[str, ...] = ()
    limit: int = 50
    cursor: str | None = None
    """The identifier of the last notice of the page before."""


@frozen
class NoticePage:
    """Notices, and the cursor of the next page; None on the last one. A page with a cursor may be short."""

    items: tuple[Notice, ...]
    next_cursor: str | None = None


@define(eq=False)
class Outbox:
    """The notices in the history. Methods raise RunnerError `unavailable` when it cannot be read or written."""

    history: History
    clock: Callable[[], float] = time.time
    delivered: int = field(default=0, init=False)
    """Since the start, as the next two."""
    failed: int = field(default=0, init=False)
    """Attempts after which a notice is sent again."""
    dead: int = field(default=0, init=False)

    @property
    def noticed(self) -> trio.Event:
        """The event of the next notices that are stored."""
        return self.history.noticed

    async def due(self, *, busy: Collection[str], sending: Collection[str], limit: int) -> tuple[Outgoing, ...]:
        """Return notices whose time has come, oldest first, but for `busy` targets and those in `sending`."""
        wanted = sa.select(notices).where(*_waiting(busy, sending), _columns.due_at <= self.clock())
        wanted = wanted.order_by(_columns.due_at, _columns.id).limit(limit)
        return await self.history.read(lambda link: tuple(map(_outgoing, link.execute(wanted).mappings())))

    async def next_due(self, *, busy: Collection[str], sending: Collection[str]) -> float | None:
        """Return when the next of these notices is due; None without one."""
        wanted = sa.select(sa.func.min(_columns.due_at)).where(*_waiting(busy, sending))
        return await self.history.read(lambda link: link.execute(wanted).scalar())

    async def deliver(self, notice: Notice) -> None:
        """Note that a notice arrived. Its body is deleted."""
        values = {"state": DELIVERED, "ended_at": self.clock(), "reason": None, "body": b""}
        await self._change(notice, {**values, "attempts": notice.attempts + 1})
        self.delivered += 1

    async def miss(self, notice: Notice, reason: str, delay: float | None) -> bool:
        """Note that an attempt failed, and try again after a delay; return whether the notice is dead.

        Without a delay, and when its time is up then, it is dead.
        """
        now = self.clock()
        dead = delay is None or now + delay > notice.until
        values: dict[str, Any] = {"attempts": notice.attempts + 1, "reason": reason}
        values |= {"state": DEAD, "ended_at": now} if delay is None or dead else {"due_at": now + delay}
        await self._change(notice, values)
        self.dead += dead
        self.failed += not dead
        return dead

    async def postpone(self, notice: Notice, delay: float) -> None:
        """Look at a notice again after a delay; no attempt was made."""
        await self._change(notice, {"due_at": self.clock() + delay})

    async def withdraw(self, notice: Notice) -> None:
        """Delete a notice that is not to be sent."""
        change = sa.delete(notices).where(_columns.id == notice.id, _columns.state == PENDING)
        await self.history.change(lambda link: link.execute(change))

    async def _change(self, notice: Notice, values: dict[str, Any]) -> None:
        change = sa.update(notices).where(_columns.id == notice.id, _columns.state == PENDING).values(**values)
        await self.history.change(lambda link: link.execute(change))

    # For readers

    async def list(self, query: NoticeQuery) -> NoticePage:
        """Return a page. Raises RunnerError `bad_input` for an unknown state or cursor."""
        if query.state is not None and query.state not in STATES:
            text = f"there is no state {query.state!r:.40}; there are {', '.join(STATES)}"
            raise error(ErrorKind.BAD_INPUT, text, field="state")
        await self.history.catch_up()
        return await self.history.read(partial(_page, query))

    async def unsent(self) -> Mapping[str, int]:
        """Return how many notices are stored that are `pending` and `dead`."""
        rows = await self.history.read(lambda link: link.execute(sa.text(_UNSENT)).all())
        return _counted([(state, count) for state, count in rows])

    async def get(self, name: str) -> Notice | None:
        """Return the notice with this identifier."""
        wanted = sa.select(*_SHOWN).where(_columns.id == name)

        def work(link: sa.Connection) -> Notice | None:
            row = link.execute(wanted).mappings().first()
            return None if row is None else Notice(**row)

        await self.history.catch_up()
        return await self.history.read(work)

    async def retry(self, name: str) -> bool:
        """Try a notice that is not delivered now, and for another day; return whether there is one."""
        now = self.clock()
        values = {"state": PENDING, "due_at": now, "until": now + SECONDS, "ended_at": None}
        change = sa.update(notices).where(_columns.id == name, _columns.state != DELIVERED).values(**values)
        changed = await self.history.change(lambda link: link.execute(change).rowcount)
        self.history.notice()
        return changed > 0


def unsent(path: Path) -> Mapping[str, int]:
    """Return how many notices in a history are `pending` and `dead`, also beside a running server.

    Raises `sqlite3.Error`.
    """
    if not path.exists():
        return _counted(())
    with closing(open_reader(path)) as link:
        if link.execute("select 1 from sqlite_master where name = 'notices'").fetchone() is None:
            return _counted(())  # of an older release
        return _counted(link.execute(_UNSENT).fetchall())


def _counted(rows: Collection[tuple[str, int]]) -> Mapping[str, int]:
    return {PENDING: 0, DEAD: 0, **dict(rows)}


def _waiting(busy: Collection[str], sending: Collection[str]) -> list[sa.ColumnElement[bool]]:
    # Written as in the index of these rows, or SQLite would not use it.
    conditions: list[Any] = [sa.text("state = 'pending'")]
    if busy:
        conditions.append(_columns.target.not_in(busy))
    if sending:
        conditions.append(_columns.id.not_in(sending))
    return conditions


def _outgoing(row: Any) -> Outgoing:
    return Outgoing(**{**row, "recipient": _recipients.decode(row["recipient"])})


def _page(query: NoticeQuery, connection: sa.Connection) -> NoticePage:
    conditions: list[sa.ColumnElement[bool]] = []
    if query.cursor is not None:
        last = connection.execute(sa.select(_columns.created_at).where(_columns.id == query.cursor)).scalar()
        if last is None:
            raise error(
                ErrorKind.BAD_INPUT, f"the cursor {query.cursor!r:.80} is not known; begin anew", field="cursor"
            )
        place = sa.tuple_(sa.literal(last), sa.literal(query.cursor))
        conditions.append(sa.tuple_(_columns.created_at, _columns.id) < place)
    if query.state is not None:
        conditions.append(_columns.state == query.state)
    if query.execution is not None:
        conditions.append(_columns.execution == query.execution)
    some = sa.select(*_SHOWN).where(*conditions).order_by(_columns.created_at.desc(), _columns.id.desc())
    rows = some.limit(_LOOKED_AT).subquery()
    wanted = sa.select(rows).order_by(rows.c.created_at.desc(), rows.c.id.desc())
    if query.module is not None:
        wanted = wanted.where(rows.c.module == query.module)
    if query.modules:
        wanted = wanted.where(matching(rows.c.module, query.modules))
    found = connection.execute(wanted.limit(query.limit + 1)).mappings().all()
    items = tuple(Notice(**row) for row in found[: query.limit])
    if len(found) > query.limit:
        return NoticePage(items, items[-1].id)
    # The next page begins behind the rows that were looked at; None when these were all.
    return NoticePage(items, connection.execute(some.with_only_columns(_columns.id).offset(_LOOKED_AT - 1)).scalar())
