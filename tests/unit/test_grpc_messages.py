"""Unit: values as gRPC messages and back."""

from __future__ import annotations

import json
from typing import Any

import betterproto
import msgspec
import pytest
from msgspec.structs import replace

from protocol import events
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.model import Attempt, Execution, Kind, ModuleRef, Status, Stream, Timings, Waiting
from protocol.rpc.operato.runner import v1
from runner.grpc.codec import decode, encode
from runner.grpc.messages import (
    environment_kind,
    error_kind,
    event_message,
    execution_message,
    execution_status,
    failure_message,
    page_limit,
    record_message,
    response_message,
)
from runner.rest.render import record_json

FAILURE = Failure(ErrorKind.TIMEOUT, "zu spät", type="T", traceback="...", field="$.x", retry_after=2.5)
EXECUTION = Execution(
    id="01a20c8c-9cc5-7c7e-b28a-f7942321828e",
    module=ModuleRef("m", "1"),
    env=Kind.VENV,
    status=Status.FAILED,
    created_at=1764000000.1234,
    input=b'{"a":1}',
    subject="me",
    asynchronous=True,
    timeout=3.5,
    idempotency_key="k",
    failure=FAILURE,
    events=events.encode_all(
        [
            events.StatusEvent(0, 1.0, Status.RUNNING, 1),
            events.OutputEvent(1, 1.0, Stream.STDOUT, "out"),
            events.OutputEvent(2, 1.0, Stream.STDERR, "err"),
        ]
    ),
    events_count=3,
    output_dropped=7,
    exit_code=0,
    attempts=2,
    failed_attempts=(Attempt(1, 1.0, 2.0, FAILURE, 1, 0.5, ("12 sh",)),),
    timings=Timings(1, 2, 3, 4, 5),
    killed=("13 sh",),
    peak_memory=0,
    started_at=1764000001.0,
    finished_at=1764000002.0,
)


def sent(message: Any) -> Any:
    """Return a message as the other side reads it."""
    return decode(type(message), encode(message))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Kind, v1.EnvironmentKind), (Status, v1.ExecutionStatus), (ErrorKind, v1.ErrorKind), (Stream, v1.OutputStream)],
)
def test_the_words_are_the_same_on_both_sides(ours: Any, theirs: Any) -> None:
    assert [member.name for member in theirs] == ["UNSPECIFIED", *(member.name for member in ours)]


def test_a_record_has_the_values_of_rest() -> None:
    message = sent(record_message(EXECUTION))
    rest = json.loads(record_json(EXECUTION))
    execution, error = message.execution, message.execution.error

    assert (message.stdout, message.stderr) == (rest["stdout"], rest["stderr"]) == ("out", "err")
    assert json.loads(message.input_json) == rest["input"]
    for name in ("id", "version", "subject", "asynchronous", "timeout", "idempotency_key", "attempts", "exit_code"):
        assert getattr(execution, name) == rest[name], name
    for name in ("output_dropped", "killed", "peak_memory"):
        assert getattr(execution, name) == rest[name], name
    assert (execution.module_name, execution.env.name.lower()) == (rest["module"], rest["env"])
    assert execution.status.name.lower() == rest["status"]
    assert execution.duration == pytest.approx(rest["duration"], abs=1e-6)
    assert execution.created_at == round(rest["created_at"] * 1000)
    assert execution.finished_at == rest["finished_at"] * 1000
    assert [getattr(execution.timings, n) for n in ("queue", "build", "start", "importing", "run")] == list(
        rest["timings"].values()
    )
    assert (error.kind.name.lower(), error.message) == (rest["error"]["kind"], rest["error"]["message"])
    assert (error.type, error.traceback, error.field, error.retryable) == ("T", "...", "$.x", True)
    (attempt,), (shown,) = execution.failed_attempts, rest["failed_attempts"]
    assert (attempt.number, attempt.run, attempt.exit_code) == (shown["attempt"], shown["run"], shown["exit_code"])
    assert attempt.killed == shown["killed"]


