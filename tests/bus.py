"""A bus in memory in place of the engine of a cluster, for tests of what runners ask each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager, contextmanager

import trio
from msgspec import Struct

from actors.cluster.engine import AwayError, Names, UnansweredError


class Message(Struct):
    """A message of the stream of presences."""

    data: bytes


class Bus:
    """Connects runners of one process. Messages may be lost: `lose` gets each as it leaves and as it is answered."""

    def __init__(self, max_payload: int = 64 * 1024) -> None:
        self.max_payload = max_payload
        self.served: dict = {}
        self.presences: list[bytes] = []
        self.more = trio.Event()
        self.lose: Callable[[str, bytes], bool] = lambda _way, _data: False

    def wire(self) -> Wire:
        """Return the connection of one runner."""
        return Wire(self)


class Wire:
    """The connection of one runner to the bus."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.names = Names("test")
        self.changed: set[Callable[[], None]] = set()
        self.connected = True

    @property
    def max_payload(self) -> int:
        """The largest message."""
        return self.bus.max_payload

    @asynccontextmanager
    async def serve(self, subject, answer):
        """Serve a subject."""
        self.bus.served[subject] = answer, set()
        try:
            yield
        finally:
            for scope in self.bus.served.pop(subject)[1]:
                scope.cancel()

    async def ask(self, subject, data, *, timeout=5.0):
        """Ask who serves a subject; too large messages are bugs."""
        assert len(data) <= self.bus.max_payload
        await trio.lowlevel.checkpoint()
        if not self.connected:
            raise AwayError("cut off")
        if self.bus.lose("question", data):
            raise AwayError("no answer")
        if subject not in self.bus.served:
            raise UnansweredError(subject)
        serve, scopes = self.bus.served[subject]
        with trio.move_on_after(timeout) as scope:
            scopes.add(scope)
            try:
                answer = await serve(data)
            finally:
                scopes.discard(scope)
            assert len(answer) <= self.bus.max_payload
            if not self.bus.lose("answer", data):
                return answer
        raise AwayError("no answer")

    async def publish(self, _subject, data, *, ttl=None, timeout=5.0):
        """Store a presence."""
        del ttl, timeout
        await trio.lowlevel.checkpoint()
        if not self.connected:
            raise AwayError("cut off")
        self.bus.presences.append(data)
        self.bus.more.set()
        self.bus.more = trio.Event()
        return len(self.bus.presences)

    @asynccontextmanager
    async def read(self, _stream, *, after):
        """Read the presences."""
        yield Reader(self.bus, after)

    @contextmanager
    def cut(self):
        """Have no connection inside of the block."""
        self.connected = False
        for hook in tuple(self.changed):
            hook()
        yield
        self.connected = True
        for hook in tuple(self.changed):
            hook()


class Reader:
    """Reads the presences."""

    def __init__(self, bus: Bus, after: int) -> None:
        self.bus, self.position = bus, after

    async def batch(self):
        """Return the next ones."""
        while self.position >= len(self.bus.presences):
            await self.bus.more.wait()
        found = self.bus.presences[self.position :]
        self.position += len(found)
        return [Message(data) for data in found]
