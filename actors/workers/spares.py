"""Spare interpreters: started, and waiting for the module that they will serve."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio
from attrs import define, field

from actors.workers.worker import Worker
from environments.base import Prepared
from protocol.errors import RunnerError

_KEYS = 8
"""Environments used last that have spares."""

log = structlog.get_logger("spares")


@define(eq=False)
class Spares:
    """The spares of one executor: `wanted` for each environment. `launch` starts one, `retire` ends one."""

    wanted: int
    max_age_seconds: float
    launch: Callable[[Prepared], Worker]
    retire: Callable[[Worker], None]
    _kept: dict[str, list[Worker]] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return sum(len(workers) for workers in self._kept.values())

    def take(self, key: str) -> Worker | None:
        """Return a living spare of an environment; it is not a spare any more."""
        workers = self._kept.get(key, [])
        while workers:
            worker = workers.pop()
            if worker.guest.exit_code is None and not self._old(worker):
                return worker
            self.retire(worker)
        return None

    def refill(self, prepared: Prepared) -> None:
        """Start what is missing for an environment that was just used; of those used long ago spares are ended."""
        workers = self._kept.pop(prepared.key, [])
        self._kept[prepared.key] = workers
        while len(self._kept) > _KEYS:
            for worker in self._kept.pop(next(iter(self._kept))):
                self.retire(worker)
        try:
            while len(workers) < self.wanted:
                workers.append(self.launch(prepared))
        except (OSError, RunnerError) as problem:
            log.warning("no spare interpreter could be started", why=str(problem))

    def forget(self, worker: Worker) -> None:
        """Leave out a worker that has ended."""
        for workers in self._kept.values():
            if worker in workers:
                workers.remove(worker)

    def maintain(self) -> None:
        """End spares that are too old to serve."""
        for workers in self._kept.values():
            for worker in [w for w in workers if self._old(w)]:
                workers.remove(worker)
                self.retire(worker)

    def clear(self) -> None:
        """Forget all; whoever looks after them ends them."""
        self._kept.clear()

    def _old(self, worker: Worker) -> bool:
        # Half of a life is left for calls: what is handed out is not retired after the first one.
        return trio.current_time() - worker.launched_at > self.max_age_seconds / 2
