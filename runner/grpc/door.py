"""What all gRPC connections share: the methods, the running calls, and the end of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import trio

from protocol.errors import shutting_down
from runner.grpc.call import Call, GrpcLimits, Method

LINGER_SECONDS = 2.0
"""At the end: for calls that were cancelled to end, and for buffered data to leave."""


class Client(Protocol):
    """One connection, as the door ends it."""

    def send_goaway(self) -> None:
        """Ask the client to make its next calls elsewhere."""

    def close_gracefully(self) -> None:
        """Announce the end, and close after all written data has left."""

    def abort(self) -> None:
        """Cut the client off."""


class Door:
    """The methods, the connections and the running calls of a server."""

    def __init__(self, methods: Mapping[str, Method], limits: GrpcLimits, nursery: trio.Nursery) -> None:
        self.methods = methods
        self.limits = limits
        self.nursery = nursery
        self.connections: set[Client] = set()
        self.calls: set[Call] = set()
        self.working = 0
        self.draining = False
        self._changed = trio.Event()

    def ended(self, call: Call) -> None:
        """Forget a call."""
        self.calls.discard(call)
        self.working -= call.method.work
        self._changed.set()

    def lost(self, connection: Client) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        self._changed.set()

    def drain(self) -> None:
        """Accept no more calls."""
        self.draining = True
        for connection in self.connections:
            connection.send_goaway()
        for call in self.calls:
            call.stop_receiving()

    async def finish(self) -> None:
        """Let calls end within `graceful_seconds`, cancel the others, and close all connections."""
        await self._wait(lambda: not self.working, self.limits.graceful_seconds)
        for call in self.calls:
            call.cancel(shutting_down())
        await self._wait(lambda: not self.calls, LINGER_SECONDS)
        for connection in list(self.connections):
            connection.close_gracefully()
        await self._wait(lambda: not self.connections, LINGER_SECONDS)

    def abort(self) -> None:
        """Cut all clients off."""
        for connection in list(self.connections):
            connection.abort()

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        with trio.move_on_after(seconds):
            while not condition():
                self._changed = trio.Event()
                await self._changed.wait()
