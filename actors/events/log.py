"""The numbered events of one execution: kept within bounds, replayed, then followed. Readers pull.

Readers have no queue: each asks for the events from a number on, so a slow or vanished reader costs nothing and delays
no one. The first and the last output is kept, each within half of `keep`; a reader that falls behind the gap between
them gets one `dropped` event instead. States of the execution are never dropped.

Output is gathered: the last piece grows until it is read, it is large, or a moment has passed. So a handler that prints
a million lines unwatched makes few events, and the output of a watched one is seen at once.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterable

import msgspec
import trio
from attrs import frozen

from actors.events.store import EventStore, bytes_of, size_of
from protocol.events import (
    ChildEvent,
    ErrorEvent,
    Event,
    ItemEvent,
    KeptEvent,
    OutputEvent,
    ProgressEvent,
    ResultEvent,
    StatusEvent,
    decode_all,
    last_event,
)
from protocol.model import Execution, Status, Stream

_PIECE_BYTES = 4096
"""A piece of output does not grow beyond this."""
_PIECE_SECONDS = 0.1
"""A piece of output does not grow for longer than this, so that its time holds for all of it."""
_BATCH_EVENTS = 256
_BATCH_BYTES = 256 * 1024
_LARGE_BYTES = 65_536
"""A larger result is not kept for readers."""


@frozen
class LeftEvent:
    """The last event of an execution with a large result, which stays in its record until a reader has room for it."""

    seq: int
    execution: str
    size: int
    """Bytes of result and events."""


LastEvent = ResultEvent | ErrorEvent | LeftEvent


class EventLog:
    """The events of one execution. Written by one task between checkpoints, read by any number of tasks.

    `limit` is how many bytes an attempt may print; `on_limit` is called once when it has printed more. `keep` and
    `keep_items` are the bounds of the store.
    """

    def __init__(self, *, limit: int, keep: int, keep_items: int = 0, clock: Callable[[], float] = time.time) -> None:
        self.limit = limit
        self.printed = 0
        """Bytes printed by the running attempt."""
        self.exceeded = False
        self.on_limit: Callable[[], None] | None = None
        self.on_output: Callable[[Stream, bytes], None] | None = None
        """Called with all output as well."""
        self.on_item: Callable[[], None] | None = None
        """Called once, after the first item of a generator."""
        self.next_seq = 0
        self.last: LastEvent | None = None
        """The end of the execution; no event follows it."""
        self.followed = False
        """Whether anybody has begun to read it."""
        self.store = EventStore(keep, keep_items)
        self._clock = clock
        self._open: OutputEvent | None = None  # the piece that still grows; it has its number
        self._open_parts: list[str] = []
        self._open_bytes = 0
        self._decoders: dict[tuple[Stream, bool], codecs.IncrementalDecoder] = {}
        self._changed: trio.Event | None = None
        self._closed = False
        self.following: EventLog | None = None
        """The log in which readers go on: another runner has the execution."""

    def restore(self, events: Iterable[KeptEvent], next_seq: int, at: float, last: LastEvent | None = None) -> None:
        """Begin with the `events` of the history and continue with the number `next_seq`, or end with `last`.

        `at` is the time of a gap without an event before it.
        """
        self.store.restore(events, next_seq, at)
        self.last = last
        self.next_seq = next_seq if last is None else next_seq + 1

    # Writing

    def write(self, stream: Stream, data: bytes, *, shared: bool = False) -> None:
        """Add bytes read from a stream, and count them. `shared` output is of all calls of the worker."""
        self.printed += len(data)
        self.add_output(stream, data, shared=shared)
        if self.on_output is not None:
            self.on_output(stream, data)
        if self.printed > self.limit and not self.exceeded:
            self.exceeded = True
            if self.on_limit is not None:
                self.on_limit()

    def add_output(self, stream: Stream, data: bytes, *, shared: bool = False) -> None:
        """Add bytes that do not count. A character that was split between two reads is put together."""
        place = stream, shared
        decoder = self._decoders.get(place)
        if decoder is None:
            decoder = self._decoders[place] = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data)
        if text:
            self._grow(place, text)

    def status(self, status: Status, attempt: int = 0, reason: str = "") -> None:
        """Add a change of state or of the waiting reason. RUNNING restarts the count of printed bytes."""
        if status is Status.RUNNING:
            self.end_output()
            self.printed, self.exceeded = 0, False
        self._add(StatusEvent(self._number(), self._clock(), status, attempt, reason))

    def item(self, value: msgspec.Raw) -> None:
        """Add an item of a generator."""
        self._add(ItemEvent(self._number(), self._clock(), value))
        if self.on_item is not None:
            call, self.on_item = self.on_item, None
            call()

    def progress(self, done: float | None, total: float | None, text: str) -> None:
        """Add the progress that the handler reports."""
        self._add(ProgressEvent(self._number(), self._clock(), done, total, text))

    def child(self, execution: str, module: str) -> None:
        """Add that the handler called a module, as this execution."""
        self._add(ChildEvent(self._number(), self._clock(), execution, module))

    def end_output(self) -> None:
        """End the streams of output: the rest of a split character becomes a replacement character."""
        for place, decoder in self._decoders.items():
            if text := decoder.decode(b"", final=True):
                self._grow(place, text)
        self._decoders.clear()

    def end(self, last: LastEvent) -> None:
        """Add the last event, whose number is `next_seq`; readers end behind it."""
        if self.last is None:
            self.seal()
            self.last = last
            self.next_seq = last.seq + 1
            self._add()

    def close(self, reason: str, attempt: int) -> None:
        """Add that the execution continues elsewhere; readers end without its last event."""
        self.status(Status.QUEUED, attempt, reason)
        self._closed = True

    def take(self, event: KeptEvent) -> None:
        """Add an event that has its number from the runner that owns the execution. One that is known changes nothing.

        Earlier numbers that are missing are skipped.
        """
        if event.seq < self.next_seq or self.last is not None:
            return
        self.seal()
        self.next_seq = event.seq + 1
        self._add(event)
        if isinstance(event, ItemEvent) and self.on_item is not None:
            call, self.on_item = self.on_item, None
            call()

    def go_on_in(self, following: EventLog) -> None:
        """Let readers go on in another log, which begins with the events of this one."""
        self.following, self._closed = following, True
        following.followed = following.followed or self.followed
        self._add()

    def seal(self) -> None:
        """End the piece of output that still grows, so that it can be read."""
        piece = self._open
        if piece is not None:
            whole = OutputEvent(piece.seq, piece.at, piece.stream, "".join(self._open_parts), piece.shared)
            self._open, self._open_parts, self._open_bytes = None, [], 0
            self._add(whole)

    def _number(self) -> int:
        if self._open is not None:
            self.seal()
        number = self.next_seq
        self.next_seq += 1
        return number

    def _grow(self, place: tuple[Stream, bool], text: str) -> None:
        now, size = self._clock(), bytes_of(text)
        piece = self._open
        if (
            piece is None
            or (piece.stream, piece.shared) != place
            or self._open_bytes + size > _PIECE_BYTES
            or not 0 <= now - piece.at < _PIECE_SECONDS
        ):
            self._open = OutputEvent(self._number(), now, place[0], "", place[1])
        self._open_parts.append(text)
        self._open_bytes += size
        self._add()

    def _add(self, event: KeptEvent | None = None) -> None:
        """Add an event, if there is one, and wake readers."""
        if event is not None:
            self.store.add(event)
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    # Reading

    def kept(self, start: int = 0) -> tuple[KeptEvent, ...]:
        """Return the kept events from number `start` on, without the last event."""
        self.seal()
        return tuple(self.store.since(start)) if start else self.store.all()

    def read(self, start: int) -> tuple[Event | LeftEvent, ...]:
        """Return the next events from number `start` on: a batch of those that exist, or () when there are none yet."""
        if start >= self.next_seq:
            return ()
        self.seal()
        found: list[Event | LeftEvent] = []
        size = 0
        for event in self.store.since(start):
            found.append(event)
            size += size_of(event)
            if len(found) == _BATCH_EVENTS or size >= _BATCH_BYTES:
                return tuple(found)
        if self.last is not None:
            found.append(self.last)
        return tuple(found)

    async def wait(self, start: int) -> None:
        """Wait until there is an event with the number `start`, or the end. Cancellation leaves nothing behind."""
        while start >= self.next_seq and self.last is None and not self._closed:
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()


class Follower:
    """Reads a log from a number on: past events, then new ones, each once and in order."""

    def __init__(self, log: EventLog, start: int = 0) -> None:
        self._log = log
        log.followed = True
        self.position = start
        """The number of the next event to read."""

    @property
    def ended(self) -> bool:
        """Whether the last event has been read."""
        last = self._log.last
        return last is not None and self.position > last.seq

    async def next(self) -> tuple[Event | LeftEvent, ...] | None:
        """Wait for at least one event and return it; None behind the last one. A checkpoint.

        Cancellation loses no event: the next call returns the same ones.
        """
        await trio.lowlevel.checkpoint()
        await self._log.wait(self.position)
        while not (events := self._log.read(self.position)):
            if self._log.following is None:
                return None
            self._log = self._log.following
            await self._log.wait(self.position)
        self.position = events[-1].seq + 1
        return events


def last_of(execution: Execution) -> LastEvent:
    """Return the last event of an execution that has ended and is recorded."""
    result = execution.result or b""
    if len(result) > _LARGE_BYTES and not execution.summary:
        return LeftEvent(execution.events_count, execution.id, len(result) + len(execution.events))
    return last_event(execution)


def log_of(execution: Execution) -> EventLog:
    """Return the events of an execution that is not live, from its record."""
    kept = decode_all(execution.events)
    if not kept and execution.events_count == 1:  # only its begin
        kept = (StatusEvent(0, execution.started_at or execution.created_at, Status.RUNNING, 1),)
    log = EventLog(limit=0, keep=0)
    last = last_of(execution) if execution.status.final else None
    log.restore(kept, execution.events_count, execution.created_at, last)
    return log
