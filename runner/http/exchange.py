"""One request and its response, as the `scope`, `receive` and `send` of an ASGI application."""

from __future__ import annotations

from math import inf
from typing import Any, Protocol
from urllib.parse import unquote

import h11
import structlog
import trio
from hypercorn.typing import ConnectionState

from runner.http.asgi import STREAMED_BODY, App, Receive, Send
from runner.http.limits import ServerConfig
from runner.http.messages import Headers, Message
from runner.wire import Sender, Wire

log = structlog.get_logger("runner.http")


class Peer(Protocol):
    """The parts of a connection that a request uses."""

    config: ServerConfig
    http: h11.Connection
    wire: Wire
    sender: Sender
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    lifespan_state: ConnectionState
    draining: bool
    """Whether the connection closes after this response."""

    def taken(self) -> None:
        """Note that the handler has read something."""

    def forgive_body(self) -> None:
        """Lift the time limit of the body."""

    def refuse(self, status: int, detail: str) -> None:
        """Answer with a problem, unless an answer has begun; cancel the handler, and close."""

    def finish(self, exchange: Exchange) -> None:
        """End an exchange whose response is complete: accept the next request, or close."""


async def call(app: App, scope: Message, receive: Receive, send: Send) -> None:
    """Call the application. Its errors are logged here; only a cancellation leaves."""
    try:
        await app(scope, receive, send)
    except (Exception, BaseExceptionGroup) as problem:  # noqa: BLE001  (an error ends its request only)
        log_errors(problem, "request handler failed", path=scope["path"])


def log_errors(problem: BaseException, event: str, **about: Any) -> None:
    """Log an error, or the errors in a group; raise the rest of the group, such as a cancellation."""
    errors, rest = problem.split(Exception) if isinstance(problem, BaseExceptionGroup) else (problem, None)
    if errors is not None:
        log.error(event, exc_info=errors, **about)
    if rest is not None:
        raise rest from None


class Exchange:
    """One request and its response."""

    def __init__(self, peer: Peer, request: h11.Request, headers: Headers, declared: int) -> None:
        """Begin with the head of a request; `declared` is its `content-length`, 0 without one."""
        self.peer = peer
        self.cancel_scope = trio.CancelScope()
        path, _, query = request.target.partition(b"?")
        self.method = request.method.decode("ascii").upper()
        self.scope: Message = {
            "type": "http",
            "http_version": request.http_version.decode("ascii"),
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": self.method,
            "scheme": "https" if peer.wire.secure else "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": peer.client,
            "server": peer.server,
            "state": peer.lifespan_state.copy(),
            "extensions": {STREAMED_BODY: self.stream_body},
        }
        self.declared = declared
        self.max_bytes: float = peer.config.limits.max_body_bytes
        self.received = 0  # bytes of the body
        self.unread = 0  # those of them that the handler has not read
        self.body_complete = False
        self.written = False  # a byte of the response may have left
        self.finished = False  # the response is complete, or never will be
        self._chunks: list[bytes] = []
        self._body_given = False
        self._status = 0
        self._bodiless = False
        self._held = b""  # a head that waits for its body, to leave in the same write
        self._changed: trio.Event | None = None

    # For the connection

    def feed(self, data: bytes) -> None:
        """Add a piece of the body."""
        self.received += len(data)
        self.unread += len(data)
        self._chunks.append(data)
        self._wake()

    def end_body(self) -> None:
        """Note that the body is complete."""
        self.body_complete = True
        self._wake()

    def finish(self) -> None:
        """Accept nothing more from the handler."""
        self.finished = True
        self._wake()

    def cancel(self) -> None:
        """Cancel the handler, and accept nothing more from it."""
        self.finished = True
        self.cancel_scope.cancel()

    @property
    def streamed(self) -> bool:
        """Whether the body may have any length and take any time."""
        return self.max_bytes == inf

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    # For the handler

    def stream_body(self) -> None:
        """Accept a body of any length; the handler decides how long to wait for more of it."""
        self.max_bytes = inf
        if not self.body_complete:
            self.peer.forgive_body()

    async def receive(self) -> Message:
        """Return the part of the body that has arrived; after its end, wait for the end of the exchange."""
        if self._is_over():
            return {"type": "http.disconnect"}
        while not self._chunks and (self._body_given or not self.body_complete):
            if self.finished:
                return {"type": "http.disconnect"}
            # Sent as late as this, so that a handler can refuse before the client uploads anything.
            if self.peer.http.they_are_waiting_for_100_continue:
                proceed = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                await self.peer.sender.send(self.peer.http.send(proceed) or b"")
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()
            if self._is_over():
                return {"type": "http.disconnect"}
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        self.unread = 0
        self._body_given = self.body_complete
        self.peer.taken()
        return {"type": "http.request", "body": body, "more_body": not self.body_complete}

    def _is_over(self) -> bool:
        """Return whether the body is over its limit, after refusing it."""
        if max(self.declared, self.received) <= self.max_bytes:
            return False
        if not self.finished:
            self.peer.refuse(413, f"the body is over {self.max_bytes} bytes")
        return True

    async def send(self, message: Message) -> None:
        """Write the response. The last message returns without a checkpoint, so no cancellation follows its write."""
        if self.finished:
            await trio.lowlevel.checkpoint()
        elif message["type"] == "http.response.body" and self._status:
            await self._send_body(message.get("body", b""), more=message.get("more_body", False))
        elif message["type"] == "http.response.start" and not self._status:
            await self._send_head(int(message["status"]), message.get("headers", ()))
        else:
            raise RuntimeError(f"{message['type']} is not expected in this state of the response")

    async def _send_head(self, status: int, headers: Any) -> None:
        peer = self.peer
        sent = [(bytes(name), bytes(value).strip()) for name, value in headers]
        sized = any(name.lower() == b"content-length" for name, _ in sent)
        sent += peer.config.response_headers("h11")
        # While the body is incomplete, the start of the next request is unknown.
        if peer.draining or not self.body_complete:
            sent.append((b"connection", b"close"))
        head = peer.http.send(h11.Response(status_code=status, headers=sent)) or b""
        self._status = status
        self._bodiless = self.method == "HEAD" or status in {204, 304}
        if sized or self._bodiless:
            self._held = head  # the body follows at once
        else:
            self.written = True  # a stream: its first event may take long, and the client waits for the head
            await peer.sender.send(head)

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        peer = self.peer
        if more:
            await trio.lowlevel.checkpoint_if_cancelled()
        out, self._held = self._held, b""
        if data and not self._bodiless:
            out += peer.http.send(h11.Data(data=data)) or b""
        if not more:
            out += peer.http.send(h11.EndOfMessage()) or b""
        if out:
            self.written = True
            await peer.sender.send(out)
        if more:
            # A loop that sends must let other tasks run, even when the kernel accepts everything at once.
            await trio.lowlevel.cancel_shielded_checkpoint()
        elif not self.finished:
            peer.finish(self)
