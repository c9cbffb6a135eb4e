"""The tools of applications: routes ahead of a web framework, reading a request body, sending a whole response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import attrs

from runner.http.messages import Message

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Handler = Callable[[Message, Receive, Send], Awaitable[None]]
WEBSOCKET = "WEBSOCKET"
STREAMED_BODY = "operato.streamed_body"
"""The ASGI extension through which `stream_body` reaches the request."""


class App(Protocol):
    """An ASGI application: a quart app, `Front`, or a plain coroutine function."""

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Serve one scope."""


@attrs.frozen
class Route:
    """Matches requests with exactly this method and a path of `prefix`, a name, and `suffix`."""

    method: str
    """`WEBSOCKET` for websockets."""
    prefix: str
    handler: Handler
    suffix: str = ""

    def matches(self, path: str) -> bool:
        """Return whether this route serves `path`. A name that a suffix follows has no slash."""
        if not path.startswith(self.prefix) or not path.endswith(self.suffix):
            return False
        if self.suffix and len(path) <= len(self.prefix) + len(self.suffix):  # a module may have a suffix as its name
            return False
        return not self.suffix or "/" not in path[len(self.prefix) : -len(self.suffix)]


class Front:
    """An ASGI application that serves a few routes itself and passes everything else to the wrapped one.

    This is the hot path: its routes do not pay for a web framework. `handler(scope, receive, send)` is cancelled at
    once when the client disconnects (see `Connection`); an exception that leaves it is logged and answered 500.
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
    """The request body cannot be read."""


class BodyTooLargeError(BodyError):
    """The body is over the limit."""


class ClientGoneError(BodyError):
    """The client closed before its body was complete; an answer would not be read."""


async def read_body(scope: Message, receive: Receive, limit: int) -> bytes:
    """Return the whole request body of at most `limit` bytes; the time limit is the server's `body_seconds`.

    A `content-length` over the limit is refused before anything is read, so a client that expects `100 Continue` never
    sends the body.

    Raises:
      BodyTooLargeError: the body is over the limit.
      ClientGoneError: the client closed before its body was complete, or was answered 408.

    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise BodyTooLargeError(f"the body of {int(value)} bytes is over {limit}")
    whole = bytearray()  # pieces may be small and many
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError("the client closed before its body was complete")
        body: bytes = message.get("body", b"")
        if len(whole) + len(body) > limit:
            raise BodyTooLargeError(f"the body is over {limit} bytes")
        more = message.get("more_body", False)
        if not more and not whole:
            return body
        whole += body
        if not more:
            return bytes(whole)


def stream_body(scope: Message) -> None:
    """Accept a body of any length, in any time: both limits are then up to the handler, which calls `receive`.

    Call it before the first `receive`. The server still reads no further ahead of the handler than for other bodies.
    """
    scope["extensions"][STREAMED_BODY]()


async def respond(
    send: Send,
    status: int,
    body: bytes = b"",
    headers: Iterable[tuple[bytes, bytes]] = (),
    content_type: bytes = b"application/json",
) -> None:
    """Send a whole response; head and body leave in one write, with a checkpoint only if the write must wait."""
    # A 204 has no body and, by RFC 9110, no length either.
    about = () if status == 204 else ((b"content-type", content_type), (b"content-length", b"%d" % len(body)))
    head = [*about, *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})
