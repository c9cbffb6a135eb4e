"""Makes the workers of one kind (environment, spare or new interpreter, limits, module); tends each to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog
import trio
from attrs import define, field

from actors.events import EventLog
from actors.workers.builds import Builds
from actors.workers.masking import look_up
from actors.workers.pool import Phases, Pool
from actors.workers.spares import Spares
from actors.workers.worker import Worker
from config.modules import ModuleSpec
from config.secrets import LookUp
from config.settings import ExecutorSettings
from environments.base import Environment, Prepared
from environments.limits import LimitKeeper, Limits
from protocol.errors import RunnerError, shutting_down

log = structlog.get_logger("starter")


@define(eq=False)
class Starter:
    """Starts workers in `nursery`, which is open while the executor runs. `on_death` hears of each one that ended."""

    environment: Environment
    settings: ExecutorSettings
    limits: LimitKeeper
    max_frame_bytes: int
    secrets: LookUp
    on_death: Callable[[Worker], None]
    nursery: trio.Nursery | None = field(default=None, init=False)
    started: int = field(default=0, init=False)
    ended: int = field(default=0, init=False)
    spares: Spares = field(init=False)
    _living: set[Worker] = field(factory=set, init=False)
    _builds: Builds = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._builds = Builds(self.environment, self.settings.max_builds)
        self.spares = Spares(self.settings.spares, self.settings.max_age_seconds, self._launch, self.retire)

    def counted(self) -> dict[str, int]:
        """Return what was started, ended and built, by the names of `ExecutorStatistics`."""
        builds = self._builds
        counts = {"spares": len(self.spares), "started": self.started, "ended": self.ended}
        return counts | {"building": builds.running, "built": builds.built, "builds_failed": builds.failed}

    async def prepare(self, pool: Pool) -> None:
        """Build the environment of a module where it is missing, and keep a spare. Raises as `Builds.prepared`."""
        self.spares.refill(await self._builds.prepared(pool))

    async def lock(self, spec: ModuleSpec) -> None:
        """Resolve what a module does not pin. Raises as `Builds.prepared`."""
        await self._builds.lock(spec)

    async def start(self, pool: Pool, phases: Phases) -> Worker:
        """Return a worker that has imported the module; `phases` says where the time went.

        Raises RunnerError (`environment_failed`, `load_failed`, `timeout`, `unavailable`, `shutdown`) and OSError.
        Cancelled or failed, nothing of the worker is left.
        """
        spec = pool.module.spec
        began = trio.current_time()
        prepared = await self._builds.prepared(pool)
        built = trio.current_time()
        pool.say("starting worker", built)
        secrets = await look_up(spec, self.secrets)
        worker = self.spares.take(prepared.key) or self._launch(prepared)
        try:
            await self._limit(worker, Limits(spec.memory, spec.cpus, spec.processes))
            started = trio.current_time()
            pool.say("importing module", started)
            ready = await worker.start(pool.module, secrets, EventLog(limit=spec.output, keep=0))
        except BaseException:
            await worker.end()
            raise
        phases.build, phases.start = built - began, started - built
        phases.load = trio.current_time() - started
        if worker.masked is not None and self.nursery is not None:
            self.nursery.start_soon(worker.masked.run, name=f"mask {worker.guest.name}")
        load = round(phases.load, 4)
        log.info("worker started", module=str(pool.module.ref), pid=ready.pid, python=ready.python, load=load)
        self.spares.refill(prepared)
        return worker

    async def _limit(self, worker: Worker, limits: Limits) -> None:
        worker.hold = await worker.guest.confine(limits, self.limits)
        if worker.hold is not None and worker.hold.watched() and self.nursery is not None:
            self.nursery.start_soon(worker.watch, name=f"watch {worker.guest.name}")

    def _launch(self, prepared: Prepared) -> Worker:
        """Start a guest and the task that looks after it. Raises OSError."""
        if self.nursery is None:
            raise RunnerError(shutting_down())
        guest = self.environment.launch(prepared)
        worker = Worker(guest, self.max_frame_bytes, self.settings.grace_seconds, prepared.key)
        self.started += 1
        self._living.add(worker)
        self.nursery.start_soon(self._live, worker, name=f"worker {guest.name}")
        return worker

    async def _live(self, worker: Worker) -> None:
        """Look after a worker for its whole life; nothing of it is left when this returns."""
        try:
            await worker.tend(self._died)
        finally:
            await worker.retire()
            worker.release()
            self._living.discard(worker)
            self.ended += 1

    def keep(self, pools: Iterable[Pool]) -> None:
        """Say which environments are used: those that modules have, and those of workers that are alive."""
        if not self._builds.running:  # what is prepared now is not known here yet
            keys = {pool.prepared.key for pool in pools if pool.prepared is not None}
            self.environment.keep(keys | {worker.environment_key for worker in self._living})

    def _died(self, worker: Worker) -> None:
        self.spares.forget(worker)
        self.on_death(worker)

    def retire(self, worker: Worker) -> None:
        """End a worker that nobody uses. On the way down its own task does that."""
        if self.nursery is not None and not worker.ended:
            self.nursery.start_soon(worker.retire, name=f"retire {worker.guest.name}")

    def close(self) -> None:
        """Start nothing more; the tasks of the workers end them."""
        self.nursery = None
        self.spares.clear()
