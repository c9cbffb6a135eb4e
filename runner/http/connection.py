"""One HTTP/1.1 or websocket connection, made safe and quick on top of hypercorn.

The parts that know the protocols are h11 and hypercorn's websocket stream; the task structure is ours, because
hypercorn's own lets one bad client end or block the program (its #225 and #329, and sends without a time limit) and
spends half of a request on timers, scopes and small writes. Here

* one task reads. The cancel scope it reads under is also the only timer of the connection: its deadline moves;
* a request is one task more, under one cancel scope, which the reader cancels when the peer is gone;
* parsing, and writing what the kernel takes at once, is synchronous, so no cancellation can fall between a
  response, the end of its exchange and the half-close that follows it.
"""

from __future__ import annotations

import contextvars
import socket
import ssl
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, cast

import h11
import structlog
import trio
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState

from runner.http.exchange import Exchange, Message, ServerConfig, Websocket, problem
from runner.http.wire import PlainWire, TlsWire, Wire

READ_BYTES = 65_536
UNREAD_BYTES = 262_144
"""Above so many bytes that a handler has not taken yet, the socket is not read."""
READ_BYTES_SMALL = 8_192
"""For chunked bodies and websockets: a read is parsed in one go, and there a few bytes can be much work."""
LINGER_SECONDS = 1.0
"""How long a client may take to close after we did, so that a reset does not destroy the answer on its way."""
PEER_CHECK_SECONDS = 0.5
"""How often the kernel is asked for the peer while a full buffer keeps us from reading its end of file."""
TCP_ESTABLISHED = 1

log = structlog.get_logger("runner.http")


