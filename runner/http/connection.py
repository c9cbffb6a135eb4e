"""One HTTP/1.1 or websocket connection: the states it goes through, and the task that serves it.

The task structure is ours, because hypercorn's own lets one bad client block or end the program (its #225 and #329, and
sends without a time limit) and spends half of a request on timers, scopes and small writes.

Rules:

1. The state of a connection is one `State`, which changes by `step` along `TRANSITIONS`.
2. The poller of the server calls `ready` when bytes have arrived, and `expire` when `deadline`, which follows the
   state, has passed. Both are synchronous and take a few milliseconds at most.
3. Handlers run in a task of the connection, one after another, under one cancel scope. It is started by the first
   request; between requests it is parked. A request that comes while it is busy, with work after its last message,
   starts another one.
4. Parsing is synchronous, and so is writing what the kernel accepts at once. So no cancellation can fall between a
   response, the end of its exchange and the half-close that follows it.
5. A client that closes or resets (a half-close counts) cancels the handler of its unfinished request or websocket at
   once: a plain `trio.Cancelled` at the handler's next checkpoint, without any task, `receive` loop or helper on the
   handler's side. A handler that has sent its last message is left to end by itself.
6. While a handler leaves more than `UNREAD_BYTES` unread, the socket is not read. The kernel still tells of the end of
   the client, except that a client whose last bytes do not fit into this machine's kernel seems to be waiting.
7. Our end of file is sent in the same step as the last byte of a `Connection: close` response. For
   `linger_seconds`, bytes from the client are read and dropped, so that it can read the answer.
8. A request has context variables of its own, copies of those that the connection began with.

HTTP/2 is not supported: an `Upgrade: h2c` is ignored, as RFC 9110 allows, and its preface is answered 505.
"""

from __future__ import annotations

import ssl
from math import inf
from typing import Any, Protocol

import trio

from runner.http.asgi import App
from runner.http.exchange import RETRY, Exchange, log_errors
from runner.http.frames import check_handshake
from runner.http.messages import Headers, refusal
from runner.http.requests import Head, Incoming, RefusedError
from runner.http.states import ENDING, IDLE, TIME_LIMITS, HttpLimits, State, step
from runner.http.tasks import Tasks
from runner.http.websocket import Websocket
from runner.wire import GONE, Budget, Notes, PlainWire, Poller, Sender, TlsWire, Wire

READ_BYTES = 65_536
READ_BYTES_SMALL = 8_192
"""For chunked bodies and websockets: a read is parsed without a pause, and there a few bytes can be much work."""
UNREAD_BYTES = 262_144
"""While a handler leaves more than this many bytes of its body unread, the socket is not read."""
AHEAD_BYTES = 65_536
"""While more than this many bytes of further requests wait for an answer before them, the socket is not read."""
EARLY = "a websocket client must wait for the handshake before it sends"
CROWDED = "too many connections"


class Host(Protocol):
    """The parts of the server that its connections use."""

    app: App
    limits: HttpLimits
    budget: Budget
    lifespan_state: dict[str, Any]
    tls: ssl.SSLContext | None
    poller: Poller
    notes: Notes
    nursery: trio.Nursery
    """Runs the handlers."""

    def waits(self, connection: Connection, *, idle: bool) -> None:
        """Note that a connection becomes idle, or that it is not any more."""

    def left(self, connection: Connection) -> None:
        """Note that a connection is closed and its handlers have ended."""


