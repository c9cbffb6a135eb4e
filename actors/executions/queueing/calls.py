"""Calls of modules whose limits hold over all runners: the queue runs them, and their callers wait for their ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio
from attrs import define
from msgspec.structs import replace

from actors.events import EventLog
from actors.executions.live import Live, SupersededError
from actors.executions.owners import Owners
from actors.history import History
from actors.registry import Published
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Execution, Status

_CANCEL_SECONDS: Final = 10.0
"""The longest wait for the end of a call whose caller went away."""
_GONE: Final = "the caller went away"


@define(eq=False)
class QueuedCalls:
    """Calls with turns in the queue. They are accepted, so that they run even if the runner of their caller ends."""

    submit: Callable[[Published, Execution], Awaitable[Live]]
    owners: Callable[[], Owners]
    history: History

    async def begin(self, module: Published, execution: Execution) -> Live:
        """Let a call wait for its turn, and return it. Raises RunnerError when it is not accepted."""
        return await self.submit(module, replace(execution, asynchronous=True, status=Status.QUEUED))

    async def run(
        self, module: Published, execution: Execution, on_item: Callable[[str, EventLog], None] | None
    ) -> Execution:
        """Return a call when its end is recorded. Raises RunnerError `overloaded` without a turn in `queue_timeout`.

        Cancelled, it is ended, as far as its runner answers.
        """
        live = await self.begin(module, execution)
        if on_item is not None:
            live.log.on_item = partial(on_item, execution.id, live.log)
        try:
            limit = module.spec.queue_timeout
            with trio.move_on_after(limit):
                return await self.end(live)
            if live.execution.status is not Status.QUEUED:
                return await self.end(live)
            ended = await self.owners().cancel(live, f"it had no turn within queue_timeout ({limit:g} s)")
        except trio.Cancelled:
            with trio.CancelScope(shield=True), trio.move_on_after(_CANCEL_SECONDS):
                await self.owners().cancel(live, _GONE)
            raise
        if ended.status is Status.CANCELLED and ended.started_at is None:
            text = f"no turn within queue_timeout ({limit:g} s): as many of the module run as may on all runners"
            raise error(ErrorKind.OVERLOADED, text, retry_after=limit)
        return ended

    async def end(self, live: Live) -> Execution:
        """Return an execution when its end is recorded, also when another runner gets it meanwhile.

        Raises RunnerError when it never began or was not recorded.
        """
        while True:
            await live.ended.wait()
            if live.refusal is None:
                return live.execution
            if not isinstance(live.refusal, SupersededError):
                raise live.refusal
            following = await self.owners().reach(live.execution.id)
            if following is None or following is live:
                return await self._recorded(live.refusal, live.execution.id)
            live = following

    async def _recorded(self, refusal: RunnerError, name: str) -> Execution:
        found = await self.history.get(name)
        if found is None or not found.status.final:
            raise refusal
        return found
