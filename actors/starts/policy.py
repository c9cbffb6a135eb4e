"""What a schedule does at a moment: pure, and the same whenever it is asked.

Rules:
* An instant is on time until `ON_TIME_SECONDS` after it, plus its own part of `jitter`. Later it is missed.
* Instants on time start. Of missed ones start none, the last unless one is on time, or the last `MOST_MISSED`, by
  `misfire`.
* The part of `jitter` is a hash of schedule and instant, so that a restart changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from attrs import frozen

from config.timing import Misfire, ScheduleSpec, Timing, instant_text

ON_TIME_SECONDS: Final = 60.0
MOST_MISSED: Final = 100
"""Missed instants that are made up at most."""


@frozen
class Due:
    """The instants of a schedule to start now, oldest first, and when to look at it again."""

    on_time: tuple[float, ...] = ()
    late: tuple[float, ...] = ()
    """Missed ones that start all the same; they are older than those on time."""
    missed: int = 0
    """Missed ones that never start, as far as they were counted."""
    cursor: float = 0.0
    """Every instant up to this one is settled when these have started."""
    next: float | None = None
    """When the next instant starts, its jitter included; None without one."""


def due(spec: ScheduleSpec, name: str, cursor: float, now: float) -> Due:
    """Return what starts at `now` of a schedule whose instants up to `cursor` are settled."""
    timing, missed, on_time = spec.timing, list[float](), list[float]()
    certain = now - ON_TIME_SECONDS - spec.jitter
    first = timing.next(cursor)
    if first is not None and first <= certain:
        missed = _last(timing, cursor, certain, MOST_MISSED if spec.misfire is Misfire.ALL else 1)
        cursor = certain
    at = timing.next(cursor)
    while at is not None and (start := at + delay(spec, name, at)) <= now:
        (on_time if now - start < ON_TIME_SECONDS else missed).append(at)
        cursor, at = at, timing.next(at)
    late = missed[-MOST_MISSED:] if spec.misfire is Misfire.ALL else []
    if spec.misfire is Misfire.LAST and not on_time:
        late = missed[-1:]
    following = None if at is None else at + delay(spec, name, at)
    return Due(tuple(on_time), tuple(late), len(missed) - len(late), cursor, following)


def delay(spec: ScheduleSpec, name: str, instant: float) -> float:
    """Return how much later than its instant an execution starts."""
    if not spec.jitter:
        return 0.0
    digest = hashlib.sha256(f"{name}/{instant_text(instant)}".encode()).digest()
    return spec.jitter * int.from_bytes(digest[:4], "big") / 2**32


def _last(timing: Timing, after: float, until: float, count: int) -> list[float]:
    """Return the instants up to `until`: at least the last `count`, if there are so many later than `after`."""
    wanted = count
    while True:
        begin = max(after, timing.back(wanted, until, after))
        found = list(_between(timing, begin, until))
        if len(found) >= count or begin == after:
            return found
        wanted *= 2


def _between(timing: Timing, after: float, until: float) -> Iterator[float]:
    while (at := timing.next(after)) is not None and at <= until:
        yield at
        after = at
