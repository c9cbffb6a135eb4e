"""The filters of the list of executions: texts in the address of the page, and the query that they make."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from attrs import evolve, frozen

from actors.history import Query
from config.units import duration
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Status
from runner.ui.visit import Visit

PAGE: Final = 40
_MAX_TEXT: Final = 300


def _moment(text: str) -> float:
    """Return a time: a span before now (`24h`), a date, or a date with a time; without a zone in UTC."""
    try:
        return time.time() - duration(text)
    except ValueError:
        pass
    found = datetime.fromisoformat(text)
    seconds = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(text)
    return seconds


_READERS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "text": ("text", str),
    "module": ("module", str),
    "version": ("version", str),
    "status": ("status", Status),
    "error": ("kind", ErrorKind),
    "subject": ("subject", str),
    "schedule": ("schedule", str),
    "rerun_of": ("rerun_of", str),
    "parent": ("parent", str),
    "root": ("root", str),
    "node": ("node", str),
    "unresolved": ("unresolved", lambda text: {"true": True}[text]),
    "since": ("since", _moment),
    "until": ("until", _moment),
}
"""By the name in the address, which is that of REST: the field of `Query`, and the reader of its text."""
FOLDED: Final = tuple(name for name in _READERS if name not in ("text", "module", "status"))
"""Filters whose fields are folded away."""


@frozen
class Filters:
    """The filters of a page."""

    texts: Mapping[str, str]
    """As they were written, those that are not empty."""
    query: Query
    problems: Mapping[str, str]
    """By name, for those that cannot be read; they do not count."""

    def __getitem__(self, name: str) -> str:
        """Return the text of a filter, "" without one."""
        return self.texts.get(name, "")

    @property
    def folded(self) -> dict[str, str]:
        """The texts of the filters whose fields are folded away."""
        return {name: text for name, text in self.texts.items() if name in FOLDED}

    def without(self, *names: str) -> dict[str, str]:
        """Return the texts of the other filters, for links."""
        return {name: text for name, text in self.texts.items() if name not in names}


def read_filters(page: Visit) -> Filters:
    """Return the filters in the address of a page; `cursor` is the place in the list."""
    texts: dict[str, str] = {}
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, (field, read) in _READERS.items():
        text = page.query.get(name, "").strip()[:_MAX_TEXT]
        if not text:
            continue
        texts[name] = text
        try:
            values[field] = read(text)
        except (ValueError, KeyError, OverflowError):
            problems[name] = _problem(page, name)
    query = Query(limit=PAGE, cursor=page.query.get("cursor") or None, **values)
    return Filters(texts, query, problems)


def _problem(page: Visit, name: str) -> str:
    """Return why a filter cannot be read, and what to write."""
    if name in ("since", "until"):
        return page.words("Write a span such as 24h, or a date such as 2026-01-31 or 2026-01-31 09:30.")
    return page.words("There is no such value; choose one of the list.")


def refused(filters: Filters, problem: RunnerError) -> Filters:
    """Return filters with what a verb found wrong at one of them. Raises the problem if it is another one."""
    failure = problem.failure
    name = failure.field or ""
    if failure.kind is not ErrorKind.BAD_INPUT or name not in filters.texts:
        raise problem
    return evolve(filters, problems={**filters.problems, name: failure.message})
