"""Capacity and turns of one kind: which waiting caller gets a worker next, and which workers are kept.

Synchronous: no tasks and no waits. Workers are started and retired by the two functions that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import define, field

from actors.workers.pool import Phases, Pool, Waiter
from protocol.errors import Failure, shutting_down

if TYPE_CHECKING:
    from actors.registry import Published
    from actors.workers.worker import Worker
    from config.settings import ExecutorSettings

_TURN_SECONDS = 0.1
"""How long a module may continue with a worker while another module waits for it."""

log = structlog.get_logger("executor")


class Step(Enum):
    """What to do for one waiting caller."""

    REUSE = "reuse"
    SPAWN = "spawn"
    EVICT = "evict"
    """Retire an idle worker of another module, then spawn."""
    WAIT = "wait"
    REFUSE = "refuse"
    """Fail fast with the last start's failure: it happened a moment ago, and there is no worker to wait for."""


def next_step(
    *,
    idle: int,
    own: int,
    starting: int,
    waiting: int,
    concurrency: int,
    total: int,
    room: int,
    evictable: bool,
    paused: bool,
) -> Step:
    """Return the step for the oldest waiting caller of a module.

    `own` counts the module's workers (starting ones included), `waiting` its callers without a worker, `total` the
    workers of the kind. `room` is the most workers that the kind may have, `evictable` whether another module has an
    idle one, `paused` whether a start failed so recently that none is allowed.
    """
    if idle:
        return Step.REUSE
    if paused:
        return Step.WAIT if own else Step.REFUSE
    if own >= concurrency or starting >= waiting:
        return Step.WAIT
    if total < room:
        return Step.SPAWN
    return Step.EVICT if evictable else Step.WAIT


def rank(pool: Pool, now: float) -> tuple[float, float]:
    """Return the order in which modules with waiting callers are served, lowest first.

    The module with the fewest workers at work comes first, among equals the one whose last turn is longest ago, so that
    a flood of one module does not starve the others. A turn lasts a moment, so that workers are not replaced for each
    call.
    """
    if pool.idle and now - pool.turn_at < _TURN_SECONDS:
        return -1, pool.turn_at
    return len(pool.busy) + pool.starting, pool.turn_at


@define(eq=False)
class Scheduler:
    """The pools of one kind and their waiting callers."""

    settings: ExecutorSettings
    start: Callable[[Pool], None]
    """Starts a worker; its end is reported to `started`."""
    retire: Callable[[Worker], None]
    pools: dict[str, Pool] = field(factory=dict, init=False)
    """By the digest of the module version."""
    waiting: int = field(default=0, init=False)
    """Callers without a worker, of all modules."""
    closing: bool = field(default=False, init=False)
    """No more workers are handed out."""
    _published: Collection[str] = field(default=frozenset(), init=False)
    """Digests of the versions that calls can get."""
    _served: Collection[str] = field(default=frozenset(), init=False)
    """Digests of the versions used by calls that name none."""

    @property
    def room(self) -> int:
        """How many more workers the kind may have."""
        return self.settings.max_workers - sum(pool.own for pool in self.pools.values())

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
        pool.waiters.append(waiter)
        self.waiting += 1
        if pool.idle or pool.own < pool.module.spec.concurrency:  # else nothing can be done for it now
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
        todo = [pool for pool in self.pools.values() if pool.waiters]
        while todo:
            pool = min(todo, key=lambda pool: rank(pool, now))
            if not (self._serve(pool, now) and pool.waiters):
                todo.remove(pool)

    def _serve(self, pool: Pool, now: float) -> bool:
        """Serve the oldest caller of a module; return whether anything could be done for it."""
        pool.forget_ended()
        victim = self._evictable(pool)
        step = next_step(
            idle=len(pool.idle),
            own=pool.own,
            starting=pool.starting,
            waiting=len(pool.waiters),
            concurrency=pool.module.spec.concurrency,
            total=sum(other.own for other in self.pools.values()),
            room=self.settings.max_workers,
            evictable=victim is not None,
            paused=pool.pause(now) > 0,
        )
        if step is Step.REUSE:
            if now - pool.turn_at >= _TURN_SECONDS:
                pool.turn_at = now
            self._next(pool).wake(worker=pool.reuse())
        elif step is Step.REFUSE:
            self._next(pool).wake(failure=pool.refusal(now))
        elif step in (Step.SPAWN, Step.EVICT):
            if step is Step.EVICT and victim is not None:
                self.retire(victim.idle.pop(0))
            pool.turn_at = now
            self.start(pool)
        else:
            return False
        return True

    def _evictable(self, pool: Pool) -> Pool | None:
        """Return the other module with the longest idle worker, never one that would fall below `workers.min`."""
        others = (
            other
            for other in self.pools.values()
            if other is not pool and len(other.idle) + len(other.busy) > other.fewest and other.idle
        )
        return min(others, key=lambda other: other.idle[0].idle_since, default=None)

    def _next(self, pool: Pool) -> Waiter:
        self.waiting -= 1
        return pool.waiters.popleft()

    def _take(self, pool: Pool, waiter: Waiter) -> Waiter:
        self.waiting -= 1
        pool.waiters.remove(waiter)
        return waiter

    # Workers

    def release(self, worker: Worker) -> None:
        """Take a worker back. Synchronous, so that it can be called while Cancelled propagates."""
        pool = self.pools.get(worker.module.digest) if worker.module else None
        if pool is None:
            self.retire(worker)
            return
        pool.busy.discard(worker)
        now = trio.current_time()
        if not self.closing and pool.keeps(worker, now=now, max_age=self.settings.max_age_seconds):
            worker.idle_since = now
            pool.idle.append(worker)
        else:
            self.retire(worker)
        if self.waiting:
            if pool.idle and self.waiting == len(pool.waiters):  # no other module wants it
                self._next(pool).wake(worker=pool.reuse())
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
        """Retire workers that are too old or idle for too long, and forget the pools of old versions."""
        now, settings = trio.current_time(), self.settings
        for digest, pool in list(self.pools.items()):
            for worker in pool.outlived(now, settings.idle_seconds, settings.max_age_seconds):
                pool.idle.remove(worker)
                self.retire(worker)
            if pool.retired and pool.unused:
                del self.pools[digest]

    def close(self) -> None:
        """Hand out no more workers; waiting callers get `shutdown`."""
        self.closing = True
        for pool in self.pools.values():
            while pool.waiters:
                self._next(pool).wake(failure=shutting_down())