def test_missing_values_are_absent() -> None:
    bare = Execution("x", ModuleRef("m", "1"), Kind.INLINE, Status.QUEUED, 1.0)
    message = sent(execution_message(bare))

    assert (message.exit_code, message.peak_memory) == (None, None)
    assert not betterproto.serialized_on_wire(message.error)
    assert not betterproto.serialized_on_wire(message.waiting)
    assert (message.started_at, message.finished_at, message.duration) == (0, 0, 0.0)


def test_a_waiting_execution_has_its_reason() -> None:
    waiting = sent(execution_message(replace(EXECUTION, waiting=Waiting("3 workers busy", 1764000000.5)))).waiting

    assert (waiting.reason, waiting.since) == ("3 workers busy", 1764000000500)


def test_results_pass_through() -> None:
    done = replace(EXECUTION, status=Status.SUCCEEDED, failure=None, result='{"ä":1}'.encode(), events=b"[]")
    message = sent(response_message(done))

    assert (message.result_json, message.stdout) == ('{"ä":1}', "")


@pytest.mark.parametrize(
    ("event", "name", "fields"),
    [
        (
            events.StatusEvent(1, 2.5, Status.QUEUED, 1, "busy"),
            "status",
            {"status": v1.ExecutionStatus.QUEUED, "attempt": 1, "reason": "busy"},
        ),
        (events.OutputEvent(1, 2.5, Stream.STDERR, "x"), "output", {"stream": v1.OutputStream.STDERR, "text": "x"}),
        (events.ItemEvent(1, 2.5, msgspec.Raw(b"[1]")), "item", {"value_json": "[1]"}),
        (events.ProgressEvent(1, 2.5, 0.0, None, ""), "progress", {"done": 0.0, "total": None, "text": ""}),
        (events.ChildEvent(1, 2.5, "e9", "price"), "child", {"id": "e9", "module_name": "price"}),
        (events.DroppedEvent(1, 2.5, 3, 4), "dropped", {"events": 3, "bytes": 4}),
        (events.ResultEvent(1, 2.5, Status.SUCCEEDED, msgspec.Raw(b"null")), "result", {"result_json": "null"}),
        (
            events.last_event(replace(EXECUTION, events_count=1, finished_at=2.5)),
            "error",
            {"kind": v1.ErrorKind.TIMEOUT, "message": "zu spät", "type": "T", "retryable": True},
        ),
    ],
)
def test_events(event: events.Event, name: str, fields: dict[str, Any]) -> None:
    message = sent(event_message(event))
    found, member = betterproto.which_one_of(message, "event")

    assert (message.seq, message.at, found) == (1, 2500, name)
    assert {field: getattr(member, field) for field in fields} == fields
    assert not betterproto.serialized_on_wire(message.execution)
    assert sent(event_message(event, EXECUTION)).execution.id == EXECUTION.id


def test_values_named_in_a_request() -> None:
    assert environment_kind(0) is None
    assert environment_kind(v1.EnvironmentKind.VENV) is Kind.VENV
    assert execution_status(v1.ExecutionStatus.FAILED) is Status.FAILED
    assert error_kind(v1.ErrorKind.LOST) is ErrorKind.LOST
    for reader, field in ((environment_kind, "env"), (execution_status, "status"), (error_kind, "kind")):
        with pytest.raises(RunnerError) as caught:
            reader(99)
        assert caught.value.failure.field == field


def test_pages_have_limits() -> None:
    assert (page_limit(0), page_limit(1), page_limit(500)) == (50, 1, 500)
    for limit in (-1, 501):
        with pytest.raises(RunnerError, match="limit"):
            page_limit(limit)


def test_retry_after() -> None:
    assert sent(failure_message(FAILURE)).retry_after == 2.5