class Connection:
    """Serves one client until either side closes. No error of a client or handler leaves its methods."""

    def __init__(self, host: Host, stream: trio.SocketStream, *, reserved: bool = False) -> None:
        """Begin to serve; a `reserved` connection is for health checks only. Raises OSError if the client has gone."""
        self.app = host.app
        self.limits = host.limits
        self.budget = host.budget
        self.lifespan_state = host.lifespan_state
        self.reserved = reserved
        self.client: tuple[str, int] | None = stream.socket.getpeername()[:2]
        self.server: tuple[str, int] | None = stream.socket.getsockname()[:2]
        self.wire: Wire = PlainWire(stream.socket) if host.tls is None else TlsWire(stream.socket, host.tls)
        self.sender = Sender(self.wire, host.limits.send_seconds, self.lost)
        self.draining = reserved
        self.state = State.SILENT if self.wire.opened else State.OPENING
        self.deadline = inf
        self._host = host
        self._socket = stream.socket
        self._descriptor = stream.socket.fileno()
        self._incoming = Incoming(host.limits.max_head_bytes)
        self._read_bytes = READ_BYTES
        self._paused: float | None = None  # while the socket is not read: what is left of the time limit
        self.serving: Exchange | Websocket | None = None
        self._tasks = Tasks(host.app, host.nursery, self._leave)
        host.poller.add(self._descriptor, self)
        host.waits(self, idle=True)
        self._set_deadline()

    def drain(self, deadline: float) -> None:
        """Accept no more requests: close now when idle, else after the response. `deadline` (Trio time) bounds it."""
        self.draining = True
        self.sender.end_by(deadline)
        if self.state in IDLE:
            self.lost()

    def ready(self, events: int) -> bool:
        """Read what has arrived, and act on it."""
        try:
            if self._paused is None:
                return self._advance()
            if events & GONE:
                self.lost()
        except Exception as problem:  # noqa: BLE001  (an error ends its connection only)
            self._fail(problem)
        return False

    def expire(self) -> None:
        """Act on the time limit of the state."""
        try:
            if isinstance(self.serving, Websocket) and self.state is State.WEBSOCKET:
                self.deadline = self.serving.tick()
            elif self.state in {State.HEAD, State.BODY}:
                self.refuse(408, "the request did not arrive in time")
            else:
                self.lost()
        except Exception as problem:  # noqa: BLE001  (an error ends its connection only)
            self._fail(problem)

    def _fail(self, problem: Exception) -> None:
        log_errors(problem, "connection failed", client=self.client)
        self.lost()

    def _set_deadline(self) -> None:
        """Limit reading by the state just entered."""
        limit = TIME_LIMITS.get(self.state)
        self.deadline = inf if limit is None else trio.current_time() + getattr(self.limits, limit)

    # Reading

    def _advance(self) -> bool:
        """Read once and parse; return whether there is more to do."""
        serving = self.serving
        if isinstance(serving, Websocket) and serving.waiting:
            serving.parse()
        else:
            try:
                if self.state is State.OPENING:
                    if not self.wire.open_now():
                        return False
                    self.state = step(self.state, State.SILENT)
                    self._set_deadline()
                data = self.wire.receive_now(self._read_bytes)
            except OSError as problem:
                data = b""
                if self.state is State.OPENING:
                    self._host.notes.add("TLS handshake failed", client=self.client, why=str(problem))
            if not data:
                if data is not None:
                    self.lost()
                return False
            if self.state not in ENDING:
                self._feed(data)
        if self._is_full():
            self._pause()
            return False
        return self._has_kept()

    def _feed(self, data: bytes) -> None:
        """Process data from the client."""
        if not isinstance(self.serving, Websocket):
            self._incoming.feed(data)
            if self.state is not State.ANSWERING:
                self._parse()
        elif self.serving.accepted:
            self.serving.feed(data)
            self.serving.parse()
        else:
            self.refuse(400, EARLY)

    def _parse(self) -> None:
        """Parse the bytes received so far, up to the end of one request."""
        before, exchange = self.state, self.serving
        try:
            if before is not State.BODY:
                head = self._incoming.head()
                if head is None:
                    if self._incoming.waiting and before is not State.HEAD:
                        self.state = step(before, State.HEAD)
                elif (exchange := self._begin(head)) is not None and not self._incoming.complete:
                    self._take_body(exchange)
            elif isinstance(exchange, Exchange):
                self._take_body(exchange)
        except RefusedError as problem:
            self.refuse(problem.status, problem.detail, problem.headers)
        if self.state is not before and self.state not in {State.WEBSOCKET, *ENDING}:
            self._set_deadline()

    def _take_body(self, exchange: Exchange) -> None:
        data = self._incoming.body()
        if data:
            exchange.feed(data)
        if self._incoming.complete and self.state is State.BODY:
            exchange.end_body()
            self.state = step(self.state, State.ANSWERING)

    def _begin(self, head: Head) -> Exchange | None:
        """Serve a request, or raise RefusedError; return its exchange, None for a websocket."""
        if self.reserved and head.path not in self.limits.reserved_paths:
            raise RefusedError(503, CROWDED, RETRY)
        self._host.waits(self, idle=False)
        if head.upgrading:
            if head.chunked or head.length or self._incoming.waiting:
                raise RefusedError(400, EARLY)
            check_handshake(head)
            self._read_bytes = READ_BYTES_SMALL
            self.serving = Websocket(self, head)
            self._tasks.serve(self.serving)
            self.state, self.deadline = step(self.state, State.WEBSOCKET), 0
            return None
        self._read_bytes = READ_BYTES_SMALL if head.chunked else READ_BYTES
        self.serving = exchange = Exchange(self, head)
        self._tasks.serve(exchange)
        self.state = step(self.state, State.ANSWERING if exchange.body_complete else State.BODY)
        return exchange

    # Backpressure

    def _is_full(self) -> bool:
        serving = self.serving
        if self.state in ENDING:
            return False
        if isinstance(serving, Websocket):
            return serving.full
        ahead = self._incoming.waiting if self.state is State.ANSWERING else 0
        return ahead > AHEAD_BYTES or (serving is not None and serving.unread > UNREAD_BYTES)

    def _pause(self) -> None:
        """Stop reading; this wait is not the client's fault, so its time limit stops too."""
        self._paused, self.deadline = self.deadline - trio.current_time(), inf
        self._host.poller.pause(self._descriptor)

    def taken(self) -> None:
        """Note that the handler has read something, or that nothing will be read."""
        if self._paused is None or self._is_full() or self.state is State.CLOSED:
            return
        left, self._paused = self._paused, None
        self._host.poller.resume(self._descriptor)
        serving = self.serving
        if isinstance(serving, Websocket):
            serving.feed(b"")  # its silence was ours
            self.deadline = 0
        elif not (serving is not None and serving.streamed) and self.deadline == inf:
            self.deadline = trio.current_time() + left
        while self._has_kept() and self.ready(0):
            pass

    def _has_kept(self) -> bool:
        """Return whether there are bytes that the kernel does not announce, as they have left it."""
        return self.wire.ready or (isinstance(self.serving, Websocket) and self.serving.waiting)

    # Closing

    def finish(self, exchange: Exchange) -> None:
        """End an exchange whose response is complete: accept the next request, or close."""
        exchange.close()
        self.serving = None
        if self.state is not State.ANSWERING or self.draining or exchange.head.closing:
            self.half_close()
            return
        self.state = step(self.state, State.IDLE)
        self._host.waits(self, idle=True)
        self._set_deadline()
        if self._incoming.waiting:
            self._parse()
        self.taken()

    def refuse(self, status: int, detail: str, headers: Headers | None = None) -> None:
        """Answer a request with a problem, unless an answer has begun; cancel its handler, and close."""
        serving = self.serving
        if self.state not in ENDING and (serving is None or serving.answerable):
            head_only = serving is not None and serving.head.method == "HEAD"
            self.sender.send_now(refusal(status, detail, headers, head_only=head_only))
        self.half_close()
        if serving is not None:
            serving.cancel()

    def half_close(self) -> None:
        """Send our end of file, and give the client a moment to read what precedes it."""
        if self.state in ENDING:
            return
        self.state = step(self.state, State.LINGERING)
        self._set_deadline()
        self._tasks.close()
        self._host.waits(self, idle=True)
        self.taken()
        try:
            self.wire.end()
        except OSError:
            self.lost()

    def lost(self) -> None:
        """Cut the client off: cancel reading, sending and the handler."""
        if self.state is State.CLOSED:
            return
        self.state = step(self.state, State.CLOSED)
        self.deadline = inf
        if self.serving is not None:
            self.serving.cancel()
        self.sender.close()
        self._host.waits(self, idle=False)
        self._host.poller.remove(self._descriptor)
        self._socket.close()
        self._tasks.close()
        self._leave()

    def _leave(self) -> None:
        if self.state is State.CLOSED and not self._tasks.running:
            self._host.left(self)
