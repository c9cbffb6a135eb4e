r"""The numbered events of one execution: the same JSON over websocket, server-sent events and gRPC.

    {"type": "status", "seq": 0, "at": 1764000000.1, "status": "running", "attempt": 1, "reason": ""}
    {"type": "output", "seq": 1, "at": 1764000000.2, "stream": "stdout", "text": "hello\n"}
    {"type": "result", "seq": 2, "at": 1764000000.3, "status": "succeeded", "result": 42, "exit_code": 0, ...}

`seq` counts the events of one execution from 0, over all its attempts; `at` is in seconds since the epoch. Reading from
N yields every event from N once and in order; a `dropped` event stands for events that were not kept, and counts them.
The last event is a `result` or an `error`. History stores the events as they were sent, so that a replay is identical.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

import msgspec

from protocol.errors import ErrorKind, Failure
from protocol.model import Execution, Status, Stream


class StatusEvent(msgspec.Struct, frozen=True, tag="status"):
    """The execution changed its state, or the reason why it waits."""

    seq: int
    at: float
    status: Status
    attempt: int = 0
    reason: str = ""
    """Why it waits; empty while it runs."""


class OutputEvent(msgspec.Struct, frozen=True, tag="output", omit_defaults=True):
    """A piece of output of user code."""

    seq: int
    at: float
    stream: Stream
    text: str
    shared: bool = False
    """All calls that the worker ran at that time have it: it is not known which of them made it."""


class ItemEvent(msgspec.Struct, frozen=True, tag="item"):
    """One item of a handler that is a generator."""

    seq: int
    at: float
    value: msgspec.Raw


class ProgressEvent(msgspec.Struct, frozen=True, tag="progress"):
    """Progress as the handler reports it, in a unit of its choice."""

    seq: int
    at: float
    done: float | None = None
    total: float | None = None
    text: str = ""


class ChildEvent(msgspec.Struct, frozen=True, tag="child"):
    """The handler called a module, or submitted an execution to it."""

    seq: int
    at: float
    id: str
    module: str


class DroppedEvent(msgspec.Struct, frozen=True, tag="dropped"):
    """Stands for events that were not kept; `seq` is the number of the last one."""

    seq: int
    at: float
    events: int
    bytes: int
    """Bytes of dropped output and items."""


class ResultEvent(msgspec.Struct, frozen=True, tag="result"):
    """The end of an execution that succeeded."""

    seq: int
    at: float
    status: Status
    result: msgspec.Raw
    exit_code: int = 0
    attempts: int = 1
    duration: float = 0.0


class ErrorEvent(msgspec.Struct, frozen=True, tag="error"):
    """The end of an execution that failed or was cancelled."""

    seq: int
    at: float
    status: Status
    error: msgspec.Raw
    exit_code: int | None = None
    attempts: int = 0
    duration: float = 0.0


KeptEvent = StatusEvent | OutputEvent | ItemEvent | ProgressEvent | ChildEvent | DroppedEvent
"""The stored events: the last one is made from the execution itself."""
Event = KeptEvent | ResultEvent | ErrorEvent

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[tuple[KeptEvent, ...]] = msgspec.json.Decoder(tuple[KeptEvent, ...])


def encode(event: Event) -> bytes:
    """Return the JSON of one event."""
    return _encoder.encode(event)


def encode_all(events: Sequence[KeptEvent]) -> bytes:
    """Return a JSON array of events."""
    return _encoder.encode(events)


def decode_all(data: bytes) -> tuple[KeptEvent, ...]:
    """Return the events of a JSON array. Raises msgspec.DecodeError."""
    return _decoder.decode(data)


class Error(TypedDict):
    """Why an execution, or one attempt of it, failed."""

    kind: ErrorKind
    message: str
    type: str | None
    traceback: str | None
    field: str | None
    retryable: bool


def failure_fields(failure: Failure) -> Error:
    """Return a failure as the `error` of an execution, ready to be encoded."""
    return {
        "kind": failure.kind,
        "message": failure.message,
        "type": failure.type,
        "traceback": failure.traceback,
        "field": failure.field,
        "retryable": failure.retryable,
    }


def last_event(execution: Execution) -> ResultEvent | ErrorEvent:
    """Return the last event of an execution that has ended."""
    seq, at = execution.events_count, execution.finished_at or execution.created_at
    status, attempts, duration = execution.status, execution.attempts, round(execution.duration or 0.0, 6)
    if execution.failure is None:
        result = msgspec.Raw(execution.result or b"null")
        return ResultEvent(seq, at, status, result, execution.exit_code or 0, attempts, duration)
    error = msgspec.Raw(_encoder.encode(failure_fields(execution.failure)))
    return ErrorEvent(seq, at, status, error, execution.exit_code, attempts, duration)


def last_begin(events: Iterable[KeptEvent]) -> float | None:
    """Return when the last attempt began to run, in seconds since the epoch, or None if unknown."""
    begins = [event.at for event in events if isinstance(event, StatusEvent) and event.status is Status.RUNNING]
    return begins[-1] if begins else None


def text_of(events: Iterable[KeptEvent], stream: Stream | None) -> str:
    """Return the kept output of the last attempt on a stream; None means both streams, in order.

    Output of the import precedes the status RUNNING of its attempt.
    """
    texts: list[str] = []
    attempt = 1
    for event in events:
        if isinstance(event, OutputEvent):
            if stream is None or event.stream is stream:
                texts.append(event.text)
        elif isinstance(event, StatusEvent) and event.attempt > attempt:
            attempt = event.attempt
            texts.clear()
    return "".join(texts)


def printed_text(events: Iterable[KeptEvent]) -> str:
    """Return the kept output of all attempts, first that of `stdout`, so that its lines are whole, then `stderr`."""
    printed = [event for event in events if isinstance(event, OutputEvent)]
    return "".join(event.text for stream in Stream for event in printed if event.stream is stream)
