"""Executions, modules and failures as the JSON that REST and websocket answer with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from actors.history import ModuleStats
from actors.registry import Change, Published, Registered
from protocol.errors import ErrorKind, Failure
from protocol.events import decode_all, failure_fields, text_of
from protocol.model import Attempt, Execution, Stream
from runner.rest.openapi import shapes
from runner.status import CODES

_encoder = msgspec.json.Encoder()


def execution_fields(execution: Execution) -> shapes.Core:
    """Return what every door says of an execution, without what it was given and what it printed."""
    timings, duration, waiting = execution.timings, execution.duration, execution.waiting
    return {
        "id": execution.id,
        "module": execution.module.name,
        "version": execution.module.version,
        "env": execution.env,
        "status": execution.status,
        "result": None if execution.result is None else msgspec.Raw(execution.result),
        "error": None if execution.failure is None else failure_fields(execution.failure),
        "output_dropped": execution.output_dropped,
        "exit_code": execution.exit_code,
        "attempts": execution.attempts,
        "failed_attempts": [_attempt_fields(attempt) for attempt in execution.failed_attempts],
        "killed": execution.killed,
        "peak_memory": execution.peak_memory,
        "duration": None if duration is None else round(duration, 6),
        "timings": {
            "queue": round(timings.queue, 6),
            "build": round(timings.build, 6),
            "start": round(timings.start, 6),
            "import": round(timings.load, 6),
            "run": round(timings.run, 6),
        },
        "waiting": None if waiting is None else {"reason": waiting.reason, "since": round(waiting.since, 3)},
    }


def _attempt_fields(attempt: Attempt) -> shapes.FailedAttempt:
    return {
        "attempt": attempt.number,
        "started_at": round(attempt.started_at, 6),
        "finished_at": round(attempt.finished_at, 6),
        "run": round(attempt.seconds, 6),
        "error": failure_fields(attempt.failure),
        "exit_code": attempt.exit_code,
        "killed": attempt.killed,
    }


def execution_json(execution: Execution) -> bytes:
    """Return the whole execution; the result passes through as the bytes that the handler's worker sent."""
    return _encoder.encode(_with_output(execution))


def _with_output(execution: Execution) -> shapes.Execution:
    kept = decode_all(execution.events)
    stdout, stderr = text_of(kept, Stream.STDOUT), text_of(kept, Stream.STDERR)
    return {**execution_fields(execution), "stdout": stdout, "stderr": stderr}


def _record_fields(execution: Execution) -> shapes.Record:
    return {
        "subject": execution.subject,
        "asynchronous": execution.asynchronous,
        "timeout": execution.timeout,
        "idempotency_key": execution.idempotency_key,
        "created_at": round(execution.created_at, 6),
        "started_at": None if execution.started_at is None else round(execution.started_at, 6),
        "finished_at": None if execution.finished_at is None else round(execution.finished_at, 6),
    }


def record_json(execution: Execution) -> bytes:
    """Return all that history knows of an execution, its input included."""
    return _encoder.encode(_recorded_fields(execution))


def _recorded_fields(execution: Execution) -> shapes.RecordedExecution:
    return {**_with_output(execution), **_record_fields(execution), "input": msgspec.Raw(execution.input)}


def accepted_json(execution: Execution) -> bytes:
    """Return an execution that was accepted and has not ended: as in lists."""
    return _encoder.encode(listed_fields(execution))


def listed_fields(execution: Execution) -> shapes.ListedExecution:
    """Return an execution as lists show it: without payloads, output and tracebacks."""
    return {**execution_fields(execution), **_record_fields(execution)}


def stats_json(stats: ModuleStats) -> bytes:
    """Return how the executions of a module ended."""
    shown: shapes.Stats = {
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
    """Return the whole execution as one line of a batch: `index` is the number of its input."""
    return _line({"index": index, **_with_output(execution)})


def problem_line(failure: Failure, index: int | None = None) -> bytes:
    """Return, as one line of a batch, why input `index` never began; without it, what ended the batch."""
    problem = _problem_fields(failure) | ({} if failure.retry_after is None else {"retry_after": failure.retry_after})
    return _line(({} if index is None else {"index": index}) | {"problem": problem})


def _line(fields: dict[str, Any]) -> bytes:
    # A result passes through as its worker wrote it; strings have no line ends in JSON, what is between values may.
    return _encoder.encode(fields).replace(b"\n", b" ") + b"\n"


def execution_status(execution: Execution) -> int:
    """Return the HTTP status of an execution that has ended: 200 only for success."""
    return 200 if execution.failure is None else CODES[execution.failure.kind].http


def problem_status(failure: Failure) -> int:
    """Return the HTTP status of what never began; 412 where it is a condition of the request that does not hold."""
    unmet = failure.kind is ErrorKind.CONFLICT and failure.field in ("if-match", "if-none-match")
    return 412 if unmet else CODES[failure.kind].http


def problem_json(failure: Failure) -> bytes:
    """Return an RFC 9457 problem for what never began."""
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
    }
    return {name: value for name, value in body.items() if value is not None}


def failure_headers(failure: Failure) -> list[tuple[bytes, bytes]]:
    """Return the headers that go with a failure: when to come back, and how to show who one is."""
    headers = []
    if failure.retry_after is not None or failure.kind is ErrorKind.OVERLOADED:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(failure.retry_after or 1))))
    if failure.kind is ErrorKind.UNAUTHENTICATED:
        headers.append((b"www-authenticate", b'Bearer realm="operato-runner"'))
    return headers


def versions_json(name: str, versions: Iterable[Published], registered: Registered | None) -> shapes.Versions:
    """Return the versions of a module, newest first, and which one is active."""
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


def change_json(change: Change) -> shapes.Change:
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
