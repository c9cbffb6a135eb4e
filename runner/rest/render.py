"""The JSON of executions, modules and failures in answers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from actors.history import ModuleStats
from actors.registry import Change, Published, Registered
from protocol import views
from protocol.errors import ErrorKind, Failure
from protocol.events import failure_fields
from protocol.model import Execution
from runner.api import Again, Cancelled, InternalFailure, Line
from runner.inputs import UnsupportedType
from runner.rest.bodies import CODINGS
from runner.rest.openapi import CancelledExecution, Repeated, Stats, Versions
from runner.rest.openapi import Change as ShownChange
from runner.status import CODES

_encoder = msgspec.json.Encoder()
_BY_FIELD = {
    (ErrorKind.CONFLICT, "if-match"): 412,
    (ErrorKind.CONFLICT, "if-none-match"): 412,
    (ErrorKind.BAD_INPUT, "content-encoding"): 415,
    (ErrorKind.BAD_INPUT, "content-type"): 415,
}
"""Statuses that HTTP has for the fault of one header."""


def execution_json(execution: Execution) -> bytes:
    """Return the whole execution; the result passes through as the bytes that the handler's worker sent."""
    return _encoder.encode(views.answered(execution))


def record_json(execution: Execution) -> bytes:
    """Return all that history knows of an execution, its input included."""
    return _encoder.encode(views.recorded(execution))


def accepted_json(execution: Execution) -> bytes:
    """Return an execution that was accepted and has not ended: as in lists."""
    return _encoder.encode(views.listed(execution))


def repeated(again: Again) -> Repeated:
    """Return what became of one execution of a list that is repeated."""
    execution, made, problem = again.execution, again.repetition, again.problem
    return {
        "id": execution.id,
        "module": execution.module.name,
        "version": execution.module.version,
        "rerun": None if made is None else made.id,
        "problem": None if problem is None else failure_fields(problem),
    }


def cancelled(each: Cancelled) -> CancelledExecution:
    """Return what became of one execution of a list that is cancelled."""
    execution, problem = each.execution, each.problem
    return {
        "id": execution.id,
        "module": execution.module.name,
        "version": execution.module.version,
        "status": execution.status,
        "problem": None if problem is None else failure_fields(problem),
    }


def line_json(line: Line) -> bytes:
    """Return a line of output as a JSON line."""
    shown = {"line": line.number, "seq": line.seq, "at": line.at, "attempt": line.attempt, "stream": line.stream}
    return msgspec.json.encode({**shown, "text": line.text}) + b"\n"


def stats_json(stats: ModuleStats) -> bytes:
    """Return the counts of a module's executions."""
    shown: Stats = {
        "module": stats.module,
        "since": round(stats.since, 3),
        "until": round(stats.until, 3),
        "total": stats.total,
        "statuses": stats.statuses,
        "errors": stats.kinds,
        "success_rate": stats.success_rate,
        "duration": {
            "runs": stats.runs,
            "mean": stats.mean,
            "p50": stats.p50,
            "p95": stats.p95,
            "p99": stats.p99,
        },
    }
    return _encoder.encode(shown)


def execution_line(execution: Execution, index: int) -> bytes:
    """Return the whole execution as the line of a batch for input `index`."""
    return _line({"index": index, **views.answered(execution)})


def problem_line(failure: Failure, index: int | None = None) -> bytes:
    """Return one line of a batch: why input `index` never began; without `index`, why the batch ended early."""
    problem = _problem_fields(failure) | ({} if failure.retry_after is None else {"retry_after": failure.retry_after})
    return _line(({} if index is None else {"index": index}) | {"problem": problem})


def _line(fields: dict[str, Any]) -> bytes:
    # A result passes through as its worker wrote it: line ends between its values are possible, in its strings not.
    return _encoder.encode(fields).replace(b"\n", b" ") + b"\n"


def execution_status(execution: Execution) -> int:
    """Return the HTTP status of an execution that has ended: 200 only for success."""
    return 200 if execution.failure is None else CODES[execution.failure.kind].http


def problem_status(failure: Failure) -> int:
    """Return the HTTP status of a problem: that of its kind, or of the header at fault."""
    return _BY_FIELD.get((failure.kind, failure.field or ""), CODES[failure.kind].http)


def problem_json(failure: Failure) -> bytes:
    """Return an RFC 9457 problem: why no execution began."""
    return _encoder.encode(_problem_fields(failure))


def _problem_fields(failure: Failure) -> dict[str, Any]:
    body = {
        "type": "about:blank",
        "title": failure.kind.value.replace("_", " "),
        "status": problem_status(failure),
        "detail": failure.message,
        "kind": failure.kind,
        "field": failure.field,
        "traceback": failure.traceback,
        "request_id": failure.request_id if isinstance(failure, InternalFailure) else None,
    }
    return {name: value for name, value in body.items() if value is not None}


def failure_headers(failure: Failure) -> list[tuple[bytes, bytes]]:
    """Return the headers of a failure: when to try again, how to authenticate, what to search in the log."""
    headers = []
    if failure.retry_after is not None or failure.kind is ErrorKind.OVERLOADED:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(failure.retry_after or 1))))
    if failure.kind is ErrorKind.UNAUTHENTICATED:
        headers.append((b"www-authenticate", b'Bearer realm="operato-runner"'))
    if failure.kind is ErrorKind.BAD_INPUT and failure.field == "content-encoding":
        headers.append((b"accept-encoding", ", ".join(CODINGS).encode()))
    if isinstance(failure, UnsupportedType):
        headers.append((b"accept-post", ", ".join(failure.types).encode()))
    if isinstance(failure, InternalFailure):
        headers.append((b"x-request-id", failure.request_id.encode()))
    return headers


def failure_event(failure: Failure) -> bytes:
    """Return the message by which an open stream or websocket tells why it ends; it has no number."""
    shown: dict[str, Any] = {**failure_fields(failure)}
    if isinstance(failure, InternalFailure):
        shown["request_id"] = failure.request_id
    return _encoder.encode({"type": "error", "error": shown})


def versions_json(name: str, versions: Iterable[Published], registered: Registered | None) -> Versions:
    """Return the versions of a module, newest first, and the active one."""
    active = next(iter(versions)).ref.version if registered is None else registered.active
    return {
        "module": name,
        "active": active,
        "items": [
            {
                "version": each.ref.version,
                "active": each.ref.version == active,
                "digest": each.content_digest,
                "published_at": round(each.published_at, 3),
                "published_by": each.published_by,
            }
            for each in versions
        ],
    }


def change_json(change: Change) -> ShownChange:
    """Return one entry of the audit log."""
    return {
        "id": change.id,
        "at": round(change.at, 3),
        "subject": change.subject,
        "action": change.action,
        "module": change.module,
        "version": change.version,
        "detail": change.detail,
    }
