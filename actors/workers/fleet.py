"""The workers of one kind from launch to end: spare interpreters, limits, module, retirement."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog
import trio
from attrs import define, field

from actors.events import EventLog
from actors.registry import Published
from actors.workers.masking import MaskedLog, Masker, look_up
from actors.workers.pool import Phases, Pool, Waiter
from actors.workers.worker import Worker
from config.secrets import LookUp
from config.settings import ExecutorSettings
from environments import proc
from environments.base import Environment, Prepared
from environments.limits import LimitKeeper, Limits
from protocol.errors import RunnerError, shutting_down
from protocol.model import Stream

_LOGGED_BYTES = 4096
"""The runner's log shows the first and the last so many bytes of each stream of an import."""
_SPARE_KEYS = 8
"""Recently used environments that have spares."""

log = structlog.get_logger("fleet")


@define(eq=False)
class Spares:
    """Started interpreters that wait for a module: `wanted` for each environment."""

    wanted: int
    max_age_seconds: float
    launch: Callable[[Prepared], Worker]
    retire: Callable[[Worker], None]
    _kept: dict[str, list[Worker]] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return sum(len(workers) for workers in self._kept.values())

    def take(self, key: str) -> Worker | None:
        """Remove and return a living spare of an environment."""
        workers = self._kept.get(key, [])
        while workers:
            worker = workers.pop()
            if worker.guest.exit_code is None and not self._old(worker) and not _stopped(worker):
                return worker
            self.retire(worker)
        return None

    def refill(self, prepared: Prepared) -> None:
        """Start the missing spares of an environment that was just used; retire those of environments used long ago."""
        workers = self._kept.pop(prepared.key, [])
        self._kept[prepared.key] = workers
        while len(self._kept) > _SPARE_KEYS:
            for worker in self._kept.pop(next(iter(self._kept))):
                self.retire(worker)
        try:
            while len(workers) < self.wanted:
                workers.append(self.launch(prepared))
        except (OSError, RunnerError) as problem:
            log.warning("no spare interpreter could be started", why=str(problem))

    def give_up(self, key: str) -> None:
        """Forget the spares of an environment, which end."""
        self._kept.pop(key, None)

    def forget(self, worker: Worker) -> None:
        """Remove a worker that has ended."""
        for workers in self._kept.values():
            if worker in workers:
                workers.remove(worker)

    def maintain(self) -> None:
        """Retire spares that are too old to serve."""
        for workers in self._kept.values():
            for worker in [w for w in workers if self._old(w)]:
                workers.remove(worker)
                self.retire(worker)

    def clear(self) -> None:
        """Forget all; the tasks that tend them end them."""
        self._kept.clear()

    def _old(self, worker: Worker) -> bool:
        # Half of the life is left for calls, so that a spare is not retired after its first one.
        return trio.current_time() - worker.launched_at > self.max_age_seconds / 2


def _stopped(worker: Worker) -> bool:
    """Return whether a signal stopped it: user code may have sent one to all processes of its user."""
    return worker.guest.pid is not None and proc.stopped(worker.guest.pid)


@define(eq=False)
class _Imported:
    """The output of an import: passed on to the caller that caused the start, and its ends kept for the log."""

    cause: Waiter | None
    _ends: dict[Stream, tuple[bytes, bytes]] = field(factory=dict, init=False)
    _sizes: Counter[Stream] = field(factory=Counter, init=False)

    def hear(self, stream: Stream, data: bytes) -> None:
        """Take a piece."""
        if self.cause is not None:
            self.cause.hear(stream, data)
        first, last = self._ends.get(stream, (b"", b""))
        room = _LOGGED_BYTES - len(first)
        self._ends[stream] = first + data[:room], (last + data[room:])[-_LOGGED_BYTES:]
        self._sizes[stream] += len(data)

    def log(self, module: str, worker: str) -> None:
        """Log it, in one line."""
        texts = {}
        for stream, (first, last) in self._ends.items():
            between = b"" if len(first + last) == self._sizes[stream] else b"\n...\n"
            texts[stream.value] = (first + between + last).decode(errors="replace")
        if texts:
            log.info("the import printed", module=module, worker=worker, bytes=self._sizes.total(), **texts)


