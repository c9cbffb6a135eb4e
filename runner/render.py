"""Executions, modules and failures as the JSON that REST and websocket answer with."""

from __future__ import annotations

from typing import Any

import msgspec

from actors.registry import Published
from config.modules import spec_to_mapping
from protocol.errors import ErrorKind, Failure
from protocol.model import Execution, Stream
from runner.status import CODES

_encoder = msgspec.json.Encoder()
_HIDDEN = ("code", "path", "variables", "secrets", "name", "env", "version")


def failure_json(failure: Failure) -> dict[str, Any]:
    """Return a failure as the `error` of an execution."""
    return {
        "kind": failure.kind,
        "message": failure.message,
        "type": failure.type,
        "traceback": failure.traceback,
        "field": failure.field,
        "retryable": failure.retryable,
        "killed": failure.killed,
    }


def execution_json(execution: Execution) -> bytes:
    """Return the whole execution; the result passes through as the bytes that the handler's worker sent."""
    timings = execution.timings
    duration = execution.duration
    return _encoder.encode(
        {
            "id": execution.id,
            "module": execution.module.name,
            "version": execution.module.version,
            "env": execution.env,
            "status": execution.status,
            "result": None if execution.result is None else msgspec.Raw(execution.result),
            "error": None if execution.failure is None else failure_json(execution.failure),
            "stdout": execution.text(Stream.STDOUT) if execution.output else "",
            "stderr": execution.text(Stream.STDERR) if execution.output else "",
            "output_dropped": execution.output_dropped,
            "exit_code": execution.exit_code,
            "attempts": execution.attempts,
            "duration": None if duration is None else round(duration, 6),
            "timings": {
                "queue": round(timings.queue, 6),
                "build": round(timings.build, 6),
                "start": round(timings.start, 6),
                "import": round(timings.load, 6),
                "run": round(timings.run, 6),
            },
        }
    )


def execution_status(execution: Execution) -> int:
    """Return the HTTP status of an execution that has ended: 200 only for success."""
    return 200 if execution.failure is None else CODES[execution.failure.kind].http


def problem_json(failure: Failure) -> bytes:
    """Return an RFC 9457 problem for what never began."""
    body = {
        "type": "about:blank",
        "title": failure.kind.value.replace("_", " "),
        "status": CODES[failure.kind].http,
        "detail": failure.message,
        "kind": failure.kind,
        "field": failure.field,
    }
    return _encoder.encode({name: value for name, value in body.items() if value is not None})


def failure_headers(failure: Failure) -> list[tuple[bytes, bytes]]:
    """Return the headers that go with a failure: when to come back, and how to show who one is."""
    headers = []
    if failure.retry_after is not None or failure.kind is ErrorKind.OVERLOADED:
        headers.append((b"retry-after", b"%d" % max(1, round(failure.retry_after or 1))))
    if failure.kind is ErrorKind.UNAUTHENTICATED:
        headers.append((b"www-authenticate", b'Bearer realm="operato-runner"'))
    return headers


def module_json(module: Published) -> dict[str, Any]:
    """Return a module as lists and details show it: no code, no paths, names of variables without their values."""
    spec = module.spec
    shown = {name: value for name, value in spec_to_mapping(spec).items() if name not in _HIDDEN}
    return {
        "name": spec.name,
        "version": module.ref.version,
        "env": spec.env.value,
        **shown,
        "variables": sorted(spec.variables),
        "secrets": list(spec.secrets),
        "digest": module.content_digest,
        "published_at": round(module.published_at, 3),
    }
