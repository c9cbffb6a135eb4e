"""The verb that cancels the executions of a list, without transport types."""

from __future__ import annotations

from typing import Final

import trio
from attrs import evolve, frozen

from actors.executions import Runs
from actors.history import History, Query
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Execution, Status
from runner.api.reruns.reruns import seen
from runner.auth import Principal, Scope, require

_STATES: Final = (Status.SCHEDULED, Status.QUEUED, Status.RUNNING)
"""In this order, so that none of them begins when others end."""


@frozen
class Cancelled:
    """What became of one execution of a list; in a dry run, the execution as it is."""

    execution: Execution
    problem: Failure | None = None


@frozen
class Cancels:
    """Ends executions that a list finds."""

    history: History
    runs: Runs

    async def many(self, principal: Principal, query: Query, *, dry_run: bool = False) -> tuple[list[Cancelled], bool]:
        """Cancel at most `limit` of the executions that match and have not ended; return them, and whether more match.

        With `dry_run` nothing is cancelled. When the caller is cancelled, some may have been. Raises RunnerError
        `forbidden`, and `bad_input` for the query.
        """
        require(principal, Scope.EXECUTIONS_RUN)
        if query.cursor is not None:
            text = "cancelled executions leave the list, so there is no next page: send the request again"
            raise error(ErrorKind.BAD_INPUT, text, field="cursor")
        if query == Query(limit=query.limit):
            text = "give a filter, such as `module` or `status=queued`: all executions would be cancelled"
            raise error(ErrorKind.BAD_INPUT, text, field="module")
        found, more = await self._find(evolve(query, modules=principal.modules))
        if dry_run:
            return [Cancelled(execution) for execution in found], more
        done: dict[str, Cancelled] = {}
        for status in _STATES:
            async with trio.open_nursery() as nursery:
                for execution in (each for each in found if each.status is status):
                    nursery.start_soon(self._cancel, principal, execution, done)
        return [done[execution.id] for execution in found], more

    async def _find(self, query: Query) -> tuple[list[Execution], bool]:
        states = [status for status in _STATES if query.status in (None, status)]
        if query.unresolved or not states:
            text = "only executions that have not ended are cancelled; leave out `unresolved` and states that are final"
            raise error(ErrorKind.BAD_INPUT, text, field="unresolved" if query.unresolved else "status")
        found: list[Execution] = []
        for status in states:
            page = await self.history.list(evolve(query, status=status, limit=query.limit))
            found += page.items
            if page.next_cursor is not None or len(found) > query.limit:
                return found[: query.limit], True
        return found, False

    async def _cancel(self, principal: Principal, execution: Execution, done: dict[str, Cancelled]) -> None:
        try:
            live = await self.runs.owners.reach(execution.id)
            if live is None:
                latest = seen(principal, execution.id, await self.history.get(execution.id))
                ended = await self.runs.cancel_scheduled(latest)
            else:
                ended = await self.runs.owners.cancel(live)
            done[execution.id] = Cancelled(ended)
        except RunnerError as problem:
            done[execution.id] = Cancelled(execution, problem.failure)