class Connection(TCPServer):
    """Serves one client until either side closes; no error of a client or handler ever leaves `run`.

    **Disconnect**: a client that closes or resets (a half-close counts) cancels the handler of its unfinished
    request or websocket at once: a plain `trio.Cancelled` at the handler's next checkpoint, without any task,
    `receive` loop or helper on the handler's side. A handler that has sent its last message is left to end by itself.
    While a handler leaves more than `UNREAD_BYTES` untaken the socket is not read; then it takes `PEER_CHECK_SECONDS`,
    and a client whose last bytes do not fit into the kernel of this machine looks as if it were waiting.

    **Close**: our end of file is sent in the same step as the last byte of a `Connection: close` response. What the
    client still sends is then read and dropped for `LINGER_SECONDS`, so that it can read the answer.

    HTTP/2 is not spoken: an `Upgrade: h2c` is ignored, as RFC 9110 allows, and its preface is answered 505.
    """

    config: ServerConfig

    def __init__(
        self,
        app: AppWrapper,
        config: ServerConfig,
        context: WorkerContext,
        state: ConnectionState,
        stream: trio.SocketStream,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(app, config, context, state, cast("trio.SSLStream[trio.SocketStream]", stream))
        self.limits = config.limits
        self.socket = stream.socket
        self.wire: Wire = PlainWire(self.socket) if tls is None else TlsWire(self.socket, tls)
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=config.limits.max_head_bytes)
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int] | None = None
        self.draining = False
        self.closing = False  # nothing more is parsed
        self.gone = False  # nothing more is written
        self._exchange: Exchange | None = None
        self._websocket: Websocket | None = None
        self._handler: trio.CancelScope | None = None
        self._head_begun = False
        self._read_bytes = READ_BYTES
        self._ahead = 0  # bytes that came after the request that is being answered
        self._reading = trio.CancelScope()
        self._sending: trio.CancelScope | None = None
        self._send_limit = inf
        self._taken: trio.Event | None = None
        self._variables = contextvars.copy_context()
        self.nursery: trio.Nursery

    async def run(self) -> None:
        """Serve the connection to its end; raises only `trio.Cancelled`, which cuts the client off."""
        try:
            self.client = self.socket.getpeername()[:2]
            self.server = self.socket.getsockname()[:2]
        except OSError:
            return  # reset before we looked
        try:
            async with trio.open_nursery() as self.nursery:
                await self._read_data()
        except Exception as error:
            log.warning("connection failed", client=self.client, exc_info=error)
        except BaseExceptionGroup as group:
            errors, rest = group.split(Exception)
            if errors is not None:
                log.warning("connection failed", client=self.client, exc_info=errors)
            if rest is not None:
                raise rest from None
        finally:
            self.gone = True
            self.socket.close()

    def drain(self, deadline: float) -> None:
        """Take no more requests: close now when idle, else after the response. `deadline` (Trio time) bounds sends."""
        self.draining = True
        self._send_limit = deadline
        if self._sending is not None:
            self._sending.deadline = min(self._sending.deadline, deadline)
        if self._handler is None and not self.closing:
            self.closing = True
            self._reading.cancel()

    # Reading

    async def _read_data(self) -> None:
        """Read until the end of file, an error or the deadline of the moment."""
        self._reading.deadline = trio.current_time() + self.limits.header_seconds
        with self._reading:
            if not await self._open():
                return
            self._reading.deadline = trio.current_time() + self.limits.keep_alive_seconds
            while True:
                try:
                    data = await self.wire.receive(self._read_bytes)
                except (OSError, trio.ClosedResourceError):
                    break
                if not data:
                    break
                if self.closing:
                    continue
                if self._websocket is None:
                    self._feed(data)
                    if self._is_full():
                        await self.wait_taken(self._is_full)
                elif self._websocket.accepted:
                    await self._websocket.feed(data)
                else:
                    self._refuse(400, "a websocket client waits for the handshake before it sends")
        if self._reading.cancelled_caught and not self.closing and (self._head_begun or self._exchange is not None):
            self._refuse(408, "the request did not arrive in time")
        self.lost()

    async def _open(self) -> bool:
        """Greet the client; return whether it can go on."""
        try:
            await self.wire.open()
        except (OSError, trio.ClosedResourceError) as problem:
            log.info("no connection by TLS", client=self.client, why=str(problem))
            return False
        return True

    def _feed(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.body_complete:
            self._ahead += len(data)
            self.http.receive_data(data)
        else:
            self.http.receive_data(data)
            self._parse()

    def _parse(self) -> None:
        """Go through what has been received up to the end of one request."""
        while not self.closing:
            try:
                event = self.http.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error.error_status_hint, str(error))
                return
            if isinstance(event, h11.Request):
                self._begin(event)
                if self._websocket is not None:
                    return
            elif isinstance(event, h11.Data) and self._exchange is not None:
                self._exchange.feed(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage) and self._exchange is not None:
                self._exchange.body_complete = True
                self._exchange.wake()
                self._reading.deadline = inf
                return
            else:
                if self._exchange is None and not self._head_begun:
                    self._head_begun = True
                    self._reading.deadline = trio.current_time() + self.limits.header_seconds
                return

    def _begin(self, request: h11.Request) -> None:
        self._head_begun = False
        headers = list(request.headers)
        fields = dict(headers)
        chunked, length = b"transfer-encoding" in fields, fields.get(b"content-length", b"")
        websocket = request.method == b"GET" and fields.get(b"upgrade", b"").strip().lower() == b"websocket"
        if request.http_version not in {b"1.1", b"1.0"}:
            self._refuse(505, "this server speaks HTTP/1.1")
        elif chunked and length:
            # Two lengths are how requests are smuggled past a proxy; RFC 9112 lets a server refuse.
            self._refuse(400, "content-length and transfer-encoding exclude each other")
        elif websocket:
            if chunked or length.strip(b"0") or self.http.trailing_data[0]:
                self._refuse(400, "a websocket client waits for the handshake before it sends")
            else:
                self._read_bytes = READ_BYTES_SMALL
                self._websocket = Websocket(self, request, headers)
                self._handler = self._websocket.cancel_scope
                self._reading.deadline = inf
                self._start(self._websocket.run)
        else:
            if chunked:
                self._read_bytes = READ_BYTES_SMALL
            self._exchange = exchange = Exchange(self, request, headers, int(length or 0))
            self._handler = exchange.cancel_scope
            self._reading.deadline = trio.current_time() + self.limits.body_seconds
            self._start(self._run_http, exchange)

    def _start(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        # A pipelined request is begun by the task that answered the one before, whose context variables stay its own.
        self._variables.run(self.nursery.start_soon, function, *args)

    def _is_full(self) -> bool:
        exchange = self._exchange
        return exchange is not None and not self.closing and max(exchange.unread, self._ahead) > UNREAD_BYTES

    async def wait_taken(self, is_full: Callable[[], bool]) -> None:
        """Wait until the handler took enough of what came, watching for a peer whose end of file is not read."""
        begun, deadline = trio.current_time(), self._reading.deadline
        self._reading.deadline = inf  # the client is not to blame for this wait
        while is_full() and not self.closing:
            self._taken = trio.Event()
            with trio.move_on_after(PEER_CHECK_SECONDS):
                await self._taken.wait()
            if self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_ESTABLISHED:
                self.lost()
        streamed = self._exchange is not None and self._exchange.streamed
        if self._reading.deadline == inf and not streamed:
            self._reading.deadline = deadline + trio.current_time() - begun

    def forgive_body(self) -> None:
        """Wait for the rest of the body as long as the handler does."""
        self._reading.deadline = inf

    def refuse_body(self) -> None:
        """Answer that the body is too large, as far as there is no answer yet, and close."""
        self._refuse(413, f"the body is over {self.limits.max_body_bytes} bytes")

    def taken(self) -> None:
        """Note that the handler took something, or that nobody will."""
        if self._taken is not None:
            self._taken.set()
            self._taken = None

    # Writing and closing

    async def write(self, data: bytes) -> None:
        """Send all of `data`, or cut the client off after `send_seconds` without progress.

        Does not raise when the client is gone; then the handler is cancelled. Cancellation waits for the send, since
        a response torn in the middle would spoil the connection. Without a need to wait there is no checkpoint.
        """
        if self.gone:
            return
        rest = memoryview(data)
        if not self.send_lock.locked():
            rest = rest[self.write_now(data) :]
            if not (rest or self.wire.pending) or self.gone:
                return
        with trio.CancelScope(shield=True) as scope:
            async with self.send_lock:  # whoever has it makes progress or ends the connection
                self._sending = scope
                try:
                    while (rest or self.wire.pending) and not self.gone:
                        scope.deadline = self._send_deadline()
                        await trio.lowlevel.wait_writable(self.socket)
                        rest = rest[self.write_now(rest) :]
                finally:
                    self._sending = None
        if scope.cancelled_caught:
            self.lost()

    def _send_deadline(self) -> float:
        return min(trio.current_time() + self.limits.send_seconds, self._send_limit)

    def write_now(self, data: bytes | memoryview) -> int:
        """Write what the kernel takes at once and return how much; a gone client ends the connection."""
        try:
            return self.wire.send_now(data)
        except OSError:
            self.lost()
            return 0

    def finish(self, exchange: Exchange) -> None:
        """End an exchange whose response is whole: go on to the next request, or close."""
        exchange.finished = True
        exchange.wake()
        self.handler_ended()
        if self.gone or self.closing:
            return
        if self.draining or self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
            self.half_close()
            return
        self.http.start_next_cycle()
        self._exchange = None
        self._ahead = 0
        self._read_bytes = READ_BYTES
        self._reading.deadline = trio.current_time() + self.limits.keep_alive_seconds
        if self.http.trailing_data[0]:
            self._parse()

    def _refuse(self, status: int, detail: str) -> None:
        """Answer what cannot be served, as far as it is not answered yet, and close."""
        exchange, handler = self._exchange, self._handler
        if exchange is None:
            answered = self.http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}
        else:
            answered = exchange.written
            exchange.finished = True
        if not answered:
            self.write_now(problem(status, detail, head_only=exchange is not None and exchange.method == "HEAD"))
        self.half_close()
        if handler is not None:
            handler.cancel()

    def half_close(self) -> None:
        """Send our end of file now, and give the client a moment to read what is before it."""
        if self.closing:
            return
        self.closing = True
        self.taken()
        try:
            self.wire.end()
        except OSError:
            self.lost()
        self._reading.deadline = trio.current_time() + LINGER_SECONDS

    def lost(self) -> None:
        """Stop everything that serves the client: it is gone, or we are done with it."""
        self.gone = self.closing = True
        if self._exchange is not None and self._handler is not None:
            self._exchange.finished = True
        if self._websocket is not None:
            self._websocket.lost()
        for scope in (self._reading, self._sending, self._handler):
            if scope is not None:
                scope.cancel()
        self.taken()

    # Handlers

    async def _run_http(self, exchange: Exchange) -> None:
        try:
            with exchange.cancel_scope:
                await self.call_app(exchange.scope, exchange.receive, exchange.send)
        except BaseException:  # a cancellation from outside, perhaps in a group
            if not exchange.finished:
                self._refuse(503, "the server is shutting down" if self.draining else "the request was cancelled")
            raise
        if not exchange.finished:
            self._refuse(500, "the server failed to answer")

    def handler_ended(self) -> None:
        """Note that there is nothing left to cancel."""
        self._handler = None
        self.taken()

    async def call_app(self, scope: Message, receive: Any, send: Any) -> None:
        """Call the application; what it raises is logged here, except a cancellation."""
        try:
            await self.app(cast("Any", scope), receive, send, trio.to_thread.run_sync, trio.from_thread.run)
        except Exception:
            log.exception("request handler failed", path=scope["path"])
        except BaseExceptionGroup as group:
            errors, rest = group.split(Exception)
            if errors is not None:
                log.error("request handler failed", path=scope["path"], exc_info=errors)  # noqa: TRY400
            if rest is not None:
                raise rest from None
