"""The runner's values as gRPC messages and back: pure, and the same words as in `render`.

Imports the generated messages, as `grpc_service` does; neither of the two knows a library of gRPC or asyncio.
"""

from __future__ import annotations

from typing import Any

import msgspec

from actors.registry import Published
from protocol.errors import ErrorKind, Failure, error
from protocol.model import Execution, Kind, Status, Stream
from protocol.rpc.operato.runner import v1
from runner.grpc_codec import make
from runner.render import module_json

MAX_PAGE = 500
DEFAULT_PAGE = 50

_ENVIRONMENTS = {kind: v1.EnvironmentKind[kind.name] for kind in Kind}
_STATUSES = {status: v1.ExecutionStatus[status.name] for status in Status}
_KINDS = {kind: v1.ErrorKind[kind.name] for kind in ErrorKind}
_KIND_OF = {number: kind for kind, number in _ENVIRONMENTS.items()}


def execution_message(execution: Execution) -> v1.Execution:
    """Return the record of an execution, without its payloads."""
    timings = execution.timings
    return make(
        v1.Execution,
        id=execution.id,
        module_name=execution.module.name,
        version=execution.module.version,
        env=_ENVIRONMENTS[execution.env],
        status=_STATUSES[execution.status],
        error=None if execution.failure is None else failure_message(execution.failure),
        exit_code=execution.exit_code,
        attempts=execution.attempts,
        duration=execution.duration or 0.0,
        timings=make(
            v1.Timings,
            queue=timings.queue,
            build=timings.build,
            start=timings.start,
            load=timings.load,
            run=timings.run,
        ),
        output_dropped=execution.output_dropped,
        created_at=milliseconds(execution.created_at),
        started_at=milliseconds(execution.started_at),
        finished_at=milliseconds(execution.finished_at),
        subject=execution.subject,
    )


def response_message(execution: Execution) -> v1.ExecuteResponse:
    """Return the answer to Execute."""
    return make(
        v1.ExecuteResponse,
        result_json=_text(execution.result),
        execution=execution_message(execution),
        stdout=execution.text(Stream.STDOUT) if execution.output else "",
        stderr=execution.text(Stream.STDERR) if execution.output else "",
    )


def failure_message(failure: Failure) -> v1.Error:
    """Return a failure as a message."""
    return make(
        v1.Error,
        kind=_KINDS[failure.kind],
        message=failure.message,
        type=failure.type or "",
        traceback=failure.traceback or "",
        field=failure.field or "",
        retryable=failure.retryable,
        retry_after=failure.retry_after or 0.0,
        killed=list(failure.killed),
    )


def module_message(module: Published) -> v1.Module:
    """Return a module as lists and details show it."""
    spec = module.spec
    return make(
        v1.Module,
        name=spec.name,
        version=module.ref.version,
        env=_ENVIRONMENTS[spec.env],
        description=spec.description,
        tags=list(spec.tags),
        digest=module.digest,
        published_at=milliseconds(module.published_at),
        spec_json=msgspec.json.encode(module_json(module)).decode(),
    )


def environment_message(environment: dict[str, Any]) -> v1.Environment:
    """Return one kind of environment, as `Service.environments` describes it."""
    return make(
        v1.Environment,
        kind=_ENVIRONMENTS[Kind(environment["env"])],
        available=environment["available"],
        reason=environment["reason"] or "",
        details_json=msgspec.json.encode(environment).decode(),
    )


def environment_kind(number: int) -> Kind | None:
    """Return the kind that a request names, None for none. Raises RunnerError `bad_input`."""
    if number == v1.EnvironmentKind.UNSPECIFIED:
        return None
    try:
        return _KIND_OF[v1.EnvironmentKind(number)]
    except (KeyError, ValueError):
        raise error(ErrorKind.BAD_INPUT, f"env {int(number)} is no EnvironmentKind", field="env") from None


def page_limit(limit: int) -> int:
    """Return how many entries a page has. Raises RunnerError `bad_input`."""
    if not 0 <= limit <= MAX_PAGE:
        raise error(
            ErrorKind.BAD_INPUT, f"limit is 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}, not {limit}", field="limit"
        )
    return limit or DEFAULT_PAGE


def milliseconds(seconds: float | None) -> int:
    """Return a time in seconds since the epoch as messages have it; 0 for None."""
    return 0 if seconds is None else round(seconds * 1000)


def _text(data: bytes | None) -> str:
    return "" if data is None else data.decode()
