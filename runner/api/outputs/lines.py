"""The output of an execution as lines, made of its events: all at once from its record, or bit by bit while it runs.

A line begins where its first character was printed, and grows there, also while the other stream prints. The
spot of a line is the number of the event in which it begins and its index in the text of that event. Spots never
change; the ordinal number of a line does, when output before it is dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from enum import StrEnum

from attrs import define, field
from msgspec import Struct

from protocol.events import DroppedEvent, Event, OutputEvent, StatusEvent
from protocol.model import Stream
from protocol.terminal import last_written

MAX_LINE = 4_000
"""Characters of a line that are shown; the rest is in the download."""
Spot = tuple[int, int]
"""The number of an event, and the index of a line in it. Lines are in the order of their spots."""


class Sort(StrEnum):
    """What a line is."""

    TEXT = "text"
    GAP = "gap"
    """Output was not kept here."""
    ATTEMPT = "attempt"
    """A later attempt begins here."""


class Line(Struct, gc=False):
    """One line. Changed only by `Lines`, while it grows."""

    number: int
    """Counts the kept lines from 1."""
    seq: int
    index: int
    at: float
    attempt: int
    sort: Sort = Sort.TEXT
    stream: Stream | None = None
    """None for what no stream printed."""
    text: str = ""
    cut: int = 0
    """Characters that were left out at its end, as it is too long; of a gap the bytes that are missing."""

    @property
    def spot(self) -> Spot:
        """Where it begins."""
        return self.seq, self.index


class _Growing:
    """A line without an end yet."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._parts: list[str] = []
        self._length = 0

    def add(self, text: str, longest: int) -> None:
        if "\r" in text:
            # A progress bar writes one line again and again: only its last state is kept.
            whole = "".join((*self._parts, text))
            text = last_written(whole) + ("\r" if whole.endswith("\r") else "")
            self._parts, self._length, self.line.cut = [], 0, 0
        kept = text[: max(0, longest - self._length)]
        self.line.cut += len(text) - len(kept)
        self._length += len(kept)
        if kept:
            self._parts.append(kept)

    def write(self) -> None:
        self.line.text = last_written("".join(self._parts))


@define
class Lines:
    """Makes lines of events."""

    longest: int = sys.maxsize
    """Characters that are kept of a line."""
    attempt: int = 1
    count: int = 0
    _growing: dict[Stream, _Growing] = field(factory=dict, init=False)

    def add(self, event: Event) -> list[Line]:
        """Return the lines that began or grew with an event, in order; `settle` writes the text of growing ones."""
        match event:
            case OutputEvent():
                return self._print(event)
            case DroppedEvent():
                self._end()
                return [self._mark(event, Sort.GAP, event.bytes)]
            case StatusEvent() if event.attempt > self.attempt:
                self._end()
                self.attempt = event.attempt
                return [self._mark(event, Sort.ATTEMPT, 0)]
            case _:
                return []

    def all(self, events: Iterable[Event]) -> list[Line]:
        """Return all lines of events."""
        found: list[Line] = []
        for event in events:
            changed = self.add(event)
            if changed and found and changed[0].number <= found[-1].number:
                del changed[0]  # it grew
            found += changed
        self.settle()
        return found

    def settle(self) -> None:
        """Write the text of the lines that grow: once for many events, as a line can grow by many."""
        for each in self._growing.values():
            each.write()

    def _end(self) -> None:
        self.settle()
        self._growing.clear()

    def _mark(self, event: DroppedEvent | StatusEvent, sort: Sort, size: int) -> Line:
        self.count += 1
        return Line(self.count, event.seq, 0, event.at, self.attempt, sort, cut=size)

    def _print(self, event: OutputEvent) -> list[Line]:
        stream, seq, at, attempt = event.stream, event.seq, event.at, self.attempt
        pieces = event.text.split("\n")
        rest = pieces.pop()
        changed: list[Line] = []
        grown = self._growing.pop(stream, None)
        first = 0
        if grown is not None:
            grown.add(pieces[0] if pieces else rest, self.longest)
            changed.append(grown.line)
            if not pieces:
                self._growing[stream] = grown
                return changed
            grown.write()
            first = 1
        number, longest, text_sort = self.count + 1 - first, self.longest, Sort.TEXT
        if "\r" in event.text:
            pieces = [last_written(piece) for piece in pieces]
        for index in range(first, len(pieces)):
            text = pieces[index]
            cut = len(text) - longest
            if cut > 0:
                changed.append(Line(number + index, seq, index, at, attempt, text_sort, stream, text[:longest], cut))
            else:
                changed.append(Line(number + index, seq, index, at, attempt, text_sort, stream, text))
        self.count += len(pieces) - first
        if rest:
            self.count += 1
            line = Line(self.count, seq, len(pieces), at, attempt, Sort.TEXT, stream)
            grown = self._growing[stream] = _Growing(line)
            grown.add(rest, longest)
            changed.append(line)
        return changed
