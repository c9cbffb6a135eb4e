"""How executions wait for a person: calls in the tasks of their callers, accepted ones in tasks of the dispatcher."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

import msgspec
import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.executions.approvals.approvals import Approvals, Asked, Question
from actors.executions.seams import ExecutionLog
from actors.workers import Outcome
from protocol.errors import ErrorKind, Failure, RunnerError, shutting_down
from protocol.model import Execution, Status

Payload: TypeAlias = Callable[[Any], Awaitable[msgspec.Raw]]
"""Puts the input of an execution back from its record. Raises RunnerError."""

log = structlog.get_logger("approvals")


class Waiter(Asked, Protocol):
    """A live execution that has an end."""

    recorded: bool

    def stopped(self) -> Outcome:
        """Return the outcome when it was stopped while no handler ran."""

    def snapshot(self) -> Execution:
        """Return it as it is now, with its events."""


class Lives(Protocol):
    """All live executions."""

    records: ExecutionLog

    async def record(self, live: Any, outcome: Outcome) -> Execution:
        """Record the end of an execution. Raises RunnerError; it has left all the same."""

    def holds(self, live: Any) -> bool:
        """Return whether an execution is live."""

    def hand_over(self, live: Any) -> None:
        """Remove a queued execution, which the next runner runs."""

    def leave(self, live: Any, refusal: RunnerError | None = None) -> None:
        """Remove an execution without a recorded end."""


@define(eq=False)
class Asking:
    """Lets executions wait until a person has decided."""

    lives: Lives
    approvals: Approvals
    count: int = field(default=0, init=False)
    """Accepted executions that wait."""
    _stopping: bool = field(default=False, init=False)

    def stop(self) -> None:
        """End the calls that wait, and let no more wait."""
        self._stopping = True
        for live in self.approvals.calls():
            live.cancel(shutting_down())

    async def call(self, live: Waiter) -> Outcome | None:
        """Wait in the task of a caller; return the outcome of a call that is not approved.

        Raises RunnerError: `overloaded`, `shutdown`, and `unavailable` when it cannot be recorded.
        """
        live.execution, records = replace(live.execution, status=Status.QUEUED), self.lives.records
        if records.room.scarce:
            await records.room.take(live.execution)
        self.approvals.check_room()
        if self._stopping:
            raise RunnerError(shutting_down())
        records.begin(live.execution)  # lists show it to the people who decide
        live.recorded = True
        return _refusal(live, await self.approvals.wait(self.approvals.ask(live)))

    def begin(
        self,
        live: Waiter,
        nursery: trio.Nursery,
        payload: Payload,
        push: Callable[[Any], None],
        dispatch: Callable[[], None],
    ) -> None:
        """Let an accepted execution wait, without its payload, in a task of its own.

        `payload` puts the input back from its record, `push` queues the execution once it is approved, and
        `dispatch` takes what may run.
        """
        live.execution = replace(live.execution, input=b"null", events=b"[]")
        self.count += 1
        question = self.approvals.ask(live)
        nursery.start_soon(
            self._run, live, question, payload, push, dispatch, name=f"approval {live.execution.module.name}"
        )

    async def _run(
        self,
        live: Waiter,
        question: Question,
        payload: Payload,
        push: Callable[[Any], None],
        dispatch: Callable[[], None],
    ) -> None:
        """Queue an execution when it is approved, else end it, or leave it to the next runner."""
        try:
            refused = _refusal(live, await self.approvals.wait(question, partial(self._keep, live, payload)))
            if refused is None:
                push(live)
                dispatch()
            elif refused.failure is not None and refused.failure.kind is ErrorKind.SHUTDOWN:
                self.lives.hand_over(live)
            else:
                with trio.CancelScope(shield=True):  # reading and recording have limits of their own
                    await payload(live)
                    await self.lives.record(live, refused)
        except RunnerError as problem:
            log.warning("an accepted execution has no recorded end", execution=live.execution.id, why=str(problem))
            if self.lives.holds(live):
                self.lives.leave(live, problem)
        except trio.Cancelled:
            if self.lives.holds(live):
                self.lives.hand_over(live)
            raise
        finally:
            self.count -= 1

    async def _keep(self, live: Waiter, payload: Payload, approved: Execution) -> Execution:
        """Record that an execution is approved, and return it with its input. Raises RunnerError."""
        await payload(live)
        kept = replace(live.execution, approval=approved.approval)
        await self.lives.records.submit(replace(live.snapshot(), waiting=None, approval=approved.approval))
        return kept


def _refusal(live: Waiter, failure: Failure | None) -> Outcome | None:
    if failure is None:
        return None
    return live.stopped() if live.stopped_by is failure else Outcome(failure=failure, exit_code=1)
