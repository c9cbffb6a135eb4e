"""The bytes of one RPC: those that have arrived and are not read, and those that wait for the client's window."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

import trio
from ngh2 import Connection as Http2
from ngh2 import ErrorCode, Header, NGH2Error

from runner.wire import Budget


class GoneError(Exception):
    """The client is gone, so an answer would not be read."""


class SlowReaderError(Exception):
    """The client does not read the data sent to it."""


class Link(Protocol):
    """The parts of a connection that its streams and the door use."""

    http: Http2
    budget: Budget
    stalled: set[Stream]
    """Streams that wait for the client to take what is queued."""
    refused: set[int]
    """Streams to reset after their answers have left, since the client may send more, which is not read."""

    reserved: bool
    """Accepted although the door is full: only health is answered."""

    @property
    def silent_since(self) -> float:
        """When the last bytes of unfinished messages came; inf unless all calls wait for such."""

    def push(self) -> None:
        """Send what is ready. Never waits, never raises."""

    def earned(self, size: int) -> None:
        """Count a message as useful; it allows the client some frames that are not."""

    def send_goaway(self) -> None:
        """Ask the client to make its next calls elsewhere."""

    def end(self) -> None:
        """Announce the end, and close after all queued data has left."""

    def lost(self) -> None:
        """Close the connection now, and cancel its calls."""


class Stream:
    """One stream of a connection."""

    def __init__(self, link: Link, number: int, *, ended: bool) -> None:
        self.link = link
        self.number = number
        self.ended = ended
        """The client sends no more."""
        self.closed = False
        """Nothing can be sent or received."""
        self.begun = False
        """The head of the answer is queued."""
        self.heard = trio.current_time()
        """When the call began or its last bytes came."""
        self._data: bytes | bytearray = b""
        self._unacknowledged = 0  # the last bytes of `_data`, for which the client has no new window
        self._wanted = 0
        self._arrived = trio.Event()
        self._left, self._seconds = 0, 0.0
        self._sending = trio.CancelScope()
        self._sent = trio.Event()

    # From the client

    def feed(self, data: bytes, *, ended: bool) -> bool:
        """Keep bytes that have arrived; return whether there was room for them."""
        if ended:
            self.ended = True
        if data:
            self.heard = trio.current_time()
            if not self.link.budget.take(len(data)):
                self.link.http.acknowledge_received_data(len(data), self.number)
                return False
            if not self._data:
                self._data = data
            else:
                if isinstance(self._data, bytes):
                    self._data = bytearray(self._data)
                self._data += data
            self._unacknowledged += len(data)
            self._acknowledge(self._wanted)
        if self.ended or len(self._data) >= self._wanted:
            self._arrived.set()
        return True

    def has(self, size: int) -> bool:
        """Return whether so many bytes are there, or no more will come."""
        return len(self._data) >= size or self.ended

    async def wait(self, size: int) -> None:
        """Wait until `has(size)`; the client may send that much, even beyond its window."""
        self._wanted = size
        self._acknowledge(size)
        self.link.push()
        self._arrived = trio.Event()
        try:
            await self._arrived.wait()
        finally:
            self._wanted = 0

    def peek(self, size: int) -> bytes:
        """Return at most `size` bytes, and keep them."""
        return bytes(self._data[:size])

    def take(self, size: int, skipped: int) -> bytes:
        """Remove `size` bytes, or all there are; return those after the first `skipped`."""
        data = self._data
        size = min(size, len(data))
        self._acknowledge(size)
        self.link.budget.give(size)
        if isinstance(data, bytes):
            self._data = data[size:]
            return data[skipped:size]
        with memoryview(data) as view:
            taken = bytes(view[skipped:size])
        if size == len(data):
            self._data = b""
        else:
            del data[:size]
        return taken

    def _acknowledge(self, size: int) -> None:
        """Let the client replace the first `size` bytes of those that are here."""
        size = min(size, len(self._data)) - len(self._data) + self._unacknowledged
        if size > 0:
            self._unacknowledged -= size
            self.link.http.acknowledge_received_data(size, self.number)

    # To the client

    @property
    def queued(self) -> int:
        """The bytes of messages that wait for the client's window."""
        return self.link.http.queued_body_size(self.number)

    def send_head(self, fields: list[Header], *, last: bool = False) -> None:
        """Queue the head of the answer, or with `last` the whole answer. Raises NGH2Error when the client is gone."""
        self.begun = True
        self.link.http.send_response(self.number, fields, end_stream=last)

    def send(self, data: bytes) -> None:
        """Queue a part of the answer. Raises NGH2Error when the client is gone."""
        self.link.http.send_data(self.number, data)

    def send_trailers(self, fields: list[Header]) -> None:
        """Queue the end of the answer. Raises NGH2Error when the client is gone."""
        self.link.http.send_trailers(self.number, fields)

    async def drain(self, seconds: float) -> None:
        """Wait until the client has taken all messages. Raises SlowReaderError after `seconds` without any progress."""
        self.link.push()
        self._left = self.queued
        if not self._left or self.closed:
            return
        self._sent = trio.Event()
        self.link.stalled.add(self)
        try:
            self._seconds = seconds
            with trio.CancelScope(deadline=trio.current_time() + seconds) as self._sending:
                await self._sent.wait()
        finally:
            self.link.stalled.discard(self)
        if self._sending.cancelled_caught:
            raise SlowReaderError(f"the client read nothing for {seconds:g} s")
        if self.closed:
            raise GoneError

    def progressed(self) -> None:
        """Note that the connection has sent something."""
        left = self.queued
        if not left:
            self._sent.set()
        elif left < self._left:
            self._left = left
            self._sending.deadline = trio.current_time() + self._seconds

    def reset(self, code: ErrorCode) -> None:
        """End the stream in both directions."""
        if not self.closed:
            self.link.http.reset_stream(self.number, code)
            self.link.push()

    def close(self) -> None:
        """Forget all bytes, and wake the task that waits for some."""
        self.closed = self.ended = True
        if self._data:
            with suppress(NGH2Error):  # the connection is closed too
                self._acknowledge(len(self._data))
            self.link.budget.give(len(self._data))
            self._data = b""
        self._arrived.set()
        self._sent.set()
