"""One request and its response, as the `scope`, `receive` and `send` of an ASGI application."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Protocol

import structlog
import trio

from runner.http.asgi import STREAMED_BODY, App, Receive, Send
from runner.http.messages import Headers, Message, response_head
from runner.http.requests import Head
from runner.http.states import HttpLimits
from runner.wire import LARGE_BYTES, Budget, Sender, Wire

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE = b"connection: close\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
OVER_BUDGET = "unfinished requests take all the memory of `max_buffered`; try again"
RETRY: Headers = [(b"retry-after", b"1")]

log = structlog.get_logger("runner.http")


class Peer(Protocol):
    """The parts of a connection that a request uses."""

    limits: HttpLimits
    budget: Budget
    wire: Wire
    sender: Sender
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    lifespan_state: dict[str, Any]
    draining: bool
    """Whether the connection closes after this response."""
    deadline: float
    """The end of the time (Trio time) for what the client sends next."""

    def taken(self) -> None:
        """Note that the handler has read something."""

    def refuse(self, status: int, detail: str, headers: Headers | None = None) -> None:
        """Answer with a problem, unless an answer has begun; cancel the handler, and close."""

    def finish(self, exchange: Exchange) -> None:
        """End an exchange whose response is complete: accept the next request, or close."""

    def half_close(self) -> None:
        """Send our end of file, and give the client a moment to read what precedes it."""


def common_scope(peer: Peer, head: Head) -> Message:
    """Return the entries that the scopes of requests and websockets share."""
    return {
        "http_version": head.version,
        "path": head.path,
        "raw_path": head.raw_path,
        "query_string": head.query,
        "root_path": "",
        "headers": head.headers,
        "client": peer.client,
        "server": peer.server,
        "state": peer.lifespan_state.copy(),
    }


def nothing() -> bool:
    """Return that a client owes nothing."""
    return False


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

    def __init__(self, peer: Peer, head: Head) -> None:
        """Begin with the head of a request."""
        self.peer = peer
        self.head = head
        self.cancel_scope: trio.CancelScope | None = None
        self.scope: Message = {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": head.method,
            "scheme": "https" if peer.wire.secure else "http",
            "extensions": {STREAMED_BODY: self.stream_body},
            **common_scope(peer, head),
        }
        self.max_bytes: float = peer.limits.max_body_bytes
        self.received = 0  # bytes of the body
        self._heard = trio.current_time()
        self._owes = nothing
        self.unread = 0  # those of them that the handler has not read
        self.body_complete = not (head.length or head.chunked)
        self.written = False  # a byte of the response may have left
        self.finished = False  # the response is complete, or never will be
        self._body: bytes | bytearray = b""
        self._held = 0  # bytes taken from the budget
        self._expecting = not self.body_complete and head.expecting
        self._body_given = False
        self._status = 0
        self._bodiless = False
        self._chunked = False  # the body of the response is
        self._left: float = inf  # bytes of it that its declared length leaves
        self._response = b""  # a head that waits for its body, to leave in the same write
        self._changed: trio.Event | None = None

    # For the connection

    def feed(self, data: bytes) -> None:
        """Add a piece of the body."""
        self.received += len(data)
        self._heard = trio.current_time()
        self._expecting = False
        if not self.peer.budget.take(len(data)):
            self.peer.refuse(503, OVER_BUDGET, RETRY)
            return
        self._held += len(data)
        self.unread += len(data)
        if not self._body:
            self._body = data
        else:  # one buffer, because many small pieces would take many times their bytes
            self._body = bytearray(self._body) if isinstance(self._body, bytes) else self._body
            self._body += data
        self._wake()

    def end_body(self) -> None:
        """Note that the body is complete."""
        self.body_complete = True
        self._wake()

    def close(self) -> None:
        """Accept nothing more from the handler."""
        self.finished = True
        self._owes = nothing  # it may lead to the request, in a circle
        self._give(self._held)
        self._wake()

    def cancel(self) -> None:
        """Cancel the handler, and accept nothing more from it."""
        self.close()
        if self.cancel_scope is not None:
            self.cancel_scope.cancel()

    def ended(self) -> None:
        """Answer in place of a handler that has returned."""
        self.scope = {}  # it has a method of ours; without this circle nothing is left to the garbage collector
        if not self.finished:
            self.peer.refuse(500, "the server failed to answer")

    def interrupted(self) -> None:
        """Answer in place of a handler that was cancelled from outside of its connection."""
        if not self.finished:
            why = "the server is shutting down" if self.peer.draining else "the request was cancelled"
            self.peer.refuse(503, why)

    @property
    def answerable(self) -> bool:
        """Whether no byte of a response can have left."""
        return not self.written

    @property
    def streamed(self) -> bool:
        """Whether the body may have any length and take any time."""
        return self.max_bytes == inf

    @property
    def silent_since(self) -> float:
        """When the last bytes of an unfinished body came; inf while the client owes nothing."""
        if self.finished or self.body_complete or self._expecting or self.unread:
            return inf
        if self.streamed:  # its handler may be at work, or the client may wait for an answer before it sends more
            return self._heard if self._changed is not None and self._owes() else inf
        return inf if self.written else self._heard

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _give(self, size: int) -> None:
        self._held -= size
        self.peer.budget.give(size)

    # For the handler

    def stream_body(self, owes: Callable[[], bool]) -> None:
        """Accept a body of any length; the handler decides how long to wait for more of it.

        While the handler waits and `owes` is true, the client is the one that has to go on.
        """
        self.max_bytes = inf
        self._owes = owes
        if not self.body_complete:
            self.peer.deadline = inf

    async def receive(self) -> Message:
        """Return the part of the body that has arrived; after its end, wait for the end of the exchange."""
        if self._is_over():
            return {"type": "http.disconnect"}
        while not self._body and (self._body_given or not self.body_complete):
            if self.finished:
                return {"type": "http.disconnect"}
            if self._expecting:  # as late as this, so that a handler can refuse before the client uploads anything
                self._expecting = False
                await self.peer.sender.send(CONTINUE)
                continue
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()
            if self._is_over():
                return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), b""
        self.unread = 0
        self._body_given = self.body_complete
        if self._body_given or self.streamed:  # before, the handler collects what the budget pays for
            self._give(self._held)
        self.peer.taken()
        return {"type": "http.request", "body": body, "more_body": not self._body_given}

    def _is_over(self) -> bool:
        """Return whether the body is over its limit, after refusing it."""
        if max(self.head.length, self.received) <= self.max_bytes:
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

    async def _send_head(self, status: int, headers: Headers) -> None:
        peer, method = self.peer, self.head.method
        length = next((value for name, value in headers if name.lower() == b"content-length"), None)
        self._bodiless = method == "HEAD" or status in {204, 304}
        more = b""
        if length is not None:
            self._left = 0 if self._bodiless else int(length)
        elif not self._bodiless:
            self._chunked = self.head.version != "1.0"  # else the end of file ends the body, as 1.0 always closes
            more = CHUNKED if self._chunked else b""
        # While the body is incomplete, the start of the next request is unknown.
        if peer.draining or self.head.closing or not self.body_complete:
            more += CLOSE
        head = response_head(status, headers, more)
        self._status = status
        if length is not None or self._bodiless:
            self._response = head  # the body follows at once
        else:
            self.written = True  # a stream: its first event may take long, and the client waits for the head
            await peer.sender.send(head)

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        peer = self.peer
        if more:
            await trio.lowlevel.checkpoint_if_cancelled()
        out, self._response = self._response, b""
        if data and not self._bodiless:
            self._left -= len(data)
            if self._left < 0:
                raise RuntimeError("the body of the response is longer than its content-length")
            if len(data) > LARGE_BYTES:  # in a write of its own, as a copy would take as much memory again
                self.written = True
                await peer.sender.send(out + b"%x\r\n" % len(data) if self._chunked else out)
                await peer.sender.send(data)
                out = b"\r\n" if self._chunked else b""
            else:
                out += b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        if not more and self._chunked:
            out += b"0\r\n\r\n"
        if out:
            self.written = True
            await peer.sender.send(out)
            self._heard = trio.current_time()  # a client with a streamed body may have waited for this
        if more:
            # A loop that sends must let other tasks run, even when the kernel accepts everything at once.
            await trio.lowlevel.cancel_shielded_checkpoint()
        elif not self.finished:
            if self._left not in (0, inf):
                raise RuntimeError("the body of the response is shorter than its content-length")
            peer.finish(self)
