"""The HTTP and websocket server: an accept loop around `Connection`.

Hypercorn's `serve` is not used, because it accepts no other connection class unless its modules are patched. Its ASGI
lifespan is used, so the `before_serving` and `after_serving` of quart run as usual.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from functools import partial

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.lifespan import Lifespan
from hypercorn.typing import ConnectionState, LifespanState
from trio import socket

from runner.http.asgi import App
from runner.http.connection import Connection
from runner.http.limits import HttpLimits, ServerConfig
from runner.http.messages import refusal

TURNED_AWAY_AT_ONCE = 64
"""At most this many clients over `max_connections` are answered 503 at a time; more are closed silently."""
KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""The kernel notices after two minutes that a client has vanished (seconds, seconds, probes)."""


async def serve(
    app: App,
    *,
    host: str,
    port: int,
    limits: HttpLimits,
    shutdown: trio.Event,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` over HTTP/1.1 and websockets on `host` and `port`, encrypted with `tls`, until `shutdown` is set.

    Port 0 takes a free one. `task_status.started` is called with the bound (host, port) pairs after `before_serving`
    has run; clients that connect earlier wait in the kernel.

    After `shutdown` no connection is accepted, idle ones are closed, and running requests have `graceful_seconds` to
    end: their responses carry `Connection: close`. Handlers that still run then are cancelled; unanswered requests are
    answered 503, and open websockets close with 1001. Then `after_serving` runs and the function returns.

    A connection over `max_connections` is accepted and answered 503 (with TLS: closed), because a client in the
    kernel's queue cannot tell a full server from a dead one.

    Raises:
      OSError: the address cannot be bound.
      LifespanFailureError: `before_serving` or `after_serving` raised (inside an exception group).

    **Cancellation** cuts all clients off at once and skips `after_serving`.

    """
    config = ServerConfig(limits)
    state: LifespanState = {}
    lifespan = Lifespan(ASGIWrapper(app), config, state)
    clients = _Clients(app, config, state, tls)
    listeners = await _listen(host, port)
    try:
        async with trio.open_nursery() as lifespan_nursery:
            await lifespan_nursery.start(lifespan.handle_lifespan)
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):  # the application has no lifespan
                await lifespan.wait_for_startup()
            async with trio.open_nursery() as client_nursery:
                try:
                    async with trio.open_nursery() as accept_nursery:
                        accept = partial(trio.serve_listeners, clients.serve, listeners, handler_nursery=client_nursery)
                        await accept_nursery.start(accept)
                        task_status.started([listener.socket.getsockname()[:2] for listener in listeners])
                        await shutdown.wait()
                        accept_nursery.cancel_scope.cancel()
                finally:
                    # Sends are shielded, so each connection must learn the deadline, even when we are cancelled.
                    deadline = trio.current_time() + (limits.graceful_seconds if shutdown.is_set() else 0)
                    clients.drain(deadline)
                    client_nursery.cancel_scope.deadline = deadline
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                await lifespan.wait_for_shutdown()
            lifespan_nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.socket.close()


class _Clients:
    """The open connections of one server."""

    def __init__(self, app: App, config: ServerConfig, state: LifespanState, tls: ssl.SSLContext | None) -> None:
        self._app = app
        self._config = config
        self._state = state
        self._tls = tls
        self._open: set[Connection] = set()
        self._turned_away = 0
        self._draining = False

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve or refuse one client."""
        if self._draining:
            return
        if len(self._open) >= self._config.limits.max_connections:
            if self._turned_away < TURNED_AWAY_AT_ONCE and self._tls is None:
                self._turned_away += 1
                try:
                    await _turn_away(stream, self._config.limits.linger_seconds)
                finally:
                    self._turned_away -= 1
            return
        connection = Connection(self._app, self._config, ConnectionState(self._state.copy()), stream, self._tls)
        self._open.add(connection)
        try:
            await connection.run()
        finally:
            self._open.discard(connection)

    def drain(self, deadline: float) -> None:
        """Let each connection end, at `deadline` at the latest."""
        self._draining = True
        for connection in self._open:
            connection.drain(deadline)


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    listeners = await trio.open_tcp_listeners(port, host=host)
    for listener in listeners:
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # connections inherit these options
        for option, value in KEEP_ALIVE:
            listener.socket.setsockopt(socket.IPPROTO_TCP, option, value)
    return listeners


async def _turn_away(stream: trio.SocketStream, seconds: float) -> None:
    """Answer 503 and close, after `seconds` for the client to read it."""
    with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(seconds):
        await stream.send_all(refusal(503, "too many connections"))
        await stream.send_eof()
        while await stream.receive_some():
            pass
