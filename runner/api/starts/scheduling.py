"""The verbs of schedules, without transport types. Each checks scope and module first; each change is in the audit log.

A schedule of a module that the caller may not use does not exist for it. A schedule of a module is paused, resumed and
started here, and changed where the module is.
"""

from __future__ import annotations

import difflib
import heapq
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog
import trio
from attrs import define, evolve
from msgspec.structs import replace

from actors.executions import Runs
from actors.registry import Action, Note, Registry
from actors.starts import Schedule, Schedules, StoredSchedule
from actors.turns import group_of
from config.mistakes import Wrong, dotted, unfold
from config.timing import ScheduleSpec, read_schedules, schedule_fields
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Execution
from runner.api.checks import Checks
from runner.api.starts.shown import ShownSchedule, next_of, shown_schedule
from runner.auth import Principal, Scope, require

MAX_NEXT: Final = 100
"""Instants that `next` returns at most."""
_SHOWN_NAMES: Final = 100

log = structlog.get_logger("schedules")


@define(eq=False)
class Scheduling:
    """Makes, changes, shows and starts schedules."""

    registry: Registry
    runs: Runs
    checks: Checks
    _schedules: Schedules | None

    @property
    def schedules(self) -> Schedules:
        """The schedules. Raises RunnerError `unavailable` where there are none."""
        if self._schedules is None:
            raise error(ErrorKind.UNAVAILABLE, "this runner has no schedules")
        return self._schedules

    @property
    def damaged(self) -> bool:
        """Whether stored schedules were found damaged."""
        return self._schedules is not None and self._schedules.damaged

    def statistics(self) -> Mapping[str, int]:
        """Return the number of schedules by state, and of instants by their end since the start; {} without any."""
        return {} if self._schedules is None else self._schedules.statistics()

    def page(
        self, principal: Principal, *, module: str | None, limit: int, cursor: str
    ) -> tuple[list[ShownSchedule], str | None]:
        """Return the schedules after `cursor` (an identifier), by identifier, and the next cursor."""
        require(principal, Scope.SCHEDULES_READ)
        found = [
            each
            for each in self.schedules.all()
            if each.id > cursor and module in (None, each.module) and principal.may_use(each.module)
        ]
        now = self.schedules.clock()
        following = found[limit - 1].id if len(found) > limit else None
        return [shown_schedule(each, now) for each in found[:limit]], following

    def soonest(self, principal: Principal, most: int) -> list[ShownSchedule]:
        """Return the schedules that start next, at most so many, the first one first."""
        require(principal, Scope.SCHEDULES_READ)
        coming = [
            (each.due, each.id, each)
            for each in self.schedules.all()
            if each.due is not None and each.state.paused_by is None and principal.may_use(each.module)
        ]
        now = self.schedules.clock()
        return [shown_schedule(each, now) for _, _, each in heapq.nsmallest(most, coming)]

    def get(self, principal: Principal, name: str) -> ShownSchedule:
        """Return a schedule. Raises RunnerError `forbidden` or `not_found`."""
        return self._shown(self._known(principal, Scope.SCHEDULES_READ, name))

    async def next(self, principal: Principal, name: str, count: int) -> tuple[Schedule, list[float]]:
        """Return a schedule and its next instants, at most `count`, as if it were not paused. Raises RunnerError."""
        schedule = self._known(principal, Scope.SCHEDULES_READ, name)
        found, at = list[float](), next_of(schedule, self.schedules.clock())
        while at is not None and len(found) < min(count, MAX_NEXT):
            found.append(at)
            await trio.lowlevel.checkpoint()  # decades may lie between two
            at = schedule.spec.timing.next(at)
        return schedule, found

    async def create(self, principal: Principal, fields: Mapping[str, Any]) -> ShownSchedule:
        """Make a schedule of a module, and return it when it is recorded.

        `fields` are `module`, optionally `version`, and those of a schedule. Raises RunnerError: `bad_input` with all
        mistakes, `not_found` for the module, `conflict` when there is one of this name, `overloaded`, `unavailable`.
        On cancellation it may have been made.
        """
        require(principal, Scope.SCHEDULES_WRITE)
        spec = _read(fields)
        name = str(fields.get("name") or f"{fields.get('module')}.{spec.name}")[:128]
        if self.schedules.get(name) is not None:
            raise error(ErrorKind.CONFLICT, f"there is a schedule {name!r}; give this one another name", field="name")
        stored = StoredSchedule(
            id=name,
            module=_word(fields, "module"),
            version=None if fields.get("version") is None else _word(fields, "version"),
            fields=schedule_fields(spec),
            created_at=time.time(),
            created_by=principal.subject,
            updated_at=time.time(),
            updated_by=principal.subject,
        )
        return await self._put(principal, Action.SCHEDULE_CREATE, stored, spec, None)

    async def change(self, principal: Principal, name: str, changes: Mapping[str, Any]) -> ShownSchedule:
        """Change some fields of a schedule of the API, by the rules of JSON Merge Patch, where null removes a field.

        With other times it begins anew. Raises RunnerError as `create`, and `conflict` for a schedule of a module.
        """
        schedule, stored = self._own(principal, name)
        if changes.get("name", name) != name:
            raise error(ErrorKind.BAD_INPUT, "a schedule keeps its name; make another one instead", field="name")
        before: dict[str, Any] = {**stored.fields, "module": stored.module, "version": stored.version}
        if any(changes.get(form) is not None for form in ("cron", "every", "at")):
            before = {each: value for each, value in before.items() if each not in ("cron", "every", "at")}
        after = {each: value for each, value in {**before, **changes}.items() if value is not None or each == "input"}
        spec = _read(after)
        changed = replace(
            stored,
            module=_word(after, "module"),
            version=None if after.get("version") is None else _word(after, "version"),
            fields=schedule_fields(spec),
            updated_at=time.time(),
            updated_by=principal.subject,
        )
        return await self._put(
            principal, Action.SCHEDULE_CHANGE, changed, evolve(spec, name=schedule.spec.name), stored
        )

    async def remove(self, principal: Principal, name: str) -> None:
        """Delete a schedule of the API; its executions stay. Raises RunnerError."""
        schedule, _ = self._own(principal, name)
        await self.schedules.remove(schedule)
        await self._note(principal, Action.SCHEDULE_DELETE, schedule)

    async def pause(self, principal: Principal, name: str, *, paused: bool) -> ShownSchedule:
        """Start no more instants of a schedule, or start them again from now on. A second call changes nothing."""
        schedule = self._known(principal, Scope.SCHEDULES_WRITE, name)
        if (schedule.state.paused_by is not None) is not paused:
            await self.schedules.pause(schedule, principal.subject if paused else None)
            await self._note(principal, Action.SCHEDULE_PAUSE if paused else Action.SCHEDULE_RESUME, schedule)
        return self._shown(schedule)

    async def fire(self, principal: Principal, name: str) -> Execution:
        """Start a schedule now, besides its instants and even if it is paused; return the accepted execution."""
        schedule = self._known(principal, Scope.SCHEDULES_WRITE, name)
        return self.runs.snapshot(await self.schedules.fire(schedule, principal.subject))

    def _shown(self, schedule: Schedule) -> ShownSchedule:
        return shown_schedule(schedule, self.schedules.clock())

    async def _put(
        self,
        principal: Principal,
        action: Action,
        stored: StoredSchedule,
        spec: ScheduleSpec,
        before: StoredSchedule | None,
    ) -> ShownSchedule:
        try:
            module = self.registry.snapshot.get(stored.module, stored.version, principal.may_use)
        except RunnerError as problem:
            field = "version" if problem.failure.field == "version" else "module"
            raise error(problem.failure.kind, problem.failure.message, field=field) from None
        try:
            raw = await self.checks.input(module, msgspec.json.encode(spec.input))
            if module.spec.group is not None:
                group_of(module.spec.group.key, bytes(raw))
        except RunnerError as problem:
            text = f"the module refuses this input: {problem.failure.message}"
            raise error(ErrorKind.BAD_INPUT, text, field="input") from None
        if spec.timing.next(self.schedules.clock()) is None:
            raise error(ErrorKind.BAD_INPUT, f"{spec.at} has passed; write a time to come", field="at")
        schedule = await self.schedules.put(stored, spec, before)
        await self._note(principal, action, schedule)
        return self._shown(schedule)

    def _known(self, principal: Principal, scope: Scope, name: str) -> Schedule:
        require(principal, scope)
        schedule = self.schedules.get(name)
        if schedule is None or not principal.may_use(schedule.module):
            names = [each.id for each in self.schedules.all() if principal.may_use(each.module)]
            alike = sorted(names, key=lambda each: each[:1] != name[:1])[:_SHOWN_NAMES]
            close = difflib.get_close_matches(name[:80], alike, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise error(ErrorKind.NOT_FOUND, f"there is no schedule {name!r:.80}{hint}", field="id")
        return schedule

    def _own(self, principal: Principal, name: str) -> tuple[Schedule, StoredSchedule]:
        """Return a schedule that can be changed here. Raises RunnerError `conflict` for one of a module."""
        schedule = self._known(principal, Scope.SCHEDULES_WRITE, name)
        if schedule.stored is None:
            text = f"the schedule {name!r} belongs to the module {schedule.module!r}; change it there, or pause it"
            raise error(ErrorKind.CONFLICT, text, field="id")
        return schedule, schedule.stored

    async def _note(self, principal: Principal, action: Action, schedule: Schedule) -> None:
        """Add a change to the audit log; it is made, whether that is possible or not."""
        detail = {"schedule": schedule.id, "when": schedule.spec.identity}
        try:
            await self.registry.audit.note(principal.subject, [Note(action, schedule.module, schedule.version, detail)])
        except RunnerError as problem:
            log.warning("a change of schedules is not in the audit log", schedule=schedule.id, why=str(problem))


def _read(fields: Mapping[str, Any]) -> ScheduleSpec:
    """Return the schedule that `fields` describe. Raises RunnerError `bad_input` with all mistakes."""
    given = {name: value for name, value in fields.items() if name not in ("id", "module", "version")}
    try:
        return read_schedules([given])[0]
    except (Wrong, ExceptionGroup) as problem:
        wrongs = [(dotted(wrong.where[1:]), wrong.message) for wrong in unfold(problem)]
        text = "\n".join(": ".join(filter(None, each)) for each in wrongs)
        raise error(ErrorKind.BAD_INPUT, text, field=wrongs[0][0] or "$") from None


def _word(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise error(ErrorKind.BAD_INPUT, f'`{name}` is the name of a {name}, such as "report"', field=name)
    return value
