"""How many jobs of which modules this runner may ask for, and how much it wants them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from attrs import define, field, frozen

from actors.cluster.queue.held import Jobs
from actors.cluster.queue.lanes import FAILING, Lane, general, lane_of, offered, priority_of
from actors.executions import Runs
from actors.registry import Published, RegistrySnapshot
from actors.workers import Openings
from protocol.model import Execution, Isolation

WINDOW: Final = 64
"""Jobs of a pinned module that wait on the runner that has it, so that priorities and groups have a choice."""
_MOST: Final = 32
"""Most jobs that are asked for at a time."""


@frozen
class Wish:
    """What a runner asks of a lane."""

    count: int = 0
    priority: int = FAILING


@define(eq=False)
class Room:
    """The places of this runner."""

    runs: Runs
    jobs: Jobs
    labels: Collection[str]
    arriving: int = field(default=0, init=False)
    """Jobs that were delivered and are not decided about."""
    _snapshot: RegistrySnapshot | None = field(default=None, init=False)
    _offers: Collection[str] = field(default=(), init=False)
    _modules: Mapping[str, tuple[Published, ...]] = field(factory=dict, init=False)
    _lanes: Mapping[str, Lane] = field(factory=dict, init=False)

    def lanes(self) -> Mapping[str, Lane]:
        """Return the lanes of the modules that this runner may run, by name."""
        self._follow()
        return self._lanes

    def lane(self, execution: Execution) -> Lane:
        """Return the lane of the module of an execution, as its active version has it."""
        name = execution.module.name
        found = self.runs.registry.snapshot.modules.get(name)
        return general(name, execution.env) if found is None else lane_of(found.spec)

    def offers(self) -> Collection[str]:
        """Return the labels of this runner, and the kinds of environment that it can use now."""
        executors = self.runs.attempts.executors
        return offered(self.labels, (kind for kind, each in executors.items() if each.availability.available))

    def fits(self, module: Published) -> bool:
        """Return whether this runner has what a module needs."""
        return lane_of(module.spec).fits(self.offers())

    def wish(self, lane: Lane, *, arriving: bool) -> Wish:
        """Return how many jobs of a lane could have places now; `arriving`: for others there will be a worker soon.

        A lane without modules here is still emptied.
        """
        self._follow()
        modules = self._modules.get(lane.name)
        if modules is None:
            return Wish(1, FAILING)
        best = Wish()
        for module in modules:
            openings = self.openings(module)
            count = self._count(lane, module, openings)
            if count > 0:
                asked = priority_of(
                    warm=openings.warm or arriving, prepared=openings.prepared, failing=openings.failing
                )
                best = Wish(max(best.count, count), min(best.priority, asked))
        return best

    def free(self, lane: Lane, module: Published) -> bool:
        """Return whether a job of a module that has arrived has a place."""
        return self._count(lane, module, self.openings(module)) > 0

    def openings(self, module: Published) -> Openings:
        """Return how many executions of a module could begin now."""
        if module.spec.isolation is Isolation.NONE:
            return Openings(module.spec.concurrency, warm=True, prepared=True)
        executor = self.runs.attempts.executors[module.spec.env]
        if not executor.availability.available:
            return Openings(0)
        return executor.openings(module)

    def _count(self, lane: Lane, module: Published, openings: Openings) -> int:
        held = self.jobs.modules[module.spec.name]
        if lane.pinned:
            return min(_MOST, WINDOW + module.spec.concurrency - held - self.arriving)
        return min(_MOST, module.spec.concurrency - held - self.arriving, openings.calls - self.arriving)

    def _follow(self) -> None:
        snapshot, offers = self.runs.registry.snapshot, self.offers()
        if snapshot is self._snapshot and offers == self._offers:
            return
        modules: dict[str, tuple[Published, ...]] = {}
        lanes: dict[str, Lane] = {}
        for module in snapshot.modules.values():  # the limits of active versions are those that count
            lane = lane_of(module.spec)
            if lane.fits(offers):
                lanes[lane.name] = lane
                modules[lane.name] = (*modules.get(lane.name, ()), module)
        self._snapshot, self._offers = snapshot, offers
        self._modules, self._lanes = modules, lanes
