"""`ScheduleSpec`: the fields of a schedule, how each is read, and the rules between them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

from attrs import evolve, frozen
from cattrs import Converter

from config import units
from config.mistakes import Wrong, structure_hook, unfold
from config.shapes import Values, accepting, list_shape, shape_of, shaped
from config.timing.cron import Cron, local_time, zone_of
from config.units import Range, show

MAX_SCHEDULES: Final = 100
"""Schedules of one module."""
_MAX_INPUT: Final = 64 * 1024
_CENTURY: Final = 946_684_800.0
_YEAR: Final = 366 * 86400.0
_FORMS: Final = ("cron", "every", "at")


class Overlap(StrEnum):
    """What happens when an execution is due while the last one of its schedule has not ended."""

    SKIP = "skip"
    QUEUE = "queue"
    CANCEL = "cancel"
    """The last one is cancelled."""
    PARALLEL = "parallel"


class Misfire(StrEnum):
    """What happens with instants that passed while no runner could start them."""

    SKIP = "skip"
    LAST = "last"
    ALL = "all"


@frozen
class ScheduleSpec:
    """One schedule as its author wrote it. Durations are seconds; exactly one of `cron`, `every` and `at` is given."""

    name: str = ""
    """Empty in a module's list: a name is derived from the content."""
    cron: str | None = None
    every: float | None = None
    at: str | None = None
    """ISO 8601 with an offset."""
    timezone: str = "UTC"
    input: Any = None
    overlap: Overlap = Overlap.SKIP
    misfire: Misfire = Misfire.SKIP
    jitter: float = 0.0

    @cached_property
    def timing(self) -> Timing:
        """The instants of this schedule."""
        cron = None if self.cron is None else Cron.parse(self.cron, self.timezone)
        return Timing(cron, self.every, None if self.at is None else datetime.fromisoformat(self.at).timestamp())

    @property
    def identity(self) -> str:
        """A text that is equal as long as the instants are the same."""
        return f"{self.cron or self.every or self.at} {self.timezone}"


@frozen
class Timing:
    """The instants of a schedule, in seconds since the epoch, in one of three forms."""

    cron: Cron | None = None
    every: float | None = None
    """Its instants are the multiples of this number of seconds."""
    at: float | None = None

    def next(self, after: float) -> float | None:
        """Return the first instant later than `after`, or None without one."""
        if self.cron is not None:
            return self.cron.next(after)
        if self.every is not None:
            return (math.floor(after / self.every) + 1) * self.every
        return self.at if self.at is not None and self.at > after else None

    def back(self, count: int, before: float, after: float) -> float:
        """Return an instant that has `count` instants or more between it and `before`, if so many are above `after`."""
        if self.cron is not None:
            return self.cron.back(count, before, after)
        return 0.0 if self.every is None else before - (count + 1) * self.every


def _between(timing: Timing) -> float:
    """Return the seconds between two instants, the first ones in this century."""
    first = timing.next(_CENTURY)
    second = None if first is None else timing.next(first)
    return math.inf if first is None or second is None else second - first


def instant_text(instant: float) -> str:
    """Return an instant as the text in idempotency keys: `2027-01-31T09:30:00Z`."""
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def read_schedule(value: Any) -> ScheduleSpec:
    """Read one schedule. Raises `Wrong`, or a group of them each with its place."""
    if not isinstance(value, Mapping):
        raise Wrong(f"{show(value)} is not a schedule; write a mapping with `cron`, `every` or `at`")
    given = [name for name in _FORMS if value.get(name) is not None]
    wrongs = []
    if len(given) != 1:
        text = f"gives {' and '.join(given)}" if given else "does not say when"
        wrongs.append(Wrong(f"{text}; a schedule has one of cron, every and at", (given[1],) if given else ()))
    try:
        spec: ScheduleSpec = _CONVERTER.structure(dict(value), ScheduleSpec)
    except Exception as error:  # noqa: BLE001 - cattrs wraps what readers raise in groups; unfold lets bugs through
        wrongs += unfold(error)
        raise ExceptionGroup("wrong schedule", wrongs) from None
    try:
        if not wrongs and spec.cron is not None:
            spec = evolve(spec, cron=" ".join(spec.cron.split()))
            Cron.parse(str(spec.cron), spec.timezone)
        if not wrongs and spec.at is not None:
            return evolve(spec, at=_moment(spec.at, spec.timezone))
    except Wrong as wrong:
        wrongs.append(wrong.under(("at",) if spec.cron is None else ("cron",)))
    if not wrongs and spec.jitter and spec.jitter > (between := _between(spec.timing)):
        text = f"{units.format_duration(spec.jitter)} is more than the time between two runs"
        allowed = f"at most {units.format_duration(between)}"
        wrongs.append(Wrong(f"{text}; write {allowed}", ("jitter",), allowed=allowed))
    if wrongs:
        raise ExceptionGroup("wrong schedule", wrongs)
    return spec


