"""The verbs that read the output of an execution in parts, without transport types. Each checks scope and modules."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from attrs import evolve, frozen

from actors.executions import Runs
from actors.history import History
from protocol.errors import ErrorKind, error
from protocol.events import DroppedEvent, ItemEvent, KeptEvent, OutputEvent, ProgressEvent, decode_all
from protocol.model import Execution, Status, Stream
from protocol.terminal import plain
from runner.api.checks import Checks
from runner.api.outputs.lines import Line, Lines, Sort, Spot
from runner.api.reruns import seen
from runner.auth import Principal, Scope, require

T = TypeVar("T")
MAX_LINES: Final = 1_000
"""Lines in one window, and in one answer of a search."""
_TRACEBACK: Final = "Traceback (most recent call last)"
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
    next_seq: int
    """The number of the first event that is not in it, for those who follow the execution."""


@frozen
class Matches:
    """The lines of a whole output that contain a text."""

    lines: tuple[Line, ...]
    """The first ones."""
    count: int
    """All of them."""


@frozen
class Look:
    """The parts of an output that are looked at first."""

    window: Window
    mistake: Spot | None
    """Where it tells of a mistake: its last traceback, else after a failure the last line of `stderr`."""
    progress: ProgressEvent | None
    """The latest one."""
    items: int
    """Kept items of a generator."""


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
        after: Spot | None = None,
        before: Spot | None = None,
        last: bool = False,
    ) -> Window:
        """Return at most `limit` lines: the first ones, those from `after` on, those before `before`, or the last ones.

        With both spots the lines begin in the middle, at `after`, and as many come before it as after it. Raises
        RunnerError `forbidden` or `not_found`.
        """

        def work(events: Sequence[KeptEvent]) -> Window:
            found = window_of(Lines().all(events), limit, stream, after, before, last=last)
            return evolve(found, next_seq=events[-1].seq + 1 if events else 0)

        return await self._made(principal, name, work)

    async def search(self, principal: Principal, name: str, text: str, stream: Stream | None = None) -> Matches:
        """Return the lines of the whole output that contain a text; case is ignored.

        Escape sequences of terminals are not searched. Raises RunnerError `bad_input`, `forbidden` or `not_found`.
        """
        wanted = checked_text(text).casefold()
        return await self._made(principal, name, lambda events: search_in(Lines().all(events), wanted, stream))

    async def look(self, execution: Execution, limit: int, *, last: bool) -> Look:
        """Return the first, or the last, lines of an execution that its caller has read, and where to look."""

        def work(data: bytes) -> Look:
            events = decode_all(data)
            lines = Lines().all(events)
            window = window_of(lines, limit, last=last)
            progress = [event for event in events if isinstance(event, ProgressEvent)]
            items = sum(isinstance(event, ItemEvent) for event in events)
            window = evolve(window, next_seq=events[-1].seq + 1 if events else 0)
            return Look(
                window,
                mistake_in(lines, failed=execution.status is Status.FAILED),
                progress[-1] if progress else None,
                items,
            )

        return await self.checks.whole(work, execution.events)

    async def text(self, principal: Principal, name: str) -> bytes:
        """Return the kept output of all attempts as it was printed. Raises RunnerError `forbidden` or `not_found`."""
        return await self._made(principal, name, lambda events: "".join(_texts(events)).encode())

    async def _made(self, principal: Principal, name: str, work: Callable[[Sequence[KeptEvent]], T]) -> T:
        """Return what work on the events of an execution returns."""
        require(principal, Scope.EXECUTIONS_READ)
        live = await self.runs.owners.reach(name)
        if live is not None:
            seen(principal, name, live.execution)
            kept, size = live.log.kept(), live.log.store.added_bytes
            return await self.checks.sized(size, lambda: work(kept))
        events = seen(principal, name, await self.history.get(name)).events
        return await self.checks.sized(len(events), lambda: work(decode_all(events)))


def checked_text(text: str, field: str = "search") -> str:
    """Return a text to search for. Raises RunnerError `bad_input` with this field."""
    if not text.strip() or len(text) > MAX_SEARCHED or "\n" in text:
        rule = f"a text to search for is part of one line, with 1 to {MAX_SEARCHED} characters"
        raise error(ErrorKind.BAD_INPUT, rule, field=field)
    return text


def window_of(
    lines: list[Line],
    limit: int,
    stream: Stream | None = None,
    after: Spot | None = None,
    before: Spot | None = None,
    *,
    last: bool = False,
) -> Window:
    """Return some of the lines; see `Outputs.window`."""
    total = len(lines)
    if stream is not None:
        lines = [line for line in lines if line.stream in (stream, None)]
    start = 0
    if after is not None:
        start = bisect_left(lines, after, key=_spot)
        if before is not None:
            start = max(0, start - limit // 2)
    elif before is not None:
        end = bisect_left(lines, before, key=_spot)
        start, limit = max(0, end - limit), min(limit, end)
    elif last:
        start = max(0, len(lines) - limit)
    some = tuple(lines[start : start + limit])
    return Window(some, total, start > 0, start + limit < len(lines), 0)


def _spot(line: Line) -> Spot:
    return line.spot


def search_in(lines: list[Line], wanted: str, stream: Stream | None = None) -> Matches:
    """Return the lines with a text in lower case."""
    found = [
        line
        for line in lines
        if line.sort is Sort.TEXT and stream in (line.stream, None) and wanted in plain(line.text).casefold()
    ]
    return Matches(tuple(found[:MAX_LINES]), len(found))


def mistake_in(lines: list[Line], *, failed: bool) -> Spot | None:
    """Return where lines tell of a mistake; see `Look`."""
    last = None
    for line in reversed(lines):
        if line.text.startswith(_TRACEBACK):
            return line.spot
        if failed and last is None and line.stream is Stream.STDERR and line.text.strip():
            last = line.spot
    return last


def _texts(events: Sequence[KeptEvent]) -> Iterator[str]:
    for event in events:
        if isinstance(event, OutputEvent):
            yield event.text
        elif isinstance(event, DroppedEvent):
            yield f"\n[{event.bytes} bytes were not kept]\n"
