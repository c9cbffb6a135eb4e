"""`Cron`: the instants of a cron expression in a time zone.

The library parses expressions and walks through the calendar without a zone. The zone is ours, by the rules of Debian's
cron(8), as the walk of the library with a zone loses instants where clocks change by half an hour or at a quarter past:
* An expression whose minute or hour begins with `*` runs whenever the clock shows a matching time: never in an hour
  that is skipped, twice in one that comes twice.
* Any other runs once: a time that is skipped runs at the end of the gap, and one that comes twice the first time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from config.mistakes import Wrong
from config.units import show

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from cronsim import CronSim

_NAMES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS: Final = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day-of-month": "1 to 31, or L for the last one",
    "month": "1 to 12, or JAN to DEC",
    "day-of-week": "0 to 7, or SUN to SAT",
}
ALLOWED: Final = f"minute hour day month weekday, such as `30 3 * * mon-fri`, or one of {', '.join(_NAMES)}"
_LONGEST: Final = 200
_STEP: Final = 10 * 86400.0
"""A zone does not change its clocks twice within this time."""
_MARGIN: Final = 3 * 3600.0
"""Clocks change by less than this."""


@lru_cache(maxsize=1024)
def zone_of(name: str) -> ZoneInfo:
    """Return a time zone. Raises `Wrong` with similar names."""
    import zoneinfo  # noqa: PLC0415  (only runners with schedules need it)

    try:
        return zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError):
        known = {each.lower(): each for each in sorted(zoneinfo.available_timezones())}
        cities = {each.rpartition("/")[2]: each for each in known}
        close = cities.get(name.lower()) or next(iter(get_close_matches(name.lower()[:100], known, n=1)), None)
        hint = f"; did you mean {known[close]!r}?" if close else ""
        text = f"{show(name)} is not a time zone{hint or '; write a name such as Asia/Seoul, Europe/Berlin or UTC'}"
        raise Wrong(text, allowed="the name of a time zone, such as Asia/Seoul") from None


def local_time(instant: float, zone: str) -> str:
    """Return an instant as people of a time zone write it, with its offset."""
    return datetime.fromtimestamp(instant, zone_of(zone)).isoformat(timespec="seconds")


@frozen
class Cron:
    """A cron expression in a time zone. Instants are seconds since the epoch."""

    text: str
    zone: ZoneInfo
    _walk: CronSim = field(eq=False, repr=False)
    """The parsed expression, at no time in particular."""
    _wild: bool
    """Whether minute or hour begins with `*`."""
    _known: list[tuple[float, float | None]] = field(factory=list, init=False, eq=False, repr=False)
    """The last answer of `next`, with its question: a date that is decades away takes a walk of a millisecond."""

    @classmethod
    def parse(cls, text: str, zone: str = "UTC") -> Cron:
        """Return the expression. Raises `Wrong` with the field and the reason."""
        return cls(text, zone_of(zone), *_parsed(text))

    def next(self, after: float) -> float | None:
        """Return the first instant later than `after`, or None if decades have none."""
        if self._known:
            asked, answer = self._known[0]
            if asked <= after and answer is not None and after < answer:
                return answer
        found = self._next(after)
        self._known[:] = [(after, found)]
        return found

    def _next(self, after: float) -> float | None:
        try:
            return self._next_shown(after) if self._wild else self._next_once(after)
        except (StopIteration, OverflowError):
            return None

    def back(self, count: int, before: float, after: float) -> float:
        """Return an instant that has `count` instants or more between it and `before`, if so many are above `after`."""
        walk, end = copy.copy(self._walk), self._wall(after - _MARGIN)
        walk.dt, walk.tick_direction = self._wall(before), -1
        try:
            for _ in range(count):
                wall = next(walk)
                if wall < end:
                    return after
        except (StopIteration, OverflowError):
            return 0.0
        return self._instant(wall) - _MARGIN

    def _next_once(self, after: float) -> float:
        walk = self._from(self._wall(after))
        while (found := self._instant(next(walk))) <= after:  # the clock shows this time for the second time
            pass
        return found

    def _next_shown(self, after: float) -> float:
        """Walk through the spans of time in which the clock is not changed, each with its own offset."""
        start, offset = after, self._offset(after)
        while True:
            shown = datetime.fromtimestamp(start // 1, UTC).replace(tzinfo=None) + offset
            found = (next(self._from(shown)) - offset).replace(tzinfo=UTC).timestamp()
            change = self._change(start, found)
            if change is None:
                return found
            start, offset = change - 1, self._offset(change)

    def _change(self, start: float, end: float) -> float | None:
        """Return the first instant after `start`, and not after `end`, at which the zone has another offset."""
        low, before = start, self._offset(start + 1)
        while low < end:
            high = min(low + _STEP, end)
            if self._offset(high) != before:
                return _first(lambda at: self._offset(at) != before, int(low), int(high))
            low = high
        return None

    def _instant(self, wall: datetime) -> float:
        """Return when the clock shows a time first, or the end of the gap that skips it."""
        instant = wall.replace(tzinfo=self.zone).timestamp()
        if self._wall(instant) == wall:
            return instant
        earlier = wall.replace(tzinfo=self.zone, fold=1).timestamp()
        after = self._offset(instant)
        return float(_first(lambda at: self._offset(at) == after, int(earlier) - 1, int(instant)))

    def _from(self, wall: datetime) -> CronSim:
        walk = copy.copy(self._walk)
        walk.dt = wall
        return walk

    def _wall(self, instant: float) -> datetime:
        return datetime.fromtimestamp(instant // 1, self.zone).replace(tzinfo=None, fold=0)

    def _offset(self, instant: float) -> timedelta:
        return datetime.fromtimestamp(instant, self.zone).utcoffset() or timedelta()


def _first(holds: Callable[[float], bool], low: int, high: int) -> int:
    """Return the first second above `low` for which a condition holds, as it does for `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[CronSim, bool]:
    from cronsim import CronSim, CronSimError  # noqa: PLC0415  (as zoneinfo)

    written = _NAMES.get(text.strip().lower(), text)
    fields = written.split()
    if text.strip().startswith("@") and written == text:
        reason = "there is no event to wait for" if text.strip().lower() == "@reboot" else "unknown name"
        raise Wrong(f"{show(text)}: {reason}; write {ALLOWED}", allowed=ALLOWED)
    if len(fields) != len(_FIELDS) or len(text) > _LONGEST:
        raise Wrong(f"{show(text)} has {len(fields)} fields; a cron expression has five: {ALLOWED}", allowed=ALLOWED)
    at = datetime(2000, 1, 1)  # noqa: DTZ001  (the time of a clock on a wall; 2000 was a leap year)
    try:
        walk = CronSim(written, at)
        next(copy.copy(walk))
    except (CronSimError, ValueError, AssertionError) as problem:
        raise _explained(text, fields, str(problem)) from None
    except StopIteration:
        raise Wrong(f"{show(text)} never comes: no year has such a day", allowed="a date that exists") from None
    return walk, fields[0].startswith("*") or fields[1].startswith("*")


def _explained(text: str, fields: list[str], problem: str) -> Wrong:
    """Return the mistake in an expression that the library refuses with `problem`."""
    from cronsim import CronSim, CronSimError  # noqa: PLC0415  (as zoneinfo)

    at = datetime(2000, 1, 1)  # noqa: DTZ001  (as above)
    name = problem.removeprefix("Bad ")
    if name == "day-of-month":
        try:
            CronSim(f"0 0 {fields[2]} * *", at)
        except (CronSimError, ValueError, AssertionError):
            pass
        else:
            reason = f"month {fields[3]} has no day {fields[2]}"
            return Wrong(f"{show(text)} never comes: {reason}", allowed="a date that exists")
    if name not in _FIELDS:
        return Wrong(f"{show(text)} is not a cron expression; write {ALLOWED}", allowed=ALLOWED)
    given = fields[list(_FIELDS).index(name)]
    return Wrong(f"{show(text)}: {show(given)} is no {name}: {_FIELDS[name]}", allowed=_FIELDS[name])
