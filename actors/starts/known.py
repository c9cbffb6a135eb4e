"""`Known`: all schedules of this runner, and when each is looked at next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import structlog
from attrs import define, field
from msgspec.structs import replace

from actors.starts.firing import Schedule
from actors.starts.stored import State, StoredSchedule
from actors.starts.timer import Timer
from config.timing import ScheduleSpec, known_schedule

_MOST_EARLY: Final = 20_000
_COUNTED: Final = ("started", "skipped", "missed", "failed")
_LATEST: Final = ("pending", "paused_by", "last_execution", "last_for", "problem")

log = structlog.get_logger("schedules")


@define(eq=False)
class Known:
    """The schedules by their identifiers. `clock` returns the time of day in seconds since the epoch."""

    clock: Callable[[], float]
    timer: Timer = field(init=False)
    by_id: dict[str, Schedule] = field(factory=dict, init=False)
    left: dict[str, State] = field(factory=dict, init=False)
    """States of schedules that are not known any more, to be deleted."""
    _early: dict[str, State] = field(factory=dict, init=False)
    """States that other runners wrote before their modules were known here."""

    def __attrs_post_init__(self) -> None:
        self.timer = Timer(self.clock)

    def load(self, stored: Iterable[StoredSchedule], states: Iterable[State]) -> None:
        """Have the schedules of the API as they were stored, and how far all have come."""
        self.left = {state.id: state for state in states}
        for each in stored:
            state, spec = self.left.pop(each.id, None), _spec_of(each)
            if spec is not None:
                after = state_of(each.id, spec, state, self.clock())
                self.enter(Schedule(each.id, each.module, spec, after, each), None, written=after == state)

    def state_before(self, name: str) -> State | None:
        """Return how far a schedule had come that was not known until now."""
        return self.left.pop(name, None) or self._early.pop(name, None)

    def enter(self, schedule: Schedule, before: Schedule | None, *, written: bool) -> Schedule:
        """Add a schedule, or put it in the place of the one `before`."""
        for live in before.running() if before is not None else ():
            schedule.add(live)
        schedule.shared = None if before is None else before.shared
        schedule.changed = not written
        self.by_id[schedule.id] = schedule
        self.look_now(schedule)
        return schedule

    def look_now(self, schedule: Schedule) -> None:
        """Look at a schedule as soon as possible."""
        if self.by_id.get(schedule.id) is schedule:
            self.timer.put(schedule.id, self.clock())
            self.timer.ring()

    def adopt(
        self, states: Iterable[State] = (), schedules: Iterable[StoredSchedule] = (), deleted: Iterable[str] = ()
    ) -> None:
        """Have schedules and states as a runner of the cluster has written them."""
        for name in deleted:
            self.by_id.pop(name, None)
            self._early.pop(name, None)
        for stored in schedules:
            self._adopt_schedule(stored)
        for state in states:
            schedule = self.by_id.get(state.id)
            if schedule is not None:
                self._adopt_state(schedule, state)
            else:
                self._early[state.id] = state
                if len(self._early) > _MOST_EARLY:
                    del self._early[next(iter(self._early))]

    def _adopt_schedule(self, stored: StoredSchedule) -> None:
        spec, known = _spec_of(stored), self.by_id.get(stored.id)
        if spec is None:
            self.by_id.pop(stored.id, None)
        elif known is None:
            early = self._early.pop(stored.id, None)
            state = state_of(stored.id, spec, early, self.clock())
            self.enter(Schedule(stored.id, stored.module, spec, state, stored), None, written=True).shared = early
        else:  # in its place, as it may be looked at right now
            known.module, known.spec, known.stored = stored.module, spec, stored
            known.state = state_of(stored.id, spec, known.state, self.clock())
            self.look_now(known)

    def _adopt_state(self, schedule: Schedule, theirs: State) -> None:
        sent = schedule.sent
        base = sent[1] if sent is not None and sent[0] == theirs else schedule.shared
        merged = merged_state(base, schedule.state, theirs) if schedule.changed else theirs
        schedule.state, schedule.shared, schedule.changed = merged, theirs, merged != theirs
        self.look_now(schedule)


def _spec_of(stored: StoredSchedule) -> ScheduleSpec | None:
    try:
        return known_schedule(stored.fields)
    except (KeyError, TypeError, ValueError) as problem:  # of another release
        log.error("a schedule cannot be read", schedule=stored.id, why=repr(problem))  # noqa: TRY400  (the traceback would be ours)
        return None


def state_of(name: str, spec: ScheduleSpec, before: State | None, now: float) -> State:
    """Return the state of a schedule: it begins now if it is new or its instants have changed."""
    if before is None:
        return State(id=name, identity=spec.identity, cursor=now)
    if before.identity == spec.identity:
        return replace(before, cursor=min(before.cursor, now))
    return replace(before, identity=spec.identity, cursor=now, pending=())


def merged_state(base: State | None, mine: State, theirs: State) -> State:
    """Return what another runner wrote with the changes that were made here since `base`, the last common state."""
    if base is None or mine.identity != theirs.identity:
        return theirs
    changes: dict[str, object] = {name: getattr(mine, name) for name in _LATEST if _differs(base, mine, name)}
    changes |= {name: getattr(theirs, name) + getattr(mine, name) - getattr(base, name) for name in _COUNTED}
    return replace(theirs, cursor=max(mine.cursor, theirs.cursor), **changes)


def _differs(base: State, mine: State, name: str) -> bool:
    return bool(getattr(base, name) != getattr(mine, name))
