"""Recovery: the executions that the last runner accepted and did not end are queued again, or ended."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import structlog
from attrs import define
from msgspec.structs import replace

from actors.executions.attempts import retry_delay
from actors.executions.seams import ExecutionLog
from actors.history import LOST, History
from actors.registry import Published, Registry
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.events import decode_all, last_begin
from protocol.model import Attempt, Execution, Status

_NUMBERS = 1_000_000
"""Event numbers are skipped to the next multiple of this after a restart."""

log = structlog.get_logger("recovery")


@define
class Recovery:
    """Reads the history of the last runner."""

    history: History
    records: ExecutionLog
    registry: Registry

    async def executions(self) -> AsyncIterator[tuple[Published, Execution]]:
        """Yield the executions to run, oldest first: the queued ones, and the lost ones that their policy retries.

        Those that cannot run any more, because their module is gone, have ended when this returns. Raises RunnerError
        as the history does.
        """
        left = self.history.left()
        for name in (*left.lost, *left.queued):
            execution = await self.history.get(name)
            if execution is None:
                continue
            if execution.status is Status.QUEUED and not execution.asynchronous:  # its caller waited, and has gone
                await self.records.finish(_lost(execution))
                continue
            module = served(self.registry, execution)
            again = None if module is None else _requeued(module, execution)
            if module is not None and again is not None:
                await self.records.submit(again)
                yield module, again
            elif execution.status is Status.QUEUED:
                await end_without_module(self.records, execution)
            elif execution.summary and execution.asynchronous:  # its input was kept for this decision
                await self.records.finish(execution)


def served(registry: Registry, execution: Execution) -> Published | None:
    """Return the version that was accepted; when that is gone, the active one; None without the module."""
    for version in (execution.module.version, None):
        try:
            return registry.snapshot.get(execution.module.name, version)
        except RunnerError:
            continue
    return None


async def end_without_module(records: ExecutionLog, execution: Execution) -> None:
    """End an accepted execution whose module is gone. Raises RunnerError when that cannot be recorded."""
    text = f"the module {execution.module.name} was removed before this could run"
    log.warning(text, execution=execution.id)
    failure = Failure(ErrorKind.NOT_FOUND, text, field="module")
    ended = replace(
        execution,
        status=Status.FAILED,
        failure=failure,
        exit_code=1,
        finished_at=time.time(),
        events_count=_unused(execution),
    )
    await records.finish(ended)


def _lost(execution: Execution) -> Execution:
    number = _unused(execution)
    return replace(execution, status=Status.FAILED, failure=LOST, finished_at=time.time(), events_count=number)


def _unused(execution: Execution) -> int:
    """Return the number of the next event of a queued execution.

    The last runner may have sent events that are not stored; their numbers must not be used again.
    """
    return (execution.events_count // _NUMBERS + 1) * _NUMBERS


def _requeued(module: Published, execution: Execution) -> Execution | None:
    """Return an execution as it is queued now; None when it has ended for good."""
    served = replace(execution, module=module.ref, env=module.spec.env)
    if execution.status is Status.QUEUED:
        return replace(served, events_count=_unused(execution))
    lost = execution.failure is not None and execution.failure.kind is ErrorKind.LOST
    if not (
        lost and execution.asynchronous and retry_delay(LOST, execution.attempts, module.spec.retry, 0.0) is not None
    ):
        return None
    began, ended = last_begin(decode_all(execution.events)), execution.finished_at or time.time()
    attempt = Attempt(execution.attempts, began or execution.started_at or execution.created_at, ended, LOST)
    return replace(
        served,
        status=Status.QUEUED,
        failure=None,
        finished_at=None,
        failed_attempts=(*execution.failed_attempts, attempt),
    )
