"""The outbox: notices about ended executions, written in the transaction that stores their ends, until they are sent.

So no end is without its notices, also when the runner is killed, and no call waits for them. `history` writes them; the
actor that sends them reads and settles them. Everything here runs in a thread, inside of a transaction of its caller.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from attrs import evolve
from msgspec.structs import replace

from config.modules import origin_of
from protocol import views
from protocol.errors import Failure
from protocol.model import Execution, Recipient, Telling

PENDING: Final = "pending"
DELIVERED: Final = "delivered"
DEAD: Final = "dead"
STATES: Final = (PENDING, DELIVERED, DEAD)
SECONDS: Final = 86400.0
"""How long a notice is tried."""
MAX_PENDING: Final = 50_000
"""Notices that wait to be sent; more are dead at once."""
MAX_DEPTH: Final = 8
"""Notices of which each is the cause of the next one."""
MAX_VALUE_BYTES: Final = 8 * 1024
"""Of an input, a result and a traceback in a notice; larger ones are in the record of the execution only."""
MAX_ATTEMPTS_BYTES: Final = 16 * 1024

metadata = sa.MetaData()

notices = sa.Table(
    "notices",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("execution", sa.Text, nullable=False),
    sa.Column("module", sa.Text, nullable=False),  # of the execution
    sa.Column("recipient", sa.Text, nullable=False),  # JSON of a Recipient
    sa.Column("target", sa.Text, nullable=False),  # the recipient, as lists show it; what is sent side by side
    sa.Column("depth", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("due_at", sa.Double, nullable=False),
    sa.Column("until", sa.Double, nullable=False),  # it is not tried later than that
    sa.Column("attempts", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text),  # why the last attempt failed
    sa.Column("ended_at", sa.Double),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("notices_by_execution", "execution"),
    sa.Index("notices_by_time", "created_at", "id"),
    sa.Index("notices_by_state", "state", "created_at", "id"),
)
_columns = notices.c
_waiting = sa.text("state = 'pending'")
sa.Index("notices_due", _columns.due_at, _columns.target, _columns.id, sqlite_where=_waiting)
_ended = _columns.ended_at.is_not(None)
sa.Index("notices_ended", _columns.ended_at, sqlite_where=_ended)

_recipient_encoder = msgspec.json.Encoder()
_telling_decoder = msgspec.json.Decoder(Telling)


def telling_text(telling: Telling | None) -> str | None:
    """Return the recipients of an execution as its row has them."""
    return None if telling is None else msgspec.json.encode(telling).decode()


def read_telling(text: str | None) -> Telling | None:
    """Return the recipients in a row. Raises `msgspec.MsgspecError`."""
    return None if text is None else _telling_decoder.decode(text)


def target_of(recipient: Recipient) -> str:
    """Return a recipient as lists show it, without what could be a secret."""
    return f"module {recipient.module}" if recipient.url is None else origin_of(recipient.url)


def write(connection: sa.Connection, executions: Iterable[Execution], known: Container[str] = ()) -> int:
    """Add the notices about the ended ones of some executions, if they are missing; return how many.

    Withdraw those about the `known` ones that have not ended: they were taken for lost, and run again.
    """
    telling = [execution for execution in executions if execution.on_end is not None]
    if not telling:
        return 0
    again = [execution.id for execution in telling if not execution.status.final and execution.id in known]
    if again:
        connection.execute(sa.delete(notices).where(_columns.execution.in_(again)))
    return _add(connection, [row for execution in telling if execution.status.final for row in _rows(execution)])


def _add(connection: sa.Connection, rows: list[dict[str, Any]]) -> int:
    if not rows:
        return 0
    some = sa.select(_columns.id).where(_waiting).limit(MAX_PENDING).subquery()
    room = MAX_PENDING - int(connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one())
    for row in rows[max(0, room) :]:
        row |= {
            "state": DEAD,
            "reason": f"{MAX_PENDING} notices waited to be sent, which is the limit",
            "ended_at": row["created_at"],
        }
    connection.execute(sa.insert(notices).prefix_with("or ignore"), rows)
    return len(rows)


def _rows(execution: Execution) -> list[dict[str, Any]]:
    telling = execution.on_end or Telling(())
    at = execution.finished_at or execution.created_at
    told = [(place, each) for place, each in enumerate(telling.recipients) if execution.status in each.when]
    body = body_of(execution) if told else b""
    return [
        {
            "id": f"msg_{execution.id}_{place}",
            "execution": execution.id,
            "module": execution.module.name,
            "recipient": _recipient_encoder.encode(recipient).decode(),
            "target": target_of(recipient),
            "depth": telling.depth,
            "state": PENDING,
            "created_at": at,
            "due_at": at,
            "until": at + SECONDS,
            "attempts": 0,
            "reason": None,
            "ended_at": None,
            "body": body,
        }
        for place, recipient in told
    ]


def body_of(execution: Execution) -> bytes:
    """Return the message about an end: type, time, and the execution without output and without large values."""
    at = datetime.fromtimestamp(execution.finished_at or execution.created_at, UTC)
    failure, attempts = execution.failure, execution.failed_attempts
    if failure is not None:
        failure = _shortened(failure)
    if attempts and len(msgspec.json.encode(attempts)) > MAX_ATTEMPTS_BYTES:
        attempts = ()
    shown = replace(execution, failure=failure, failed_attempts=attempts)
    data = {
        **views.listed(shown),
        "input": _bounded(execution.input),
        "result": None if execution.result is None else _bounded(execution.result),
    }
    message = {
        "type": f"execution.{execution.status.value}",
        "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": data,
    }
    return msgspec.json.encode(message)


def _bounded(value: bytes) -> Any:
    if len(value) <= MAX_VALUE_BYTES:
        return msgspec.Raw(value)
    reason = f"over {MAX_VALUE_BYTES} bytes: read the execution"
    return {"$dropped": {"bytes": len(value), "reason": reason}}


def _shortened(failure: Failure) -> Failure:
    message, traceback = failure.message[:MAX_VALUE_BYTES], failure.traceback
    if traceback is not None and len(traceback) > MAX_VALUE_BYTES:
        traceback = f"...\n{traceback[-MAX_VALUE_BYTES:]}"  # the end of it has the error
    return evolve(failure, message=message, traceback=traceback)


def forget(connection: sa.Connection, executions: Sequence[str], before: float, most: int) -> None:
    """Delete notices that need not be sent: those about deleted executions, and `most` that ended before `before`."""
    done = _columns.state != PENDING
    if executions:
        connection.execute(sa.delete(notices).where(_columns.execution.in_(executions), done))
    old = sa.select(_columns.id).where(_columns.ended_at < before).order_by(_columns.ended_at).limit(most)
    connection.execute(sa.delete(notices).where(_columns.id.in_(old.scalar_subquery())))
