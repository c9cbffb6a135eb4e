"""One websocket: hypercorn's stream for the protocol, with pings, backpressure and cancellation around it."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.protocol.events import Body, Data, EndBody, Event, Request, Response, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from wsproto.events import CloseConnection, Ping

from runner.http.asgi import App
from runner.http.exchange import Peer, call
from runner.http.messages import Headers, Message

PING_SECONDS = 20.0
"""A client that is silent for this time is sent a ping; one that is silent for twice the time is cut off."""
UNREAD_MESSAGES = 16
"""While a handler leaves this many messages unread, the socket is not read."""
STREAM_ID = 1


class WebsocketPeer(Peer, Protocol):
    """The parts of a connection that a websocket uses."""

    app: App

    def start(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that ends with the connection."""

    async def wait_taken(self, is_full: Callable[[], bool]) -> None:
        """Wait until the handler has read enough, or the client is gone."""

    def half_close(self) -> None:
        """Send our end of file, and give the client a moment to read what precedes it."""

    def lost(self) -> None:
        """Cut the client off."""


class Websocket(TaskGroup):
    """One websocket. For hypercorn's stream it is the task group through which the stream starts its application."""

    def __init__(self, peer: WebsocketPeer, request: h11.Request, headers: Headers) -> None:
        super().__init__()
        self.cancel_scope = trio.CancelScope()
        self._peer = peer
        self._request = request
        self._headers = headers
        self._events: deque[Message] = deque()
        self._changed = trio.Event()
        self._heard_at = trio.current_time()
        self._watching = trio.CancelScope()
        self._stream = WSStream(
            cast("AppWrapper", peer.app),
            peer.config,
            WorkerContext(None),
            self,
            peer.wire.secure,
            peer.client,
            peer.server,
            self._write,
            STREAM_ID,
        )

    # For the connection

    @property
    def accepted(self) -> bool:
        """Whether the handshake is done, so that frames may arrive."""
        return hasattr(self._stream, "handshake") and self._stream.handshake.accepted

    async def run(self) -> None:
        """Check the handshake and start the application, or refuse it; then watch for a silent client."""
        begin = Request(
            stream_id=STREAM_ID,
            headers=self._headers,
            http_version=self._request.http_version.decode("ascii"),
            method="GET",
            raw_path=self._request.target,
            state=ConnectionState(self._peer.lifespan_state),
        )
        await self._stream.handle(begin)
        if self._stream.closed:  # the handshake was not valid, and is answered
            self._peer.half_close()
            return
        with self._watching:
            await self._watch()

    async def feed(self, data: bytes) -> None:
        """Process data from the client; waits while the application leaves too much of it unread."""
        self._heard_at = trio.current_time()
        await self._stream.handle(Data(stream_id=STREAM_ID, data=data))

    def cancel(self) -> None:
        """Cancel the handler."""
        self.cancel_scope.cancel()

    def lost(self) -> None:
        """Cancel everything, and send nothing more."""
        self._stream.closed = True
        self._watching.cancel()
        self.cancel()

    async def _watch(self) -> None:
        """Ping a silent client, and cut off one that does not answer. Every byte counts as a sign of life."""
        while True:
            await trio.sleep_until(self._heard_at + PING_SECONDS)
            silent = trio.current_time() - self._heard_at
            if silent >= 2 * PING_SECONDS:
                self._peer.lost()
            elif silent >= PING_SECONDS:
                if self._stream.state is ASGIWebsocketState.CONNECTED:
                    await self._peer.sender.send(self._stream.connection.send(Ping()))
                await trio.sleep_until(self._heard_at + 2 * PING_SECONDS)

    # For hypercorn's stream

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        """Start the application and return the function that receives its events."""
        del app, config
        self._peer.start(self._run_app, scope, send)
        return self._put

    async def _run_app(self, scope: Message, send: Callable[[Any], Awaitable[None]]) -> None:
        peer, stream = self._peer, self._stream

        async def checked_send(message: Message) -> None:
            # Hypercorn's send has no checkpoint once the client is gone: a loop of sends would block every other task.
            await trio.lowlevel.checkpoint_if_cancelled()
            await send(message)
            await trio.lowlevel.cancel_shielded_checkpoint()

        try:
            with self.cancel_scope:
                await call(peer.app, scope, self._receive, checked_send)
                await send(None)
        except BaseException:  # a cancellation from outside, perhaps in a group
            if stream.state is ASGIWebsocketState.CONNECTED and not stream.closed and not peer.sender.busy:
                peer.sender.send_now(stream.connection.send(CloseConnection(code=1001, reason="server shutdown")))
            raise
        finally:
            peer.taken()

    async def _put(self, event: Message) -> None:
        self._events.append(event)
        self._changed.set()
        if event["type"] == "websocket.receive":
            await self._peer.wait_taken(lambda: len(self._events) >= UNREAD_MESSAGES)

    async def _receive(self) -> Message:
        while not self._events:
            self._changed = trio.Event()
            await self._changed.wait()
        event = self._events.popleft()
        self._peer.taken()
        return event

    async def _write(self, event: Event) -> None:
        """Send an event of the stream as bytes."""
        peer, http = self._peer, self._peer.http
        if isinstance(event, Data):
            await peer.sender.send(event.data)
        elif isinstance(event, Response):
            headers = event.headers + peer.config.response_headers("h11")
            answer: h11.InformationalResponse | h11.Response
            if event.status_code < 200:
                answer = h11.InformationalResponse(status_code=event.status_code, headers=headers)
            else:
                headers.append((b"connection", b"close"))
                answer = h11.Response(status_code=event.status_code, headers=headers)
            await peer.sender.send(http.send(answer) or b"")
        elif isinstance(event, Body):
            await peer.sender.send(http.send(h11.Data(data=event.data)) or b"")
        elif isinstance(event, EndBody):
            await peer.sender.send(http.send(h11.EndOfMessage()) or b"")
        elif isinstance(event, StreamClosed):
            await self._stream.handle(event)
            peer.half_close()
