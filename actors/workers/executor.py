"""One actor for each kind of environment: supervises its workers and lends them to callers.

State changes only between checkpoints, so there is no lock and no mailbox: the caller's own task borrows a worker, and
cancellation, deadline and errors travel on its call stack.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

import structlog
import trio
from attrs import define, field, frozen

from actors.registry import Published, RegistrySnapshot
from actors.workers.build_log import BuildLog
from actors.workers.builds import Builds
from actors.workers.call import Call
from actors.workers.fleet import Fleet
from actors.workers.parking import Parking
from actors.workers.pool import Openings, Phases, Pool, PoolState, Waiter, openings, state_of
from actors.workers.scheduler import Scheduler
from actors.workers.starter import Starter
from actors.workers.worker import Worker
from config.modules import crowding
from config.secrets import LookUp
from config.settings import ExecutorSettings
from environments.base import Availability, Environment
from environments.limits import LimitKeeper
from protocol.errors import ErrorKind, Failure, RunnerError, error

_MAINTENANCE_SECONDS = 1.0
_LOOK_SECONDS: Final = 0.01
"""All callers are looked at when one has waited too long, but not more often than this."""

log = structlog.get_logger("executor")


async def trust(module: Published) -> None:
    """Take the stored code of a module as it is."""


@frozen
class ExecutorStatistics:
    """The workers and callers of one executor at this moment."""

    workers: int
    idle: int
    busy: int
    starting: int
    waiting: int
    spares: int
    started: int
    ended: int
    calls: int = 0
    """Calls that have a worker."""
    building: int = 0
    """Environments being prepared."""
    built: int = 0
    """Environments built since the start, without those that existed already."""
    builds_failed: int = 0
    kept_memory: int = 0
    """Memory of the idle workers in bytes."""
    evicted: int = 0
    """Idle workers retired for others, or because memory was short."""
    parked: int = 0
    """Busy workers whose handlers wait for calls of other modules; others run in their place."""


@frozen
class Turn:
    """The turn of a handler among those that may run at a time."""

    parking: Parking
    worker: Worker
    level: int

    def give(self) -> None:
        """Let others run, while this handler waits for calls of its own."""
        self.parking.park(self.worker, self.level)

    def end(self) -> None:
        """Note that this handler has ended while others run in its place."""
        self.parking.unpark(self.worker, self.level)

    def take_nowait(self) -> bool:
        """Let this handler go on if that is possible at once; return whether it was."""
        return self.parking.resume_nowait(self.worker)

    async def take(self) -> None:
        """Wait until this handler may go on. Returns at once if its worker has ended, or is given back."""
        await self.parking.resume(self.worker, self.level)


class Lease:
    """Has a worker inside of its `async with`. A generator as the context manager would cost a tenth of a call."""

    __slots__ = ("_ask", "_lender", "_level", "_module", "_patient", "_phases", "_worker")

    def __init__(
        self,
        lender: Executor,
        module: Published,
        phases: Phases,
        ask: Callable[[], Waiter] | None,
        patient: bool,
        level: int,
    ) -> None:
        self._lender, self._module, self._phases, self._ask, self._patient = lender, module, phases, ask, patient
        self._level = level
        self._worker: Worker | None = None

    async def __aenter__(self) -> Worker:
        lender, module = self._lender, self._module
        worker = lender.borrow(module, self._level)
        if worker is None:
            lender.refuse(module, patient=self._patient or self._level > 0)
            waiter = Waiter() if self._ask is None else self._ask()
            waiter.level = self._level
            worker = await lender.acquire(module, waiter, self._phases, patient=self._patient)
        self._worker = worker
        return worker

    def turn(self) -> Turn | None:
        """Return the turn of the worker, while it is lent."""
        return None if self._worker is None else Turn(self._lender.parking, self._worker, self._level)

    async def __aexit__(self, *_: object) -> None:
        if self._worker is not None:
            self._lender.give_back(self._worker)


class Timeouts:
    """Ends waits that have lasted for `queue_timeout`, and calls that have lasted for `timeout`.

    One timer for all: each of their own would cost more.
    """

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools = pools
        self._alarm: trio.CancelScope | None = None

    def expect(self, when: float) -> None:
        """Look at all of them at this Trio time, if not before."""
        if self._alarm is not None and when < self._alarm.deadline:
            self._alarm.deadline = when

    async def run(self) -> None:
        """End waits and calls until cancelled."""
        while True:
            now = trio.current_time()
            following = min(map(self._look, self._pools.values(), [now] * len(self._pools)), default=math.inf)
            with trio.CancelScope(deadline=max(following, now + _LOOK_SECONDS)) as self._alarm:
                await trio.sleep_forever()

    def _look(self, pool: Pool, now: float) -> float:
        """End the waits and calls of one module that have lasted too long; return when the next one has."""
        following, limit = math.inf, pool.module.spec.queue_timeout
        for worker in pool.busy:
            for call in _calls(worker):
                if call.interrupted:
                    continue
                if call.deadline <= now:
                    call.interrupt()
                else:
                    following = min(following, call.deadline)
        for waiter in pool.waiters:
            if waiter.expires <= now:
                if pool.starting:  # a start has deadlines of its own; queue_timeout is for waiting behind others
                    waiter.expires = now + limit
                else:
                    text = f"no worker within queue_timeout ({limit:g} s): {pool.reason(now)}"
                    waiter.give_up(Failure(ErrorKind.OVERLOADED, text, retry_after=limit))
                    continue
            following = min(following, waiter.expires)
        return following


def _calls(worker: Worker) -> Collection[Call]:
    """Return the calls that a worker runs."""
    return worker.shared.calls if worker.shared is not None else () if worker.call is None else (worker.call,)


@define(eq=False)
class Executor:
    """Owns all workers of one kind."""

    environment: Environment
    settings: ExecutorSettings
    limits: LimitKeeper
    max_frame_bytes: int
    secrets: LookUp
    verify: Callable[[Published], Awaitable[None]] = field(default=trust)
    _fleet: Fleet = field(init=False)
    _starter: Starter = field(init=False)
    _scheduler: Scheduler = field(init=False)
    _timeouts: Timeouts = field(init=False)
    parking: Parking = field(init=False)
    _served: frozenset[str] = field(default=frozenset(), init=False)

    def __attrs_post_init__(self) -> None:
        given = self.environment, self.settings, self.limits, self.max_frame_bytes, self.secrets, self.verify
        self._fleet = Fleet(*given)
        wheels_only = self.settings.api_builds == "wheels"
        self._starter = Starter(self._fleet, Builds(self.environment, self.settings.max_builds, wheels_only))
        self._scheduler = self._starter.scheduler
        self._timeouts = Timeouts(self._scheduler.pools)
        self._fleet.expect = self._timeouts.expect
        self.parking = self._scheduler.parking

    @property
    def availability(self) -> Availability:
        """Whether this machine has what the kind needs."""
        return self._starter.probing.found

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Supervise until cancelled; every worker has ended when this returns."""
        await self._starter.probing.begin()
        try:
            async with trio.open_nursery() as nursery:
                await self._supervise(nursery, task_status)
        finally:
            self.environment.keep(())

    async def _supervise(self, nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        self._fleet.nursery = nursery
        self._scheduler.closing = False
        nursery.start_soon(self._timeouts.run)
        nursery.start_soon(self._starter.probing.run, name=f"probe {self.environment.kind}")
        task_status.started()
        try:
            while True:
                await trio.sleep(_MAINTENANCE_SECONDS)
                self._maintain()
        finally:
            self.close()
            self._scheduler.clear()
            self._fleet.close()

    def _maintain(self) -> None:
        self._scheduler.maintain()
        self._starter.maintain()
        if self._scheduler.waiting:  # the pause after a failed start may be over
            self._scheduler.pump()

    def close(self) -> None:
        """Hand out no more workers; waiting callers get `shutdown`."""
        self._scheduler.close()

    def lease(
        self,
        module: Published,
        phases: Phases,
        *,
        ask: Callable[[], Waiter] | None = None,
        patient: bool = False,
        level: int = 0,
    ) -> Lease:
        """Lend a worker of `module` for an `async with`; `phases` gets the times until then.

        A caller that must wait does so as the waiter that `ask` returns, through which any task can end the wait. A
        `patient` caller was counted before, so that neither `max_waiting` nor `queue_timeout` applies. `level` is the
        number of handlers that wait for this call; above 0, `max_waiting` does not apply either.

        Raises RunnerError: `overloaded` (the waiting room is full, or `queue_timeout` passed; with the waiting reason),
        `environment_failed`, `load_failed`, `unavailable`, `shutdown`, and the failure with which the waiter gave up.
        Cancelled while waiting, nothing stays taken.
        """
        return Lease(self, module, phases, ask, patient, level)

    def borrow(self, module: Published, level: int = 0) -> Worker | None:
        """Return an idle worker of a module if the caller need not wait for one; `give_back` must follow."""
        scheduler, pool = self._scheduler, self._scheduler.pool(module)
        if not scheduler.waiting and not scheduler.closing and scheduler.parking.can_lend(pool, level):
            return scheduler.reuse(pool, level)
        return None

    async def acquire(self, module: Published, waiter: Waiter, phases: Phases, *, patient: bool) -> Worker:
        """Return a worker for a caller that waits; `give_back` must follow. Raises RunnerError as `lease`."""
        pool, began = self._scheduler.pool(module), trio.current_time()
        try:
            self._scheduler.join(pool, waiter)
            if not waiter.woken.is_set():
                if not waiter.caused:
                    waiter.report(pool.building or pool.reason(began))
                if not patient:
                    waiter.expires = began + pool.module.spec.queue_timeout
                    self._timeouts.expect(waiter.expires)
                await waiter.woken.wait()
        except BaseException:
            self._scheduler.leave(pool, waiter)
            raise
        now = trio.current_time()
        phases.add(now - began, pool.built(began, now), waiter.phases)
        if waiter.failure is not None:
            self._scheduler.leave(pool, waiter)  # it may have given up
            raise RunnerError(waiter.failure)
        assert waiter.worker is not None  # noqa: S101  (woken without failure)
        return waiter.worker

    def openings(self, module: Published) -> Openings:
        """Return how many calls of a module could begin now, and what they would find."""
        at = self._scheduler
        return openings(at.pool(module), at.room, at.waiting, trio.current_time())

    def give_back(self, worker: Worker) -> None:
        """Take a worker back."""
        self._scheduler.release(worker)

    def check_room(self, module: Published) -> None:
        """Raise the RunnerError with which `lease` would refuse a caller at once, if it would."""
        pool = self._scheduler.pool(module)
        able = pool.idle or (pool.seats is not None and pool.seats.next(0) is not None)
        if not able or self._scheduler.waiting or self._scheduler.closing:
            self.refuse(module, patient=False)

    def must_wait(self, module: Published) -> bool:
        """Return whether a call of a module would have to wait until others have ended."""
        return self._scheduler.closing or self.parking.must_wait(self._scheduler.pool(module))

    def refuse(self, module: Published, *, patient: bool) -> None:
        """Raise the errors of a caller that would have to wait for a worker, but need not."""
        pool = self._scheduler.pool(module)
        self._starter.refuse()
        waiting = self._scheduler.waiting
        if waiting >= self.settings.max_waiting and not patient:
            why = pool.reason(trio.current_time())
            raise error(ErrorKind.OVERLOADED, f"{waiting} callers wait already ({why})", retry_after=1)
        if pool.last_failure is not None and not pool.own:
            now = trio.current_time()
            if pool.pause(now) and (refusal := pool.refusal(now)) is not None:
                raise RunnerError(refusal)

    def publish(self, snapshot: RegistrySnapshot) -> None:
        """Follow the registry: workers of removed versions take no call, environments of active versions are built.

        Of other versions, which a call can still name, no worker is kept ahead of a call.
        """
        mine = {m.digest: m for m in snapshot.everything() if m.spec.env is self.environment.kind}
        served = frozenset(m.digest for m in snapshot.modules.values()) & mine.keys()
        for digest in served - self._served:
            if text := crowding(mine[digest].spec, self.settings.max_workers):
                log.warning("a module asks for too many workers", module=str(mine[digest].ref), why=text)
        self._served = served
        self._scheduler.publish(frozenset(mine), served)
        self._starter.build_ahead([self._scheduler.pool(mine[digest]) for digest in served])

    async def lock(self, module: Published) -> None:
        """Resolve the unpinned requirements of a module, as its builds will. Raises RunnerError as `prepare`."""
        self._starter.refuse()
        await self._starter.builds.lock(module)

    def prepare(self, module: Published) -> BuildLog:
        """Build the environment of a module if it is missing; return the log of the build, which has its end too.

        Callers share a build; it continues when all of them have gone. Raises RunnerError `unavailable`, `shutdown`,
        and, during the pause after a failed build, that failure.
        """
        pool = self._scheduler.pool(module)
        if pool.prepared is not None and pool.build is not None:
            return pool.build
        self.refuse(module, patient=True)
        return self._starter.build(pool)

    def rebuild(self, module: Published) -> BuildLog:
        """Build the environment of a module again, whose idle workers end; return the log of the build.

        The build continues when all its followers have gone; calls wait for it. Raises RunnerError `unavailable`,
        `shutdown`, and `conflict` while a call uses the environment, or others are built.
        """
        self._starter.refuse()
        return self._starter.rebuild(self._scheduler.pool(module))

    def statistics(self) -> ExecutorStatistics:
        """Return the counters."""
        pools, builds, fleet = self._scheduler.pools.values(), self._starter.builds, self._fleet
        return ExecutorStatistics(
            workers=sum(pool.own for pool in pools),
            idle=sum(len(pool.idle) for pool in pools),
            busy=sum(len(pool.busy) for pool in pools),
            starting=sum(pool.starting for pool in pools),
            waiting=self._scheduler.waiting,
            spares=len(fleet.spares),
            started=fleet.started,
            ended=fleet.ended,
            calls=sum(len(pool.busy) if pool.seats is None else pool.seats.lent for pool in pools),
            building=builds.running,
            built=builds.built,
            builds_failed=builds.failed,
            kept_memory=self._scheduler.keeping.kept_bytes(),
            evicted=self._scheduler.keeping.evicted,
            parked=len(self._scheduler.parking),
        )

    def pools(self) -> list[PoolState]:
        """Return the workers and callers of each module version."""
        now = trio.current_time()
        return [state_of(pool, now) for pool in self._scheduler.pools.values()]
