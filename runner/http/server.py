"""The HTTP and websocket server: the clients of one door, their number, and the order of start and end.

Hypercorn's `serve` is not used, because it accepts no other connection class unless its modules are patched. Its ASGI
lifespan is used, so the `before_serving` and `after_serving` of quart run as usual.
"""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from typing import Any

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.typing import LifespanState

from runner.http.asgi import App
from runner.http.connection import CROWDED, Connection
from runner.http.exchange import RETRY, Exchange
from runner.http.states import HttpLimits
from runner.wire import Budget, Notes, Poller, Silence, accept_all, listen


async def serve(
    app: App,
    *,
    host: str,
    port: int,
    limits: HttpLimits,
    budget: Budget,
    shutdown: trio.Event,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` over HTTP/1.1 and websockets on `host` and `port`, encrypted with `tls`, until `shutdown` is set.

    Port 0 takes a free one. `task_status.started` is called with the bound (host, port) pairs after `before_serving`
    has run; clients that connect earlier wait in the kernel. The bytes of unfinished requests are taken from `budget`.

    After `shutdown` no connection is accepted, idle ones are closed, and running requests have `graceful_seconds` to
    end: their responses carry `Connection: close`. Handlers that still run then are cancelled; unanswered requests are
    answered 503, and open websockets close with 1001. Then `after_serving` runs and the function returns.

    Raises:
      OSError: the address cannot be bound.
      LifespanFailureError: `before_serving` or `after_serving` raised (inside an exception group).

    **Cancellation** cuts all clients off at once and skips `after_serving`.

    """
    state: LifespanState = {}
    config = Config()
    config.errorlog = logging.getLogger("runner.http")
    lifespan = _Lifespan(ASGIWrapper(app), config, state)
    listeners = await listen(host, port)
    try:
        async with trio.open_nursery() as lifespan_nursery:
            await lifespan_nursery.start(lifespan.handle_lifespan)
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):  # the application has no lifespan
                await lifespan.wait_for_startup()
            if lifespan.failed:  # its error is about to cancel us
                await trio.sleep_forever()
            async with trio.open_nursery() as watching:
                poller = Poller()
                watching.start_soon(poller.run)
                clients = Clients(app, limits, budget, dict(state), tls, poller)
                try:
                    await _serve_until(clients, listeners, shutdown, task_status)
                finally:
                    clients.cut()
                watching.cancel_scope.cancel()
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                await lifespan.wait_for_shutdown()
            lifespan_nursery.cancel_scope.cancel()
    finally:
        _close(listeners)


class _Lifespan(Lifespan):
    """Hypercorn's lifespan, which also tells a start that failed from one that is complete."""

    failed = False

    async def asgi_send(self, message: Any) -> None:
        """Receive a message of the application."""
        self.failed = message["type"] == "lifespan.startup.failed"
        await super().asgi_send(message)


async def _serve_until(
    clients: Clients,
    listeners: list[trio.SocketListener],
    shutdown: trio.Event,
    task_status: trio.TaskStatus[list[tuple[str, int]]],
) -> None:
    """Accept connections until `shutdown`, and let them end."""
    async with trio.open_nursery() as clients.nursery:
        try:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(accept_all, listeners, clients.admit, clients.evict)
                task_status.started([listener.socket.getsockname()[:2] for listener in listeners])
                await shutdown.wait()
                accepting.cancel_scope.cancel()
        finally:
            _close(listeners)  # or clients would wait in the kernel for a server that has none of them
            # Sends are shielded, so each connection must learn the deadline, even when we are cancelled.
            deadline = trio.current_time() + (clients.limits.graceful_seconds if shutdown.is_set() else 0)
            clients.drain(deadline)
            clients.nursery.cancel_scope.deadline = deadline
        await clients.wait_gone()


def _close(listeners: list[trio.SocketListener]) -> None:
    for listener in listeners:
        listener.socket.close()


class Clients:
    """The open connections of one server.

    A full door stays open: for one connection above `max_connections`, the one that is idle longest is closed, or the
    one whose unfinished body is silent longest. While all are at work, a few more are accepted for health checks, and
    those of them that ask for something else are refused.
    """

    nursery: trio.Nursery

    def __init__(
        self,
        app: App,
        limits: HttpLimits,
        budget: Budget,
        lifespan_state: dict[str, Any],
        tls: ssl.SSLContext | None,
        poller: Poller,
    ) -> None:
        self.app = app
        self.limits = limits
        self.budget = budget
        self.lifespan_state = lifespan_state
        self.tls = tls
        self.poller = poller
        self.notes = Notes(structlog.get_logger("runner.http"))
        self._open: set[Connection] = set()
        self._reserved: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # in the order in which they became idle
        self._silence = Silence()
        self._draining = False
        self._gone = trio.Event()

    def admit(self, stream: trio.SocketStream) -> None:
        """Serve a client."""
        if self._draining:
            stream.socket.close()
            return
        full = len(self._open) - len(self._reserved) >= self.limits.max_connections and not self.evict()
        crowded = full and len(self._reserved) >= self.limits.reserved_connections and not self.evict(reserved=True)
        if crowded:
            stream.socket.close()
            return
        try:
            connection = Connection(self, stream, reserved=full)
        except OSError:  # the client has gone
            stream.socket.close()
            return
        self._open.add(connection)
        if full:
            self._reserved.add(connection)

    def evict(self, *, reserved: bool = False) -> bool:
        """Close the connection that is idle longest, else one whose body does not arrive; return whether one was."""
        for connection in self._idle:
            if connection.reserved is reserved:
                connection.lost()
                return True
        silent = (
            None
            if reserved
            else self._silence.longest(
                connection.serving for connection in self._open if isinstance(connection.serving, Exchange)
            )
        )
        if silent is None:
            return False
        silent.peer.refuse(503, CROWDED, RETRY)
        return True

    def waits(self, connection: Connection, *, idle: bool) -> None:
        """Note that a connection becomes idle, or that it is not any more."""
        self._idle.pop(connection, None)
        if idle:
            self._idle[connection] = None

    def left(self, connection: Connection) -> None:
        """Note that a connection is closed and its handlers have ended."""
        self._open.discard(connection)
        self._reserved.discard(connection)
        if self._draining and not self._open:
            self._gone.set()

    def drain(self, deadline: float) -> None:
        """Let each connection end, at `deadline` at the latest."""
        self._draining = True
        for connection in [*self._open]:
            connection.drain(deadline)
        if not self._open:
            self._gone.set()

    async def wait_gone(self) -> None:
        """Wait until all connections are closed."""
        await self._gone.wait()
        self.notes.tell()

    def cut(self) -> None:
        """Close all connections at once."""
        for connection in [*self._open]:
            connection.lost()
