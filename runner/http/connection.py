"""One HTTP/1.1 or websocket connection: the states it goes through, and the tasks that serve it.

h11 and hypercorn's websocket stream know the protocols. The task structure is ours, because hypercorn's own lets one
bad client block or end the program (its #225 and #329, and sends without a time limit) and spends half of a request on
timers, scopes and small writes.

Rules:

1. The state of a connection is one `State`, which changes by `step` along `TRANSITIONS`.
2. One task reads. Its cancel scope is the only timer of the connection: `_set_deadline` follows the state.
3. A request is one more task under one cancel scope, which the reader cancels when the client is gone.
4. Parsing is synchronous, and so is writing what the kernel accepts at once. So no cancellation can fall between a
   response, the end of its exchange and the half-close that follows it.
5. A client that closes or resets (a half-close counts) cancels the handler of its unfinished request or websocket at
   once: a plain `trio.Cancelled` at the handler's next checkpoint, without any task, `receive` loop or helper on the
   handler's side. A handler that has sent its last message is left to end by itself.
6. While a handler leaves more than `UNREAD_BYTES` unread, the socket is not read. Then a disconnect is noticed within
   `PEER_CHECK_SECONDS`, and a client whose last bytes do not fit into this machine's kernel seems to be waiting.
7. Our end of file is sent in the same step as the last byte of a `Connection: close` response. For
   `linger_seconds`, bytes from the client are read and dropped, so that it can read the answer.

HTTP/2 is not supported: an `Upgrade: h2c` is ignored, as RFC 9110 allows, and its preface is answered 505.
"""

from __future__ import annotations

import contextvars
import socket
import ssl
from collections.abc import Awaitable, Callable
from enum import IntEnum
from math import inf
from typing import Any

import h11
import structlog
import trio
from hypercorn.typing import ConnectionState

from runner.http.asgi import App
from runner.http.exchange import Exchange, call, log_errors
from runner.http.limits import ServerConfig
from runner.http.messages import refusal
from runner.http.websocket import Websocket
from runner.wire import PlainWire, Sender, TlsWire, Wire

READ_BYTES = 65_536
READ_BYTES_SMALL = 8_192
"""For chunked bodies and websockets: a read is parsed without a pause, and there a few bytes can be much work."""
UNREAD_BYTES = 262_144
"""While a handler leaves more than this many bytes unread, the socket is not read."""
PEER_CHECK_SECONDS = 0.5
"""How often the kernel is asked about the client while a full buffer keeps us from reading its end of file."""
TCP_ESTABLISHED = 1
EARLY = "a websocket client must wait for the handshake before it sends"

log = structlog.get_logger("runner.http")


class State(IntEnum):
    """What a connection is doing. An IntEnum, because the hash of other members is computed in Python."""

    OPENING = 0
    """The TLS handshake, if any."""
    IDLE = 1
    """No byte of a request has arrived."""
    HEAD = 2
    """A request head is arriving."""
    BODY = 3
    """The handler runs, and the request body is arriving."""
    ANSWERING = 4
    """The handler runs, and its request is complete. Bytes that arrive belong to the next one, and are not parsed."""
    WEBSOCKET = 5
    """The handshake and the frames of a websocket."""
    LINGERING = 6
    """Our end of file is sent. Bytes that arrive are dropped."""
    CLOSED = 7
    """Nothing is read or written."""


TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.OPENING: (State.IDLE, State.CLOSED),
    State.IDLE: (State.HEAD, State.BODY, State.WEBSOCKET, State.LINGERING, State.CLOSED),
    State.HEAD: (State.BODY, State.WEBSOCKET, State.LINGERING, State.CLOSED),
    State.BODY: (State.ANSWERING, State.LINGERING, State.CLOSED),
    State.ANSWERING: (State.IDLE, State.LINGERING, State.CLOSED),
    State.WEBSOCKET: (State.LINGERING, State.CLOSED),
    State.LINGERING: (State.CLOSED,),
    State.CLOSED: (),
}
TIME_LIMITS = {
    State.IDLE: "keep_alive_seconds",
    State.HEAD: "header_seconds",
    State.BODY: "body_seconds",
    State.LINGERING: "linger_seconds",
}
"""The limit of `HttpLimits` for reading in a state; the handshake has `header_seconds`, the others have none."""
ENDING = (State.LINGERING, State.CLOSED)
"""States in which no request is parsed or begun."""


