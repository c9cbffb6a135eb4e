"""What all gRPC connections share: the methods, the running calls, the room for clients, and the end of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import structlog
import trio

from protocol.errors import ErrorKind, error, shutting_down
from runner.grpc.call import Call, GrpcLimits, Method
from runner.grpc.stream import Link
from runner.wire import Budget, Notes, Poller, Silence

RESERVE = 16
"""Connections above `max_connections` that may ask for health, so that a full door does not look like a dead one."""
LINGER_SECONDS = 2.0
"""At the end: for calls that were cancelled to end, and for buffered data to leave."""

log = structlog.get_logger("grpc")


class Door:
    """The methods, the connections and the running calls of a server."""

    def __init__(
        self, methods: Mapping[str, Method], limits: GrpcLimits, nursery: trio.Nursery, poller: Poller, budget: Budget
    ) -> None:
        self.methods = methods
        self.limits = limits
        self.nursery = nursery
        self.poller = poller
        self.budget = budget
        self.notes = Notes(log)
        self.connections: set[Link] = set()
        self.calls: set[Call] = set()
        self.working = 0
        self.fresh = 0
        """Calls whose tasks have not run yet."""
        self.draining = False
        self._new: dict[Link, None] = {}
        self._idle: dict[Link, None] = {}
        self._silence, self._silent_calls = Silence(), Silence()
        self._changed = trio.Event()

    # Clients

    def admit(self, client: Link) -> bool:
        """Count a connection; return False when there is no room for it."""
        if self.draining:
            return False
        if len(self.connections) >= self.limits.max_connections and not self.relieve():
            client.reserved = True
            if len(self.connections) >= self.limits.max_connections + RESERVE:
                return False
        self.connections.add(client)
        self._new[client] = None
        return True

    def relieve(self) -> bool:
        """Close a connection that does nothing: first those that never made a call, then the longest idle.

        Then comes the one whose unfinished messages are silent longest. Returns False when all are at work.

        Its client is asked to connect again, which clients of gRPC do by themselves at the next call.
        """
        client = next(chain(self._new, self._idle), None) or self._silence.longest(self.connections)
        if client is None:
            return False
        client.end()
        client.lost()
        return True

    def full_for(self, client: Link) -> bool:
        """Return whether a call of this client is one too many."""
        client.reserved = client.reserved and len(self.connections) > self.limits.max_connections
        return client.reserved or (self.working >= self.limits.max_calls and not self._relieve_calls())

    def _relieve_calls(self) -> bool:
        """End the call whose unfinished message is silent longest, if there is one."""
        call = self._silent_calls.longest(call for call in self.calls if call.method.work)
        if call is not None:
            call.cancel(error(ErrorKind.OVERLOADED, "others need the place of a silent call", retry_after=1).failure)
        return call is not None

    def lost(self, client: Link) -> None:
        """Forget a connection."""
        self.connections.discard(client)
        self._new.pop(client, None)
        self._idle.pop(client, None)
        self._changed.set()

    # Calls

    def began(self, client: Link, call: Call, *, first: bool) -> None:
        """Count a call, the first that the client has at this time or one more."""
        self.calls.add(call)
        self.working += call.method.work
        if first:
            self._new.pop(client, None)
            self._idle.pop(client, None)

    def ended(self, client: Link, call: Call, *, last: bool) -> None:
        """Forget a call, the last that the client has at this time or not."""
        self.calls.discard(call)
        self.working -= call.method.work
        if last and client in self.connections:
            self._idle[client] = None
        self._changed.set()

    # The end

    def drain(self) -> None:
        """Accept no more calls."""
        self.draining = True
        for client in list(self.connections):
            client.send_goaway()
        for call in self.calls:
            call.stop_receiving()

    async def finish(self) -> None:
        """Let calls end within `graceful_seconds`, cancel the others, and close all connections."""
        await self._wait(lambda: not self.working, self.limits.graceful_seconds)
        for call in self.calls:
            call.cancel(shutting_down())
        await self._wait(lambda: not self.calls, LINGER_SECONDS)
        for client in list(self.connections):
            client.end()
        await self._wait(lambda: not self.connections, LINGER_SECONDS)
        self.notes.tell()

    def abort(self) -> None:
        """Cut all clients off."""
        for client in list(self.connections):
            client.lost()

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        with trio.move_on_after(seconds):
            while not condition():
                self._changed = trio.Event()
                await self._changed.wait()
