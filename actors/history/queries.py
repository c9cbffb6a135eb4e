"""Reading the record: statements, and rows to model. Synchronous; run in threads, on read-only connections.

The work for one page is bounded: it follows the most selective index in the order of time and checks the other filters
on at most `LOOKED_AT` rows. When these do not fill the page, the page ends there, with a cursor.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from attrs import evolve, frozen
from msgspec.structs import replace

from actors.history.pending import Key
from actors.history.pieces import NOTHING, joined, printing, seqs_of
from actors.history.tables import PHASES, PLAIN, events, executions, payloads
from actors.outbox import read_telling
from actors.sqlite import matching, module_matches
from protocol.errors import ErrorKind, Failure, error
from protocol.model import Approval, Attempt, Execution, Kind, ModuleRef, Status, Timings
from protocol.views import DEFAULT_PAGE, MAX_PAGE

LOOKED_AT: Final = 5_000
"""Rows of an index that one page reads at most: some ten milliseconds."""

MAX_LINKED: Final = 100
"""Repetitions, and children, that one execution shows."""
MAX_TEXT: Final = 200
"""Characters of a text to search for."""
TEXT_ROWS: Final = 1_000
"""Executions that one page searches at most for a text."""
LOOKED_UP: Final = 500
"""Ids in one statement."""
UNREADABLE: Final = "unreadable"
"""The key under which a connection notes the rows that cannot be read, as they are damaged: they are left out."""
UNREADABLE_ERRORS: Final = (msgspec.MsgspecError, ValueError, TypeError)

Place = tuple[float, str]
"""Time of creation and id, in the order of which executions are listed."""

_failure_decoder = msgspec.json.Decoder(Failure)
_approval_decoder = msgspec.json.Decoder(Approval)
_attempts_decoder = msgspec.json.Decoder(tuple[Attempt, ...])
_killed_decoder = msgspec.json.Decoder(tuple[str, ...])
_place_decoder: Final[msgspec.json.Decoder[Place]] = msgspec.json.Decoder(Place)

# Indexes that a list may follow, the most selective first; the index of callers is tried as well.
_LEADS: Final[tuple[tuple[str, ...], ...]] = (
    ("rerun_of",),
    ("parent",),
    ("root",),
    ("schedule",),
    ("module", "failure_kind"),
    ("failure_kind",),
    ("module", "status"),
    ("module",),
    ("status",),
    ("node",),
)


AT_WORK: Final = (Status.QUEUED, Status.RUNNING, Status.QUEUED)
"""The statuses of the lists with all executions that wait or run; some begin, or go back, from one list to the next."""


@frozen
class Query:
    """The filters of a list, newest first; None is no filter.

    `since <= created_at < until` in seconds since the epoch. `modules` are the globs of the caller's token, () for
    all. `limit` is 1 to 500. `cursor` is the `next_cursor` of the last page, with the same filters.
    """

    module: str | None = None
    version: str | None = None
    status: Status | None = None
    kind: ErrorKind | None = None
    subject: str | None = None
    schedule: str | None = None
    rerun_of: str | None = None
    parent: str | None = None
    root: str | None = None
    node: str | None = None
    unresolved: bool = False
    """Only failures without a later success in their chain of repetitions."""
    text: str | None = None
    """Only those with this text in the output or the error message; case is ignored."""
    modules: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    limit: int = DEFAULT_PAGE
    cursor: str | None = None


@frozen
class Page:
    """Executions without input, result, traceback, events and failed attempts.

    `next_cursor` is None on the last page only. A page with fewer than `limit` executions, or none, may have a cursor:
    then few of the rows read matched, and the next page continues the search.
    """

    items: tuple[Execution, ...]
    next_cursor: str | None = None


def page(connection: sa.Connection, query: Query) -> Page:
    """Return one page. Raises `RunnerError` (`bad_input`) for a limit or cursor that is not valid."""
    query = _checked(query)
    before = _upper_bound(query)
    filters, globs = _filters(query), query.modules
    if globs and "module" in filters:
        if not module_matches(filters["module"], globs):
            return Page(())
        globs = ()
    lead, floor = _best_lead(connection, filters, query.since, before, more=bool(globs) or query.unresolved)
    wanted = sa.select(executions).where(*_led(lead, filters, query.since if floor is None else floor, before))
    for name in filters.keys() - set(lead):
        # Wrapped so that SQLite takes no other index.
        wanted = wanted.where(sa.func.coalesce(executions.c[name], "") == filters[name])
    if globs:
        wanted = wanted.where(matching(executions.c.module, globs))
    if query.unresolved:
        wanted = wanted.where(_UNRESOLVED)
    if query.text is not None:
        return _with_text(connection, wanted, query, floor)
    rows = connection.execute(_newest_first(wanted).limit(query.limit + 1)).mappings().all()
    found = (_readable(connection, row) for row in rows[: query.limit])
    items = tuple(execution for execution in found if execution is not None)
    if len(rows) > query.limit:
        last = rows[query.limit - 1]
        return Page(items, _cursor(last["created_at"], last["id"]))
    # No id is below "": the next page begins before the time of the last row that was read.
    return Page(items, None if floor is None else _cursor(floor, ""))


def _checked(query: Query) -> Query:
    """Return a query with the state that it implies. Raises `RunnerError` (`bad_input`)."""
    if not 1 <= query.limit <= MAX_PAGE:
        raise error(ErrorKind.BAD_INPUT, f"limit must be from 1 to {MAX_PAGE}", field="limit")
    if query.unresolved:
        if query.status not in (None, Status.FAILED):
            text = f"unresolved executions have failed, so none is {query.status}; leave one of the two out"
            raise error(ErrorKind.BAD_INPUT, text, field="unresolved")
        query = evolve(query, status=Status.FAILED)
    if query.text is not None and not 0 < len(query.text.strip()) <= len(query.text) <= MAX_TEXT:
        raise error(ErrorKind.BAD_INPUT, f"text must have 1 to {MAX_TEXT} characters", field="text")
    return query


def _with_text(connection: sa.Connection, wanted: sa.Select[Any], query: Query, floor: float | None) -> Page:
    """Return those of the executions that have a text in their output or error message."""
    rows = connection.execute(_newest_first(wanted).limit(TEXT_ROWS + 1)).mappings().all()
    sought, found = (query.text or "").casefold(), list[Execution]()
    looked: Mapping[Any, Any] | None = None
    for row, printed in printing(connection, rows[:TEXT_ROWS], sought):
        if len(found) == query.limit:
            break
        looked = row
        if printed or sought in (row["failure"] or "").casefold():
            found += filter(None, [_readable(connection, row)])
    if looked is not None and looked is not rows[-1]:
        return Page(tuple(found), _cursor(looked["created_at"], looked["id"]))
    return Page(tuple(found), None if floor is None else _cursor(floor, ""))


def _unresolved() -> sa.ColumnElement[bool]:
    """Return the condition that no later execution of the same chain of repetitions succeeded; ids rise with time."""
    columns, later = executions.c, executions.alias("later")
    succeeded = sa.select(sa.literal(1)).where(
        later.c.rerun_root == sa.func.coalesce(columns.rerun_root, columns.id),
        later.c.status == Status.SUCCEEDED.value,
        later.c.id > columns.id,
    )
    return ~succeeded.correlate(executions).exists()


_UNRESOLVED: Final = _unresolved()


def existing(connection: sa.Connection, names: Iterable[str]) -> set[str]:
    """Return those of the ids that are executions, without those that ended and have only a summary left."""
    found: set[str] = set()
    left = list(names)
    while left:
        some, left = left[:LOOKED_UP], left[LOOKED_UP:]
        columns = executions.c
        whole = sa.or_(columns.finished_at.is_(None), sa.not_(columns.summary))
        found.update(connection.execute(sa.select(columns.id).where(columns.id.in_(some), whole)).scalars())
    return found


def _filters(query: Query) -> dict[str, str]:
    """Return the values that columns must have."""
    filters = {
        "module": query.module,
        "version": query.version,
        "status": query.status and query.status.value,
        "failure_kind": query.kind and query.kind.value,
        "subject": query.subject,
        "schedule": query.schedule,
        "rerun_of": query.rerun_of,
        "parent": query.parent,
        "root": query.root,
        "node": query.node,
    }
    return {name: value for name, value in filters.items() if value is not None}


def _best_lead(
    connection: sa.Connection, filters: Mapping[str, str], since: float | None, before: Place | None, *, more: bool
) -> tuple[tuple[str, ...], float | None]:
    """Return the columns of the index to follow, and the time at which to stop; None for its end.

    `more`: there are other conditions than `filters`.
    Of several indexes, the one whose `LOOKED_AT` newest rows reach back furthest has the fewest rows that do not match.
    """
    leads = [lead for lead in _LEADS if filters.keys() >= set(lead)][:1]
    if "subject" in filters:
        leads.append(("subject",))
    leads = leads or [()]
    if not more and filters.keys() == set(leads[0]):
        return leads[0], None
    floors = [_floor(connection, _led(lead, filters, since, before)) for lead in leads]
    return min(
        zip(leads, floors, strict=True), key=lambda candidate: -math.inf if candidate[1] is None else candidate[1]
    )


def _floor(connection: sa.Connection, conditions: Iterable[sa.ColumnElement[bool]]) -> float | None:
    """Return the time of the last of the `LOOKED_AT` newest rows, or None when there are fewer."""
    some = _newest_first(sa.select(executions.c.created_at).where(*conditions)).limit(LOOKED_AT).subquery()
    row = connection.execute(sa.select(sa.func.count(), sa.func.min(some.c.created_at)).select_from(some)).one()
    return row[1] if row[0] == LOOKED_AT else None


def _led(
    lead: tuple[str, ...], filters: Mapping[str, str], since: float | None, before: Place | None
) -> list[sa.ColumnElement[bool]]:
    """Return conditions for one index: its first columns, then one bound at each end."""
    columns = executions.c
    conditions = [columns[name] == filters[name] for name in lead]
    if since is not None:
        conditions.append(columns.created_at >= since)
    if before is not None:
        conditions.append(
            sa.tuple_(columns.created_at, columns.id) < sa.tuple_(sa.literal(before[0]), sa.literal(before[1]))
        )
    return conditions


def _newest_first(wanted: sa.Select[Any]) -> sa.Select[Any]:
    return wanted.order_by(executions.c.created_at.desc(), executions.c.id.desc())


def _upper_bound(query: Query) -> Place | None:
    """Return the place before which the page begins: a single bound, as an index is entered at one place."""
    bounds = [] if query.until is None else [(query.until, "")]
    if query.cursor is not None:
        bounds.append(_read_cursor(query.cursor))
    return min(bounds, default=None)


def _cursor(created_at: float, name: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((created_at, name))).decode("ascii").rstrip("=")


def _read_cursor(cursor: str) -> Place:
    try:
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return _place_decoder.decode(data)
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise error(ErrorKind.BAD_INPUT, "the cursor is not one of this server", field="cursor") from None


def fetch(connection: sa.Connection, name: str, waiting: Sequence[bytes] = ()) -> Execution | None:
    """Return the whole execution with the id `name`, or None; `waiting` are its events that are not stored yet."""
    joint = executions.outerjoin(payloads, executions.c.id == payloads.c.id)
    wanted = sa.select(executions, *(column for column in payloads.c if column.name != "id")).select_from(joint)
    row = connection.execute(wanted.where(executions.c.id == name)).mappings().first()
    if row is None:
        return None
    found = _readable(connection, row)
    if found is None:
        return None
    found = replace(found, children=_linked(connection, "parent", name))
    if found.status.final:
        found = replace(found, reruns=_linked(connection, "rerun_of", name))
    pieces = sa.select(events.c.events).where(events.c.id == name).order_by(events.c.first_seq)
    stored = connection.execute(pieces).scalars().all()
    try:
        return replace(found, events=joined([*(decodable(piece) for piece in stored), *waiting]))
    except UNREADABLE_ERRORS as problem:
        note_unreadable(connection, name, problem)
        return replace(found, events=joined(waiting) if waiting else NOTHING)


def _linked(connection: sa.Connection, column: str, name: str) -> tuple[str, ...]:
    """Return the newest executions that name an execution in this column."""
    wanted = sa.select(executions.c.id).where(executions.c[column] == name)
    return tuple(connection.execute(_newest_first(wanted).limit(MAX_LINKED)).scalars())


def decodable(piece: bytes) -> bytes:
    """Return events that are JSON. Raises `msgspec.MsgspecError`."""
    seqs_of(piece)
    return piece


_SCHEDULED: Final[sa.ColumnElement[str]] = sa.literal_column(f"'{Status.SCHEDULED.value}'")
"""Not a parameter: the index of these rows is a partial one."""


def due(connection: sa.Connection, until: float, most: int, *, joined: bool) -> tuple[tuple[str, ...], float]:
    """Return the ids of scheduled executions whose `run_at` is reached, and the next `run_at` after `until`.

    Those of a cluster do not count for a runner that is not `joined`.
    """
    columns, ours = executions.c, _ours(joined=joined)
    wanted = sa.select(columns.id).where(columns.status == _SCHEDULED, columns.run_at <= until, *ours)
    names = tuple(connection.execute(wanted.order_by(columns.run_at, columns.id).limit(most)).scalars())
    later = sa.select(columns.run_at).where(columns.status == _SCHEDULED, columns.run_at > until, *ours)
    found = connection.execute(later.order_by(columns.run_at).limit(1)).scalar()
    return names, math.inf if found is None else float(found)


def count_scheduled(connection: sa.Connection, *, joined: bool) -> int:
    """Return the number of scheduled executions, as `due` counts them."""
    wanted = sa.select(sa.func.count()).select_from(executions)
    counted = wanted.where(executions.c.status == _SCHEDULED, *_ours(joined=joined))
    return int(connection.execute(counted).scalar_one())


def _ours(*, joined: bool) -> tuple[sa.ColumnElement[bool], ...]:
    return () if joined else (executions.c.node.is_(None),)


def last_repetition(connection: sa.Connection, root: str) -> str | None:
    """Return the id of the last repetition in the chain that began with `root`; ids rise with time."""
    wanted = sa.select(executions.c.id).where(executions.c.rerun_root == root)
    found: str | None = connection.execute(wanted.order_by(executions.c.id.desc()).limit(1)).scalar()
    return found


def find_keyed(connection: sa.Connection, key: Key, since: float) -> Execution | None:
    """Return the newest execution with this key that was created at or after `since`, whole, or None."""
    subject, module, idempotency_key = key
    columns = executions.c
    wanted = sa.select(columns.id).where(
        columns.subject == subject,
        columns.module == module,
        columns.idempotency_key == idempotency_key,
        columns.created_at >= since,
    )
    name = connection.execute(_newest_first(wanted).limit(1)).scalar()
    return None if name is None else fetch(connection, name)


def _readable(connection: sa.Connection, row: Mapping[Any, Any]) -> Execution | None:
    try:
        return _execution(row)
    except UNREADABLE_ERRORS as problem:
        note_unreadable(connection, str(row["id"]), problem)
        return None


def note_unreadable(connection: sa.Connection, what: str, problem: Exception) -> None:
    """Note a row that cannot be read, which its reader leaves out."""
    connection.info.setdefault(UNREADABLE, []).append(f"{what}: {problem}")


def _execution(row: Mapping[Any, Any]) -> Execution:
    failure = None
    if row["failure"] is not None:
        failure = evolve(_failure_decoder.decode(row["failure"]), traceback=row.get("traceback"))
    payload = {"input": row["input"], "result": row["result"]} if row.get("input") is not None else {}
    attempts, killed = row.get("failed_attempts"), row.get("killed")
    return Execution(
        **{name: row[name] for name in PLAIN},
        **payload,
        module=ModuleRef(row["module"], row["version"]),
        env=Kind(row["env"]),
        status=Status(row["status"]),
        failure=failure,
        on_end=read_telling(row["on_end"]),
        approval=None if row["approval"] is None else _approval_decoder.decode(row["approval"]),
        failed_attempts=() if attempts is None else _attempts_decoder.decode(attempts),
        killed=() if killed is None else _killed_decoder.decode(killed),
        timings=Timings(*(row[f"{phase}_seconds"] for phase in PHASES)),
    )
