"""What can go wrong, as values: a closed set of kinds, the `Failure` that travels, and its exception.

A `Failure` is the same over every door. `RunnerError` carries one up a call stack; anything else that is
raised is a bug of the runner and ends at the door as `internal`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from attrs import frozen

PROBLEM: Final = "application/problem+json"
"""The media type of a failure over HTTP (RFC 9457)."""


class ErrorKind(StrEnum):
    """The closed set of failures; each says by its comment who must act."""

    BAD_INPUT = "bad_input"
    """The caller: the request or the module definition is not valid."""
    NOT_FOUND = "not_found"
    """The caller: nothing has that name."""
    CONFLICT = "conflict"
    """The caller: the state of the thing does not allow it."""
    UNAUTHENTICATED = "unauthenticated"
    """The caller: no valid token was shown."""
    FORBIDDEN = "forbidden"
    """The operator: the token does not carry the scope or the module."""
    TOO_LARGE = "too_large"
    """The caller: a body, frame or message is over its limit."""
    OVERLOADED = "overloaded"
    """The caller, later: the waiting room is full or the wait took too long."""
    UNAVAILABLE = "unavailable"
    """The operator: this machine cannot do it (no docker, no conda, disk full)."""
    ENVIRONMENT_FAILED = "environment_failed"
    """The author: the environment could not be built; the installer's last lines are in the message."""
    LOAD_FAILED = "load_failed"
    """The author: the module could not be imported, or has no such handler."""
    HANDLER_ERROR = "handler_error"
    """The author: the handler raised."""
    BAD_OUTPUT = "bad_output"
    """The author: the handler returned what JSON cannot say."""
    TIMEOUT = "timeout"
    """The author or the caller: the handler did not end in time."""
    CANCELLED = "cancelled"
    """Nobody: the caller went away or asked for the end."""
    OUT_OF_MEMORY = "out_of_memory"
    """The author: the processes of the execution passed the memory limit."""
    OUTPUT_LIMIT = "output_limit"
    """The author: the handler printed more than its limit allows."""
    WORKER_CRASHED = "worker_crashed"
    """The author: the worker's process ended during the call."""
    LOST = "lost"
    """Nobody: the runner ended while this was running."""
    SHUTDOWN = "shutdown"
    """The caller, later: the runner is going down."""
    INTERNAL = "internal"
    """Us: a bug of the runner; its log has the details under the execution id."""


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
"""Kinds for which the same call may end differently when it is made again."""


@frozen
class Failure:
    """One failure, as every door shows it.

    `type` and `traceback` speak of the user's exception and are None elsewhere. `field` is the path of the value
    at fault (`$.rows[3].price`, `timeout`), `retry_after` the seconds after which trying again makes sense.
    """

    kind: ErrorKind
    message: str
    type: str | None = None
    traceback: str | None = None
    field: str | None = None
    retry_after: float | None = None

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed when it is made again unchanged."""
        return self.kind in RETRYABLE


class RunnerError(Exception):
    """Carries a `Failure` up the call stack to whoever answers the caller."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind}: {failure.message}")
        self.failure = failure


def error(kind: ErrorKind, message: str, *, field: str | None = None, retry_after: float | None = None) -> RunnerError:
    """Return the exception for a failure of `kind`, ready to be raised."""
    return RunnerError(Failure(kind, message, field=field, retry_after=retry_after))


def shutting_down() -> Failure:
    """Return the failure of work that is refused or cut off because the runner is stopping."""
    return Failure(ErrorKind.SHUTDOWN, "the runner is shutting down", retry_after=5)