def known_schedule(fields: Mapping[str, Any]) -> ScheduleSpec:
    """Return a schedule whose fields `schedule_fields` wrote, without checks. Its `timing` may raise `Wrong`."""
    words = {"overlap": Overlap(fields["overlap"]), "misfire": Misfire(fields["misfire"])}
    return ScheduleSpec(**{**fields, **words})


def read_schedules(value: Any) -> tuple[ScheduleSpec, ...]:
    """Read the schedules of a module; those without a name get one that derives from their content."""
    if isinstance(value, Mapping):
        raise Wrong("a mapping is not a list; write `- ` before the first field of each schedule", allowed="a list")
    if isinstance(value, (list, tuple)) and len(value) > MAX_SCHEDULES:
        raise Wrong(f"has {len(value):,} entries; the limit is {MAX_SCHEDULES}", allowed=f"at most {MAX_SCHEDULES}")
    if not isinstance(value, (list, tuple)) and value is not None:
        raise Wrong(f"{show(value)} is not a list", allowed="a list")
    read: dict[str, ScheduleSpec] = {}
    wrongs: list[Wrong] = []
    for at, each in enumerate(value or ()):
        try:
            spec = _named(read_schedule(each))
        except (Wrong, ExceptionGroup) as error:
            wrongs += unfold(error, (at,))
            continue
        if spec.name in read:
            text = f"another schedule of this module is the same or has the name {spec.name}; give it another name"
            wrongs.append(Wrong(text, (at, "name")))
        read[spec.name] = spec
    if wrongs:
        raise ExceptionGroup("wrong schedules", wrongs)
    return tuple(read.values())


def _named(spec: ScheduleSpec) -> ScheduleSpec:
    if spec.name:
        return spec
    content = json.dumps([spec.identity, spec.input], sort_keys=True).encode()
    return evolve(spec, name=hashlib.sha256(content).hexdigest()[:8])


def schedule_fields(spec: ScheduleSpec) -> dict[str, Any]:
    """Return a schedule as JSON values, which `read_schedule` reads as the same; fields that are None are omitted."""
    data: dict[str, Any] = _CONVERTER.unstructure(spec)
    return {name: value for name, value in data.items() if value is not None or name == "input"}


def _moment(value: str, zone: str) -> str:
    """Read a moment; one without an offset is in the time zone of its schedule."""
    try:
        found = datetime.fromisoformat(value.strip())
        if found.tzinfo is None:
            found = found.replace(tzinfo=zone_of(zone))
        return local_time(found.timestamp() // 1, zone)
    except (ValueError, OverflowError):
        allowed = "a date and time such as 2027-01-31T09:30:00Z or 2027-01-31T18:30:00+09:00"
        raise Wrong(f"{show(value)} is not {allowed}", allowed=allowed) from None


@accepting(shape_of(units.seconds(Range(1, _YEAR))))
def _whole_seconds(value: Any) -> float:
    found = units.seconds(Range(1, _YEAR))(value)
    if found != int(found):
        raise Wrong(f"{units.format_duration(found)} is not a whole number of seconds", allowed="whole seconds")
    return found


@accepting(Values.FILLED)
def _zone(value: Any) -> str:
    return zone_of(units.filled(value)).key


def _json(value: Any) -> Any:
    try:
        size = len(json.dumps(value, allow_nan=False))
    except (ValueError, TypeError, RecursionError) as problem:
        raise Wrong(f"is not JSON: {problem}", allowed="a JSON value") from None
    if size > _MAX_INPUT:
        raise Wrong(f"has {size:,} bytes as JSON; the limit is {_MAX_INPUT:,}", allowed=f"at most {_MAX_INPUT:,} bytes")
    return value


NAME: Final = units.matching(
    r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?",
    "a name: 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first and last",
)
_READERS: Final = {
    "name": lambda value: "" if value in ("", None) else NAME(value),
    "cron": units.optional(units.filled),
    "every": units.optional(_whole_seconds),
    "at": units.optional(units.filled),
    "timezone": _zone,
    "input": _json,
    "overlap": units.one_of(Overlap),
    "misfire": units.one_of(Misfire),
    "jitter": units.seconds(Range(0, 86400.0)),
}
_CONVERTER: Final = Converter()
_CONVERTER.register_structure_hook(ScheduleSpec, structure_hook(_CONVERTER, ScheduleSpec, _READERS))
shaped(read_schedules, lambda: list_shape(ScheduleSpec, {ScheduleSpec: _READERS}, MAX_SCHEDULES))
