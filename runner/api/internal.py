"""Failures at the doors: a bug of the runner is logged under a request ID, which its caller gets too."""

from __future__ import annotations

import secrets

import structlog
from attrs import frozen

from protocol.errors import ErrorKind, Failure, RunnerError

log = structlog.get_logger("runner")


@frozen
class InternalFailure(Failure):
    """A failure of kind `internal`, with the ID under which the log has the exception."""

    request_id: str = ""


def failure_of(problem: BaseException, event: str, **where: str) -> Failure:
    """Return the failure for an exception that ends at a door. Logs one of kind `internal`, as `event`."""
    if isinstance(problem, RunnerError) and problem.failure.kind is not ErrorKind.INTERNAL:
        return problem.failure
    request_id = secrets.token_hex(8)
    log.error(event, request_id=request_id, exc_info=problem, **where)
    text = f"internal error; search the runner's log for request ID {request_id}"
    return InternalFailure(ErrorKind.INTERNAL, text, request_id=request_id)
