"""The verbs of people about executions that wait for them, without transport types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog
from attrs import frozen

from actors.executions import Runs, decision_of, not_asked
from actors.history import History
from actors.registry import Action, Note, Registry
from protocol.errors import RunnerError
from protocol.model import Execution
from runner.api.reruns.reruns import seen, shown
from runner.auth import Principal, Scope, require

MAX_AWAITING: Final = 500
"""Executions that wait for a person, as they are shown at a time."""

log = structlog.get_logger("approvals")


@frozen
class Decisions:
    """Approves and denies executions. A caller with the scope may decide about its own calls too."""

    history: History
    runs: Runs
    registry: Registry

    async def awaiting(self, principal: Principal, most: int = MAX_AWAITING) -> tuple[Sequence[Execution], int]:
        """Return the executions that wait for a person, at most so many, the oldest question first; and their number.

        They have no inputs. Raises RunnerError `forbidden`.
        """
        require(principal, Scope.EXECUTIONS_APPROVE)
        found = [each for each in await self.runs.owners.awaiting() if principal.may_use(each.module.name)]
        return found[:most], len(found)

    async def approve(self, principal: Principal, name: str, reason: str | None = None) -> Execution:
        """Let an execution run that waits for a person; return it when that is recorded.

        Raises RunnerError: `forbidden`, `not_found`, `bad_input` for the reason, `conflict` when it does not wait for a
        person (any more), `unavailable` when it cannot be recorded. Cancelled, it may be approved.
        """
        return await self._decide(principal, name, reason, approved=True)

    async def deny(self, principal: Principal, name: str, reason: str | None = None) -> Execution:
        """End an execution that waits for a person, as `forbidden`; return it when its end is recorded.

        Raises RunnerError as `approve`. Cancelled, it may be denied.
        """
        return await self._decide(principal, name, reason, approved=False)

    async def _decide(self, principal: Principal, name: str, reason: str | None, *, approved: bool) -> Execution:
        require(principal, Scope.EXECUTIONS_APPROVE)
        live = await self.runs.owners.reach(name)
        if live is None:
            raise not_asked(seen(principal, name, await self.history.get(name)))
        execution, text = seen(principal, name, live.execution), (reason or "").strip()
        decided = await self.runs.owners.decide(live, decision_of(principal.subject, text, approved=approved))
        detail = {"execution": name, **({"reason": text} if text else {})}
        action = Action.EXECUTION_APPROVE if approved else Action.EXECUTION_DENY
        await self._note(principal, Note(action, execution.module.name, execution.module.version, detail))
        return shown(principal, decided)

    async def _note(self, principal: Principal, note: Note) -> None:
        """Add a decision to the audit log; it counts, whether that is possible or not."""
        try:
            await self.registry.audit.note(principal.subject, [note])
        except RunnerError as problem:
            log.warning("a decision is not in the audit log", **note.detail, why=str(problem))
