"""What all gRPC connections share: the methods, the calls that run, and how it all ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import trio

from protocol.errors import shutting_down
from runner.grpc.call import Call, GrpcLimits, Method

LINGER_SECONDS = 2.0
"""At the end, for calls that were cut off to end and for what is in the buffers to leave."""


class Connection(Protocol):
    """One client."""

    def say_goaway(self) -> None:
        """Ask the client to make its next calls elsewhere."""

    def hang_up(self) -> None:
        """Say goodbye, and close when what was written has left."""

    def abort(self) -> None:
        """Cut the client off."""


class Door:
    """What all connections share: the methods, and the calls that run."""

    def __init__(self, methods: Mapping[str, Method], limits: GrpcLimits, nursery: trio.Nursery) -> None:
        self.methods = methods
        self.limits = limits
        self.nursery = nursery
        self.connections: set[Connection] = set()
        self.calls: set[Call] = set()
        self.working = 0
        self.draining = False
        self._changed = trio.Event()

    def ended(self, call: Call) -> None:
        """Forget a call."""
        self.calls.discard(call)
        self.working -= call.method.work
        self._changed.set()

    def drain(self) -> None:
        """Take nothing new."""
        self.draining = True
        for connection in self.connections:
            connection.say_goaway()
        for call in self.calls:
            call.stop_receiving()

    async def finish(self) -> None:
        """Let calls end within `graceful_seconds`, cut the others off, and close all connections."""
        await self._wait(lambda: not self.working, self.limits.graceful_seconds)
        for call in self.calls:
            call.cancel(shutting_down())
        await self._wait(lambda: not self.calls, LINGER_SECONDS)
        for connection in list(self.connections):
            connection.hang_up()
        await self._wait(lambda: not self.connections, LINGER_SECONDS)

    def abort(self) -> None:
        """Cut all clients off."""
        for connection in list(self.connections):
            connection.abort()

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        self._changed.set()

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        with trio.move_on_after(seconds):
            while not condition():
                self._changed = trio.Event()
                await self._changed.wait()
