"""One supervisor for each kind of environment: capacity, idle workers, starts, back-off, drain; hands out leases.

State changes only between checkpoints, so there is no lock and no mailbox: the caller's own task borrows a worker, and
cancellation, deadline and errors travel on its call stack.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
import trio
from attrs import define, evolve, field

from actors.registry import Published, RegistrySnapshot
from actors.workers.build_log import BuildLog
from actors.workers.pool import (
    TURN_SECONDS,
    ExecutorStatistics,
    Phases,
    Pool,
    Step,
    Waiter,
    count,
    next_served,
    next_step,
    oldest_idle,
)
from actors.workers.probing import Probing
from actors.workers.starter import Starter
from actors.workers.worker import StartError, Worker
from config.secrets import LookUp
from config.settings import ExecutorSettings
from environments.base import Availability, Environment
from environments.limits import LimitKeeper
from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down

_MAINTENANCE_SECONDS = 1.0
_STARTS = 2
"""How often a worker is started for a caller, when it ended before the handler could be reached."""

log = structlog.get_logger("executor")


@define(eq=False)
class Executor:
    """Owns all workers of one kind."""

    environment: Environment
    settings: ExecutorSettings
    limits: LimitKeeper
    max_frame_bytes: int
    secrets: LookUp
    probing: Probing = field(init=False)
    _pools: dict[str, Pool] = field(factory=dict, init=False)
    _starter: Starter = field(init=False)
    _waiting: int = field(default=0, init=False)
    _published: frozenset[str] = field(default=frozenset(), init=False)
    """Digests of versions that calls can get."""
    _served: frozenset[str] = field(default=frozenset(), init=False)
    """Digests of versions that calls get which name none."""
    _nursery: trio.Nursery | None = field(default=None, init=False)
    _closing: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        given = self.environment, self.settings, self.limits, self.max_frame_bytes, self.secrets
        self._starter = Starter(*given, self._died)
        self.probing = Probing(self.environment, self._usable)

    @property
    def availability(self) -> Availability:
        """Whether this machine has what the kind needs."""
        return self.probing.found

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Supervise until cancelled; every worker has ended when this returns."""
        await self.probing.begin()
        try:
            async with trio.open_nursery() as nursery:
                await self._supervise(nursery, task_status)
        finally:
            self.environment.keep(())

    async def _supervise(self, nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        self._nursery = self._starter.nursery = nursery
        self._closing = False
        nursery.start_soon(self.probing.run, name=f"probe {self.environment.kind}")
        task_status.started()
        try:
            while True:
                await trio.sleep(_MAINTENANCE_SECONDS)
                self._maintain()
        finally:
            self.close()
            self._nursery = None
            self._pools.clear()
            self._starter.close()

    def _usable(self) -> None:
        """Go on with what waited for the kind to be usable."""
        for pool in self._pools.values():
            if pool.last_failure is not None and pool.last_failure.kind is ErrorKind.UNAVAILABLE:
                pool.started()
            self._prepare_soon(pool)
        self._pump()

    def close(self) -> None:
        """Give out no more workers; those who wait are answered `shutdown`."""
        self._closing = True
        for pool in self._pools.values():
            while pool.waiters:
                self._next_waiter(pool).wake(failure=shutting_down())

    @asynccontextmanager
    async def lease(
        self, module: Published, phases: Phases, *, ask: Callable[[], Waiter] | None = None, patient: bool = False
    ) -> AsyncIterator[Worker]:
        """Lend a worker of `module`; `phases` says where the time until then went.

        Who must wait does so as the waiter that `ask` returns; whoever has it can end the wait. Who is `patient` was
        counted before, so that neither `max_waiting` nor `queue_timeout` applies. Raises RunnerError: `overloaded` (the
        waiting room is full, or `queue_timeout` passed; says what it waited for), `environment_failed`, `load_failed`,
        `unavailable`, `shutdown`, and what the waiter gave up with. Cancelled while waiting, nothing is held.
        """
        pool = self._pool(module)
        pool.forget_ended()
        if pool.idle and not self._waiting and not self._closing:
            worker = pool.reuse()
        else:
            self._refuse(pool, patient=patient)
            waiter = Waiter() if ask is None else ask()
            worker = await self._acquire(pool, waiter, phases, patient=patient)
        try:
            yield worker
        finally:
            self._release(worker)

    async def _acquire(self, pool: Pool, waiter: Waiter, phases: Phases, *, patient: bool) -> Worker:
        began = trio.current_time()
        pool.waiters.append(waiter)
        self._waiting += 1
        try:
            if pool.idle or pool.own < pool.module.spec.concurrency:  # else nothing can be done for it now
                self._pump()
            if not waiter.woken.is_set():
                if not pool.starting:
                    waiter.tell(pool.reason(began))
                await self._wait(pool, waiter, math.inf if patient else pool.module.spec.queue_timeout)
        except BaseException:
            if waiter in pool.waiters:
                pool.waiters.remove(waiter)
                self._waiting -= 1
            elif waiter.worker is not None:
                self._release(waiter.worker)
            raise
        if waiter.phases is not None:
            began += phases.add(waiter.phases)
        phases.queue += max(0.0, trio.current_time() - began)
        if waiter.failure is not None:
            raise RunnerError(waiter.failure)
        assert waiter.worker is not None  # noqa: S101  (woken without failure)
        return waiter.worker

    def _refuse(self, pool: Pool, *, patient: bool) -> None:
        """Raise what can be said without waiting."""
        self._refuse_all()
        now = trio.current_time()
        if self._waiting >= self.settings.max_waiting and not patient:
            text = f"{self._waiting} callers wait already ({pool.reason(now)})"
            raise error(ErrorKind.OVERLOADED, text, retry_after=1)
        if pool.pause(now) and not pool.own and (refusal := pool.refusal(now)) is not None:
            raise RunnerError(refusal)

    def _refuse_all(self) -> None:
        if self._closing or self._nursery is None:
            raise RunnerError(shutting_down())
        self.probing.refuse()

    async def _wait(self, pool: Pool, waiter: Waiter, limit: float) -> None:
        """Wait until the waiter is woken. Raises RunnerError when it gave up, or `limit` passed behind others."""
        waiter.scope.deadline = trio.current_time() + limit
        while True:
            with waiter.scope:
                await waiter.woken.wait()
            if waiter.woken.is_set():
                return
            if waiter.failure is not None:
                raise RunnerError(waiter.failure)
            # A start has deadlines of its own; queue_timeout is for waiting behind others.
            if not pool.starting:
                text = f"no worker within queue_timeout ({limit:g} s): {pool.reason(trio.current_time())}"
                raise error(ErrorKind.OVERLOADED, text, retry_after=limit)
            waiter.scope = trio.CancelScope(deadline=trio.current_time() + limit)

    def _pool(self, module: Published) -> Pool:
        pool = self._pools.get(module.digest)
        if pool is None:
            pool = self._pools[module.digest] = Pool(module)
            self._place(pool)  # a caller may come with a version that was replaced while it was on its way
        return pool

    def _pump(self) -> None:
        """Serve the waiting callers as far as capacity allows: modules in turn, callers of one module in order."""
        now = trio.current_time()
        todo = [pool for pool in self._pools.values() if pool.waiters]
        while (pool := next_served(todo, now)) is not None:
            if not self._serve_one(pool, now):
                todo.remove(pool)

    def _serve_one(self, pool: Pool, now: float) -> bool:
        """Do what can be done for the oldest caller of a module; return whether that was something."""
        pool.forget_ended()
        victim = oldest_idle(self._pools, besides=pool)
        step = next_step(
            idle=len(pool.idle),
            own=pool.own,
            starting=pool.starting,
            waiting=len(pool.waiters),
            concurrency=pool.module.spec.concurrency,
            total=sum(other.own for other in self._pools.values()),
            room=self.settings.max_workers,
            evictable=victim is not None,
            paused=pool.pause(now) > 0,
        )
        if step is Step.REUSE:
            if now - pool.turn_at >= TURN_SECONDS:
                pool.turn_at = now
            self._next_waiter(pool).wake(worker=pool.reuse())
        elif step is Step.REFUSE:
            self._next_waiter(pool).wake(failure=pool.refusal(now))
        elif step in (Step.SPAWN, Step.EVICT):
            if step is Step.EVICT and victim is not None:
                other, idle = victim
                other.idle.remove(idle)
                self._starter.retire(idle)
            pool.turn_at = now
            self._start(pool)
        else:
            return False
        return True

    def _next_waiter(self, pool: Pool) -> Waiter:
        self._waiting -= 1
        return pool.waiters.popleft()

    def _release(self, worker: Worker) -> None:
        """Take a worker back. Synchronous: it may be called while Cancelled goes up."""
        pool = self._pools.get(worker.module.digest) if worker.module else None
        if pool is None:
            self._starter.retire(worker)
            return
        pool.busy.discard(worker)
        now = trio.current_time()
        if not self._closing and pool.keeps(worker, now=now, max_age=self.settings.max_age_seconds):
            worker.idle_since = now
            pool.idle.append(worker)
        else:
            self._starter.retire(worker)
        if self._waiting:
            if pool.idle and self._waiting == len(pool.waiters):  # nobody else wants it
                self._next_waiter(pool).wake(worker=pool.reuse())
            else:
                self._pump()

    def _start(self, pool: Pool) -> None:
        if self._nursery is not None:
            pool.starting += 1
            pool.say("starting worker", trio.current_time())
            self._nursery.start_soon(self._spawn, pool, name=f"start {pool.module.ref}")

    async def _spawn(self, pool: Pool) -> None:
        """Start one worker and give it to the oldest caller of its module; a failure likewise."""
        phases = Phases()
        worker, failure, again = None, None, False
        try:
            worker = await self._starter.start(pool, phases)
            pool.started()
        except RunnerError as problem:
            failure, again = problem.failure, isinstance(problem, StartError)
        except OSError as problem:
            failure, again = Failure(ErrorKind.UNAVAILABLE, f"a worker cannot be started: {problem}"), True
        except Exception:
            log.exception("a start failed inside the runner", module=str(pool.module.ref))
            failure = Failure(ErrorKind.INTERNAL, "the worker could not be started; the runner's log says why")
        finally:
            pool.starting -= 1
            pool.activity = pool.activity if pool.starting else ""
        if failure is not None:
            log.warning("a worker did not start", module=str(pool.module.ref), kind=failure.kind, why=failure.message)
            if again and pool.waiters and pool.waiters[0].starts + 1 < _STARTS and not self._closing:
                pool.waiters[0].starts += 1
                self._start(pool)
                return
            pool.failed(failure, trio.current_time())
        if worker is not None:
            pool.busy.add(worker)
            if pool.waiters:
                self._next_waiter(pool).wake(worker=worker, phases=phases)
            else:
                self._release(worker)
        elif pool.waiters:
            self._next_waiter(pool).wake(failure=failure, phases=phases)
        self._pump()
        if failure is not None and failure.kind is ErrorKind.UNAVAILABLE:
            pool.prepared = None  # what it needs may have gone with what was lost
            await self.probing.ask()

    def _died(self, worker: Worker) -> None:
        """Forget a guest that ended while nobody used it."""
        pool = self._pools.get(worker.module.digest) if worker.module else None
        if pool is not None and worker in pool.idle:
            pool.idle.remove(worker)
            log.warning("an idle worker ended", module=str(pool.module.ref), exit_code=worker.guest.exit_code)

    def publish(self, snapshot: RegistrySnapshot) -> None:
        """Follow the registry: workers of what is gone take no call, environments of what is served are prepared.

        Of versions that are not served, but can be asked for, no worker is kept ahead of a call.
        """
        mine = {m.digest: m for m in snapshot.everything() if m.spec.env is self.environment.kind}
        self._served = frozenset(m.digest for m in snapshot.modules.values()) & mine.keys()
        self._published = frozenset(mine)
        for digest, pool in list(self._pools.items()):
            self._place(pool)
            while pool.idle and not pool.served:
                self._starter.retire(pool.idle.pop())
            if pool.unused and not pool.served:
                del self._pools[digest]
        for digest in self._served:
            self._prepare_soon(self._pool(mine[digest]))

    def _place(self, pool: Pool) -> None:
        """Note whether calls may get the version of a pool, and whether also those that name none."""
        digest = pool.module.digest
        pool.retired, pool.served = digest not in self._published, digest in self._served

    async def lock(self, module: Published) -> None:
        """Resolve what the module needs and does not pin; builds take the same. Raises RunnerError as `prepare`."""
        self._refuse_all()
        await self._starter.lock(module.spec)

    def prepare(self, module: Published) -> BuildLog:
        """Build the environment of a module where it is missing; return what the build says, and how it ends.

        Callers share a build, which goes on when none of them waits any more. Raises RunnerError `unavailable`,
        `shutdown`, and for a moment what the last build failed with.
        """
        pool = self._pool(module)
        if pool.prepared is not None and pool.build is not None:
            return pool.build
        self._refuse(pool, patient=True)
        if (pool.build is None or pool.build.ended) and self._nursery is not None:
            self._nursery.start_soon(self._prepare_quietly, pool, name=f"prepare {module.ref}")
        return pool.log_build()

    def _prepare_soon(self, pool: Pool) -> None:
        if self._nursery is None or pool.retired or not self.availability.available or pool.prepared is not None:
            return
        self._nursery.start_soon(self._prepare_quietly, pool, name=f"prepare {pool.module.ref}")

    async def _prepare_quietly(self, pool: Pool) -> None:
        """Build ahead of the first call, keep a spare, and start `workers.min`; a failure is told to the first call."""
        try:
            await self._starter.prepare(pool)
        except (RunnerError, OSError) as problem:
            log.warning("an environment is not ready", module=str(pool.module.ref), why=str(problem))
            if isinstance(problem, RunnerError):
                pool.failed(problem.failure, trio.current_time())
            return
        finally:
            pool.activity = pool.activity if pool.starting else ""
        self._fill(pool)

    def _fill(self, pool: Pool) -> None:
        """Start workers up to the module's `workers.min`, as far as there is room."""
        room = self.settings.max_workers - sum(other.own for other in self._pools.values())
        for _ in range(min(pool.missing(trio.current_time()), room)):
            self._start(pool)

    def _maintain(self) -> None:
        """Retire what is idle or old, and keep `workers.min` ready."""
        now = trio.current_time()
        for digest, pool in list(self._pools.items()):
            for worker in pool.outlived(now, self.settings.idle_seconds, self.settings.max_age_seconds):
                pool.idle.remove(worker)
                self._starter.retire(worker)
            if pool.retired and pool.unused:
                del self._pools[digest]
            elif pool.fewest and pool.prepared is not None:
                self._fill(pool)
        self._starter.spares.maintain()
        self._starter.keep(self._pools.values())
        if self._waiting:  # for a start that may be tried again now
            self._pump()

    def statistics(self) -> ExecutorStatistics:
        """Return what this executor has now."""
        return evolve(count(self._pools.values(), self._waiting), **self._starter.counted())
