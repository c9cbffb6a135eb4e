"""Failures as values: a closed set of kinds, `Failure`, and the exception that carries one.

A `Failure` is the same over REST, websocket, gRPC and CLI. `RunnerError` carries one up a call stack; any other
exception is a bug of the runner and becomes `internal` in the answer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from attrs import frozen

PROBLEM: Final = "application/problem+json"
"""The media type of a failure over HTTP (RFC 9457)."""


class ErrorKind(StrEnum):
    """The closed set of failures; each comment names who must act."""

    BAD_INPUT = "bad_input"
    """The caller: the request or the module definition is not valid."""
    NOT_FOUND = "not_found"
    """The caller: the name does not exist."""
    CONFLICT = "conflict"
    """The caller: the current state does not allow the request."""
    UNAUTHENTICATED = "unauthenticated"
    """The caller: the request has no valid token."""
    FORBIDDEN = "forbidden"
    """The operator: the token lacks the scope or the module; or a person denied the execution."""
    TOO_LARGE = "too_large"
    """The caller: a body, frame or message exceeds its limit."""
    OVERLOADED = "overloaded"
    """The caller, later: the queue is full, or the wait took too long."""
    UNAVAILABLE = "unavailable"
    """The operator: this machine lacks something (docker, conda, disk space)."""
    ENVIRONMENT_FAILED = "environment_failed"
    """The author: the environment could not be built; the installer's last lines are in the message."""
    LOAD_FAILED = "load_failed"
    """The author: the module could not be imported, or lacks the handler."""
    HANDLER_ERROR = "handler_error"
    """The author: the handler raised an exception."""
    BAD_OUTPUT = "bad_output"
    """The author: the handler returned a value that JSON cannot represent."""
    TIMEOUT = "timeout"
    """The author or the caller: the handler did not end in time, or no person approved the execution."""
    CANCELLED = "cancelled"
    """No action: the caller went away, or cancelled."""
    OUT_OF_MEMORY = "out_of_memory"
    """The author: the processes of the execution exceeded the memory limit."""
    OUTPUT_LIMIT = "output_limit"
    """The author: the handler exceeded its output limit."""
    OUT_OF_STORAGE = "out_of_storage"
    """The operator: the store of files, or its disk, has no room."""
    WORKER_CRASHED = "worker_crashed"
    """The author: the worker's process ended during the call."""
    LOST = "lost"
    """No action: the runner ended during the execution."""
    SHUTDOWN = "shutdown"
    """The caller, later: the runner is shutting down."""
    INTERNAL = "internal"
    """The developers: a bug of the runner; its log has the details under the execution id."""


RETRYABLE = frozenset(
    {
        ErrorKind.OVERLOADED,
        ErrorKind.UNAVAILABLE,
        ErrorKind.TIMEOUT,
        ErrorKind.OUT_OF_MEMORY,
        ErrorKind.WORKER_CRASHED,
        ErrorKind.LOST,
        ErrorKind.SHUTDOWN,
    }
)
"""Kinds after which an identical call may succeed."""


@frozen
class Failure:
    """One failure, the same in every answer.

    `type` and `traceback` describe the user's exception, else they are None. `field` is the path of the wrong value
    (`$.rows[3].price`, `timeout`), `retry_after` the seconds after which a retry makes sense.
    """

    kind: ErrorKind
    message: str
    type: str | None = None
    traceback: str | None = None
    field: str | None = None
    retry_after: float | None = None

    @property
    def retryable(self) -> bool:
        """Whether an identical call may succeed."""
        return self.kind in RETRYABLE


class RunnerError(Exception):
    """Carries a `Failure` up the call stack to the code that answers the caller."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind}: {failure.message}")
        self.failure = failure


def error(kind: ErrorKind, message: str, *, field: str | None = None, retry_after: float | None = None) -> RunnerError:
    """Return the exception for a failure of `kind`, ready to be raised."""
    return RunnerError(Failure(kind, message, field=field, retry_after=retry_after))


def shutting_down() -> Failure:
    """Return the failure of work that is refused or cut off because the runner is stopping."""
    return Failure(ErrorKind.SHUTDOWN, "the runner is shutting down", retry_after=5)
