"""The runner's values as gRPC messages and back: pure, with the words that REST uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, assert_never, get_args, get_origin, get_type_hints

import msgspec

from actors.history import ModuleStats
from actors.registry import Published
from protocol.errors import ErrorKind, Failure, error
from protocol.events import (
    ChildEvent,
    DroppedEvent,
    ErrorEvent,
    Event,
    ItemEvent,
    OutputEvent,
    ProgressEvent,
    ResultEvent,
    StatusEvent,
    decode_all,
    text_of,
)
from protocol.model import Attempt, Execution, Kind, Record, Status, Stream
from protocol.rpc.operato.runner import v1
from protocol.views import DEFAULT_PAGE, MAX_PAGE
from runner.api import Again, ShownCluster, ShownNode, module_fields
from runner.grpc.codec import make

_ENVIRONMENTS = {kind: v1.EnvironmentKind[kind.name] for kind in Kind}
_STATUSES = {status: v1.ExecutionStatus[status.name] for status in Status}
_KINDS = {kind: v1.ErrorKind[kind.name] for kind in ErrorKind}
_STREAMS = {stream: v1.OutputStream[stream.name] for stream in Stream}
_NUMBERS: Mapping[Any, Callable[[Any], Any]] = {
    Kind: _ENVIRONMENTS.__getitem__,
    Status: _STATUSES.__getitem__,
    ErrorKind: _KINDS.__getitem__,
}
E = TypeVar("E", bound=StrEnum)
M = TypeVar("M")

_failure_decoder = msgspec.json.Decoder(Failure)


def execution_message(execution: Execution) -> v1.Execution:
    """Return the record of an execution, without its payloads."""
    timings, waiting = execution.timings, execution.waiting
    return _same(
        v1.Execution,
        execution,
        module_name=execution.module.name,
        version=execution.module.version,
        error=None if execution.failure is None else failure_message(execution.failure),
        duration=execution.duration or 0.0,
        timings=_same(v1.Timings, timings, importing=timings.load),
        failed_attempts=[_attempt_message(attempt) for attempt in execution.failed_attempts],
        waiting=None if waiting is None else _same(v1.Waiting, waiting),
        approval=None if execution.approval is None else _same(v1.Approval, execution.approval),
        record=Record.SUMMARY.value if execution.summary else Record.FULL.value,
    )


def _attempt_message(attempt: Attempt) -> v1.Attempt:
    return _same(v1.Attempt, attempt, run=attempt.seconds, error=failure_message(attempt.failure))


def _same(cls: type[M], noun: Any, **more: Any) -> M:
    """Return a message with the values that a noun of the model has under the same names, and `more` of its own."""
    classes: tuple[Any, Any] = cls, type(noun)
    alike, converted = _shared(*classes)
    for name in alike:
        more[name] = getattr(noun, name)
    for name, convert in converted:
        more[name] = convert(getattr(noun, name))
    return make(cls, **more)


@cache
def _shared(cls: Any, noun: Any) -> tuple[tuple[str, ...], tuple[tuple[str, Callable[[Any], Any]], ...]]:
    """Return the fields that message and noun share, nested messages aside: equal values, and those to convert."""
    types = cls._betterproto.meta_by_field_name
    alike: list[str] = []
    converted: list[tuple[str, Callable[[Any], Any]]] = []
    for name, kind in get_type_hints(noun).items():
        if name not in types or types[name].proto_type == "message":
            continue
        if types[name].proto_type == "int64" and float in (kind, *get_args(kind)):  # only times are whole numbers there
            converted.append((name, milliseconds))
        elif get_origin(kind) is tuple:
            converted.append((name, list))
        elif kind in _NUMBERS:
            converted.append((name, _NUMBERS[kind]))
        else:
            alike.append(name)
    return tuple(alike), tuple(converted)


def repeated_message(again: Again) -> v1.Repeated:
    """Return what became of one execution of a list that is repeated."""
    execution, made, problem = again.execution, again.repetition, again.problem
    return make(
        v1.Repeated,
        id=execution.id,
        module_name=execution.module.name,
        version=execution.module.version,
        rerun="" if made is None else made.id,
        error=None if problem is None else failure_message(problem),
    )


def response_message(execution: Execution) -> v1.ExecuteResponse:
    """Return the answer to Execute."""
    stdout, stderr = _printed(execution)
    return make(
        v1.ExecuteResponse,
        result_json=_text(execution.result),
        execution=execution_message(execution),
        stdout=stdout,
        stderr=stderr,
    )


def record_message(execution: Execution) -> v1.GetExecutionResponse:
    """Return the whole record of an execution."""
    stdout, stderr = _printed(execution)
    return make(
        v1.GetExecutionResponse,
        execution=execution_message(execution),
        input_json=_text(execution.input),
        result_json=_text(execution.result),
        stdout=stdout,
        stderr=stderr,
    )


def event_message(event: Event, execution: Execution | None = None) -> v1.ExecutionEvent:
    """Return an event; the last one carries its `execution`."""
    return make(
        v1.ExecutionEvent,
        seq=event.seq,
        at=milliseconds(event.at),
        execution=None if execution is None else execution_message(execution),
        **_event_member(event),
    )


def _event_member(event: Event) -> dict[str, Any]:  # noqa: PLR0911  (one for each type of event)
    """Return the member of the oneof for an event, by its name."""
    match event:
        case StatusEvent():
            status = _STATUSES[event.status]
            return {"status": make(v1.StatusEvent, status=status, attempt=event.attempt, reason=event.reason)}
        case OutputEvent():
            return {"output": make(v1.OutputEvent, stream=_STREAMS[event.stream], text=event.text, shared=event.shared)}
        case ItemEvent():
            return {"item": make(v1.ItemEvent, value_json=_text(bytes(event.value)))}
        case ProgressEvent():
            return {"progress": make(v1.ProgressEvent, done=event.done, total=event.total, text=event.text)}
        case ChildEvent():
            return {"child": make(v1.ChildEvent, id=event.id, module_name=event.module)}
        case DroppedEvent():
            return {"dropped": make(v1.DroppedEvent, events=event.events, bytes=event.bytes)}
        case ResultEvent():
            return {"result": make(v1.ResultEvent, result_json=_text(bytes(event.result)))}
        case ErrorEvent():
            return {"error": failure_message(_failure_decoder.decode(event.error))}
        case _:
            assert_never(event)


def failure_message(failure: Failure) -> v1.Error:
    """Return a failure as a message."""
    return _same(v1.Error, failure, retryable=failure.retryable)


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
        digest=module.content_digest,
        published_at=milliseconds(module.published_at),
        spec_json=msgspec.json.encode(module_fields(module)).decode(),
        published_by=module.published_by or "",
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


def nodes_message(cluster: ShownCluster) -> v1.ListNodesResponse:
    """Return the runners of the cluster."""
    return make(
        v1.ListNodesResponse,
        node=cluster["node"] or "",
        connected=bool(cluster["connected"]),
        lag=cluster["lag"],
        unsent=cluster["unsent"],
        unreadable=cluster["unreadable"],
        forwarded=cluster["forwarded"],
        nodes=[_node_message(each) for each in cluster["items"]],
    )


def _node_message(node: ShownNode) -> v1.Node:
    return make(
        v1.Node,
        node=node["node"],
        release=node["release"],
        started_at=milliseconds(node["started_at"]),
        labels=node["labels"],
        places=node["places"],
        busy=node["busy"],
        running=node["running"],
        queued=node["queued"],
        draining=node["draining"],
        lag=node["lag"],
        details_json=msgspec.json.encode(node).decode(),
    )


def stats_message(stats: ModuleStats) -> v1.GetModuleStatsResponse:
    """Return how the executions of a module ended."""
    return make(
        v1.GetModuleStatsResponse,
        module_name=stats.module,
        since=milliseconds(stats.since),
        until=milliseconds(stats.until),
        total=stats.total,
        succeeded=stats.statuses.get(Status.SUCCEEDED, 0),
        failed=stats.statuses.get(Status.FAILED, 0),
        cancelled=stats.statuses.get(Status.CANCELLED, 0),
        errors=[make(v1.ErrorCount, kind=_KINDS[kind], count=count) for kind, count in stats.kinds.items()],
        success_rate=stats.success_rate,
        runs=stats.runs,
        mean=stats.mean,
        p50=stats.p50,
        p95=stats.p95,
        p99=stats.p99,
    )


def environment_kind(number: int) -> Kind | None:
    """Return the kind of environment that a request names, None without one. Raises RunnerError `bad_input`."""
    return _named(_ENVIRONMENTS, number, "env")


def execution_status(number: int) -> Status | None:
    """Return the status that a request names, None without one. Raises RunnerError `bad_input`."""
    return _named(_STATUSES, number, "status")


def error_kind(number: int) -> ErrorKind | None:
    """Return the kind of error that a request names, None without one. Raises RunnerError `bad_input`."""
    return _named(_KINDS, number, "kind")


def _named(known: Mapping[E, int], number: int, field: str) -> E | None:
    if not number:
        return None
    for value, its in known.items():
        if its == number:
            return value
    raise error(ErrorKind.BAD_INPUT, f"{field} {int(number)} is not one of {', '.join(known)}", field=field)


def page_limit(limit: int) -> int:
    """Return the number of items on a page. Raises RunnerError `bad_input`."""
    if not 0 <= limit <= MAX_PAGE:
        text = f"limit must be from 1 to {MAX_PAGE}, or 0 for {DEFAULT_PAGE}, not {limit}"
        raise error(ErrorKind.BAD_INPUT, text, field="limit")
    return limit or DEFAULT_PAGE


def milliseconds(seconds: float | None) -> int:
    """Return a time in seconds since the epoch as messages carry it; 0 for None."""
    return 0 if seconds is None else round(seconds * 1000)


def seconds(milliseconds: int) -> float | None:
    """Return a time of a message in seconds since the epoch, None for 0."""
    return milliseconds / 1000 if milliseconds else None


def _printed(execution: Execution) -> tuple[str, str]:
    """Return the output of the last attempt: stdout and stderr."""
    kept = decode_all(execution.events)
    return text_of(kept, Stream.STDOUT), text_of(kept, Stream.STDERR)


def _text(data: bytes | None) -> str:
    return "" if data is None else data.decode()
