"""Scheduled executions: accepted and recorded now, queued at their time, over restarts too.

Rules:
* The history has them; memory has only their number and the next time. So many cost little.
* Their time is that of the clock of this machine, which is looked at once a second: it may be set.
* One is moved to the queue or cancelled at a time, so that it never ends twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.executions.live import LiveExecutions, SupersededError
from actors.history import is_elsewhere
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Execution, Status

_LOOK_SECONDS: Final = 1.0
"""How often the clock is looked at while executions are scheduled, and how soon a failure is tried again."""
_TOGETHER: Final = 100
"""Executions that are read at a time."""

log = structlog.get_logger("later")


@define(eq=False)
class Later:
    """The actor that queues scheduled executions when they are due."""

    live: LiveExecutions
    queue: Callable[[Execution], Awaitable[None]]
    """Queues or ends an execution that is due; raises RunnerError when it must wait."""
    limit: int
    clock: Callable[[], float] = time.time
    count: int = field(default=0, init=False)
    """Scheduled executions."""
    _due_at: float = field(default=-math.inf, init=False)
    """No execution is due before this time."""
    _earlier: trio.Event = field(factory=trio.Event, init=False)
    _moving: trio.Lock = field(factory=trio.Lock, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Queue executions at their times until cancelled. Raises RunnerError when the history cannot be read."""
        self.count, self._due_at = await self.live.history.count_scheduled(), -math.inf
        task_status.started()
        while True:
            await self._wait_due()
            self._due_at, self._earlier = math.inf, trio.Event()
            try:
                found = await self._queue_due()
            except RunnerError as problem:
                log.info("scheduled executions wait", why=str(problem))
                found = self.clock() + _LOOK_SECONDS
            self._due_at = min(self._due_at, found)

    async def _wait_due(self) -> None:
        while (left := self._due_at - self.clock()) > 0:
            with trio.move_on_after(_LOOK_SECONDS if left < math.inf else math.inf) as patience:
                patience.deadline = min(patience.deadline, trio.current_time() + left)
                await self._earlier.wait()
                self._earlier = trio.Event()

    async def _queue_due(self) -> float:
        """Queue what is due; return the time of the next. Raises RunnerError as soon as one must wait."""
        history = self.live.history
        while True:
            names, following = await history.due(self.clock(), _TOGETHER)
            before = self.count
            for name in names:
                async with self._moving:
                    execution = await history.get(name)
                    if execution is not None and execution.status is Status.SCHEDULED:
                        with suppress(SupersededError):  # another runner was first
                            await self.queue(execution)
                        self.count -= 1
            if self.live.records.node is not None:  # other runners accept and queue some, too
                await history.catch_up()
                self.count = await history.count_scheduled()
            if len(names) < _TOGETHER:
                return following
            if self.count == before:  # the database does not know yet that they were moved
                return self.clock() + _LOOK_SECONDS

    async def accept(self, execution: Execution) -> Execution:
        """Accept an execution: when this returns it is recorded and will be queued at `run_at`, also after a restart.

        Raises RunnerError: `overloaded` (too many are scheduled), `unavailable` (it cannot be recorded). Cancelled, it
        may have been accepted or not.
        """
        if self.count >= self.limit:
            self.live.tally.refuse(ErrorKind.OVERLOADED)
            text = f"{self.count} executions are scheduled; the limit is `max_scheduled`"
            raise error(ErrorKind.OVERLOADED, text, retry_after=60)
        self.count += 1
        try:
            execution = await self.live.accept(execution)
        except BaseException:
            self.count -= 1
            raise
        self._due_at = min(self._due_at, execution.run_at or 0.0)
        self._earlier.set()
        return execution

    def hear(self, execution: Execution, _sequence: int) -> None:
        """Take note of a scheduled execution that a runner of the cluster has accepted, or queued."""
        if execution.run_at is not None:
            again = self.clock() + _LOOK_SECONDS  # another runner may have queued it: they are counted anew
            self._due_at = min(self._due_at, execution.run_at if execution.status is Status.SCHEDULED else again)
            self._earlier.set()

    async def cancel(self, name: str, why: Failure) -> Execution | None:
        """End a scheduled execution and return it; None when it is not scheduled any more. Raises RunnerError.

        One that a cluster had, which this runner has left, ends here in any state.
        """
        async with self._moving:
            execution = await self.live.history.get(name)
            elsewhere = execution is not None and is_elsewhere(execution, self.live.history.node)
            if execution is None or (execution.status is not Status.SCHEDULED and not elsewhere):
                return None
            ended = replace(execution, status=Status.CANCELLED, failure=why, exit_code=130, finished_at=time.time())
            with trio.CancelScope(shield=True):  # the count follows the record, which has its own limits
                await self.live.records.finish(ended)
            self.count -= not elsewhere
        self.live.tally.count(ended)
        return ended
