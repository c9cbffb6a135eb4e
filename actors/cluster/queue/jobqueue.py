"""`JobQueue`: puts the jobs of accepted executions, pulls jobs for this runner, and tells why executions wait."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog
import trio
from attrs import Factory, define, field
from msgspec.structs import replace

from actors.cluster.engine import AwayError, Engine, RefusedError, StaleError
from actors.cluster.queue.clearing import Clearing
from actors.cluster.queue.held import Job, Jobs
from actors.cluster.queue.lanes import Lane, lane_of, unmet
from actors.cluster.queue.needed import Around
from actors.cluster.queue.numbers import Numbers
from actors.cluster.queue.places import Room
from actors.cluster.queue.placing import Placing
from actors.cluster.queue.pulls import Pulls
from actors.executions import Live, Runs
from actors.registry import Published
from protocol.errors import ErrorKind, RunnerError, error, shutting_down
from protocol.model import Execution, Status, Waiting

_LOOK_SECONDS: Final = 0.5
"""How often questions follow modules and places, and jobs without a place here are given back."""
_PATIENCE_SECONDS: Final = 1.0
"""After this time without a place a job is given back."""
_CLOSE_SECONDS: Final = 2.0
"""For the last answers."""
_PUTTING: Final = 256
"""Jobs that are put while their executions are answered already."""
_RETRY_SECONDS: Final = 5.0
_NONE: Final = "the servers of the cluster cannot be reached"

log = structlog.get_logger("queue")


@define(eq=False)
class JobQueue:
    """The queue of a runner in a cluster. Set it as `runs.dispatcher.queue` before the dispatcher runs."""

    engine: Engine
    runs: Runs
    around: Around
    labels: tuple[str, ...]
    redelivery_seconds: float
    max_queued: int
    jobs: Jobs = field(
        default=Factory(lambda self: Jobs(self.around.record, self.redelivery_seconds), takes_self=True), init=False
    )
    room: Room = field(
        default=Factory(lambda self: Room(self.runs, self.jobs, self.labels), takes_self=True), init=False
    )
    _numbers: Numbers = field(
        default=Factory(lambda self: Numbers(self.engine, self.max_queued), takes_self=True), init=False
    )
    _clearing: Clearing = field(
        default=Factory(lambda self: Clearing(self.engine, self.runs, self.around, self.jobs), takes_self=True),
        init=False,
    )
    _pulls: Pulls | None = field(default=None, init=False)
    _nursery: trio.Nursery | None = field(default=None, init=False)
    """Of the jobs."""
    _closing: trio.Event = field(factory=trio.Event, init=False)

    # The actor

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pull jobs until the runner drains, and keep those that it has until cancelled.

        Cancelled, jobs whose executions have left are answered when this returns.
        """
        self._closing = trio.Event()
        async with trio.open_nursery() as nursery:
            self._nursery = await nursery.start(self._answer)
            try:
                nursery.start_soon(self._numbers.run)
                nursery.start_soon(self._clearing.run)
                task_status.started()
                await self._ask(self._nursery)
                await trio.sleep_forever()
            finally:
                self._closing.set()
                self._nursery = self._pulls = None

    async def _answer(self, *, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        """Run the tasks of jobs, which answer when their executions have left, also after a cancellation."""
        with trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as jobs:
                task_status.started(jobs)
                while not self._closing.is_set():
                    with trio.move_on_after(self.redelivery_seconds / 3):
                        await self._closing.wait()
                    self.jobs.keep()
                scope.deadline = trio.current_time() + _CLOSE_SECONDS

    async def _ask(self, jobs: trio.Nursery) -> None:
        """Ask for jobs until the runner drains; then give back those that have not begun."""
        async with trio.open_nursery() as lanes:
            placing = Placing(self.runs, self.around, self.room, self.jobs)
            self._pulls = Pulls(self.engine, self.redelivery_seconds, self.room, placing, jobs)
            lanes.start_soon(self._follow, self._pulls, lanes)
            lanes.start_soon(self._pulls.run)
            lanes.start_soon(self._hear_ends, self._pulls)
            await self.runs.wait_stopping()
            lanes.cancel_scope.cancel()
        self._give_back(self.jobs.waiting())

    async def _follow(self, pulls: Pulls, lanes: trio.Nursery) -> None:
        while True:
            pulls.follow(lanes)
            pulls.freed()
            late = trio.current_time() - _PATIENCE_SECONDS
            self._give_back(job for job in self.jobs.waiting() if job.since < late and self._has_no_place(job))
            await trio.sleep(_LOOK_SECONDS)

    async def _hear_ends(self, pulls: Pulls) -> None:
        """Look for places when an execution of any kind has ended."""
        while True:
            await self.runs.dispatcher.live.wait_left()
            pulls.freed()

    def _has_no_place(self, job: Job) -> bool:
        """Return whether an execution waits for a place here; not for a person, a build, or a start."""
        live = job.live
        lane = self.room.lane(live.execution)
        if lane.pinned:
            return False
        if self.runs.dispatcher.ahead(live) is not None:
            return True
        return live.waiter is not None and not live.waiter.caused and not self.room.openings(live.module).starting

    def _give_back(self, jobs: Iterable[Job]) -> None:
        for job in list(jobs):
            job.given_back = True
            self.runs.dispatcher.supersede(job.live)

    # The queue of the dispatcher

    def check_room(self, _module: Published) -> None:
        """Raise RunnerError when no further execution may wait: `overloaded`, `unavailable`, `shutdown`."""
        if self.runs.stopping:
            raise RunnerError(shutting_down())
        if not self.engine.connected:
            raise error(ErrorKind.UNAVAILABLE, _NONE, field="cluster", retry_after=_RETRY_SECONDS)
        self._numbers.check(len(self.jobs))

    def takes_calls(self, module: Published) -> bool:
        """Return whether calls of a module have their turns here too: its limits are those of all runners.

        Raises RunnerError `unavailable` when no runner has what it needs. Other calls with needs are forwarded.
        """
        lane = lane_of(module.spec)
        if lane.shared and not self._has_runner(lane):
            raise error(ErrorKind.UNAVAILABLE, unmet(lane.needs), field="needs", retry_after=_RETRY_SECONDS)
        return lane.shared

    async def put(self, module: Published, execution: Execution) -> Live:
        """Have the job of an execution put that is in the log; one that waits for a person first does so here.

        The job may not be there when this returns, or is cancelled: it is offered again without an answer of the
        engine. This waits for it while many others are not there yet.
        """
        if module.spec.tool.confirm and execution.approval is None:
            return self.runs.dispatcher.take(module, execution)
        self._numbers.coming += 1
        if self._nursery is None or self._numbers.coming > _PUTTING:
            await self._put(execution)
        else:
            self._nursery.start_soon(self._put, execution)
        return self.around.mirror(module, execution)

    def push(self, live: Live) -> None:
        """Put the job of an execution that a person has approved; it leaves this runner."""
        execution = live.execution
        self.runs.dispatcher.live.pass_on(live)
        if self._nursery is not None:
            self._numbers.coming += 1
            self._nursery.start_soon(self._put, execution)

    async def _put(self, execution: Execution) -> None:
        """Put a job that counts as coming."""
        try:
            if not await self.offer(execution):
                self.around.record.owe(execution.id)
        finally:
            self._numbers.coming -= 1

    async def offer(self, execution: Execution) -> bool:
        """Put the job of an execution, unless it is there; return whether the engine answered."""
        lane = self.room.lane(execution)
        try:
            await self.engine.publish(self.engine.names.job(lane.name, execution.id), b"", expect=0)
        except StaleError:
            return True
        except (AwayError, RefusedError) as problem:
            log.info("a job is not put", execution=execution.id, why=str(problem))
            return isinstance(problem, RefusedError)
        self._numbers.since += 1
        if self._pulls is not None:
            self._pulls.ask_too(lane)
        return True

    # What others ask

    def projected(self, execution: Execution, sequence: int) -> None:
        """Note a state in the log: an end takes its job off, one of another runner drops what runs here."""
        name = execution.id
        live = self.runs.find(name)
        if live is not None and execution.status not in (Status.QUEUED, Status.SCHEDULED):
            other = execution.node != self.around.me.node
            if other and not live.superseded and sequence > self.around.record.known(name):
                live.execution = replace(live.execution, node=execution.node)  # for those who read on
                self.runs.dispatcher.supersede(live)
        if execution.status.final:
            self.jobs.settle(name)

    async def waiting(self, execution: Execution) -> Waiting | None:
        """Return why an execution waits that no runner has taken, as far as the engine tells; None when it does not."""
        lane = self.room.lane(execution)
        if not self._has_runner(lane):
            return Waiting(unmet(lane.needs), execution.created_at)
        found = await self._numbers.of(lane, execution.id)
        if found is None:
            return None
        reason = "queued: no runner has a place for it"
        if lane.limit is not None and found.running >= lane.limit:
            reason = f"queued: {found.running} executions of its module run on all runners, which is the limit"
        more = f"; at most {found.ahead} are before it" if found.ahead else ""
        return Waiting(reason + more, execution.created_at)

    def _has_runner(self, lane: Lane) -> bool:
        return any(lane.fits(offers) for offers in (self.room.offers(), *self.around.presence.offers()))