def step(state: State, following: State) -> State:
    """Return `following`. Raises RuntimeError when it does not follow `state`, which is a bug."""
    if following not in TRANSITIONS[state]:
        raise RuntimeError(f"a connection does not go from {state.name} to {following.name}")
    return following


class Connection:
    """Serves one client until either side closes. No error of a client or handler leaves `run`."""

    def __init__(
        self,
        app: App,
        config: ServerConfig,
        lifespan_state: ConnectionState,
        stream: trio.SocketStream,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.app = app
        self.config = config
        self.lifespan_state = lifespan_state
        self.wire: Wire = PlainWire(stream.socket) if tls is None else TlsWire(stream.socket, tls)
        self.sender = Sender(self.wire, config.limits.send_seconds, self.lost)
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=config.limits.max_head_bytes)
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int] | None = None
        self.draining = False
        self.state = State.OPENING
        self._socket = stream.socket
        self._reading = trio.CancelScope(deadline=trio.current_time() + config.limits.header_seconds)
        self._read_bytes = READ_BYTES
        self._exchange: Exchange | None = None
        self._websocket: Websocket | None = None
        self._ahead = 0  # bytes that arrived after the request that is being answered
        self._taken: trio.Event | None = None
        self._variables = contextvars.copy_context()

    async def run(self) -> None:
        """Serve the connection to its end. Raises only `trio.Cancelled`, which cuts the client off."""
        try:
            self.client, self.server = self._socket.getpeername()[:2], self._socket.getsockname()[:2]
        except OSError:
            return  # the client has reset the connection already
        try:
            async with trio.open_nursery() as self._nursery:
                await self._read()
        except (Exception, BaseExceptionGroup) as problem:  # noqa: BLE001  (an error ends its connection only)
            log_errors(problem, "connection failed", client=self.client)
        finally:
            self.lost()
            self._socket.close()

    def drain(self, deadline: float) -> None:
        """Accept no more requests: close now when idle, else after the response. `deadline` (Trio time) bounds it."""
        self.draining = True
        self.sender.end_by(deadline)
        if self.state in (State.OPENING, State.IDLE, State.HEAD):
            self.lost()

    def _set_deadline(self) -> None:
        """Limit reading by the state just entered."""
        limit = TIME_LIMITS.get(self.state)
        self._reading.deadline = inf if limit is None else trio.current_time() + getattr(self.config.limits, limit)

    # Reading

    async def _read(self) -> None:
        """Read until the end of file, an error, or the deadline of the state."""
        with self._reading:
            try:
                await self.wire.open()
            except (OSError, trio.ClosedResourceError) as problem:
                log.info("TLS handshake failed", client=self.client, why=str(problem))
                return
            if self.state is State.OPENING:
                self.state = step(self.state, State.IDLE)
                self._set_deadline()
            while True:
                try:
                    data = await self.wire.receive(self._read_bytes)
                except (OSError, trio.ClosedResourceError):
                    break
                if not data:
                    break
                if self.state not in ENDING:
                    await self._feed(data)
        if self._reading.cancelled_caught and self.state in (State.HEAD, State.BODY):
            self.refuse(408, "the request did not arrive in time")
        self.lost()

    async def _feed(self, data: bytes) -> None:
        """Process data from the client; waits while a handler leaves too much of it unread."""
        if self._websocket is None:
            self.http.receive_data(data)
            if self.state is State.ANSWERING:
                self._ahead += len(data)
            else:
                self._parse()
            if self._is_full():
                await self.wait_taken(self._is_full)
        elif self._websocket.accepted:
            await self._websocket.feed(data)
        else:
            self.refuse(400, EARLY)

    def _parse(self) -> None:
        """Parse the bytes received so far, up to the end of one request."""
        before = self.state
        while self.state not in ENDING:
            try:
                event = self.http.next_event()
            except h11.RemoteProtocolError as error:
                self.refuse(error.error_status_hint, str(error))
                return
            if isinstance(event, h11.Request):
                self._begin(event)
                if self.state is State.WEBSOCKET:
                    break
            elif isinstance(event, h11.Data) and self._exchange is not None:
                self._exchange.feed(bytes(event.data))
            else:
                if isinstance(event, h11.EndOfMessage) and self._exchange is not None:
                    self._exchange.end_body()
                    self.state = step(self.state, State.ANSWERING)
                elif self.state is State.IDLE:
                    self.state = step(self.state, State.HEAD)
                break
        if self.state is not before:  # often twice, and setting a deadline is costly
            self._set_deadline()

    def _begin(self, request: h11.Request) -> None:
        """Start the task for a request, or refuse it."""
        headers = list(request.headers)
        fields = dict(headers)
        chunked, length = b"transfer-encoding" in fields, fields.get(b"content-length", b"")
        websocket = request.method == b"GET" and fields.get(b"upgrade", b"").strip().lower() == b"websocket"
        if request.http_version not in {b"1.1", b"1.0"}:
            self.refuse(505, "this server supports HTTP/1.1 only")
        elif chunked and length:
            # Two lengths are a way to smuggle requests past a proxy; RFC 9112 lets a server refuse.
            self.refuse(400, "content-length and transfer-encoding exclude each other")
        elif websocket and (chunked or length.strip(b"0") or self.http.trailing_data[0]):
            self.refuse(400, EARLY)
        elif websocket:
            self._read_bytes = READ_BYTES_SMALL
            self._websocket = Websocket(self, request, headers)
            self.state = step(self.state, State.WEBSOCKET)
            self.start(self._websocket.run)
        else:
            self._read_bytes = READ_BYTES_SMALL if chunked else READ_BYTES
            self._exchange = exchange = Exchange(self, request, headers, int(length or 0))
            self.state = step(self.state, State.BODY)
            self.start(self._serve, exchange)

    def _is_full(self) -> bool:
        exchange = self._exchange
        return exchange is not None and self.state not in ENDING and max(exchange.unread, self._ahead) > UNREAD_BYTES

    async def wait_taken(self, is_full: Callable[[], bool]) -> None:
        """Wait until the handler has read enough, while watching for a client whose end of file is not read."""
        begun, deadline = trio.current_time(), self._reading.deadline
        self._reading.deadline = inf  # this wait is not the client's fault
        while is_full() and self.state not in ENDING:
            self._taken = trio.Event()
            with trio.move_on_after(PEER_CHECK_SECONDS):
                await self._taken.wait()
            if self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_ESTABLISHED:
                self.lost()
        streamed = self._exchange is not None and self._exchange.streamed
        if self._reading.deadline == inf and not streamed:
            self._reading.deadline = deadline + trio.current_time() - begun

    def taken(self) -> None:
        """Note that the handler has read something, or that nothing will be read."""
        if self._taken is not None:
            self._taken.set()
            self._taken = None

    def forgive_body(self) -> None:
        """Lift the time limit of the body."""
        self._reading.deadline = inf

    # Handlers

    def start(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that ends with the connection."""
        # A pipelined request is begun by the task that answered the one before, whose context variables stay its own.
        self._variables.run(self._nursery.start_soon, function, *args)

    async def _serve(self, exchange: Exchange) -> None:
        """Run the handler of a request."""
        try:
            with exchange.cancel_scope:
                await call(self.app, exchange.scope, exchange.receive, exchange.send)
        except BaseException:  # a cancellation from outside, perhaps in a group
            if not exchange.finished:
                self.refuse(503, "the server is shutting down" if self.draining else "the request was cancelled")
            raise
        if not exchange.finished:
            self.refuse(500, "the server failed to answer")

    def finish(self, exchange: Exchange) -> None:
        """End an exchange whose response is complete: accept the next request, or close."""
        exchange.finish()
        self._exchange = None
        self.taken()
        if self.state is not State.ANSWERING or self.draining or self.http.our_state is not h11.DONE:
            self.half_close()
            return
        self.http.start_next_cycle()
        self._ahead = 0
        self.state = step(self.state, State.IDLE)
        if self.http.trailing_data[0]:
            self._parse()
        else:
            self._set_deadline()

    # Closing

    def refuse(self, status: int, detail: str) -> None:
        """Answer a request with a problem, unless an answer has begun; cancel its handler, and close."""
        exchange = self._exchange
        if exchange is not None:
            answerable, head_only = not exchange.written, exchange.method == "HEAD"
        else:
            answerable, head_only = self.http.our_state in {h11.IDLE, h11.SEND_RESPONSE}, False
        if answerable:
            self.sender.send_now(refusal(status, detail, head_only=head_only))
        self.half_close()
        for served in (exchange, self._websocket):
            if served is not None:
                served.cancel()

    def half_close(self) -> None:
        """Send our end of file, and give the client a moment to read what precedes it."""
        if self.state in ENDING:
            return
        self.state = step(self.state, State.LINGERING)
        self._set_deadline()
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
        if self._exchange is not None:
            self._exchange.cancel()
        if self._websocket is not None:
            self._websocket.lost()
        self.sender.close()
        self._reading.cancel()
        self.taken()
