"""Starts workers for callers and for `workers.min`, builds environments ahead of calls, backs off after failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack

import structlog
import trio
from attrs import define, field

from actors.workers.build_log import BuildLog
from actors.workers.builds import Builds
from actors.workers.fleet import Fleet
from actors.workers.pool import Phases, Pool, Waiter
from actors.workers.scheduler import Scheduler
from actors.workers.worker import StartError, Worker
from environments.base import Availability, Environment, Prepared
from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down

_PROBE_SECONDS = 2.0
"""Interval at which an unusable kind is probed again: an engine may be started, or a tool installed, meanwhile."""
_STARTS = 2
"""Starts for one caller, when the worker ended before the handler could be reached."""
_BUILDS_AT_ONCE = 20
"""Builds that begin before other tasks have their turn; most find their environment, and end at once."""

log = structlog.get_logger("executor")


@define(eq=False)
class Probing:
    """Whether this machine can use a kind; `on_found` is called when it becomes usable."""

    environment: Environment
    on_found: Callable[[], None]
    found: Availability = field(init=False)

    async def begin(self) -> None:
        """Probe for the first time."""
        self.found = await self.environment.probe()

    async def run(self) -> None:
        """Probe again while the kind is unusable, until cancelled."""
        while True:
            await trio.sleep(_PROBE_SECONDS)
            if not self.found.available:
                await self.ask()

    async def ask(self) -> None:
        """Probe again, and log a change."""
        before, self.found = self.found, await self.environment.probe()
        if self.found.available and not before.available:
            log.info("environments can be used now", env=self.environment.kind)
            self.on_found()
        elif before.available and not self.found.available:
            log.warning("environments cannot be used", env=self.environment.kind, why=self.found.reason)

    def refuse(self) -> None:
        """Raise RunnerError `unavailable` while the kind is unusable."""
        if not self.found.available:
            raise error(ErrorKind.UNAVAILABLE, self.found.reason, field="env")


@define(eq=False)
class Starter:
    """Connects builds, fleet and scheduler of one kind. Its tasks run in the nursery of the fleet."""

    fleet: Fleet
    builds: Builds
    scheduler: Scheduler = field(init=False)
    probing: Probing = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.scheduler = Scheduler(self.fleet.settings, self.fleet.limits.memory, self.start, self.fleet.retire)
        self.fleet.on_death = self.scheduler.forget
        self.probing = Probing(self.fleet.environment, self._usable)

    def refuse(self) -> None:
        """Raise RunnerError `shutdown` at the end, and `unavailable` while the kind is unusable."""
        if self.scheduler.closing or self.fleet.nursery is None:
            raise RunnerError(shutting_down())
        self.probing.refuse()

    def start(self, pool: Pool) -> None:
        """Start a worker for the oldest caller that has caused no start yet; it gets the worker, or the failure."""
        self._begin(pool, pool.next_cause())

    def _begin(self, pool: Pool, cause: Waiter | None) -> None:
        """Start a worker in a task of its own; without `cause` the oldest caller gets it, if there is one."""
        if self.fleet.nursery is None:
            return
        self.scheduler.begin(pool)
        if cause is not None:
            cause.caused = True
        if pool.prepared is not None:
            pool.report("starting worker", trio.current_time(), cause)
        elif cause is not None:
            cause.report(pool.building or "preparing environment")
        self.fleet.nursery.start_soon(self._start, pool, cause, name=f"start {pool.module.ref}")

    async def _start(self, pool: Pool, cause: Waiter | None) -> None:
        phases, again = Phases(), False
        result: Worker | Failure
        try:
            result = await self._started(pool, phases, cause)
            pool.started()
        except RunnerError as problem:
            result, again = problem.failure, isinstance(problem, StartError)
        except OSError as problem:
            result, again = Failure(ErrorKind.UNAVAILABLE, f"a worker cannot be started: {problem}"), True
        except Exception:
            log.exception("a start failed inside the runner", module=str(pool.module.ref))
            result = Failure(ErrorKind.INTERNAL, "the worker could not be started; the runner's log has the reason")
        finally:
            self.scheduler.end(pool)
            pool.activity = pool.activity if pool.starting else pool.building
        if isinstance(result, Failure):
            log.warning("a worker did not start", module=str(pool.module.ref), kind=result.kind, why=result.message)
            if again and self._again(pool, cause):
                return
            pool.failed(result, trio.current_time())
        self.scheduler.started(pool, result, phases, cause)
        if isinstance(result, Failure) and result.kind is ErrorKind.UNAVAILABLE:
            pool.prepared = None  # its environment may be gone as well
            await self.probing.ask()

    def _again(self, pool: Pool, cause: Waiter | None) -> bool:
        """Start once more for the caller of a failed start; return whether that was allowed."""
        if cause is None or cause not in pool.waiters:
            cause = pool.next_cause()
        if cause is None or cause.starts + 1 >= _STARTS or self.scheduler.closing:
            return False
        cause.starts += 1
        self._begin(pool, cause)
        return True

    async def _mend(self, prepared: Prepared) -> None:
        """Have what workers are started from right, so that another start may succeed."""
        try:
            if await self.fleet.environment.mend(prepared):
                for pool in self.scheduler.pools.values():
                    if pool.prepared is not None and pool.prepared.key == prepared.key:
                        pool.prepared = None
        except OSError as problem:
            log.warning("what workers are started from cannot be mended", why=str(problem))

    async def _started(self, pool: Pool, phases: Phases, cause: Waiter | None) -> Worker:
        """Return a worker that has imported the module of a pool. Raises as `Builds.prepared` and `Fleet.start`."""
        prepared = await self.builds.prepared(pool)
        try:
            return await self.fleet.start(pool, prepared, phases, cause)
        except (StartError, OSError) as problem:
            await self._mend(prepared)  # as a part of this start, so that it counts among the workers of the pool
            if isinstance(problem, OSError) and (idle := self.scheduler.keeping.evict()) is not None:
                await idle.end()  # the machine has no more processes, descriptors or memory for another one
            raise

    def build(self, pool: Pool) -> BuildLog:
        """Build the environment of a pool in a task of its own, or join the build in progress; return its log."""
        if (pool.build is None or pool.build.ended) and self.fleet.nursery is not None:
            self.fleet.nursery.start_soon(self._prepare, pool, name=f"prepare {pool.module.ref}")
        return pool.log_build()

    def rebuild(self, pool: Pool) -> BuildLog:
        """Build the environment of a pool again in a task of its own, and replace the existing one; return its log.

        Joins a build in progress. Idle workers of all modules that share the environment end first. Raises RunnerError
        `conflict` while one of them is busy or starts, and while others are built, whose keys are not known yet.
        """
        if pool.build is not None and not pool.build.ended:
            return pool.build
        key = None if pool.prepared is None else pool.prepared.key
        pools = self.scheduler.pools.values()
        sharing = [each for each in pools if each.prepared is not None and each.prepared.key == key] or [pool]
        users = sorted(str(each.module.ref) for each in sharing if each.busy or each.starting)
        if users:
            text = f"workers of {', '.join(users)} use it now; cancel or wait for their calls, then try again"
            raise error(ErrorKind.CONFLICT, text, field="key", retry_after=1)
        if self.builds.running or self.fleet.nursery is None:
            text = "other environments are being built; try again when these builds have ended"
            raise error(ErrorKind.CONFLICT, text, field="key", retry_after=1)
        for each in sharing:
            each.idle.clear()
            each.prepared, each.rebuilding = None, key
        self.fleet.nursery.start_soon(self._rebuild, pool, sharing, key, name=f"rebuild {pool.module.ref}")
        return pool.log_build()

    async def _rebuild(self, pool: Pool, sharing: Sequence[Pool], key: str | None) -> None:
        """Hold back the callers of these pools, end the workers of the environment, and build it."""
        lines = pool.log_build()
        try:
            async with AsyncExitStack() as stack:
                for each in sharing:
                    await stack.enter_async_context(each.preparing)
                if key is not None:
                    await self.fleet.leave(key)
                await self.builds.rebuild(pool, self._keys())
        except (RunnerError, OSError) as problem:
            log.warning("an environment was not built again", module=str(pool.module.ref), why=str(problem))
        finally:
            lines.end(failure=shutting_down())  # where it has not ended before
            for each in sharing:
                each.rebuilding = None
        self.build_ahead(sharing)

    def build_ahead(self, pools: Iterable[Pool]) -> None:
        """Build the missing environments of published versions, if the kind can be used."""
        missing = [pool for pool in pools if pool.prepared is None]
        if missing and self.fleet.nursery is not None and self.probing.found.available:
            self.fleet.nursery.start_soon(self._build_ahead, missing, name="build ahead")

    async def _build_ahead(self, pools: Sequence[Pool]) -> None:
        """Begin these builds, some at a time: a file can publish thousands of modules at once."""
        for number, pool in enumerate(pools, start=1):
            if self.fleet.nursery is not None and not pool.retired and pool.prepared is None:
                self.fleet.nursery.start_soon(self._prepare, pool, name=f"prepare {pool.module.ref}")
            if number % _BUILDS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    async def _prepare(self, pool: Pool) -> None:
        """Build ahead of the first call, keep spares, and start `workers.min`; the first call gets a failure."""
        try:
            self.fleet.spares.refill(await self.builds.prepared(pool))
        except (RunnerError, OSError) as problem:
            log.warning("an environment is not ready", module=str(pool.module.ref), why=str(problem))
            if isinstance(problem, RunnerError):
                pool.failed(problem.failure, trio.current_time())
            return
        self._fill(pool)

    def _fill(self, pool: Pool) -> None:
        """Start workers up to the module's `workers.min`, as far as there is room."""
        for _ in range(pool.missing(trio.current_time())):
            if self.scheduler.room > 0 and self.scheduler.keeping.has_room():
                self._begin(pool, None)

    def maintain(self) -> None:
        """Keep `workers.min` and the spares ready, and report the environments in use, so that `gc` keeps them."""
        for pool in self.scheduler.pools.values():
            if pool.fewest and pool.prepared is not None:
                self._fill(pool)
            elif pool.missing(trio.current_time()) and pool.was_unavailable and not pool.preparing.locked():
                self.build_ahead([pool])
        self.fleet.spares.maintain()
        if not self.builds.running:  # the key of an environment being built is not known here yet
            self.fleet.environment.keep(self._keys())

    def _usable(self) -> None:
        """Resume builds and callers that waited for the kind to be usable."""
        pools = self.scheduler.pools.values()
        for pool in pools:
            if pool.was_unavailable:
                pool.started()
        self.build_ahead(pools)
        self.scheduler.pump()

    def _keys(self) -> set[str]:
        """Return the keys of the environments in use."""
        keys = {pool.prepared.key for pool in self.scheduler.pools.values() if pool.prepared is not None}
        return keys | self.fleet.environment_keys()
