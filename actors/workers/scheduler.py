"""Capacity and turns of one kind: which waiting caller gets a worker next, and which idle workers are kept.

How many workers run at a time and how many are kept for later calls are two limits, the second one of memory.
Synchronous: no tasks and no waits. Workers are started and retired by the two functions that it is given.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Collection
from enum import Enum
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import define, field

from actors.workers.parking import Parking
from actors.workers.pool import Phases, Pool, Waiter, join, running
from protocol.errors import Failure, shutting_down

if TYPE_CHECKING:
    from actors.registry import Published
    from actors.workers.worker import Worker
    from config.settings import ExecutorSettings
    from environments.limits import MachineMemory

_TURN_SECONDS = 0.1
"""How long a module may continue with a worker while another module waits for it."""
_KEPT_SHARE = 8
"""Of the memory, one part in so many is for the idle workers of a kind where no setting says how much."""
_FREE_SHARE = 16
"""If less than one part in so many of the memory is free, idle workers are retired."""
_KEPT_DESCRIPTORS = 16
"""One idle worker is kept for so many descriptors that the runner may have; each needs five."""

log = structlog.get_logger("executor")


class Step(Enum):
    """What to do for one waiting caller."""

    REUSE = "reuse"
    SPAWN = "spawn"
    WAIT = "wait"
    REFUSE = "refuse"
    """Fail fast with the last start's failure: it happened a moment ago, and there is no worker to wait for."""


def next_step(
    *,
    idle: bool,
    own: int,
    starting: int,
    waiting: int,
    concurrency: int,
    room: int,
    paused: bool,
    shared: bool = False,
    calls: int = 1,
) -> Step:
    """Return the step for the oldest waiting caller of a module.

    `own` counts the module's workers at work (starting ones included), `waiting` its callers without a worker. `room`
    is how many more workers may run for it, `paused` whether a start failed so recently that none is allowed. Each runs
    up to `calls` calls at a time; `shared` is whether a busy one can take another.
    """
    if shared:
        return Step.REUSE
    if idle:
        return Step.REUSE if room > 0 else Step.WAIT
    if paused:
        return Step.WAIT if own else Step.REFUSE
    if own >= concurrency or starting * calls >= waiting or room <= 0:
        return Step.WAIT
    return Step.SPAWN


def rank(pool: Pool, now: float) -> tuple[int, float, float]:
    """Return the order in which modules with waiting callers are served, lowest first.

    Callers for which most handlers wait come first. Then the module with the fewest workers at work, among equals the
    one whose last turn is longest ago, so that a flood of one module does not starve the others. A turn lasts a moment,
    so that workers are not replaced for each call.
    """
    level = -pool.waiters[0].level
    if pool.idle and now - pool.turn_at < _TURN_SECONDS:
        return level, -1, pool.turn_at
    return level, running(pool), pool.turn_at


@define(eq=False)
class Keeping:
    """Which idle workers of a kind are kept.

    As many workers as may run at a time are always kept, more as long as the idle ones have no more than
    `kept_memory_bytes`. All are given up, the least valuable first, when the machine gets short of memory; but those of
    `workers.min` are never.
    """

    settings: ExecutorSettings
    memory: MachineMemory
    retire: Callable[[Worker], None]
    pools: dict[str, Pool]
    evicted: int = field(default=0, init=False)
    _total: int = field(init=False)
    _most_bytes: int = field(init=False)
    _most: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._total = self.memory.total()
        most = self.settings.kept_memory_bytes
        self._most_bytes = self._total // _KEPT_SHARE if most is None else most
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = (1 << 20 if files == resource.RLIM_INFINITY else files) // _KEPT_DESCRIPTORS

    def kept_bytes(self) -> int:
        """Return the memory of the idle workers."""
        return sum(worker.footprint.memory_bytes for pool in self.pools.values() for worker in pool.idle)

    def has_room(self) -> bool:
        """Return whether one more worker may be kept."""
        return self._surplus(1) <= 0 or (self.kept_bytes() < self._most_bytes and self._idle() < self._most)

    def make_room(self, starting: int = 0) -> None:
        """Retire the idle workers that are too many when `starting` more come."""
        surplus, kept, idle = self._surplus(starting), self.kept_bytes(), self._idle()
        while surplus > 0 and (kept > self._most_bytes or idle > self._most):
            if (worker := self.evict()) is None:
                return
            surplus, kept, idle = surplus - 1, kept - worker.footprint.memory_bytes, idle - 1

    def relieve(self) -> None:
        """Measure the idle workers; retire some if the machine is short of memory."""
        for pool in self.pools.values():
            for worker in pool.idle:
                worker.footprint.measure(worker.guest, worker.calls)
        if self._idle():
            short = self._total // _FREE_SHARE - self.memory.free()
            while short > 0 and (evicted := self.evict()) is not None:
                log.info("an idle worker is retired: memory is short", worker=evicted.guest.name)
                short -= evicted.footprint.memory_bytes

    def evict(self) -> Worker | None:
        """Retire and return the idle worker that is the least valuable, if one may go.

        A worker is worth the time of its start, and the less, the longer ago its last call was.
        """
        now = trio.current_time()
        pools = [pool for pool in self.pools.values() if pool.idle and len(pool.idle) + len(pool.busy) > pool.fewest]
        if not pools:
            return None
        pool = max(pools, key=lambda pool: (now - pool.idle[0].idle_since) / pool.idle[0].footprint.start_seconds)
        worker = pool.idle.pop(0)
        self.retire(worker)
        self.evicted += 1
        return worker

    def _surplus(self, starting: int) -> int:
        return sum(pool.own for pool in self.pools.values()) + starting - self.settings.max_workers

    def _idle(self) -> int:
        return sum(len(pool.idle) for pool in self.pools.values())


