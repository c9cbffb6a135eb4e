"""The HTTP and websocket server: an accept loop round `Connection`, and the short way past the web framework.

Hypercorn's `serve` is not used: it offers no way to put in another connection class without patching its modules.
Its ASGI lifespan is, so the `before_serving` and `after_serving` of quart run as usual.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import attrs
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from trio import socket

from runner.http.connection import LINGER_SECONDS, Connection
from runner.http.exchange import STREAMED_BODY, HttpLimits, Message, ServerConfig, problem

__all__ = [
    "BodyError",
    "BodyTimeoutError",
    "BodyTooLargeError",
    "ClientGoneError",
    "Connection",
    "Front",
    "HttpLimits",
    "Route",
    "problem",
    "read_body",
    "respond",
    "serve",
    "stream_body",
]

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Handler = Callable[[Message, Receive, Send], Awaitable[None]]
TURNED_AWAY_AT_ONCE = 64
"""So many clients over `max_connections` are answered 503 at a time; those above are closed without a word."""
WEBSOCKET = "WEBSOCKET"
KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""The kernel finds a peer that vanished without a word after two minutes (seconds, seconds, probes)."""


class App(Protocol):
    """An ASGI application: a quart app, `Front`, or a plain coroutine function."""

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Serve one scope."""


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
    """Serve `app` over HTTP/1.1 and websockets, by TLS with `tls`, on `host` and `port` until `shutdown` is set.

    Port 0 takes a free one. `task_status.started` is called with the bound (host, port) pairs once `before_serving`
    has run; clients that connect earlier wait in the kernel.

    After `shutdown` nothing is accepted, idle connections are closed, and what runs has `graceful_seconds` to end:
    responses then say `Connection: close`, handlers still running at the end are cancelled and unanswered requests
    get 503, open websockets 1001. Then `after_serving` runs and the function returns.

    A connection over `max_connections` is accepted and answered 503 (by TLS: closed), because a client in the queue of
    the kernel could not tell a full server from a dead one.

    Raises:
      OSError: the address cannot be bound.
      LifespanFailureError: `before_serving` or `after_serving` raised (inside an exception group).

    **Cancellation** cuts all clients off at once and skips `after_serving`.

    """
    config = ServerConfig(limits)
    wrapped = ASGIWrapper(app)
    state: LifespanState = {}
    lifespan = Lifespan(wrapped, config, state)
    clients = _Clients(wrapped, config, state, tls)
    listeners = await _listen(host, port)
    try:
        async with trio.open_nursery() as lifespan_nursery:
            await lifespan_nursery.start(lifespan.handle_lifespan)
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):  # an app that ignores lifespan
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
                    # Sends are shielded, so each connection must hear of the end, also when we are cancelled.
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

    def __init__(
        self, app: ASGIWrapper, config: ServerConfig, state: LifespanState, tls: ssl.SSLContext | None
    ) -> None:
        self._app = app
        self._config = config
        self._state = state
        self._tls = tls
        self._context = WorkerContext(None)
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
                    await _turn_away(stream)
                finally:
                    self._turned_away -= 1
            return
        state = ConnectionState(self._state.copy())
        connection = Connection(self._app, self._config, self._context, state, stream, self._tls)
        self._open.add(connection)
        try:
            await connection.run()
        finally:
            self._open.discard(connection)

    def drain(self, deadline: float) -> None:
        """Let each connection end, by `deadline` at the latest."""
        self._draining = True
        for connection in self._open:
            connection.drain(deadline)


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    listeners = await trio.open_tcp_listeners(port, host=host)
    for listener in listeners:
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # connections inherit all four
        for option, value in KEEP_ALIVE:
            listener.socket.setsockopt(socket.IPPROTO_TCP, option, value)
    return listeners


async def _turn_away(stream: trio.SocketStream) -> None:
    """Answer 503 and close, giving the client a moment to read it."""
    with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(LINGER_SECONDS):
        await stream.send_all(problem(503, "too many connections"))
        await stream.send_eof()
        while await stream.receive_some():
            pass


@attrs.frozen
class Route:
    """What `Front` serves itself: requests with exactly this method and a path of `prefix`, a name, and `suffix`."""

    method: str
    """`WEBSOCKET` for websockets."""
    prefix: str
    handler: Handler
    suffix: str = ""

    def matches(self, path: str) -> bool:
        """Return whether this route serves `path`; a name has no slash, but where nothing is behind it."""
        if not path.startswith(self.prefix) or not path.endswith(self.suffix):
            return False
        if self.suffix and len(path) <= len(self.prefix) + len(self.suffix):  # a module may be called as a suffix is
            return False
        return not self.suffix or "/" not in path[len(self.prefix) : -len(self.suffix)]


class Front:
    """An ASGI application that serves a few routes itself and hands everything else to the wrapped one.

    It is the hot path: what goes by here costs no web framework. `handler(scope, receive, send)` is cancelled at
    once when the client goes away (see `Connection`); an exception that leaves it is logged and answered 500.
    """

    def __init__(self, app: App, routes: Iterable[Route]) -> None:
        self._app = app
        self._routes: dict[str, list[Route]] = {}
        for route in routes:
            self._routes.setdefault(route.method, []).append(route)

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Serve one scope."""
        kind = scope["type"]
        if kind != "lifespan":
            method = scope["method"] if kind == "http" else WEBSOCKET
            for route in self._routes.get(method, ()):
                if route.matches(scope["path"]):
                    await route.handler(scope, receive, send)
                    return
        await self._app(scope, receive, send)


