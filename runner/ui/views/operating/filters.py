"""Filters in the URL of a list."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Final

from protocol.errors import ErrorKind, error
from runner.ui.visit import Visit

PAGE: Final = 50
_DAY_SECONDS: Final = 86400.0


def filters(page: Visit, *names: str) -> dict[str, str]:
    """Return the filters of these names, "" for those that are not set."""
    return {name: page.query.get(name, "").strip() for name in names}


def since(given: dict[str, str]) -> float | None:
    """Return the begin of the day `since`. Raises RunnerError `bad_input`."""
    return _midnight(given, "since")


def until(given: dict[str, str]) -> float | None:
    """Return the end of the day `until`. Raises RunnerError `bad_input`."""
    found = _midnight(given, "until")
    return None if found is None else found + _DAY_SECONDS


def _midnight(given: dict[str, str], name: str) -> float | None:
    if not given[name]:
        return None
    try:
        return datetime.combine(date.fromisoformat(given[name]), time(), UTC).timestamp()
    except ValueError:
        text = f"{given[name]!r:.40} is no day; write one such as 2027-01-31"
        raise error(ErrorKind.BAD_INPUT, text, field=name) from None
