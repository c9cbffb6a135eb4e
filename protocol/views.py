"""An execution as every door shows it: the JSON of answers, lists and records, and the functions that fill it.

The OpenAPI schemas are made of these types, clients decode them, and the gRPC messages have the same fields. A field of
`protocol.model.Execution` that callers should see is added to one of these types and to the function of the same part.

Every key is always present. Times are seconds since 1970, durations are seconds, sizes are bytes. Rounding: 6 digits.
"""

from __future__ import annotations

from enum import StrEnum
from typing import (
    Annotated,
    Any,
    Final,
    TypeAlias,
    TypedDict,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import msgspec
from msgspec import Meta

from protocol import model
from protocol.events import Error, decode_all, failure_fields, text_of
from protocol.model import Kind, Record, Status, Stream

MAX_PAGE: Final = 500
DEFAULT_PAGE: Final = 50
"""The size of a page of any list, whichever way it is read."""
T = TypeVar("T")
Json: TypeAlias = Any
"""Any JSON value; `msgspec.Raw` where the value is JSON already."""
Seconds: TypeAlias = Annotated[float, Meta(description="Seconds.")]
Moment: TypeAlias = Annotated[float, Meta(description="Seconds since 1970.")]


class FailedAttempt(TypedDict):
    """One attempt that was followed by another one."""

    attempt: Annotated[int, Meta(description="Counts from 1.")]
    started_at: Moment
    finished_at: Moment
    run: Annotated[float, Meta(description="Seconds in the handler.")]
    error: Error
    exit_code: int | None
    killed: tuple[str, ...]


Timings = TypedDict(
    "Timings", {"queue": Seconds, "build": Seconds, "start": Seconds, "import": Seconds, "run": Seconds}
)


class Waiting(TypedDict):
    """Why an execution does not run yet."""

    reason: str
    since: Moment


class Approval(TypedDict):
    """The decision of a person about an execution that waited for it."""

    approved: bool
    by: Annotated[str, Meta(description="Who decided.")]
    at: Moment
    reason: str


class Core(TypedDict):
    """The fields that every view has."""

    id: str
    module: str
    version: str
    env: Kind
    status: Status
    result: Annotated[Json, Meta(description="What the handler returned; null until then, and after a failure.")]
    error: Annotated[Error | None, Meta(description="Null unless it failed or was cancelled.")]
    output_dropped: Annotated[int, Meta(description="Bytes of output that were not kept.")]
    exit_code: Annotated[int | None, Meta(description="0 after success; null until the end.")]
    attempts: int
    failed_attempts: list[FailedAttempt]
    killed: Annotated[tuple[str, ...], Meta(description="Processes that were ended by force, as `pid name`.")]
    peak_memory: Annotated[int | None, Meta(description="Bytes of the handler's process.")]
    duration: Annotated[float | None, Meta(description="Seconds from acceptance to the end.")]
    timings: Timings
    waiting: Waiting | None


class Execution(Core):
    """An execution as a call that waits is answered."""

    stdout: Annotated[str, Meta(description="What the last attempt printed, as far as it was kept.")]
    stderr: str


class History(TypedDict):
    """The fields that only history shows."""

    subject: Annotated[str, Meta(description="Who called.")]
    asynchronous: bool
    node: Annotated[str | None, Meta(description="The runner that accepted it, then the one that ran it; null alone.")]
    timeout: Annotated[float | None, Meta(description="Seconds that the caller allows for each attempt.")]
    idempotency_key: str | None
    created_at: Moment
    started_at: Annotated[float | None, Meta(description="When the first attempt had a worker.")]
    finished_at: float | None
    record: Annotated[Record, Meta(description="`summary`: the history has no input, result, output and items of it.")]
    input_bytes: int | None
    result_bytes: int | None
    output_bytes: Annotated[int, Meta(description="Bytes of all output, progress texts and items; 0 until the end.")]


class Origin(TypedDict):
    """Why and when an execution starts."""

    priority: Annotated[int, Meta(description="0 to 9; of the queued executions of a module, the highest runs first.")]
    run_at: Annotated[float | None, Meta(description="When it is queued, if not at once.")]
    schedule: Annotated[str | None, Meta(description="The schedule that started it.")]
    scheduled_for: Annotated[float | None, Meta(description="The instant of the schedule.")]
    rerun_of: Annotated[str | None, Meta(description="The execution that it repeats.")]
    rerun_root: Annotated[str | None, Meta(description="The first execution of its chain of repetitions.")]
    parent: Annotated[str | None, Meta(description="The execution whose handler called or submitted it.")]
    root: Annotated[str | None, Meta(description="The first execution of the chain of calls that led to it.")]
    depth: Annotated[int, Meta(description="How many calls of handlers led to it.")]
    group: Annotated[str | None, Meta(description="The value by which its module groups it, as JSON.")]
    via: Annotated[str | None, Meta(description="`mcp NAME/VERSION` for a tool call, with the name of the client.")]
    approval: Annotated[Approval | None, Meta(description="The decision of the person that it waited for.")]


class ListedExecution(Core, History, Origin):
    """An execution as lists show it: result, traceback and failed attempts are left out."""


class RecordedExecution(Execution, History, Origin):
    """All that is known of an execution."""

    reruns: Annotated[tuple[str, ...], Meta(description="The executions that repeat it, at most 100, newest first.")]
    children: Annotated[tuple[str, ...], Meta(description="The executions that it called, at most 100, newest first.")]
    input: Json


def answered(execution: model.Execution) -> Execution:
    """Return the answer to a call that waited."""
    stdout = stderr = ""
    if execution.events != b"[]":
        kept = decode_all(execution.events)
        stdout, stderr = text_of(kept, Stream.STDOUT), text_of(kept, Stream.STDERR)
    return {**_core(execution), "stdout": stdout, "stderr": stderr}


def listed(execution: model.Execution) -> ListedExecution:
    """Return an execution for a list, or one that was accepted and has not ended: without output and input."""
    return {**_core(execution), **_history(execution), **_origin(execution)}


def recorded(execution: model.Execution) -> RecordedExecution:
    """Return everything that is known of an execution; input and result pass through unparsed."""
    return {
        **answered(execution),
        **_history(execution),
        **_origin(execution),
        "reruns": execution.reruns,
        "children": execution.children,
        "input": msgspec.Raw(execution.input),
    }


def _core(execution: model.Execution) -> Core:
    waiting = execution.waiting
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
        "failed_attempts": [_failed_attempt(attempt) for attempt in execution.failed_attempts],
        "killed": execution.killed,
        "peak_memory": execution.peak_memory,
        "duration": _rounded(execution.duration),
        "timings": _timings(execution.timings),
        "waiting": None if waiting is None else {"reason": waiting.reason, "since": round(waiting.since, 3)},
    }


