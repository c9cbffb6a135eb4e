"""Counts of how the executions of a module ended, by spans of time. Pure.

Every execution is counted in one span of each level of `LEVELS`, by the time of its end. Run durations are histograms
whose bins grow by `GROWTH`: histograms of any spans can be added, and a percentile is within 2 % of the true duration.
A window consists of whole spans, as few as possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import msgspec
from attrs import field, frozen

from protocol.errors import ErrorKind
from protocol.model import Execution, Status

Name = TypeVar("Name")
GROWTH: Final = 1.04
"""A bin is this much wider than the one before, and stands for its middle: an error of at most (1.04 - 1) / 2.04."""
_LOG: Final = math.log(GROWTH)
_SHORTEST: Final = 1e-6
ALL: Final = ""
"""The module of the rows that count the ends of all modules, so that a sum of thousands of them takes no time."""
_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR


@frozen
class Level:
    """Spans of `width` seconds, kept for `kept` seconds (None: as long as executions are)."""

    width: int
    kept: float | None


LEVELS: Final = (Level(300, 2 * _DAY), Level(_HOUR, 60 * _DAY), Level(_DAY, None))
"""Finest first; each width is a multiple of the one before."""


@frozen
class Ended:
    """One end to count. `seconds` is the time in the handler, 0 if the handler was never reached."""

    module: str
    at: float
    status: Status
    kind: ErrorKind | None
    seconds: float


@frozen
class Span:
    """The row of a count."""

    module: str
    width: int
    start: int


@frozen
class Part:
    """Spans of one level, one after the other: `start` <= their start < `end`."""

    width: int
    start: int
    end: int


@frozen
class Window:
    """The window of an answer: `since` <= time of the end < `until`, and the spans that make it up."""

    since: float
    until: float
    parts: tuple[Part, ...]


@frozen
class ModuleStats:
    """Statistics of one module in a window of time. Durations are seconds in the handler, over all attempts.

    `since` and `until` bound the spans that were counted: the requested window, widened to whole spans.
    """

    module: str
    since: float
    until: float
    total: int = 0
    statuses: Mapping[Status, int] = field(factory=dict)
    """Final states with at least one execution."""
    kinds: Mapping[ErrorKind, int] = field(factory=dict)
    success_rate: float | None = None
    """Succeeded among succeeded and failed (a cancel says nothing about the module); None without any."""
    runs: int = 0
    """Executions that reached the handler; the durations are theirs."""
    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@frozen
class Ends:
    """How many executions ended in one span of time, by status; `start` in seconds since the epoch."""

    start: int
    statuses: Mapping[Status, int]


class EndCounts(msgspec.Struct):
    """The part of a `Rollup` without durations, which is quick to read."""

    statuses: dict[Status, int] = msgspec.field(default_factory=dict)
    kinds: dict[ErrorKind, int] = msgspec.field(default_factory=dict)

    def merge(self, other: EndCounts) -> None:
        """Add other counts."""
        for status, times in other.statuses.items():
            _add(self.statuses, status, times)
        for kind, times in other.kinds.items():
            _add(self.kinds, kind, times)


class Rollup(msgspec.Struct):
    """Counts that can be added and subtracted."""

    statuses: dict[Status, int] = msgspec.field(default_factory=dict)
    kinds: dict[ErrorKind, int] = msgspec.field(default_factory=dict)
    seconds: float = 0.0
    bins: dict[int, int] = msgspec.field(default_factory=dict)

    def count(self, ended: Ended, times: int) -> None:
        """Count an end `times` times; -1 subtracts it."""
        _add(self.statuses, ended.status, times)
        if ended.kind is not None:
            _add(self.kinds, ended.kind, times)
        number = bin_of(ended.seconds) if ended.seconds > 0 else None
        if number is not None and (times > 0 or number in self.bins):
            _add(self.bins, number, times)
            self.seconds = self.seconds + times * ended.seconds if self.bins else 0.0

    def merge(self, other: Rollup) -> None:
        """Add the counts of another rollup."""
        for status, times in other.statuses.items():
            _add(self.statuses, status, times)
        for kind, times in other.kinds.items():
            _add(self.kinds, kind, times)
        for number, times in other.bins.items():
            _add(self.bins, number, times)
        self.seconds += other.seconds

    @property
    def empty(self) -> bool:
        """Whether nothing is counted."""
        return not self.statuses

    def percentile(self, share: float) -> float | None:
        """Return the duration in seconds that a `share` (above 0, at most 1) of all does not exceed, within 2 %."""
        rank, seen = math.ceil(share * sum(self.bins.values())), 0
        for number in sorted(self.bins):
            seen += self.bins[number]
            if seen >= rank:
                return middle_of(number)
        return None


def _add(counts: dict[Name, int], name: Name, times: int) -> None:
    total = counts.get(name, 0) + times
    if total > 0:
        counts[name] = total
    else:
        counts.pop(name, None)


def bin_of(seconds: float) -> int:
    """Return the bin of a duration above 0: bin n holds `GROWTH` ** (n - 1) < seconds <= `GROWTH` ** n."""
    return math.ceil(math.log(max(seconds, _SHORTEST)) / _LOG)


def middle_of(number: int) -> float:
    """Return the duration that represents a bin: both ends of the bin are equally far from it in percent."""
    return 2 * GROWTH**number / (GROWTH + 1)


def ended_of(execution: Execution) -> Ended:
    """Return the end of an execution, to be counted."""
    at = execution.created_at if execution.finished_at is None else execution.finished_at
    kind = None if execution.failure is None else execution.failure.kind
    return Ended(execution.module.name, at, execution.status, kind, execution.timings.run)


def spans_of(ended: Ended) -> Iterable[Span]:
    """Return the spans that count an end: one of each level, for its module and for all together."""
    starts = [(level.width, int(ended.at // level.width) * level.width) for level in LEVELS]
    return [Span(module, *start) for module in (ended.module, ALL) for start in starts]


class Changes:
    """The changes of one transaction to the rollups.

    Ends are counted once, by the finest spans; each of these lies within one span of every other level.
    """

    def __init__(self) -> None:
        self._added: dict[tuple[str, int], Rollup] = {}
        self._removed: dict[Span, list[Ended]] = {}

    def add(self, ended: Ended) -> None:
        """Count an end."""
        key = ended.module, int(ended.at // LEVELS[0].width)
        counts = self._added.get(key)
        if counts is None:
            counts = self._added[key] = Rollup()
        counts.count(ended, 1)

    def remove(self, ended: Ended) -> None:
        """Subtract an end that was counted before."""
        for span in spans_of(ended):
            self._removed.setdefault(span, []).append(ended)

    def by_span(self) -> dict[Span, tuple[list[Rollup], list[Ended]]]:
        """Return what to add to each row, and which ends to subtract from it."""
        found: dict[Span, tuple[list[Rollup], list[Ended]]] = {
            span: ([], removed) for span, removed in self._removed.items()
        }
        for (module, number), counts in self._added.items():
            at = number * LEVELS[0].width
            for level in LEVELS:
                start = at // level.width * level.width
                for name in (module, ALL):
                    found.setdefault(Span(name, level.width, start), ([], []))[0].append(counts)
        return found


def changed(rollup: Rollup, added: Iterable[Rollup], removed: Iterable[Ended]) -> Rollup:
    """Return the rollup of a row with changes to it."""
    for ended in removed:
        rollup.count(ended, -1)
    for counts in added:
        rollup.merge(counts)
    return rollup


def expired(now: float, retention: float) -> list[tuple[int, int]]:
    """Return for each level its width and the start before which its spans are deleted."""
    limits = []
    for number, level in enumerate(LEVELS):
        kept = retention if level.kept is None else min(level.kept, retention)
        # A finer level ends at the start of a span of the next one, so that a window can continue there.
        step = LEVELS[min(number + 1, len(LEVELS) - 1)].width
        limits.append((level.width, math.floor((now - kept) / step) * step))
    return limits


def window(since: float | None, until: float | None, now: float, retention: float) -> Window:
    """Return the spans for `since` <= end < `until`, both bounds widened to the finest spans kept there.

    None, or a bound outside of the kept time, means the edge of the kept time.
    """
    limits = expired(now, retention)
    oldest, newest = limits[-1][1], math.floor(now / LEVELS[0].width + 1) * LEVELS[0].width
    start = _edge(oldest if since is None else min(max(since, oldest), newest), limits, up=False)
    end = max(start, _edge(newest if until is None else min(max(until, oldest), newest), limits, up=True))
    parts: list[Part] = []
    at = start
    while at < end:
        width = max(w for w, limit in limits if at >= limit and at % w == 0 and at + w <= end)
        if parts and parts[-1].width == width:
            parts[-1] = Part(width, parts[-1].start, at + width)
        else:
            parts.append(Part(width, at, at + width))
        at += width
    return Window(start, end, tuple(parts))


def steps(start: int, end: int, step: int) -> list[Window]:
    """Return windows of one step each, of the widest spans that divide a step."""
    width = max(level.width for level in LEVELS if step % level.width == 0)
    return [Window(at, at + step, (Part(width, at, at + step),)) for at in range(start, end, step)]


def since_yesterday(now: float) -> Window:
    """Return the window of yesterday and today, UTC."""
    today = math.floor(now / _DAY) * _DAY
    return Window(today - _DAY, today + _DAY, (Part(_DAY, today - _DAY, today + _DAY),))


def _edge(time: float, limits: list[tuple[int, int]], *, up: bool) -> int:
    """Return the edge of a span of the finest level kept at `time`."""
    width = next(w for w, limit in limits if time >= limit)
    return (math.ceil if up else math.floor)(time / width) * width


def summary(module: str, over: Window, total: Rollup) -> ModuleStats:
    """Return the answer for the sum of all spans of a window."""
    runs = sum(total.bins.values())
    good, bad = total.statuses.get(Status.SUCCEEDED, 0), total.statuses.get(Status.FAILED, 0)
    return ModuleStats(
        module=module,
        since=over.since,
        until=over.until,
        total=sum(total.statuses.values()),
        statuses=total.statuses,
        kinds=total.kinds,
        success_rate=good / (good + bad) if good or bad else None,
        runs=runs,
        mean=total.seconds / runs if runs else None,
        p50=total.percentile(0.5),
        p95=total.percentile(0.95),
        p99=total.percentile(0.99),
    )
