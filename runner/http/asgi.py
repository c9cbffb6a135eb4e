"""The tools of applications: reading a request body, sending a whole response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

from attrs import frozen

from runner.http.messages import Message

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
WEBSOCKET = "WEBSOCKET"
STREAMED_BODY = "operato.streamed_body"
"""The ASGI extension through which `stream_body` reaches the request."""
OUTSIDE: Final = "operato.outside"
"""The key of the `Outside` of a request in its ASGI scope."""


@frozen
class Outside:
    """The address of the server as its clients know it, which a proxy may have changed."""

    base: str = ""
    """Without a slash at its end, such as `https://example.org/runner`; empty: as the request says."""
    prefix: str = ""
    """The path of `base`, which a proxy removed from the path of the request."""


class App(Protocol):
    """An ASGI application: a quart app, or a plain coroutine function."""

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Serve one scope."""


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


def stream_body(scope: Message, owes: Callable[[], bool] = lambda: True) -> None:
    """Accept a body of any length, in any time: both limits are then up to the handler, which calls `receive`.

    Call it before the first `receive`. The server still reads no further ahead of the handler than for other bodies.
    While `owes` is true, the client waits for nothing before it sends more: if it is silent, it can lose its place in
    a full door.
    """
    scope["extensions"][STREAMED_BODY](owes)


async def respond(
    send: Send,
    status: int,
    body: bytes = b"",
    headers: Iterable[tuple[bytes, bytes]] = (),
    content_type: bytes = b"application/json",
) -> None:
    """Send a whole response; head and body leave in one write, with a checkpoint only if the write must wait."""
    # These have no body, and by RFC 9110 a 204 has no length, and a 304 not this one.
    about = () if status in (204, 304) else ((b"content-type", content_type), (b"content-length", b"%d" % len(body)))
    head = [*about, *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})
