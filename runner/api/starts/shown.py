"""A schedule as callers see it, and the JSON object by which they describe one."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypedDict

import msgspec
from msgspec import Meta

from actors.starts import Schedule
from config.mistakes import Wrong
from config.timing import instant_text
from protocol import messages
from protocol.errors import ErrorKind, error

MAX_BYTES: Final = 128 * 1024
_EXAMPLE: Final = '{"module": "report", "cron": "30 3 * * *", "timezone": "Asia/Seoul", "input": {}}'
Moment = Annotated[float, Meta(description="Seconds since 1970.")]


class Last(TypedDict):
    """The last execution that a schedule started."""

    execution: str
    scheduled_for: Annotated[Moment | None, Meta(description="Its instant; null if a caller started it.")]


class Counts(TypedDict):
    """How the instants of a schedule ended."""

    started: int
    skipped: Annotated[int, Meta(description="Left out because the last execution had not ended.")]
    missed: Annotated[int, Meta(description="Passed while nothing could start; at least so many.")]
    failed: Annotated[int, Meta(description="Could not start: without the module, or with an input that it refuses.")]


class ShownSchedule(TypedDict):
    """A schedule."""

    id: Annotated[str, Meta(description="`MODULE:NAME` for a schedule of a module.")]
    module: str
    version: Annotated[str | None, Meta(description="The version that it starts; null for the active one.")]
    source: Annotated[str, Meta(description="`module` or `api`: where it is changed.")]
    cron: str | None
    every: Annotated[float | None, Meta(description="Seconds.")]
    at: str | None
    timezone: str
    input: Any
    overlap: str
    misfire: str
    jitter: Annotated[float, Meta(description="Seconds.")]
    paused: bool
    paused_by: str | None
    next: Annotated[Moment | None, Meta(description="The next instant; null if it is paused or has none.")]
    last: Last | None
    counts: Counts
    pending: Annotated[list[str], Meta(description="Instants that wait for the end of the last execution.")]
    problem: Annotated[str | None, Meta(description="Why the last instant could not start.")]
    created_at: Moment | None
    created_by: str | None
    updated_at: Moment | None
    updated_by: str | None


def shown_schedule(schedule: Schedule, now: float) -> ShownSchedule:
    """Return a schedule as lists and details show it."""
    spec, state, stored = schedule.spec, schedule.state, schedule.stored
    return {
        "id": schedule.id,
        "module": schedule.module,
        "version": schedule.version,
        "source": "module" if stored is None else "api",
        "cron": spec.cron,
        "every": spec.every,
        "at": spec.at,
        "timezone": spec.timezone,
        "input": spec.input,
        "overlap": spec.overlap.value,
        "misfire": spec.misfire.value,
        "jitter": spec.jitter,
        "paused": state.paused_by is not None,
        "paused_by": state.paused_by,
        "next": next_of(schedule, now) if state.paused_by is None else None,
        "last": None
        if state.last_execution is None
        else {"execution": state.last_execution, "scheduled_for": state.last_for},
        "counts": {"started": state.started, "skipped": state.skipped, "missed": state.missed, "failed": state.failed},
        "pending": [instant_text(each) for each in state.pending],
        "problem": state.problem,
        "created_at": None if stored is None else round(stored.created_at, 3),
        "created_by": None if stored is None else stored.created_by,
        "updated_at": None if stored is None else round(stored.updated_at, 3),
        "updated_by": None if stored is None else stored.updated_by,
    }


def next_of(schedule: Schedule, after: float) -> float | None:
    """Return the first instant after a time that has not been settled; None without one."""
    try:
        return schedule.spec.timing.next(max(after, schedule.state.cursor))
    except Wrong:  # `problem` has it
        return None


def fields_of(body: bytes, field: str = "$") -> dict[str, Any]:
    """Return the JSON object that describes a schedule or changes to one. Raises RunnerError."""
    if len(body) > MAX_BYTES:
        text = f"the description of a schedule has {len(body)} bytes; the limit is {MAX_BYTES}"
        raise error(ErrorKind.TOO_LARGE, text, field=field)
    try:
        found = msgspec.json.decode(messages.check_json(body))
    except (messages.InvalidJsonError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise error(ErrorKind.BAD_INPUT, f"the body is not JSON: {problem}; write {_EXAMPLE}", field=field) from None
    if not isinstance(found, dict):
        raise error(ErrorKind.BAD_INPUT, f"the body is not an object; write {_EXAMPLE}", field=field)
    return found
