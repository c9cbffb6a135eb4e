"""What happens on a connection: a request with its response, a websocket, a refusal; and the limits of all."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from wsgiref.handlers import format_date_time

import attrs
import h11
import trio
from hypercorn.config import Config
from hypercorn.protocol.events import Body, Data, EndBody, Event, Request, Response, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.typing import AppWrapper, ConnectionState
from wsproto.events import CloseConnection, Ping

if TYPE_CHECKING:
    from runner.http.connection import Connection

Message = dict[str, Any]
Headers = list[tuple[bytes, bytes]]

PING_SECONDS = 20.0
"""A websocket peer that said nothing for so long is sent a ping; one that says nothing for twice as long is gone."""
UNREAD_MESSAGES = 16
"""Above so many websocket messages that a handler has not taken yet, the socket is not read."""
STREAM_ID = 1
STREAMED_BODY = "operato.streamed_body"
"""The ASGI extension by which a handler says that it reads a body of any length in its own time: `http.stream_body`."""


@attrs.frozen(kw_only=True)
class HttpLimits:
    """What a client may take of the server, and how long."""

    keep_alive_seconds: float = attrs.field(default=5.0, validator=attrs.validators.gt(0))
    """A connection on which no request has begun is closed after this time, without a word."""
    header_seconds: float = attrs.field(default=5.0, validator=attrs.validators.gt(0))
    """From the first byte of a request head to its last; later is answered 408."""
    body_seconds: float = attrs.field(default=60.0, validator=attrs.validators.gt(0))
    """From the end of the head to the end of the body, not counting time the handler left it unread; then 408."""
    send_seconds: float = attrs.field(default=30.0, validator=attrs.validators.gt(0))
    """A client that takes no byte for so long while it is sent to is cut off."""
    graceful_seconds: float = attrs.field(default=5.0, validator=attrs.validators.ge(0))
    """What runs at shutdown has this time to end, sends included; then it is cancelled."""
    max_connections: int = attrs.field(default=1000, validator=attrs.validators.gt(0))
    """A connection above this number is answered 503 and closed."""
    max_body_bytes: int = attrs.field(default=16 * 1024 * 1024, validator=attrs.validators.gt(0))
    """A larger request body is answered 413 before the handler sees it all, unless the handler streams it; a larger
    websocket message closes 1009."""
    max_head_bytes: int = attrs.field(default=16 * 1024, validator=attrs.validators.gt(0))
    """A larger request head is answered 431."""


class ServerConfig(Config):
    """The hypercorn configuration that follows from `HttpLimits`."""

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.errorlog = logging.getLogger("runner.http")
        self.include_server_header = False
        self.graceful_timeout = limits.graceful_seconds
        self.websocket_max_message_size = limits.max_body_bytes
        self._date: tuple[int, Headers] = (0, [])

    def response_headers(self, protocol: str) -> Headers:
        """Return the headers of every response; the date is rendered once a second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, super().response_headers(protocol))
        return self._date[1]


def problem(status: int, detail: str, *, head_only: bool = False) -> bytes:
    """Return a whole response that refuses a request with an RFC 9457 problem and announces the close."""
    title = HTTPStatus(status).phrase
    body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail}).encode()
    head = (
        f"HTTP/1.1 {status} {title}\r\ndate: {format_date_time(time.time())}\r\n"
        f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if head_only else body)


