"""How executions ended since the start of the runner: counts and histograms for metrics. Pure, and bounded."""

from __future__ import annotations

from bisect import bisect_left

from attrs import define, field, frozen

from protocol.errors import ErrorKind
from protocol.model import Execution, Kind, Status

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds in seconds; one more bucket counts longer times."""
MAX_MODULES = 1000
OTHERS = "(others)"
"""Modules beyond `MAX_MODULES` are counted under this name, which no module can have."""
PHASES = ("queue", "build", "start", "import", "run")


@frozen
class RunsStatistics:
    """Executions at this moment: `queued` wait for their turn, `live` have not ended, the queued ones included."""

    live: int
    queued: int
    accepted: int
    """Since the start, asynchronous ones only."""
    ended: int
    scheduled: int
    """Executions that will be queued at their time; they are not live."""
    called: int = 0
    """Calls of modules by handlers since the start."""
    awaiting: int = 0
    """Executions that wait for a person."""


@define(eq=False)
class Histogram:
    """Times by `BUCKETS`."""

    counts: list[int] = field(factory=lambda: [0] * (len(BUCKETS) + 1))
    """Number of times in each bucket, not cumulated."""
    seconds: float = 0.0
    """Sum of all times."""

    def observe(self, seconds: float) -> None:
        """Count one time; the bound of a bucket belongs to the bucket."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds


@define(eq=False)
class Tally:
    """Counts ends as they are recorded: a few increments for each, without waiting."""

    ended: dict[tuple[str, Status, ErrorKind | None], int] = field(factory=dict, init=False)
    """By module, final status and kind of failure."""
    refused: dict[ErrorKind, int] = field(factory=dict, init=False)
    """Executions that never began, could not be recorded, or found the queue full (`max_queued`)."""
    durations: dict[Kind, Histogram] = field(factory=dict, init=False)
    """From acceptance to the end."""
    phases: dict[tuple[Kind, str], Histogram] = field(factory=dict, init=False)
    """Each phase counts the executions that had it: `queue` all, `run` those that reached the handler."""
    _modules: set[str] = field(factory=set, init=False)

    def count(self, ended: Execution) -> None:
        """Count an execution that has ended."""
        name = ended.module.name
        if name not in self._modules:
            if len(self._modules) < MAX_MODULES:
                self._modules.add(name)
            else:
                name = OTHERS
        key = name, ended.status, None if ended.failure is None else ended.failure.kind
        self.ended[key] = self.ended.get(key, 0) + 1
        kind, timings = ended.env, ended.timings
        self._phase(kind, "queue", timings.queue)
        if timings.run > 0:
            self._phase(kind, "run", timings.run)
        if timings.load > 0:  # a worker was started for it
            self._phase(kind, "build", timings.build)
            self._phase(kind, "start", timings.start)
            self._phase(kind, "import", timings.load)
        found = self.durations.get(kind)
        if found is None:
            found = self.durations[kind] = Histogram()
        found.observe(ended.duration or 0.0)

    def refuse(self, kind: ErrorKind) -> None:
        """Count an execution without a recorded end, by the error of its caller."""
        self.refused[kind] = self.refused.get(kind, 0) + 1

    def _phase(self, kind: Kind, phase: str, seconds: float) -> None:
        found = self.phases.get((kind, phase))
        if found is None:
            found = self.phases[kind, phase] = Histogram()
        found.observe(seconds)
