"""The events of one execution that are kept within bounds: the first ones, states and gaps, and the last ones. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import takewhile

from protocol.events import DroppedEvent, ItemEvent, KeptEvent, OutputEvent, ProgressEvent, StatusEvent

_EVENT_BYTES = 64
"""Counted for each event besides its text."""


class EventStore:
    """The events that are kept: the first ones, then states and gaps, then the last ones. Pure.

    `keep` bounds the bytes of output and progress, `keep_items` those of items.
    """

    def __init__(self, keep: int, keep_items: int) -> None:
        self.dropped_bytes = 0
        self.added_bytes = 0
        """Bytes of all output, progress texts and items."""
        self._half = keep // 2
        self._keep_items = keep_items
        self._head: list[KeptEvent] = []
        self._middle: list[KeptEvent] = []  # states and gaps
        self._tail: deque[KeptEvent] = deque()
        self._head_bytes = self._tail_bytes = self._item_bytes = 0

    def restore(self, events: Iterable[KeptEvent], next_seq: int, at: float) -> None:
        """Keep the events of the history. Missing numbers, up to `next_seq`, become gaps of unknown size.

        Numbers are missing when the runner ended before their events were stored. `at` is the time of a gap without an
        event before it.
        """
        number = 0
        for event in events:
            at = event.at
            first = event.seq - event.events + 1 if isinstance(event, DroppedEvent) else event.seq
            self._restore_gap(number, first, at)
            self._head.append(event)
            number = event.seq + 1
        self._restore_gap(number, next_seq, at)

    def _restore_gap(self, start: int, stop: int, at: float) -> None:
        if stop > start:
            self._head.append(DroppedEvent(stop - 1, at, stop - start, 0))

    def add(self, event: KeptEvent) -> None:
        """Keep an event; drop older ones that no longer fit."""
        size = size_of(event)
        self.added_bytes += size
        cost = size + _EVENT_BYTES
        if not self._tail and not self._middle and self._head_bytes + cost <= self._half:
            self._head.append(event)
            self._head_bytes += cost
            return
        self._tail.append(event)
        self._count(event, cost)
        # The newest event stays however large it is, for readers that keep up.
        while len(self._tail) > 1 and (self._tail_bytes > self._half or self._item_bytes > self._keep_items):
            self._drop(self._tail.popleft())

    def _count(self, event: KeptEvent, cost: int) -> None:
        if isinstance(event, ItemEvent):
            self._item_bytes += cost
        else:
            self._tail_bytes += cost

    def _drop(self, event: KeptEvent) -> None:
        size = size_of(event)
        self._count(event, -(size + _EVENT_BYTES))
        if isinstance(event, StatusEvent):
            self._middle.append(event)
            return
        self.dropped_bytes += size
        gap = self._middle[-1] if self._middle else None
        if isinstance(gap, DroppedEvent):
            self._middle[-1] = DroppedEvent(event.seq, event.at, gap.events + 1, gap.bytes + size)
        else:
            self._middle.append(DroppedEvent(event.seq, event.at, 1, size))

    def gap(self) -> tuple[int, int] | None:
        """Return the half-open range of numbers in which events were dropped; None when none were."""
        gaps = [event for event in self._middle if isinstance(event, DroppedEvent)]
        return (gaps[0].seq - gaps[0].events + 1, gaps[-1].seq + 1) if gaps else None

    def all(self) -> tuple[KeptEvent, ...]:
        """Return all kept events."""
        return (*self._head, *self._middle, *self._tail)

    def since(self, start: int) -> Iterable[KeptEvent]:
        """Yield the kept events from `start` on; of a gap, its part from there on, with the bytes of the whole gap."""
        tail = self._tail
        if tail and start >= tail[0].seq:
            newest = takewhile(lambda event: event.seq >= start, reversed(tail))
            yield from reversed(tuple(newest))  # readers that keep up want the last few
            return
        for part in (self._head, self._middle, tail):
            for event in part:
                if event.seq < start:
                    continue
                if isinstance(event, DroppedEvent) and event.seq - event.events + 1 < start:
                    yield DroppedEvent(event.seq, event.at, event.seq - start + 1, event.bytes)
                else:
                    yield event


def size_of(event: KeptEvent) -> int:
    """Return the bytes of output, progress text or item of an event."""
    match event:
        case OutputEvent() | ProgressEvent():
            return bytes_of(event.text)
        case ItemEvent():
            return len(bytes(event.value))
        case _:
            return 0


def bytes_of(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
