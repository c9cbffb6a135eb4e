"""One supervisor for each kind of environment: capacity, idle workers, starts, back-off, drain; hands out leases.

State changes only between checkpoints, so there is no lock and no mailbox: the caller's own task borrows a worker, and
cancellation, deadline and errors travel on its call stack.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio
from attrs import define, field, frozen

from actors.output import Output
from actors.pool import Phases, Pool, Step, Waiter, WaitingRoom, next_step, oldest_idle
from actors.registry import Published, RegistrySnapshot
from actors.worker import Worker
from config.settings import ExecutorSettings
from environments.base import Availability, Environment, Prepared
from environments.limits import LimitKeeper, Limits
from protocol.errors import ErrorKind, Failure, RunnerError, error

_MAINTENANCE_SECONDS = 1.0
_PROBE_SECONDS = 2.0
_SPARE_KEYS = 8

log = structlog.get_logger("executor")


@frozen
class ExecutorStatistics:
    """What one executor has at this moment."""

    workers: int
    idle: int
    busy: int
    starting: int
    waiting: int
    spares: int
    started: int
    ended: int


@define(eq=False)
class Executor:
    """Owns all workers of one kind."""

    environment: Environment
    settings: ExecutorSettings
    limits: LimitKeeper
    max_frame_bytes: int
    availability: Availability = field(init=False)
    _pools: dict[str, Pool] = field(factory=dict, init=False)
    _waiting: WaitingRoom = field(factory=WaitingRoom, init=False)
    _published: frozenset[str] = field(default=frozenset(), init=False)
    _spares: dict[str, list[Worker]] = field(factory=dict, init=False)
    _nursery: trio.Nursery | None = field(default=None, init=False)
    _closing: bool = field(default=False, init=False)
    _started: int = field(default=0, init=False)
    _ended: int = field(default=0, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Supervise until cancelled; every worker has ended when this returns."""
        self.availability = await self.environment.probe()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._closing = False
            nursery.start_soon(self._keep_probing, name=f"probe {self.environment.kind}")
            task_status.started()
            try:
                while True:
                    await trio.sleep(_MAINTENANCE_SECONDS)
                    self._maintain()
            finally:
                self.close()
                self._nursery = None
                self._pools.clear()
                self._spares.clear()

    async def _keep_probing(self) -> None:
        """Ask again for what cannot be used: an engine may be started, or a tool installed, after the runner."""
        while True:
            await trio.sleep(_PROBE_SECONDS)
            if not self.availability.available:
                await self._probe()

    async def _probe(self) -> None:
        before, self.availability = self.availability, await self.environment.probe()
        if self.availability.available and not before.available:
            log.info("environments can be used now", env=self.environment.kind)
            for pool in self._pools.values():
                if pool.last_failure is not None and pool.last_failure.kind is ErrorKind.UNAVAILABLE:
                    pool.started()
                self._prepare_soon(pool)
            self._pump()
        elif before.available and not self.availability.available:
            log.warning("environments cannot be used", env=self.environment.kind, why=self.availability.reason)

    def close(self) -> None:
        """Give out no more workers; those who wait are answered `shutdown`."""
        self._closing = True
        for waiter in list(self._waiting):
            self._wake(waiter, failure=Failure(ErrorKind.SHUTDOWN, "the runner is shutting down"))

    @asynccontextmanager
    async def lease(self, module: Published, phases: Phases) -> AsyncIterator[Worker]:
        """Lend a worker of `module`; `phases` says where the time until then went.

        Raises RunnerError: `overloaded` (the waiting room is full, or `queue_timeout` passed; says what it waited
        for), `environment_failed`, `load_failed`, `unavailable`, `shutdown`. Cancelled while waiting, nothing is held.
        """
        worker = await self._acquire(module, phases)
        try:
            yield worker
        finally:
            self._release(worker)

    async def _acquire(self, module: Published, phases: Phases) -> Worker:
        pool = self._pool(module)
        pool.forget_ended()
        if pool.idle and not self._waiting and not self._closing:
            return pool.reuse()
        self._refuse(pool)
        began = trio.current_time()
        waiter = Waiter(pool, trio.Event())
        self._waiting.append(waiter)
        pool.waiting += 1
        try:
            self._pump()
            await self._wait(waiter)
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                pool.waiting -= 1
            elif waiter.worker is not None:
                self._release(waiter.worker)
            raise
        if waiter.phases is not None:
            phases.build += waiter.phases.build
            phases.start += waiter.phases.start
            phases.load += waiter.phases.load
            began += waiter.phases.build + waiter.phases.start + waiter.phases.load
        phases.queue += max(0.0, trio.current_time() - began)
        if waiter.failure is not None:
            raise RunnerError(waiter.failure)
        assert waiter.worker is not None  # noqa: S101  (woken without failure)
        return waiter.worker

    def _refuse(self, pool: Pool) -> None:
        """Raise what can be said without waiting."""
        if self._closing or self._nursery is None:
            raise error(ErrorKind.SHUTDOWN, "the runner is shutting down", retry_after=5)
        if not self.availability.available:
            raise error(ErrorKind.UNAVAILABLE, self.availability.reason, field="env")
        if len(self._waiting) >= self.settings.max_waiting:
            text = f"{len(self._waiting)} callers wait already ({pool.reason(trio.current_time())})"
            raise error(ErrorKind.OVERLOADED, text, retry_after=1)
        pause = pool.pause(trio.current_time())
        if pool.last_failure is not None and pause and not pool.own:
            raise RunnerError(_again_in(pool.last_failure, pause))

    async def _wait(self, waiter: Waiter) -> None:
        pool = waiter.pool
        limit = pool.module.spec.queue_timeout
        while True:
            with trio.move_on_after(limit):
                await waiter.woken.wait()
                return
            if waiter.woken.is_set():
                return
            # A start has deadlines of its own; queue_timeout is for waiting behind others.
            if not pool.starting:
                reason = pool.reason(trio.current_time())
                text = f"no worker within queue_timeout ({limit:g} s): {reason}"
                raise error(ErrorKind.OVERLOADED, text, retry_after=limit)

    def _pool(self, module: Published) -> Pool:
        pool = self._pools.get(module.digest)
        if pool is None:
            pool = self._pools[module.digest] = Pool(module)
            # A caller may come with a version that was replaced while it was on its way.
            pool.retired = module.digest not in self._published
        return pool

    def _pump(self) -> None:
        """Serve the waiting callers, oldest first, as far as capacity allows."""
        now = trio.current_time()
        for waiter in list(self._waiting):
            pool = waiter.pool
            pool.forget_ended()
            pause = pool.pause(now)
            victim = oldest_idle(self._pools, besides=pool)
            step = next_step(
                idle=len(pool.idle),
                own=pool.own,
                starting=pool.starting,
                waiting=pool.waiting,
                concurrency=pool.module.spec.concurrency,
                total=sum(other.own for other in self._pools.values()),
                room=self.settings.max_workers,
                evictable=victim is not None,
                paused=pause > 0,
            )
            if step is Step.REUSE:
                self._wake(waiter, worker=pool.reuse())
            elif step is Step.REFUSE and pool.last_failure is not None:
                self._wake(waiter, failure=_again_in(pool.last_failure, pause))
            elif step in (Step.SPAWN, Step.EVICT):
                if step is Step.EVICT and victim is not None:
                    other, idle = victim
                    other.idle.remove(idle)
                    self._background(idle)
                self._start(pool)

    def _wake(
        self,
        waiter: Waiter,
        *,
        worker: Worker | None = None,
        failure: Failure | None = None,
        phases: Phases | None = None,
    ) -> None:
        self._waiting.remove(waiter)
        waiter.pool.waiting -= 1
        waiter.worker, waiter.failure, waiter.phases = worker, failure, phases
        waiter.woken.set()

    def _release(self, worker: Worker) -> None:
        """Take a worker back. Synchronous: it may be called while Cancelled goes up."""
        module = worker.module
        pool = self._pools.get(module.digest) if module else None
        if pool is None:
            self._background(worker)
            return
        pool.busy.discard(worker)
        now = trio.current_time()
        if not self._closing and pool.keeps(worker, now=now, max_age=self.settings.max_age_seconds):
            worker.idle_since = now
            pool.idle.append(worker)
        else:
            self._background(worker)
        if self._waiting:
            self._pump()

    def _background(self, worker: Worker) -> None:
        """End a worker that nobody uses. On the way down its own task does that."""
        if self._nursery is not None and not worker.ended:
            self._nursery.start_soon(worker.retire, name=f"retire {worker.guest.name}")

    def _start(self, pool: Pool) -> None:
        if self._nursery is not None:
            pool.starting += 1
            self._nursery.start_soon(self._spawn, pool, name=f"start {pool.module.ref}")

    async def _spawn(self, pool: Pool) -> None:
        """Start one worker and give it to the oldest caller of its module; a failure likewise."""
        phases = Phases()
        worker: Worker | None = None
        failure: Failure | None = None
        try:
            worker = await self._started_worker(pool, phases)
            pool.started()
        except RunnerError as problem:
            failure = problem.failure
        except OSError as problem:
            failure = Failure(ErrorKind.UNAVAILABLE, f"a worker cannot be started: {problem}")
        except Exception:
            log.exception("a start failed inside the runner", module=str(pool.module.ref))
            failure = Failure(ErrorKind.INTERNAL, "the worker could not be started; the runner's log says why")
        finally:
            pool.starting -= 1
            pool.activity = "" if not pool.starting else pool.activity
        if failure is not None:
            pool.failed(failure, trio.current_time())
            log.warning("a worker did not start", module=str(pool.module.ref), kind=failure.kind, why=failure.message)
        first = next((waiter for waiter in self._waiting if waiter.pool is pool), None)
        if worker is not None:
            pool.busy.add(worker)
            if first is not None:
                self._wake(first, worker=worker, phases=phases)
            else:
                self._release(worker)
        elif first is not None:
            self._wake(first, failure=failure, phases=phases)
        self._pump()
        if failure is not None and failure.kind is ErrorKind.UNAVAILABLE:
            pool.prepared = None  # what it needs may have gone with what was lost
            await self._probe()

    async def _started_worker(self, pool: Pool, phases: Phases) -> Worker:
        spec = pool.module.spec
        began = trio.current_time()
        self._busy_with(pool, "building environment")
        prepared = await self._prepared(pool)
        built = trio.current_time()
        self._busy_with(pool, "starting worker")
        worker = self._take_spare(prepared.key) or self._launch(prepared)
        try:
            limits = Limits(spec.memory, spec.cpus, spec.processes)
            worker.hold = await worker.guest.confine(limits, self.limits)
            if worker.hold is not None and worker.hold.watched() and self._nursery is not None:
                self._nursery.start_soon(worker.watch, name=f"watch {worker.guest.name}")
            started = trio.current_time()
            self._busy_with(pool, "importing module")
            output = Output(limit=spec.output, keep=self.settings.kept_output_bytes)
            ready = await worker.start(pool.module, output)
        except BaseException:
            await worker.end()
            raise
        phases.build, phases.start = built - began, started - built
        phases.load = trio.current_time() - started
        log.info(
            "worker started",
            module=str(pool.module.ref),
            pid=ready.pid,
            python=ready.python,
            load=round(phases.load, 4),
        )
        self._refill(prepared)
        return worker

    def _busy_with(self, pool: Pool, activity: str) -> None:
        pool.activity, pool.activity_since = activity, trio.current_time()

    async def _prepared(self, pool: Pool) -> Prepared:
        """Return the environment of a module, built within its `build_timeout`; known ones cost nothing."""
        if pool.prepared is not None:
            return pool.prepared
        spec = pool.module.spec
        lines: list[str] = []

        def say(line: str) -> None:
            log.debug("build", module=spec.name, line=line)
            lines[:] = [*lines[-9:], line]

        async with pool.preparing:
            if pool.last_failure is not None and pool.pause(trio.current_time()):
                raise RunnerError(pool.last_failure)  # the build that this one waited for
            if pool.prepared is None:
                with trio.move_on_after(spec.build_timeout):
                    pool.prepared = await self.environment.prepare(spec, say)
            if pool.prepared is None:
                text = f"the environment was not built within build_timeout ({spec.build_timeout:g} s)"
                raise error(ErrorKind.ENVIRONMENT_FAILED, "\n".join([text, *lines]), field="build_timeout")
            return pool.prepared

    def _launch(self, prepared: Prepared) -> Worker:
        """Start a guest and the task that looks after it. Raises OSError."""
        if self._nursery is None:
            raise error(ErrorKind.SHUTDOWN, "the runner is shutting down")
        guest = self.environment.launch(prepared)
        worker = Worker(guest, self.max_frame_bytes, self.settings.grace_seconds, prepared.key)
        self._started += 1
        self._nursery.start_soon(self._live, worker, name=f"worker {guest.name}")
        return worker

    async def _live(self, worker: Worker) -> None:
        """Look after a worker for its whole life; nothing of it is left when this returns."""
        try:
            await worker.tend(self._died)
        finally:
            await worker.retire()
            worker.release()
            self._ended += 1

    def _died(self, worker: Worker) -> None:
        """Forget a guest that ended while nobody used it."""
        pool = self._pools.get(worker.module.digest) if worker.module else None
        if pool is not None and worker in pool.idle:
            pool.idle.remove(worker)
            log.warning("an idle worker ended", module=str(pool.module.ref), exit_code=worker.guest.exit_code)
        for spares in self._spares.values():
            if worker in spares:
                spares.remove(worker)

    def _take_spare(self, key: str) -> Worker | None:
        spares = self._spares.get(key, [])
        while spares:
            worker = spares.pop()
            if worker.guest.exit_code is None:
                return worker
        return None

    def _refill(self, prepared: Prepared) -> None:
        """Keep interpreters started for the environments used last."""
        spares = self._spares.pop(prepared.key, [])
        self._spares[prepared.key] = spares
        while len(self._spares) > _SPARE_KEYS:
            for worker in self._spares.pop(next(iter(self._spares))):
                self._background(worker)
        try:
            while len(spares) < self.settings.spares:
                spares.append(self._launch(prepared))
        except (OSError, RunnerError) as problem:
            log.warning("no spare interpreter could be started", why=str(problem))

    def publish(self, snapshot: RegistrySnapshot) -> None:
        """Follow the registry: workers of what is gone take no new call, environments of what came are prepared."""
        wanted = {m.digest: m for m in snapshot.modules.values() if m.spec.env is self.environment.kind}
        self._published = frozenset(wanted)
        for digest, pool in list(self._pools.items()):
            if digest not in wanted:
                pool.retired = True
                for worker in pool.idle:
                    self._background(worker)
                pool.idle.clear()
                if not pool.own and not pool.waiting:
                    del self._pools[digest]
        for module in wanted.values():
            pool = self._pool(module)
            pool.retired = False
            self._prepare_soon(pool)

    def _prepare_soon(self, pool: Pool) -> None:
        if self._nursery is None or pool.retired or not self.availability.available or pool.prepared is not None:
            return
        self._nursery.start_soon(self._prepare_quietly, pool, name=f"prepare {pool.module.ref}")

    async def _prepare_quietly(self, pool: Pool) -> None:
        """Build ahead of the first call, keep a spare, and start `workers.min`; a failure is told to the first call."""
        try:
            self._refill(await self._prepared(pool))
        except (RunnerError, OSError) as problem:
            log.warning("an environment is not ready", module=str(pool.module.ref), why=str(problem))
            if isinstance(problem, RunnerError):
                pool.failed(problem.failure, trio.current_time())
            return
        self._fill(pool)

    def _fill(self, pool: Pool) -> None:
        """Start workers up to the module's `workers.min`, as far as there is room."""
        if pool.retired or pool.pause(trio.current_time()):
            return
        total = sum(other.own for other in self._pools.values())
        missing = min(pool.module.spec.workers.min - pool.own, self.settings.max_workers - total)
        for _ in range(missing):
            self._start(pool)

    def _maintain(self) -> None:
        """Retire what is idle or old, and keep `workers.min` ready."""
        now = trio.current_time()
        for digest, pool in list(self._pools.items()):
            policy = pool.module.spec.workers
            limit = policy.idle if policy.idle is not None else self.settings.idle_seconds
            for worker in list(pool.idle):
                surplus = len(pool.idle) + len(pool.busy) > policy.min and now - worker.idle_since > limit
                if surplus or now - worker.launched_at > self.settings.max_age_seconds:
                    pool.idle.remove(worker)
                    self._background(worker)
            if pool.retired and not pool.own and not pool.waiting:
                del self._pools[digest]
            elif policy.min and pool.prepared is not None:
                self._fill(pool)
        if self._waiting:  # for a start that may be tried again now
            self._pump()

    def waiting_for(self, module: Published) -> str:
        """Return why a caller of this module would wait now."""
        return self._pool(module).reason(trio.current_time())

    def statistics(self) -> ExecutorStatistics:
        """Return what this executor has now."""
        pools = self._pools.values()
        return ExecutorStatistics(
            workers=sum(pool.own for pool in pools),
            idle=sum(len(pool.idle) for pool in pools),
            busy=sum(len(pool.busy) for pool in pools),
            starting=sum(pool.starting for pool in pools),
            waiting=len(self._waiting),
            spares=sum(len(spares) for spares in self._spares.values()),
            started=self._started,
            ended=self._ended,
        )


def _again_in(failure: Failure, pause: float) -> Failure:
    """Return the failure of the last start, saying when the next one is tried."""
    text = f"{failure.message}\n(not tried again for {pause:.1f} s)"
    return Failure(failure.kind, text, failure.type, failure.traceback, failure.field, retry_after=pause)