class Exchange:
    """One request and its response: the `scope`, `receive` and `send` of an ASGI http application."""

    def __init__(self, connection: Connection, request: h11.Request, headers: Headers, declared: int) -> None:
        """Begin with the head of a request; `declared` is the length of its body in bytes, 0 where it does not say."""
        self.connection = connection
        self.cancel_scope = trio.CancelScope()
        path, _, query = request.target.partition(b"?")
        self.method = request.method.decode("ascii").upper()
        self.scope: Message = {
            "type": "http",
            "http_version": request.http_version.decode("ascii"),
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": self.method,
            "scheme": "https" if connection.wire.secure else "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": connection.client,
            "server": connection.server,
            "state": connection.state.copy(),
            "extensions": {STREAMED_BODY: self.stream_body},
        }
        self.declared = declared
        self.max_bytes: float = connection.limits.max_body_bytes
        self.received = 0  # bytes of the body that came in all
        self.unread = 0  # bytes of them that the handler has not taken
        self.body_complete = False
        self.written = False  # a byte of the response may have left
        self.finished = False  # the response is whole, or can never be
        self._chunks: list[bytes] = []
        self._body_given = False
        self._status = 0
        self._bodiless = False
        self._held = b""  # a head that waits for its body, to leave in the same write
        self._changed: trio.Event | None = None

    def feed(self, data: bytes) -> None:
        """Add a piece of the body."""
        self.received += len(data)
        self.unread += len(data)
        self._chunks.append(data)
        self.wake()

    def wake(self) -> None:
        """Let a waiting `receive` look again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    @property
    def streamed(self) -> bool:
        """Whether the body may be of any length, and take any time."""
        return self.max_bytes == inf

    def stream_body(self) -> None:
        """Take a body of any length; for how long to wait for more of it is the handler's matter."""
        self.max_bytes = inf
        if not self.body_complete:
            self.connection.forgive_body()

    async def receive(self) -> Message:
        """Return all of the body that came so far; after its end, wait for the end of the exchange."""
        if self._over():
            return {"type": "http.disconnect"}
        while not self._chunks and (self._body_given or not self.body_complete):
            if self.finished:
                return {"type": "http.disconnect"}
            # Asked for as late as this, a handler can refuse before the client uploads anything.
            if self.connection.http.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                await self.connection.write(self.connection.http.send(go_on) or b"")
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()
            if self._over():
                return {"type": "http.disconnect"}
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        self.unread = 0
        self._body_given = self.body_complete
        self.connection.taken()
        return {"type": "http.request", "body": body, "more_body": not self.body_complete}

    def _over(self) -> bool:
        """Return whether the body is too large; the client has been told then."""
        if max(self.declared, self.received) <= self.max_bytes:
            return False
        if not self.finished:
            self.connection.refuse_body()
        return True

    async def send(self, message: Message) -> None:
        """Write the response; its last message returns without a checkpoint, so nothing can tear it off."""
        if self.finished:
            await trio.lowlevel.checkpoint()
        elif message["type"] == "http.response.body" and self._status:
            await self._send_body(message.get("body", b""), more=message.get("more_body", False))
        elif message["type"] == "http.response.start" and not self._status:
            await self._send_head(int(message["status"]), message.get("headers", ()))
        else:
            raise RuntimeError(f"{message['type']} is not expected in this state of the response")

    async def _send_head(self, status: int, headers: Any) -> None:
        connection = self.connection
        sent = [(bytes(name), bytes(value).strip()) for name, value in headers]
        sized = any(name.lower() == b"content-length" for name, _ in sent)
        sent += connection.config.response_headers("h11")
        # With the body unread, where the next request begins is not known.
        if connection.draining or not self.body_complete:
            sent.append((b"connection", b"close"))
        head = connection.http.send(h11.Response(status_code=status, headers=sent)) or b""
        self._status = status
        self._bodiless = self.method == "HEAD" or status in {204, 304}
        if sized or self._bodiless:
            self._held = head  # the body is at hand
        else:
            self.written = True  # a stream: its first event may be long in coming, and the client wants to know
            await connection.write(head)

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        connection = self.connection
        if more:
            await trio.lowlevel.checkpoint_if_cancelled()
        out, self._held = self._held, b""
        if data and not self._bodiless:
            out += connection.http.send(h11.Data(data=data)) or b""
        if not more:
            out += connection.http.send(h11.EndOfMessage()) or b""
        if out:
            self.written = True
            await connection.write(out)
        if more:
            # A loop that sends must let others run, also when the kernel takes all at once.
            await trio.lowlevel.cancel_shielded_checkpoint()
        elif not self.finished:
            connection.finish(self)


