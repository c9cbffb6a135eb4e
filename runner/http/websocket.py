"""One websocket: wsproto for the frames, with limits, pings and the ASGI side around it.

Frames are parsed in steps of a few milliseconds, and no further ahead of the handler than `UNREAD_MESSAGES`. A message
over its limit, a broken rule and a flood of frames without content each end with a close frame; nothing that follows
is parsed.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final, Protocol

import trio
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from runner.http.asgi import App
from runner.http.exchange import Peer, common_scope
from runner.http.frames import ClosingError, Deflate, Frames, agree, listed
from runner.http.messages import Message, refusal, response_head
from runner.http.requests import Head

PING_SECONDS: Final = 20.0
"""A client that is silent for this time is sent a ping; one that is silent as long after it is cut off."""
UNREAD_MESSAGES: Final = 16
"""While a handler leaves this many messages unread, the socket is not read."""
PARSE_SECONDS: Final = 0.002
"""After this time, frames that have arrived wait for the next turn of the connection."""


class WebsocketPeer(Peer, Protocol):
    """The parts of a connection that a websocket uses."""

    app: App

    def lost(self) -> None:
        """Cut the client off."""


class Websocket:
    """One websocket, from its handshake to its close."""

    def __init__(self, peer: WebsocketPeer, head: Head) -> None:
        """Begin with a handshake that `check_handshake` passes."""
        self.cancel_scope: trio.CancelScope | None = None
        self.finished = False
        """Whether the websocket is closed, or its handshake refused."""
        self.scope: Message = {
            "type": "websocket",
            "asgi": {"spec_version": "2.3", "version": "3.0"},
            "scheme": "wss" if peer.wire.secure else "ws",
            "subprotocols": listed(head, b"sec-websocket-protocol"),
            "extensions": {"websocket.http.response": {}},
            **common_scope(peer, head),
        }
        self._peer = peer
        self.head = head
        self._frames: Frames | None = None
        self._heard_at = trio.current_time()
        self._pinged_at: float | None = None
        self._rejection: Message | None = None
        self._unread: deque[tuple[Message, int]] = deque([({"type": "websocket.connect"}, 0)])
        self._changed = trio.Event()

    # For the connection

    @property
    def accepted(self) -> bool:
        """Whether the handshake is done, so that frames may arrive."""
        return self._frames is not None

    @property
    def answerable(self) -> bool:
        """Whether the handshake is not answered."""
        return self._frames is None and not self.finished

    @property
    def full(self) -> bool:
        """Whether the handler leaves too much unread."""
        return len(self._unread) >= UNREAD_MESSAGES

    @property
    def waiting(self) -> bool:
        """Whether frames have arrived that `parse` can handle now."""
        return self._frames is not None and self._frames.waiting and not self.finished and not self.full

    def feed(self, data: bytes) -> None:
        """Add bytes from the client, which are a sign of life."""
        if self._frames is not None:
            self._frames.feed(data)
            self._heard_at = trio.current_time()
            self._pinged_at = None

    def parse(self) -> None:
        """Handle frames, for a short time and until enough messages wait."""
        end = time.perf_counter() + PARSE_SECONDS
        while self._frames is not None and self.waiting:
            try:
                found = self._frames.take()
            except ClosingError as problem:
                self._close(problem.code, problem.reason)
                return
            if isinstance(found, Ping):
                self._post(found.response())
            elif isinstance(found, CloseConnection):
                self._close(found.code, found.reason)  # with the code of the client
            elif isinstance(found, str):
                self._put({"type": "websocket.receive", "bytes": None, "text": found}, self._frames.size)
            elif found is not None:
                self._put({"type": "websocket.receive", "bytes": found, "text": None}, self._frames.size)
            if time.perf_counter() > end:
                return

    def tick(self) -> float:
        """Ping a silent client, or cut it off; return when to look again (Trio time)."""
        now = trio.current_time()
        if self._pinged_at is not None:
            if now - self._pinged_at >= PING_SECONDS:
                self._peer.lost()
            return self._pinged_at + PING_SECONDS
        if now - self._heard_at >= PING_SECONDS:
            self._pinged_at = now
            self._post(Ping())
            return now + PING_SECONDS
        return self._heard_at + PING_SECONDS

    def cancel(self) -> None:
        """Cancel the handler, and accept nothing more from it."""
        self._finish(1006)
        if self.cancel_scope is not None:
            self.cancel_scope.cancel()

    def ended(self) -> None:
        """Close a websocket whose handler has returned."""
        self._give_up(500, "the server failed to answer", CloseReason.INTERNAL_ERROR)

    def interrupted(self) -> None:
        """Close a websocket whose handler was cancelled from outside of its connection."""
        self._give_up(503, "the server is shutting down", CloseReason.GOING_AWAY)

    def _give_up(self, status: int, detail: str, code: int) -> None:
        if self.finished:
            return
        if self._frames is None:
            self._peer.refuse(status, detail)
        else:
            self._close(code, detail)

    # Closing

    def _post(self, event: Event) -> None:
        """Send a control frame, unless a client that does not read has left no room for it."""
        sender = self._peer.sender
        try:
            data = b"" if self._frames is None else bytes(self._frames.connection.send(event))
        except LocalProtocolError:  # it closes already
            return
        if data and not sender.busy and 0 < sender.send_now(data) < len(data):
            self._peer.lost()

    def _close(self, code: int, reason: str | None) -> None:
        """Send a close frame, and end."""
        self._post(CloseConnection(code=code, reason=reason))
        self._finish(code)
        self._peer.half_close()

    def _finish(self, code: int) -> None:
        """Accept nothing more from either side; the handler can still read that the client has gone."""
        if not self.finished:
            self.finished = True
            if self._frames is not None:
                self._frames.close()
            self._put({"type": "websocket.disconnect", "code": code}, 0)

    # For the handler

    def _put(self, message: Message, size: int) -> None:
        self._unread.append((message, size))
        self._changed.set()

    async def receive(self) -> Message:
        """Return the next message of the client, or its disconnect."""
        if self._unread:  # a loop that receives must let other tasks run, even when messages always wait
            await trio.lowlevel.checkpoint()
        while not self._unread:
            self._changed = trio.Event()
            await self._changed.wait()
        message, size = self._unread.popleft()
        if self._frames is not None and not self.finished:
            self._frames.give(size)
            self._peer.taken()
        return message

    async def send(self, message: Message) -> None:
        """Accept or refuse the handshake, send a message, or close."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.finished:
            pass
        elif self._frames is None:
            await self._answer(message)
        elif message["type"] == "websocket.send":
            data = message.get("bytes")
            event = TextMessage(data=message["text"]) if data is None else BytesMessage(data=bytes(data))
            await self._peer.sender.send(bytes(self._frames.connection.send(event)))
        elif message["type"] == "websocket.close":
            self._close(int(message.get("code", 1000)), message.get("reason"))
        else:
            raise RuntimeError(f"{message['type']} is not expected from a websocket that is open")
        # A loop that sends must let other tasks run, even when the kernel accepts everything at once.
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _answer(self, message: Message) -> None:
        """Answer the handshake."""
        kind = message["type"]
        if kind == "websocket.accept":
            limits = self._peer.limits
            deflate = Deflate()
            headers = agree(self.head, message.get("subprotocol"), deflate)
            head = response_head(101, [*headers, *message.get("headers", ())])
            self._frames = Frames(deflate, limits.max_body_bytes, self._peer.budget)
            await self._peer.sender.send(head)
        elif kind == "websocket.close":
            await self._reject(refusal(403, "the websocket was refused"))
        elif kind == "websocket.http.response.start":
            self._rejection = {**message, "body": b""}
        elif kind == "websocket.http.response.body" and self._rejection is not None:
            start = self._rejection
            start["body"] += message.get("body", b"")
            if not message.get("more_body", False):
                fields = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
                fields.append((b"content-length", b"%d" % len(start["body"])))
                head = response_head(int(start["status"]), fields, b"connection: close\r\n")
                await self._reject(head + start["body"])
        else:
            raise RuntimeError(f"{kind} is not expected before a websocket is open")

    async def _reject(self, answer: bytes) -> None:
        self._finish(1006)
        await self._peer.sender.send(answer)
        self._peer.half_close()