def _history(execution: model.Execution) -> History:
    return {
        "subject": execution.subject,
        "asynchronous": execution.asynchronous,
        "node": execution.node,
        "timeout": execution.timeout,
        "idempotency_key": execution.idempotency_key,
        "created_at": round(execution.created_at, 6),
        "started_at": _rounded(execution.started_at),
        "finished_at": _rounded(execution.finished_at),
        "record": Record.SUMMARY if execution.summary else Record.FULL,
        "input_bytes": execution.input_bytes,
        "result_bytes": execution.result_bytes,
        "output_bytes": execution.output_bytes,
    }


def _origin(execution: model.Execution) -> Origin:
    return {
        "priority": execution.priority,
        "run_at": _rounded(execution.run_at),
        "schedule": execution.schedule,
        "scheduled_for": _rounded(execution.scheduled_for),
        "rerun_of": execution.rerun_of,
        "rerun_root": execution.rerun_root,
        "parent": execution.parent,
        "root": execution.root,
        "depth": execution.depth,
        "group": execution.group,
        "via": execution.via,
        "approval": None if execution.approval is None else _approval(execution.approval),
    }


def _approval(decision: model.Approval) -> Approval:
    return {
        "approved": decision.approved,
        "by": decision.by,
        "at": round(decision.at, 6),
        "reason": decision.reason,
    }


def _failed_attempt(attempt: model.Attempt) -> FailedAttempt:
    return {
        "attempt": attempt.number,
        "started_at": round(attempt.started_at, 6),
        "finished_at": round(attempt.finished_at, 6),
        "run": round(attempt.seconds, 6),
        "error": failure_fields(attempt.failure),
        "exit_code": attempt.exit_code,
        "killed": attempt.killed,
    }


def _timings(timings: model.Timings) -> Timings:
    return {
        "queue": round(timings.queue, 6),
        "build": round(timings.build, 6),
        "start": round(timings.start, 6),
        "import": round(timings.load, 6),
        "run": round(timings.run, 6),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def lenient(view: type[T]) -> type[T]:
    """Return a view as a client decodes it, whose runner may be older or newer than the client.

    Keys may be missing, values of a `StrEnum` are plain strings, and JSON of any type stays undecoded (`msgspec.Raw`).
    The static type stays that of the view: read keys that older runners may lack by `get`.
    """
    return cast("type[T]", _lenient(view))


def _lenient(kind: Any) -> Any:
    if kind is Any:
        return msgspec.Raw
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return str
    if is_typeddict(kind):
        fields = {key: _lenient(of) for key, of in get_type_hints(kind).items()}
        return cast("Any", TypedDict)(kind.__name__, fields, total=False)
    parts = tuple(part if part is ... else _lenient(part) for part in get_args(kind))
    if not parts:
        return kind
    return Union[(*parts,)] if isinstance(kind, type(int | None)) else get_origin(kind)[parts]