class Websocket(TaskGroup):
    """One websocket: hypercorn's stream does the protocol, this is what it sees of the connection.

    A task group for hypercorn, because the stream starts its application through one.
    """

    def __init__(self, connection: Connection, request: h11.Request, headers: Headers) -> None:
        super().__init__()
        self._connection = connection
        self._events: deque[Message] = deque()
        self._changed = trio.Event()
        self._heard_at = trio.current_time()
        self._watching = trio.CancelScope()
        self._request = request
        self._headers = headers
        self.cancel_scope = trio.CancelScope()
        self._stream = WSStream(
            connection.app,
            connection.config,
            connection.context,
            self,
            connection.wire.secure,
            connection.client,
            connection.server,
            self._write,
            STREAM_ID,
        )

    @property
    def accepted(self) -> bool:
        """Whether the handshake is done, so that frames may come."""
        return hasattr(self._stream, "handshake") and self._stream.handshake.accepted

    async def run(self) -> None:
        """Check the handshake and start the application, or answer why not."""
        begin = Request(
            stream_id=STREAM_ID,
            headers=self._headers,
            http_version=self._request.http_version.decode("ascii"),
            method="GET",
            raw_path=self._request.target,
            state=ConnectionState(self._connection.state),
        )
        await self._stream.handle(begin)
        if self._stream.closed:  # the handshake was not valid, and has been answered
            self._connection.half_close()
            return
        with self._watching:
            await self._watch()

    async def _watch(self) -> None:
        """Send pings to a silent peer, and end the connection of one that does not answer; its pongs are heard."""
        while True:
            await trio.sleep_until(self._heard_at + PING_SECONDS)
            silent = trio.current_time() - self._heard_at
            if silent >= 2 * PING_SECONDS:
                self._connection.lost()
            elif silent >= PING_SECONDS:
                if self._stream.state is ASGIWebsocketState.CONNECTED:
                    await self._connection.write(self._stream.connection.send(Ping()))
                await trio.sleep_until(self._heard_at + 2 * PING_SECONDS)

    async def feed(self, data: bytes) -> None:
        """Take what the client sent; waits while the application leaves too much of it."""
        self._heard_at = trio.current_time()
        await self._stream.handle(Data(stream_id=STREAM_ID, data=data))

    def lost(self) -> None:
        """Note that nothing can be sent any more."""
        self._stream.closed = True
        self._watching.cancel()

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        """Start the application and return where its events go."""
        del app, config
        self._connection.nursery.start_soon(self._run_app, scope, send)
        return self._put

    async def _run_app(self, scope: Message, send: Callable[[Any], Awaitable[None]]) -> None:
        connection = self._connection

        async def checked_send(message: Message) -> None:
            # Hypercorn's own is no checkpoint once the client is gone: a loop that sends would hold up everything.
            await trio.lowlevel.checkpoint_if_cancelled()
            await send(message)
            await trio.lowlevel.cancel_shielded_checkpoint()

        try:
            with self.cancel_scope:
                await connection.call_app(scope, self._receive, checked_send)
                await send(None)
        except BaseException:  # a cancellation from outside, perhaps in a group
            connected = self._stream.state is ASGIWebsocketState.CONNECTED
            if connected and not connection.closing and not connection.send_lock.locked():
                connection.write_now(self._stream.connection.send(CloseConnection(code=1001, reason="server shutdown")))
            raise
        finally:
            connection.handler_ended()

    async def _put(self, event: Message) -> None:
        self._events.append(event)
        self._changed.set()
        if event["type"] == "websocket.receive":
            await self._connection.wait_taken(lambda: len(self._events) >= UNREAD_MESSAGES)

    async def _receive(self) -> Message:
        while not self._events:
            self._changed = trio.Event()
            await self._changed.wait()
        event = self._events.popleft()
        self._connection.taken()
        return event

    async def _write(self, event: Event) -> None:
        """Put what the stream says on the wire."""
        connection, http = self._connection, self._connection.http
        if isinstance(event, Data):
            await connection.write(event.data)
        elif isinstance(event, Response):
            headers = event.headers + connection.config.response_headers("h11")
            answer: h11.InformationalResponse | h11.Response
            if event.status_code < 200:
                answer = h11.InformationalResponse(status_code=event.status_code, headers=headers)
            else:
                headers.append((b"connection", b"close"))
                answer = h11.Response(status_code=event.status_code, headers=headers)
            await connection.write(http.send(answer) or b"")
        elif isinstance(event, Body):
            await connection.write(http.send(h11.Data(data=event.data)) or b"")
        elif isinstance(event, EndBody):
            await connection.write(http.send(h11.EndOfMessage()) or b"")
        elif isinstance(event, StreamClosed):
            await self._stream.handle(event)
            connection.half_close()
