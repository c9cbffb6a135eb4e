"""The fields of a schedule as a form posts them, and as the verb takes them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from config.units import format_duration
from protocol import messages
from protocol.errors import ErrorKind, error
from runner.api import ShownSchedule

FORMS: Final = ("cron", "every", "at")
EMPTY: Final = {
    "module": "",
    "name": "",
    "version": "",
    "form": "cron",
    "cron": "",
    "every": "",
    "at": "",
    "timezone": "UTC",
    "input": "null",
    "overlap": "skip",
    "misfire": "skip",
    "jitter": "",
}
"""The fields of an empty form. Of `FORMS`, the one that `form` names counts."""


def from_form(given: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a schedule; empty ones are None, which stands for the default.

    Raises RunnerError `bad_input` for an input that is no JSON.
    """
    chosen = given["form"] if given["form"] in FORMS else "cron"
    fields: dict[str, Any] = {
        name: given[name].strip() or None
        for name in ("module", "name", "version", "timezone", "overlap", "misfire", "jitter")
    }
    if given["name"] == "":
        del fields["name"]
    fields |= {form: (given[form].strip() or None) if form == chosen else None for form in FORMS}
    return {**fields, "input": _input(given["input"])}


def _input(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return msgspec.json.decode(messages.check_json(text.encode()))
    except (messages.InvalidJsonError, msgspec.DecodeError, UnicodeError, RecursionError) as problem:
        raise error(ErrorKind.BAD_INPUT, f"the input is not JSON: {problem}", field="input") from None


def to_form(schedule: ShownSchedule) -> dict[str, str]:
    """Return the form of a schedule."""
    every, jitter = schedule["every"], schedule["jitter"]
    form = next(each for each in FORMS if schedule[each] is not None)  # type: ignore[literal-required]
    return {
        "module": schedule["module"],
        "name": schedule["id"],
        "version": schedule["version"] or "",
        "form": form,
        "cron": schedule["cron"] or "",
        "every": "" if every is None else format_duration(every),
        "at": schedule["at"] or "",
        "timezone": schedule["timezone"],
        "input": msgspec.json.format(msgspec.json.encode(schedule["input"]), indent=2).decode(),
        "overlap": schedule["overlap"],
        "misfire": schedule["misfire"],
        "jitter": format_duration(jitter) if jitter else "",
    }