@define(eq=False)
class Scheduler:
    """The pools of one kind and their waiting callers."""

    settings: ExecutorSettings
    memory: MachineMemory
    start: Callable[[Pool], None]
    """Starts a worker; its end is reported to `started`."""
    retire: Callable[[Worker], None]
    pools: dict[str, Pool] = field(factory=dict, init=False)
    """By the digest of the module version."""
    waiting: int = field(default=0, init=False)
    """Callers without a worker, of all modules."""
    working: int = field(default=0, init=False)
    """Workers that run a call, or start; those that are parked do not count."""
    closing: bool = field(default=False, init=False)
    """No more workers are handed out."""
    _published: Collection[str] = field(default=frozenset(), init=False)
    """Digests of the versions that calls can get."""
    _served: Collection[str] = field(default=frozenset(), init=False)
    """Digests of the versions used by calls that name none."""
    keeping: Keeping = field(init=False)
    parking: Parking = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.keeping = Keeping(self.settings, self.memory, self.retire, self.pools)
        self.parking = Parking(self)

    @property
    def room(self) -> int:
        """How many more workers of the kind may run."""
        return self.settings.max_workers - self.working

    def clear(self) -> None:
        """Forget all workers; they have ended."""
        self.pools.clear()
        self.parking.clear()
        self.working = 0

    def pool(self, module: Published) -> Pool:
        """Return the pool of a module version."""
        pool = self.pools.get(module.digest)
        if pool is None:
            pool = self.pools[module.digest] = Pool(module)
            self._place(pool)  # the version of a late caller may have been replaced meanwhile
        return pool

    def publish(self, published: Collection[str], served: Collection[str]) -> None:
        """Follow the registry: `published` are the digests of all versions, `served` of those used by default."""
        self._published, self._served = published, served
        for digest, pool in list(self.pools.items()):
            self._place(pool)
            while pool.idle and not pool.served:
                self.retire(pool.idle.pop())
            if pool.unused and not pool.served:
                del self.pools[digest]

    def _place(self, pool: Pool) -> None:
        digest = pool.module.digest
        pool.retired, pool.served = digest not in self._published, digest in self._served

    # Waiting callers

    def join(self, pool: Pool, waiter: Waiter) -> None:
        """Add a caller to the queue of its module, and serve it if that is possible now."""
        join(pool.waiters, waiter)
        self.waiting += 1
        if (
            pool.seats is not None or running(pool) < pool.module.spec.concurrency
        ):  # else nothing can be done for it now
            self.pump()

    def leave(self, pool: Pool, waiter: Waiter) -> None:
        """Remove a caller that gave up; a worker that it was handed meanwhile comes back."""
        waiter.log = None
        if waiter in pool.waiters:
            pool.waiters.remove(waiter)
            self.waiting -= 1
        elif waiter.worker is not None:
            self.release(waiter.worker)

    def pump(self) -> None:
        """Serve the waiting callers as far as capacity allows: modules in turn, callers of one module in order."""
        now = trio.current_time()
        self.parking.serve()
        todo = [pool for pool in self.pools.values() if pool.waiters]
        while todo:
            pool = min(todo, key=lambda pool: rank(pool, now))
            if not (self._serve(pool, now) and pool.waiters):
                todo.remove(pool)

    def _serve(self, pool: Pool, now: float) -> bool:
        """Serve the oldest caller of a module; return whether anything could be done for it."""
        spec, level = pool.module.spec, pool.waiters[0].level
        if pool.seats is not None and pool.seats.full(level):
            return False
        step = next_step(
            shared=self.parking.open(pool, level) is not None,
            calls=spec.calls,
            idle=pool.has_idle(),
            own=running(pool),
            starting=pool.starting,
            waiting=len(pool.waiters),
            concurrency=spec.most_workers,
            room=self.parking.room_for(pool, level),
            paused=pool.pause(now) > 0,
        )
        if step is Step.REUSE:
            if now - pool.turn_at >= _TURN_SECONDS:
                pool.turn_at = now
            self._next(pool).wake(worker=self.reuse(pool, level))
        elif step is Step.REFUSE:
            self._next(pool).wake(failure=pool.refusal(now))
        elif step is Step.SPAWN:
            self.keeping.make_room(1)
            pool.turn_at = now
            self.start(pool)
        else:
            return False
        return True

    def _next(self, pool: Pool) -> Waiter:
        self.waiting -= 1
        return pool.waiters.popleft()

    def _take(self, pool: Pool, waiter: Waiter) -> Waiter:
        self.waiting -= 1
        pool.waiters.remove(waiter)
        return waiter

    # Workers

    def reuse(self, pool: Pool, level: int = 0) -> Worker:
        """Return a busy worker that takes another call, else the most recently used idle one; it is busy now."""
        worker = self.parking.open(pool, level)
        if worker is None:
            worker = pool.idle.pop()
            pool.busy.add(worker)
            self.working += 1
        if pool.seats is not None:
            pool.seats.take(worker)
            self.parking.settle(pool, worker)
        return worker

    def begin(self, pool: Pool) -> None:
        """Count a start."""
        pool.starting += 1
        self.working += 1

    def end(self, pool: Pool) -> None:
        """Count a start no more; its result is for `started`."""
        pool.starting -= 1
        self.working -= 1

    def release(self, worker: Worker) -> None:
        """Take a worker back. Synchronous, so that it can be called while Cancelled propagates."""
        pool = self.pools.get(worker.module.digest) if worker.module else None
        if pool is None:
            self.retire(worker)
            return
        now = trio.current_time()
        keeps = not self.closing and pool.keeps(worker, now=now, max_age=self.settings.max_age_seconds)
        seats, parked = pool.seats, False
        if seats is None or seats.give_back(worker, keeps=keeps):
            if worker in pool.busy:
                pool.busy.remove(worker)
                parked = self.parking.end(worker, pool)
                self.working -= 0 if parked else 1
            if keeps:
                worker.idle_since = now
                pool.idle.append(worker)
            else:
                self.retire(worker)
        else:
            self.parking.settle(pool, worker)
        if self.waiting or self.parking.resuming or self.parking.seated:
            alone = self.waiting == len(pool.waiters) and not parked and not self.parking.levels
            if pool.idle and seats is None and alone:  # no other module wants it
                self._next(pool).wake(worker=self.reuse(pool))
            else:
                self.pump()

    def started(self, pool: Pool, result: Worker | Failure, phases: Phases, cause: Waiter | None = None) -> None:
        """Hand a started worker, or why it failed, to the caller that caused the start.

        It has the output of this import. If it waits no more, the oldest caller gets the worker, and the oldest without
        a start of its own the failure.
        """
        waiter = cause if cause in pool.waiters else None
        if isinstance(result, Failure):
            if waiter := waiter or pool.next_cause():
                self._take(pool, waiter).wake(failure=result, phases=phases)
        else:
            pool.busy.add(result)
            self.working += 1
            if pool.seats is not None:
                pool.seats.take(result)
            if waiter := waiter or next(iter(pool.waiters), None):
                self._take(pool, waiter).wake(worker=result, phases=phases)
            else:
                self.release(result)
        self.pump()

    def forget(self, worker: Worker) -> None:
        """Remove a worker that ended while it was idle."""
        pool = self.pools.get(worker.module.digest) if worker.module else None
        if pool is not None and worker in pool.idle:
            pool.idle.remove(worker)
            log.warning("an idle worker ended", module=str(pool.module.ref), exit_code=worker.guest.exit_code)

    def maintain(self) -> None:
        """Retire workers that are too old, too many or idle for too long, and forget the pools of old versions."""
        now, settings = trio.current_time(), self.settings
        for digest, pool in list(self.pools.items()):
            for worker in pool.outlived(now, settings.idle_seconds, settings.max_age_seconds):
                pool.idle.remove(worker)
                self.retire(worker)
            if pool.retired and pool.unused:
                del self.pools[digest]
        self.keeping.relieve()
        self.keeping.make_room()

    def close(self) -> None:
        """Hand out no more workers; waiting callers get `shutdown`."""
        self.closing = True
        for pool in self.pools.values():
            while pool.waiters:
                self._next(pool).wake(failure=shutting_down())
