"""Asynchronous executions: accepted once recorded, run in turn, and handed over to the next runner at shutdown.

Rules:
* An execution is recorded as queued before it is accepted, and stays queued until it has a worker. If the runner ends
  before that, the next runner runs it.
* One that waits for a person does so before it has a place in the backlog, and waits again after a restart. Its
  approval is recorded before it gets one.
* Each module has at most as many running tasks as it may have workers; the rest of its executions wait in the backlog,
  those with a higher priority first.
"""

from __future__ import annotations

import time
from functools import partial

import structlog
import trio
from attrs import Factory, define, field
from msgspec.structs import replace

from actors.executions.approvals import Asking
from actors.executions.attempts import Attempts
from actors.executions.live import Live, LiveExecutions
from actors.executions.places import Places
from actors.executions.queueing import Accepted, Queue
from actors.executions.recovery import Recovery, end_without_module, served
from actors.registry import Published, Registry
from actors.turns import Backlog
from protocol import events
from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from protocol.model import Execution, Status

_SUPERSEDED = Failure(ErrorKind.CANCELLED, "another runner has this execution")

log = structlog.get_logger("dispatcher")


@define(eq=False)
class Dispatcher:
    """The actor that runs accepted executions in its nursery."""

    registry: Registry
    attempts: Attempts
    live: LiveExecutions
    places: Places
    asking: Asking
    """Accepted executions that wait for a person."""
    max_queued: int
    accepted: int = field(default=0, init=False)
    """Executions accepted since the start."""
    queue: Queue = field(default=Factory(lambda self: self, takes_self=True), init=False)
    """Where accepted executions wait; a runner in a cluster sets another one before it runs."""
    _backlog: Backlog = field(factory=Backlog, init=False)
    _accepted: Accepted = field(
        default=Factory(lambda self: Accepted(self.attempts, self.live, self._backlog), takes_self=True), init=False
    )
    _accepting: int = field(default=0, init=False)
    _nursery: trio.Nursery | None = field(default=None, init=False)
    _recovering: bool = field(default=False, init=False)
    """Those that the last runner left are not all in the backlog yet, so that priorities would not hold."""
    _stopping: bool = field(default=False, init=False)

    @property
    def queued(self) -> int:
        """Executions that wait for their turn, or for a person."""
        return len(self._backlog) + self.asking.count

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run accepted executions, including those that the last runner left, until cancelled.

        Cancelled, running executions have ended or been handed over when this returns.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.places.open(nursery, self._backlog.free, self._dispatch)
                await self._recover()
                task_status.started()
                self._dispatch()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def submit(self, module: Published, execution: Execution) -> Live:
        """Accept an execution: when this returns it is recorded and will run, even after a restart.

        Raises RunnerError: `overloaded` (the queue is full), `shutdown`, `unavailable` (it cannot be recorded).
        Cancelled, it may have been accepted or not.
        """
        try:
            self.queue.check_room(module)
        except RunnerError as problem:
            if problem.failure.kind is ErrorKind.OVERLOADED:
                self.live.tally.refuse(problem.failure.kind)
            raise
        if execution.on_end is None and module.telling is not None:
            execution = replace(execution, on_end=module.telling)
        self._accepting += 1
        try:
            execution = await self.live.accept(execution)
        finally:
            self._accepting -= 1
        self.accepted += 1
        return await self.queue.put(module, execution)

    async def queue_due(self, execution: Execution) -> None:
        """Queue an execution that was accepted before and is due now; it ends when its module is gone.

        Raises RunnerError as `submit` does: then it stays as it is.
        """
        module = served(self.registry, execution)
        if module is None:
            await end_without_module(self.live.records, execution)
            return
        self.queue.check_room(module)
        queued = replace(self.live.owned(execution), status=Status.QUEUED, module=module.ref, env=module.spec.env)
        self._accepting += 1
        try:
            await self.live.records.submit(queued)
        except RunnerError as problem:
            if not self.live.records.waits_for_disk:
                raise
            # It may be recorded as queued, and runs in any case: its begin is recorded before the handler.
            log.warning("an execution that is due is not recorded", execution=execution.id, why=str(problem))
        finally:
            self._accepting -= 1
        await self.queue.put(module, queued)

    # The queue of a single machine

    def check_room(self, _module: Published) -> None:
        """Raise RunnerError when no further execution may wait: `overloaded`, `shutdown`."""
        if self._nursery is None or self._stopping:
            raise RunnerError(shutting_down())
        if self.queued + self._accepting >= self.max_queued:
            text = f"{self.queued} executions are queued; the limit is `max_queued`"
            raise error(ErrorKind.OVERLOADED, text, retry_after=5)

    def takes_calls(self, module: Published) -> bool:
        """Return whether calls whose callers wait have their turns here too: they do not.

        Raises RunnerError `unavailable` when the module needs labels that this runner does not have.
        """
        if module.spec.needs and (lacks := self.places.lacks(module)):
            raise error(ErrorKind.UNAVAILABLE, lacks, field="needs")
        return False

    async def put(self, module: Published, execution: Execution) -> Live:
        """Let an accepted execution wait for its turn. Not a checkpoint."""
        return self.take(module, execution)

    # The executions of this runner

    def take(self, module: Published, execution: Execution) -> Live:
        """Let an execution that is recorded as queued wait for its turn on this runner, unless it does so already.

        A runner that ends hands it over: then `ended` is set, and `refusal` is `shutdown`.
        """
        if (known := self.live.by_id.get(execution.id)) is not None:
            return known
        live = self.live.enter(module, execution)
        if execution.events_count:
            live.log.restore(events.decode_all(execution.events), execution.events_count, execution.created_at)
        self._queue(live)
        self._dispatch()
        return live

    def supersede(self, live: Live) -> None:
        """Drop an execution that another runner has. Its handler ends, and nothing of it is recorded. Never blocks."""
        live.superseded = True
        if self._backlog.remove(live.execution.module.name, live.execution.id, live.execution.group):
            self.live.pass_on(live)
        else:
            live.cancel(_SUPERSEDED)

    def ahead(self, live: Live) -> int | None:
        """Return how many executions of its module are before this one, at most; None when it is not queued."""
        execution = live.execution
        return self._backlog.ahead(execution.module.name, execution.id, execution.group)

    async def cancel(self, live: Live, why: Failure) -> None:
        """End an execution. If it is in the backlog, this returns when its end is recorded, else at once."""
        live.cancel(why)
        if self._backlog.remove(live.execution.module.name, live.execution.id, live.execution.group):
            await self._accepted.end(live)

    def stop(self) -> None:
        """Begin no more; those between two attempts, or that wait for a person, are left to the next runner."""
        self._stopping = True
        for live in self.live:
            if live.pausing:
                live.cancel(Failure(ErrorKind.SHUTDOWN, "the runner was shut down"))

    def hand_over(self) -> None:
        """Leave the backlog to the next runner."""
        for live in self.live:
            if self._backlog.remove(live.execution.module.name, live.execution.id, live.execution.group):
                self.live.hand_over(live)

    def _queue(self, live: Live) -> None:
        """Let an accepted execution wait for its turn, and before that for a person where its module asks for one."""
        if not self.asking.approvals.asks(live):
            self.push(live)
        elif self._nursery is None or self._stopping:
            self.live.hand_over(live)
        else:
            self.asking.begin(live, self._nursery, self._accepted.payload, self.queue.push, self._dispatch)

    def push(self, live: Live) -> None:
        """Put an execution into the backlog, without its payload."""
        live.queued_at = time.time()
        execution = live.execution
        name, group = execution.module.name, execution.group
        self._backlog.push(name, execution.id, execution.input, execution.priority, group)
        live.execution = replace(live.execution, input=b"null", events=b"[]")
        live.wait_for("queued")

    def _dispatch(self) -> None:
        """Start a task for each execution whose turn has come: for each module as many as it may have workers."""
        if self._nursery is None or self._stopping or self._recovering:
            return
        for name in self._backlog.modules():
            while (live := self._next(name)) is not None:
                self._nursery.start_soon(self._run_queued, name, live, name=f"run {name}")

    def _next(self, name: str) -> Live | None:
        """Take the next execution of a module, if its turn has come."""
        module = self.registry.snapshot.modules.get(name)
        places = module.spec.concurrency if module else 1
        if self.places.must_wait(name, module):
            return None
        found = self._backlog.take(name, places, self.places.full_groups(name, module))
        if found is None:
            return None
        self.places.begin(name, found[1], module)
        live = self.live.by_id[found[0]]
        live.occupy = partial(self._occupy, name)
        live.phases.queue += max(0.0, time.time() - live.queued_at)
        return live

    def _occupy(self, name: str, change: int) -> None:
        """Count the tasks of a module. One that waits for its next attempt does not count: others take its turn."""
        self._backlog.occupy(name, change)
        if change < 0:
            self._dispatch()

    async def _run_queued(self, name: str, live: Live) -> None:
        """Run an execution, then others of its module in turn: a task for each would cost a tenth of it."""
        following: Live | None = live
        while following is not None:
            try:
                await self._accepted.run(following)
            finally:
                self._backlog.occupy(name, -1)
                self.places.end(name, following.execution.group)
            following = None if self._nursery is None or self._stopping else self._next(name)
            self._dispatch()  # the module may have more places than before

    async def _recover(self) -> None:
        """Queue the executions that the last runner accepted and did not end."""
        self._recovering = True
        try:
            async for module, execution in Recovery(self.live.history, self.live.records, self.registry).executions():
                if execution.id not in self.live.by_id:
                    await self.queue.put(module, execution)
        finally:
            self._recovering = False