class BodyError(Exception):
    """The request body cannot be had; `status` is the HTTP status that says so."""

    status = 400


class BodyTooLargeError(BodyError):
    """The body is over the limit."""

    status = 413


class BodyTimeoutError(BodyError):
    """The body did not arrive in time."""

    status = 408


class ClientGoneError(BodyError):
    """The client closed before its body was whole; nobody reads an answer."""

    status = 499


async def read_body(scope: Message, receive: Receive, limit: int, timeout: float | None = None) -> bytes:
    """Return the whole request body of at most `limit` bytes, waiting at most `timeout` seconds for it.

    None leaves the time to the `body_seconds` of the server, and saves a timer. A `content-length` over the limit is
    refused before anything is read, so a client that expects `100 Continue` never sends it.

    Raises:
      BodyTooLargeError, BodyTimeoutError, ClientGoneError: as they say.

    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise BodyTooLargeError(f"the body of {int(value)} bytes is over {limit}")
    if timeout is None:
        return await _read_body(receive, limit)
    with trio.move_on_after(timeout):
        return await _read_body(receive, limit)
    raise BodyTimeoutError(f"the body did not arrive in {timeout} seconds")


async def _read_body(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError("the client closed before its body was whole")
        body = message.get("body", b"")
        size += len(body)
        if size > limit:
            raise BodyTooLargeError(f"the body is over {limit} bytes")
        if not message.get("more_body", False):
            return b"".join((*chunks, body)) if chunks else body
        chunks.append(body)


def stream_body(scope: Message) -> None:
    """Take a body of any length, in any time: what `receive` gives, and for how long, is the handler's matter then.

    Call it ahead of the first `receive`. Still no more is read ahead of the handler than of any other body.
    """
    scope["extensions"][STREAMED_BODY]()


async def respond(
    send: Send,
    status: int,
    body: bytes = b"",
    headers: Iterable[tuple[bytes, bytes]] = (),
    content_type: bytes = b"application/json",
) -> None:
    """Send a whole response; head and body leave in one write, and there is no checkpoint unless it must wait."""
    # 204 has no body, and by RFC 9110 no length either.
    about = () if status == 204 else ((b"content-type", content_type), (b"content-length", b"%d" % len(body)))
    head = [*about, *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})
