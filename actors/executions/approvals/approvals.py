"""The executions that wait for a person, and the decisions about them.

Rules:
* An execution of a module that asks (`tool.confirm`) waits here before it takes a turn of its module or a worker. It
  has an outcome without an attempt when it is denied, out of time or stopped.
* The task of the execution decides the order: it hears of one decision at a time, keeps it, and only then answers the
  person who made it. An approval that cannot be kept changes nothing.
* An approval is a part of the execution, so that an accepted one is asked for once, restarts included.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeAlias

import trio
from attrs import define, field
from msgspec.structs import replace

from actors.registry import Published
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Approval, Execution

WAITS: Final = "waits for approval"
"""The waiting reason of an execution that waits for a person."""
APPROVE: Final = "approval"
"""The field of the failure of an execution that was not approved."""
MAX_REASON: Final = 500
"""Characters."""


class Asked(Protocol):
    """A live execution."""

    execution: Execution
    module: Published
    has_followers: bool
    pause: trio.CancelScope | None
    stopped_by: Failure | None

    def wait_for(self, reason: str) -> None:
        """Set the reason why it waits; followers get it as an event."""

    def cancel(self, why: Failure) -> None:
        """End it in any state. Never blocks."""


Keep: TypeAlias = Callable[[Execution], Awaitable[Execution]]
"""Records an execution that was approved, and returns it. Raises RunnerError."""


@define(eq=False)
class Vote:
    """One decision, until the execution has taken it."""

    decision: Approval
    taken: trio.Event = field(factory=trio.Event, init=False)
    problem: RunnerError | None = field(default=None, init=False)
    """Why it does not count."""


@define(eq=False)
class Question:
    """One execution that waits."""

    live: Asked
    deadline: float
    """In Trio time."""
    vote: Vote | None = field(default=None, init=False)
    changed: trio.Event = field(factory=trio.Event, init=False)


@define(eq=False)
class Approvals:
    """The executions that wait for a person, the oldest first."""

    seconds: float
    """How long each waits."""
    max_waiting: int
    """Callers that may wait for their answer; the queue bounds the others."""
    _open: dict[str, Question] = field(factory=dict, init=False)
    _calls: int = field(default=0, init=False)
    """Those of them whose callers wait."""

    def __len__(self) -> int:
        return len(self._open)

    def waiting(self) -> tuple[Asked, ...]:
        """Return the executions that wait, the oldest question first."""
        return tuple(question.live for question in self._open.values() if question.vote is None)

    def calls(self) -> tuple[Asked, ...]:
        """Return those of them whose callers wait for the answer."""
        return tuple(live for live in self.waiting() if not live.execution.asynchronous)

    def asks(self, live: Asked) -> bool:
        """Return whether an execution must wait for a person."""
        if not live.module.spec.tool.confirm:
            return False
        decided = live.execution.approval
        return decided is None or not decided.approved

    def check_room(self) -> None:
        """Raise RunnerError `overloaded` when too many callers wait for a person."""
        if self._calls >= self.max_waiting:
            text = f"{self._calls} calls wait for approval; the limit is `max_waiting`. Submit it to the queue instead"
            raise error(ErrorKind.OVERLOADED, text, retry_after=5)

    def ask(self, live: Asked) -> Question:
        """Let people decide about an execution from now on; `wait` must follow."""
        self._calls += 0 if live.execution.asynchronous else 1
        question = self._open[live.execution.id] = Question(live, trio.current_time() + self.seconds)
        live.has_followers = True  # the people who decide
        live.wait_for(WAITS)
        return question

    async def wait(self, question: Question, keep: Keep | None = None) -> Failure | None:
        """Wait until an execution is approved; return the failure of one that is not. `cancel` of it ends the wait.

        An approval counts when `keep` has recorded it.
        """
        execution = question.live.execution
        try:
            return await self._decided(question, keep)
        finally:
            self._calls -= 0 if execution.asynchronous else 1
            del self._open[execution.id]
            self._answer(question, error(ErrorKind.CONFLICT, "the execution ended meanwhile", field="id"))

    async def _decided(self, question: Question, keep: Keep | None) -> Failure | None:
        live = question.live
        while True:
            await _pause(live, question.changed, question.deadline)
            vote = question.vote
            if live.stopped_by is not None:
                return live.stopped_by
            if vote is None:
                text = f"it was not approved within `approval_timeout` ({self.seconds:g} s)"
                return Failure(ErrorKind.TIMEOUT, text, field=APPROVE)
            try:
                decided = replace(live.execution, approval=vote.decision)
                live.execution = await keep(decided) if keep is not None and vote.decision.approved else decided
            except RunnerError as problem:
                question.changed = trio.Event()
                self._answer(question, problem)
                continue
            self._answer(question)
            if vote.decision.approved:
                live.wait_for(said(vote.decision))
                return live.stopped_by
            return Failure(ErrorKind.FORBIDDEN, said(vote.decision), field=APPROVE)

    def _answer(self, question: Question, problem: RunnerError | None = None) -> None:
        """Tell the person of an open vote what became of it."""
        if (vote := question.vote) is not None and not vote.taken.is_set():
            vote.problem = problem
            vote.taken.set()
            if problem is not None:
                question.vote = None

    async def decide(self, execution: Execution, decision: Approval) -> None:
        """Approve or deny an execution; it counts when this returns. Cancelled, it may count or not.

        Raises RunnerError: `conflict` when it does not wait for a person, or somebody was faster, and `unavailable`
        when an approval cannot be recorded.
        """
        question = self._open.get(execution.id)
        if question is None or question.vote is not None:
            raise not_asked(execution, None if question is None or question.vote is None else question.vote.decision)
        vote = question.vote = Vote(decision)
        question.changed.set()
        await vote.taken.wait()
        if vote.problem is not None:
            raise vote.problem


def not_asked(execution: Execution, decision: Approval | None = None) -> RunnerError:
    """Return the error for a decision about an execution that does not wait for a person."""
    known = decision or execution.approval
    why = f"it is {execution.status}" if known is None else f"it was {said(known)}"
    return error(ErrorKind.CONFLICT, f"the execution {execution.id} does not wait for approval: {why}", field="id")


def said(decision: Approval) -> str:
    """Return a decision in words."""
    words = f"{'approved' if decision.approved else 'denied'} by {decision.by}"
    return f"{words}: {decision.reason}" if decision.reason else words


def decision_of(by: str, reason: str, *, approved: bool) -> Approval:
    """Return a decision that was made now. Raises RunnerError `bad_input` for the reason."""
    if len(reason) > MAX_REASON:
        raise error(ErrorKind.BAD_INPUT, f"the reason has more than {MAX_REASON} characters", field="reason")
    return Approval(approved, by, time.time(), reason)


async def _pause(live: Asked, event: trio.Event, deadline: float) -> None:
    """Wait for an event; `cancel` of the execution ends the wait."""
    if live.stopped_by is not None:
        return
    live.pause = trio.CancelScope(deadline=deadline)
    try:
        with live.pause:
            await event.wait()
    finally:
        live.pause = None
