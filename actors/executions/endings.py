"""How executions end where no handler has decided it: stopped, put off, refused, or broken by a bug of the runner."""

from __future__ import annotations

import time

import structlog
from attrs import evolve

from actors.executions.live import Live
from actors.workers import Outcome
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Execution, Status

_BROKEN = "the runner failed; its log says why"

log = structlog.get_logger("runs")


def stopped(live: Live) -> Outcome:
    """Return what became of an execution that was stopped while no handler ran, or whose caller has gone."""
    failure = live.stopped_by or Failure(ErrorKind.CANCELLED, "the caller went away")
    return Outcome(failure=failure, exit_code=130, killed=live.killed)


def broken() -> Outcome:
    """Return what became of an execution under which something of ours broke; the log says what."""
    return Outcome(failure=Failure(ErrorKind.INTERNAL, _BROKEN), exit_code=70)


def as_refusal(problem: Exception) -> RunnerError:
    """Return what those who wait are told of an execution whose end could not be recorded."""
    return problem if isinstance(problem, RunnerError) else error(ErrorKind.INTERNAL, _BROKEN)


def queued_on() -> RunnerError:
    """Return what those who wait are told of an execution that the next runner runs."""
    text = "the runner was shut down; the execution is queued for the next one"
    return error(ErrorKind.SHUTDOWN, text, retry_after=5)


def refused(execution: Execution) -> Execution:
    """Return the end of an execution that was not accepted, although its record may have been made."""
    failure = Failure(ErrorKind.CANCELLED, "it was not accepted: its record did not reach the disk in time")
    return evolve(execution, status=Status.CANCELLED, failure=failure, exit_code=130, finished_at=time.time())


def log_end(ended: Execution, seconds: float) -> None:
    """Log an end; that of a success costs nothing unless it is wanted."""
    if ended.failure is None:
        log.debug("execution succeeded", execution=ended.id, module=str(ended.module), run=seconds)
    else:
        kind, why = ended.failure.kind, ended.failure.message[:200]
        log.info("execution ended", execution=ended.id, module=str(ended.module), kind=kind, why=why)
