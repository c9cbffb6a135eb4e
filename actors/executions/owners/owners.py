"""`Owners`: how doors reach executions that have not ended. On one machine, this runner owns all of them: `Here`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from attrs import define
from msgspec.structs import replace

from actors.executions.approvals import Asking
from actors.executions.live import Live
from actors.history import History, is_elsewhere
from protocol.model import Approval, Execution, Status, Waiting
from protocol.nodes import ClusterState

_LEFT: Final = "it is in the cluster that this runner has left"


class Owners(Protocol):
    """All runners whose executions the doors serve."""

    async def reach(self, name: str) -> Live | None:
        """Return the execution with this id if it has not ended, ready to be read, followed and cancelled.

        Raises RunnerError `unavailable` when its runner does not answer.
        """

    async def cancel(self, live: Live, why: str = "cancelled on request") -> Execution:
        """End an execution in any state, and return it when its end is recorded. Raises RunnerError as `Runs.cancel`.

        Several callers, or one that calls again, wait for the same end.
        """

    async def decide(self, live: Live, decision: Approval) -> Execution:
        """Approve or deny an execution that waits for a person, and return it when that is recorded.

        Raises RunnerError as `Approvals.decide`. Cancelled, the decision may count or not.
        """

    async def awaiting(self) -> Sequence[Execution]:
        """Return the executions that wait for a person, without inputs, the oldest question first."""

    async def explained(self, executions: Iterable[Execution]) -> tuple[Execution, ...]:
        """Return executions with the reasons why they wait, as far as these can be found out soon."""

    async def at_work(self, name: str, version: str | None = None) -> Sequence[Live]:
        """Return the executions of a module, or of one version of it, that have not ended."""

    async def others(self, status: Status, modules: tuple[str, ...], most: int, /) -> Sequence[Execution]:
        """Return executions of other runners in a state, at most so many, without payloads.

        `modules` are the globs of those that may be seen; () for all. Raises RunnerError `unavailable`.
        """

    def cluster(self) -> ClusterState | None:
        """Return the runners and the state of their connection; None for a single machine."""


class Lives(Protocol):
    """The executions of this runner."""

    asking: Asking

    @property
    def history(self) -> History:
        """Their record."""

    def find(self, name: str) -> Live | None:
        """Return the live execution with this id."""

    def live_executions(self, name: str | None = None, version: str | None = None) -> tuple[Live, ...]:
        """Return the live executions: all, those of a module, or those of one version of it."""

    def snapshot(self, live: Live) -> Execution:
        """Return an execution as it is now."""

    def waiting(self, live: Live) -> Waiting | None:
        """Return why an execution waits."""

    async def cancel(self, live: Live, why: str = "cancelled on request") -> Execution:
        """End an execution in any state, and return it when its end is recorded."""

    async def wait_ended(self, live: Live) -> Execution:
        """Return the execution when its end is recorded."""


@define(eq=False)
class Here:
    """This runner, which owns all executions that it can see."""

    runs: Lives

    async def reach(self, name: str) -> Live | None:
        """Return the live execution with this id. Not a checkpoint."""
        return self.runs.find(name)

    async def cancel(self, live: Live, why: str = "cancelled on request") -> Execution:
        """End an execution in any state, and return it when its end is recorded."""
        return await self.runs.cancel(live, why)

    async def decide(self, live: Live, decision: Approval) -> Execution:
        """Approve or deny an execution that waits for a person."""
        await self.runs.asking.approvals.decide(live.execution, decision)
        return self.runs.snapshot(live) if decision.approved else await self.runs.wait_ended(live)

    async def awaiting(self) -> Sequence[Execution]:
        """Return the executions that wait for a person. Not a checkpoint."""
        asked = [each.execution for each in self.runs.asking.approvals.waiting()]
        return [replace(each, input=b"null") for each in self.explained_nowait(asked)]

    async def explained(self, executions: Iterable[Execution]) -> tuple[Execution, ...]:
        """Return executions with the reasons why they wait. Not a checkpoint."""
        return self.explained_nowait(executions)

    def explained_nowait(self, executions: Iterable[Execution]) -> tuple[Execution, ...]:
        """Return executions with the reasons why they wait."""
        return tuple(map(self._explained, executions))

    def _explained(self, execution: Execution) -> Execution:
        live = self.runs.find(execution.id)
        if live is not None:
            return replace(execution, waiting=self.runs.waiting(live))
        if execution.status is not Status.RUNNING and is_elsewhere(execution, self.runs.history.node):
            return replace(execution, waiting=Waiting(_LEFT, execution.created_at))
        return execution

    async def at_work(self, name: str, version: str | None = None) -> Sequence[Live]:
        """Return the live executions of a module. Not a checkpoint."""
        return self.runs.live_executions(name, version)

    async def others(self, _status: Status, _modules: tuple[str, ...], _most: int, /) -> Sequence[Execution]:
        """Return nothing: there are no other runners. Not a checkpoint."""
        return ()

    def cluster(self) -> ClusterState | None:
        """Return None: there is no cluster."""
        return None