@define(eq=False)
class Fleet:
    """Owns all workers of one kind, in `nursery`, which is open while the executor runs."""

    environment: Environment
    settings: ExecutorSettings
    limits: LimitKeeper
    max_frame_bytes: int
    secrets: LookUp
    verify: Callable[[Published], Awaitable[None]]
    """Has the stored code of a module as it was published, or raises RunnerError."""
    on_death: Callable[[Worker], None] = field(default=lambda _worker: None, init=False)
    """Called with each worker that ended."""
    expect: Callable[[float], None] = field(default=lambda _: None, init=False)
    """Called with the deadline of each call."""
    nursery: trio.Nursery | None = field(default=None, init=False)
    spares: Spares = field(init=False)
    started: int = field(default=0, init=False)
    ended: int = field(default=0, init=False)
    _alive: set[Worker] = field(factory=set, init=False)
    _one_ended: trio.Event = field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.spares = Spares(self.settings.spares, self.settings.max_age_seconds, self._launch, self.retire)

    async def start(self, pool: Pool, prepared: Prepared, phases: Phases, cause: Waiter | None) -> Worker:
        """Return a worker that has imported the module of a pool; `phases` gets the times of start and import.

        What the import prints goes to the runner's log, and to the caller that caused the start.
        Raises RunnerError (`load_failed`, `timeout`, `unavailable`, `shutdown`) and OSError. Cancelled or failed,
        nothing of the worker is left.
        """
        spec = pool.module.spec
        began = trio.current_time()
        pool.report("starting worker", began, cause)
        secrets = await look_up(spec, self.secrets)
        await self.verify(pool.module)
        worker = self.spares.take(prepared.key) or self._launch(prepared)
        printed, imported = EventLog(limit=spec.output, keep=0), _Imported(cause)
        printed.on_output = imported.hear
        started = math.inf
        try:
            await self._limit(worker, Limits(spec.memory, spec.cpus, spec.processes))
            started = trio.current_time()
            pool.report("importing module", started, cause)
            if (masker := Masker.of(secrets.values())) is not None:
                worker.masked = MaskedLog(masker)
                if self.nursery is not None:
                    self.nursery.start_soon(worker.masked.run, name=f"mask {worker.guest.name}")
            ready = await worker.start(pool.module, secrets, printed)
            if worker.shared is not None and self.nursery is not None:
                self.nursery.start_soon(worker.shared.run, name=f"calls of {worker.guest.name}")
        except BaseException:
            await worker.end()
            if worker.masked is not None:
                worker.masked.close()
            raise
        finally:
            now = trio.current_time()
            phases.start, phases.load = min(started, now) - began, max(0.0, now - started)
            imported.log(str(pool.module.ref), worker.guest.name)
        footprint = worker.footprint
        footprint.start_seconds = max(footprint.start_seconds, phases.start + phases.load)
        footprint.measure(worker.guest, worker.calls)
        load = round(phases.load, 4)
        log.info("worker started", module=str(pool.module.ref), pid=ready.pid, python=ready.python, load=load)
        self.spares.refill(prepared)
        return worker

    async def _limit(self, worker: Worker, limits: Limits) -> None:
        worker.hold = await worker.guest.confine(limits, self.limits)
        if worker.hold is not None and worker.hold.watched() and self.nursery is not None:
            self.nursery.start_soon(worker.watch, name=f"watch {worker.guest.name}")

    def _launch(self, prepared: Prepared) -> Worker:
        """Start a guest and the task that tends it. Raises OSError."""
        if self.nursery is None:
            raise RunnerError(shutting_down())
        guest = self.environment.launch(prepared)
        worker = Worker(guest, self.max_frame_bytes, self.settings.grace_seconds, prepared.key)
        worker.expect = self.expect
        self.started += 1
        self._alive.add(worker)
        self.nursery.start_soon(self._tend, worker, name=f"worker {guest.name}")
        return worker

    async def _tend(self, worker: Worker) -> None:
        """Tend a worker for its whole life; nothing of it is left when this returns."""
        try:
            await worker.tend(self._died)
        finally:
            await worker.retire()
            worker.release()
            self._alive.discard(worker)
            self.ended += 1
            self._one_ended.set()
            self._one_ended = trio.Event()

    def _died(self, worker: Worker) -> None:
        self.spares.forget(worker)
        self.on_death(worker)

    def environment_keys(self) -> set[str]:
        """Return the keys of the environments of all living workers."""
        return {worker.environment_key for worker in self._alive}

    async def leave(self, key: str) -> None:
        """End all workers of an environment, none of which is busy; they are gone when this returns."""
        self.spares.give_up(key)
        async with trio.open_nursery() as nursery:
            for worker in [each for each in self._alive if each.environment_key == key]:
                nursery.start_soon(worker.retire)
        while key in self.environment_keys():  # the tasks that tend them give back what they had
            await self._one_ended.wait()

    def retire(self, worker: Worker) -> None:
        """End an unused worker. At shutdown the task that tends it does so."""
        if self.nursery is not None and not worker.ended:
            self.nursery.start_soon(worker.retire, name=f"retire {worker.guest.name}")

    def close(self) -> None:
        """Start no more workers; the tasks that tend them end them."""
        self.nursery = None
        self.spares.clear()
