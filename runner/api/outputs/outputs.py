"""The verbs that read the output of an execution in parts, without transport types. Each checks scope and modules."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from attrs import frozen

from actors.executions import Runs
from actors.history import History
from protocol.errors import ErrorKind, error
from protocol.events import KeptEvent, decode_all
from protocol.model import Execution, Status, Stream
from protocol.terminal import plain
from runner.api.checks import Checks
from runner.api.outputs.lines import Line, Lines, Place, Sort
from runner.api.reruns import seen
from runner.auth import Principal, Scope, require

T = TypeVar("T")
MAX_LINES: Final = 1_000
"""Lines in one window, and places in one answer of a search."""
MAX_SEARCHED: Final = 200
"""Characters of a text to search for."""


@frozen
class Window:
    """Some lines of an output, in order."""

    lines: tuple[Line, ...]
    total: int
    """The kept lines of the whole output."""
    before: bool
    """Whether lines are before these."""
    after: bool


@frozen
class Matches:
    """The lines of a whole output that contain a text."""

    lines: tuple[Line, ...]
    """The first ones."""
    count: int
    """All of them."""


@frozen
class Outputs:
    """The verbs of output. Long work runs in threads."""

    history: History
    runs: Runs
    checks: Checks

    async def window(
        self,
        principal: Principal,
        name: str,
        *,
        limit: int,
        stream: Stream | None = None,
        after: Place | None = None,
        before: Place | None = None,
        last: bool = False,
    ) -> Window:
        """Return at most `limit` lines: the first ones, those from `after` on, those before `before`, or the last ones.

        With both places the lines begin in the middle, at `after`, and as many come before it as after it. Raises
        RunnerError `forbidden` or `not_found`.
        """
        return await self._made(principal, name, partial(_window, limit, stream, after, before, last=last))

    async def search(self, principal: Principal, name: str, text: str, stream: Stream | None = None) -> Matches:
        """Return the lines of the whole output that contain a text; case is ignored.

        Escape sequences of terminals are not searched. Raises RunnerError `bad_input`, `forbidden` or `not_found`.
        """
        wanted = checked_text(text).casefold()
        return await self._made(principal, name, partial(_search, wanted, stream))

    async def mistake(self, principal: Principal, name: str) -> Place | None:
        """Return where the output tells of a mistake: its last traceback, else its last line of `stderr`, or None."""
        return await self._made(principal, name, _mistake)

    async def _made(self, principal: Principal, name: str, work: Callable[[list[Line]], T]) -> T:
        """Return what work on the lines of an execution returns."""
        require(principal, Scope.EXECUTIONS_READ)
        live = self.runs.find(name)
        if live is not None:
            seen(principal, name, live.execution)
            kept, size = live.log.kept(), live.log.store.added_bytes
            return await self.checks.sized(size, lambda: work(Lines().all(kept)))
        found = seen(principal, name, await self.history.get(name))
        return await self.checks.sized(len(found.events), lambda: work(Lines().all(events_of(found))))


def events_of(execution: Execution) -> Sequence[KeptEvent]:
    """Return the kept events of an execution that is not live."""
    return () if execution.status is Status.SCHEDULED else decode_all(execution.events)


def checked_text(text: str, field: str = "search") -> str:
    """Return a text to search for. Raises RunnerError `bad_input` with this field."""
    if not text.strip() or len(text) > MAX_SEARCHED or "\n" in text:
        rule = f"a text to search for is part of one line, with 1 to {MAX_SEARCHED} characters"
        raise error(ErrorKind.BAD_INPUT, rule, field=field)
    return text


def _window(
    limit: int,
    stream: Stream | None,
    after: Place | None,
    before: Place | None,
    lines: list[Line],
    *,
    last: bool,
) -> Window:
    total = len(lines)
    if stream is not None:
        lines = [line for line in lines if line.stream in (stream, None)]
    start = 0
    if after is not None:
        start = bisect_left(lines, after, key=_place)
        if before is not None:
            start = max(0, start - limit // 2)
    elif before is not None:
        end = bisect_left(lines, before, key=_place)
        start, limit = max(0, end - limit), min(limit, end)
    elif last:
        start = max(0, len(lines) - limit)
    some = tuple(lines[start : start + limit])
    return Window(some, total, start > 0, start + limit < len(lines))


def _place(line: Line) -> Place:
    return line.place


def _search(wanted: str, stream: Stream | None, lines: list[Line]) -> Matches:
    found = [
        line
        for line in lines
        if line.sort is Sort.TEXT and stream in (line.stream, None) and wanted in plain(line.text).casefold()
    ]
    return Matches(tuple(found[:MAX_LINES]), len(found))


def _mistake(lines: list[Line]) -> Place | None:
    last = None
    for line in reversed(lines):
        if line.text.startswith("Traceback (most recent call last)"):
            return line.place
        if last is None and line.stream is Stream.STDERR and line.text.strip():
            last = line.place
    return last
