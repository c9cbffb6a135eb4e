"""The connection of one gRPC client: HTTP/2 by nghttp2, over the wire that HTTP uses too.

Nothing here waits: the poller of the door calls `ready` when bytes have arrived, handlers call `push` when they have
queued some, and a call is one task. So an idle connection costs no task, and an answer leaves in one write.

An error of a client, or in this file, ends this connection only.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from contextlib import suppress
from math import inf
from typing import Any

import ngh2
import structlog
import trio
from grpclib.exceptions import GRPCError
from ngh2 import ErrorCode, NGH2Error, Setting

from protocol.errors import ErrorKind, RunnerError, error
from runner.grpc.call import Call, Method
from runner.grpc.door import Door
from runner.grpc.stream import Stream
from runner.wire import FloodError, Floods, Output, PlainWire, TlsWire, Wire

READ_BYTES, WRITE_BYTES = 32_768, 65_536
"""Read and written at once."""
TURN_SECONDS = 0.002
"""For the events of a read, before those of other connections: a read can hold two thousand calls."""
MAX_FRESH = 32
"""Calls of all clients that may wait for their first turn before a client begins another: all of them run in one."""
FIRST_SECONDS, HANDSHAKE_SECONDS = 10.0, 10.0
"""For a client to send its first byte, and to finish the handshake of TLS."""
LINGER_SECONDS = 2.0
"""For a client to close after we did."""
STREAM_WINDOW = 1 << 20
CONNECTION_WINDOW = 16 << 20
"""Bytes that a client may send ahead of its handlers, per call and in all: stalled calls leave room for others."""
MAX_HEADER_BYTES = 16_384
"""Of the metadata of a call; clients know this limit, and more is answered RESOURCE_EXHAUSTED."""
MAX_DECODED_BYTES, MAX_DECODED_FIELDS = 262_144, 2048
"""Metadata beyond this is not even decoded, which ends the connection: the compression of all calls depends on it."""
MAX_ACKS = 200
"""Pings and settings in one read, or while answers are not read."""
GOODBYE = b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0"
"""A GOAWAY up to its code. Its last stream is the highest number, as a client may repeat calls above it."""
CONFIGURATION = ngh2.Configuration(
    auto_window_update=False,
    max_outbound_ack=MAX_ACKS,
    max_inbound_header_list_size=MAX_DECODED_BYTES,
    max_inbound_header_count=MAX_DECODED_FIELDS,
)

HANDLED = (
    ngh2.DataReceived,
    ngh2.StreamClosed,
    ngh2.TrailersReceived,
    ngh2.GoAwayReceived,
    ngh2.ConnectionClosed,
)

log = structlog.get_logger("grpc")


class Calls:
    """The calls of one connection."""

    def __init__(self, link: Connection, door: Door) -> None:
        self._link = link
        self._door = door
        self._running: dict[int, Call] = {}
        self._begun: list[Call] = []

    @property
    def fresh(self) -> int:
        """How many calls of all clients have begun and not run yet."""
        return self._door.fresh + len(self._begun)

    @property
    def silent_since(self) -> float:
        """When the last bytes of unfinished messages came; inf unless all calls wait for such."""
        return max((call.silent_since for call in self._running.values()), default=inf)

    def request(self, event: ngh2.RequestReceived) -> None:
        """Begin a call, or refuse it."""
        fields: dict[str, str] = {}
        size, twice = 0, False
        for name, value in event.headers:
            size += len(name) + len(value) + 32
            twice |= name in (b"authorization", b"x-api-key") and name.decode() in fields
            fields[name.decode("latin-1")] = value.decode("latin-1")
        door = self._door
        method = door.methods.get(fields.get(":path", ""))
        stream = Stream(self._link, event.stream_id, ended=event.end_stream)
        call = Call(stream, method or _UNKNOWN, fields, door.limits)
        try:
            if size > MAX_HEADER_BYTES:
                raise error(ErrorKind.TOO_LARGE, f"the metadata of {size} bytes is over {MAX_HEADER_BYTES}")
            if twice:
                raise error(ErrorKind.UNAUTHENTICATED, "the metadata has more than one `authorization` or `x-api-key`")
            call.begin(known=method is not None, full=door.full_for(self._link), draining=door.draining)
        except (RunnerError, GRPCError) as problem:
            call.refuse(problem)
            return
        self._running[stream.number] = call
        self._begun.append(call)
        door.began(self._link, call, first=len(self._running) == 1)

    def data(self, event: ngh2.DataReceived) -> None:
        """Give data to its call; that of a call that has ended is dropped."""
        data = event.data
        call = self._running.get(event.stream_id)
        if call is None or call.stream.closed:
            if data:
                self._link.http.acknowledge_received_data(len(data), event.stream_id)
        elif not call.stream.feed(data, ended=event.end_stream):
            text = "the unfinished messages of all callers are too large together; the limit is `max_buffered`"
            call.cancel(error(ErrorKind.OVERLOADED, text, retry_after=1).failure)

    def start(self) -> None:
        """Start the calls of a read, but not those that the same read cancelled."""
        begun, self._begun = self._begun, []
        for call in begun:
            if call.stream.closed:
                self._ended(call)
            else:
                self._door.fresh += 1
                self._door.nursery.start_soon(self._run, call, name=call.metadata[":path"])

    def trailers(self, number: int) -> None:
        """Note that the client has ended its side."""
        if number in self._running:
            self._running[number].stream.feed(b"", ended=True)

    def close(self, number: int) -> None:
        """Cancel a call whose stream is closed, unless it has ended."""
        call = self._running.get(number)
        if call is not None and not call.stream.closed:
            call.cancel()
            call.stream.close()

    def close_all(self) -> None:
        """Cancel all calls."""
        for number in list(self._running):
            self.close(number)
        self.start()

    async def _run(self, call: Call) -> None:
        self._door.fresh -= 1
        try:
            if not call.stream.closed:
                await call.run()
        finally:
            self._ended(call)

    def _ended(self, call: Call) -> None:
        """Forget a call."""
        self._running.pop(call.stream.number, None)
        call.close()
        self._door.ended(self._link, call, last=not self._running)


class Connection:
    """One client."""

    def __init__(self, door: Door, stream: trio.SocketStream, tls: ssl.SSLContext | None) -> None:
        self.http = ngh2.Connection(ngh2.Role.SERVER, CONFIGURATION)
        self.budget = door.budget
        self.stalled: set[Stream] = set()
        self.refused: set[int] = set()
        self.reserved = False
        self.deadline = trio.current_time() + (FIRST_SECONDS if tls is None else HANDSHAKE_SECONDS)
        self._door = door
        self._socket = stream.socket
        self._descriptor = stream.socket.fileno()
        self._wire: Wire = PlainWire(stream.socket) if tls is None else TlsWire(stream.socket, tls)
        self._output = Output(self._wire, door.nursery, door.limits.send_seconds, self._next_bytes, self._failed)
        self._floods = Floods()
        self._calls = Calls(self, door)
        self._events: deque[ngh2.Event] = deque()  # of a read, not yet handled
        self._sent: list[ngh2.Event] = []  # of the last write
        self._busy = self._ending = self._closed = False
        self._heard = self._pinged = -inf

    def open(self) -> None:
        """Begin to serve the client."""
        self._door.poller.add(self._descriptor, self)
        if self._wire.opened:
            self._greet()

    # For the poller

    def ready(self, _events: int) -> bool:
        """Serve the bytes that have arrived."""
        self._busy = True
        try:
            if self._serve():
                self._calls.start()
        except Exception as problem:  # noqa: BLE001  (any error is this client's)
            self._failed(problem)
        self._busy = False
        self.push()
        return not self._closed and (bool(self._events) or self._wire.ready)

    def expire(self) -> None:
        """Close the connection of a silent client, or find out whether it is there."""
        now, limits = trio.current_time(), self._door.limits
        if self._heard == -inf or self._ending:
            self.lost()
        elif self._pinged > self._heard:
            self._failed(TimeoutError("pings are not answered"))
        elif now - self._heard < limits.ping_seconds:
            self.deadline = self._heard + limits.ping_seconds
        else:
            self._pinged, self.deadline = now, now + limits.pong_seconds
            with suppress(NGH2Error):
                self.http.ping()
            self.push()

    # For the door and its calls

    @property
    def silent_since(self) -> float:
        """When the last bytes of unfinished messages came; inf unless all calls wait for such."""
        return self._calls.silent_since

    def push(self) -> None:
        """Send what is ready; after a read, what all its events have made ready."""
        if not self._busy:
            self._output.push()

    def earned(self, size: int) -> None:
        """Allow the client the frames by which it opens its two windows after a message or 4 KiB of one."""
        self._floods.allow(2 * (1 + size // 4096))

    def send_goaway(self) -> None:
        """Ask the client to make its next calls elsewhere; running calls continue."""
        with suppress(NGH2Error):
            self.http.send_shutdown_notice()
        self.push()

    def end(self) -> None:
        """Announce the end, and close after all queued data has left."""
        if not (self._closed or self._ending):
            with suppress(NGH2Error):
                self.http.send_goaway()
            self._end()

    def lost(self) -> None:
        """Close the connection, and cancel its calls."""
        if self._closed:
            return
        self._closed, self.deadline = True, inf
        self._door.poller.remove(self._descriptor)
        self._output.close()
        self._calls.close_all()
        self._events.clear()
        self._socket.close()
        self._door.lost(self)

    # From the client

    def _greet(self) -> None:
        settings = {
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            Setting.MAX_CONCURRENT_STREAMS: self._door.limits.max_calls,
            Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
        }
        self.http.initiate_connection(settings)
        self.http.set_local_window_size(CONNECTION_WINDOW)
        self.deadline = trio.current_time() + FIRST_SECONDS
        self.push()

    def _serve(self) -> bool:
        """Handle some events, of a new read if there are none; return whether there may be calls to start."""
        if not self._wire.opened:
            if self._wire.open_now():
                self._greet()
            return False
        if not self._events and not self._read():
            return False
        end = time.perf_counter() + TURN_SECONDS
        while self._events:
            self._handle(self._events.popleft())
            if time.perf_counter() > end or self._calls.fresh > MAX_FRESH:
                break
        return True

    def _read(self) -> bool:
        """Take bytes that have arrived; return whether there is something to handle."""
        try:
            data = self._wire.receive_now(READ_BYTES)
        except OSError:
            data = b""
        if not data or self._ending:
            if data == b"":
                self.lost()
            return False
        now = trio.current_time()
        if self._heard == -inf:
            self.deadline = now + self._door.limits.ping_seconds
        self._heard = now
        self._floods.arrived(data, now, blocked=self._output.blocked)
        self.http.receive_data(data)
        events = self.http.events()
        closed = {event.stream_id for event in events if isinstance(event, ngh2.StreamClosed)}
        for event in events:  # floods end here, before their events cost more
            if isinstance(event, ngh2.StreamReset):
                self._floods.reset(now)
            elif isinstance(event, ngh2.RequestReceived):
                if event.stream_id not in closed:  # a call that is cancelled already never begins
                    self._events.append(event)
            elif isinstance(event, HANDLED):
                self._events.append(event)
        return True

    def _handle(self, event: ngh2.Event) -> None:
        match event:
            case ngh2.DataReceived():
                self._calls.data(event)
            case ngh2.RequestReceived():
                self._calls.request(event)
            case ngh2.StreamClosed():
                self.refused.discard(event.stream_id)
                self._calls.close(event.stream_id)
            case ngh2.TrailersReceived():
                self._calls.trailers(event.stream_id)
            case ngh2.GoAwayReceived():
                self.lost()
            case ngh2.ConnectionClosed() if event.error_code and not self._ending:
                self._door.notes.add("client cut off", why=event.debug_data.decode("latin-1"), client=self._peer())
                self._calls.close_all()
                self._end()

    # To the client

    def _next_bytes(self) -> bytes:
        """Return bytes to send, and handle the events of those that were sent before."""
        sent, self._sent = self._sent, []
        if self._events:  # of a read; those of sending come after them
            self._events.extend(sent)
        else:
            for event in sent:
                self._handle(event)
        if self._closed:
            return b""
        data = self.http.data_to_send(WRITE_BYTES)
        self._sent = self.http.events()
        if data:
            for stream in list(self.stalled):
                stream.progressed()
            return data
        if self.refused:
            for number in self.refused:
                self.http.reset_stream(number, ErrorCode.NO_ERROR)
            self.refused.clear()
        elif not self._sent:
            if self._ending:
                self._output.close()
                with suppress(OSError):  # the client was first
                    self._wire.end()
            return b""
        return self._next_bytes()

    def _end(self) -> None:
        """Close when all is sent, and the client has closed or had time to."""
        self._ending, self.deadline = True, trio.current_time() + LINGER_SECONDS
        self.push()

    def _failed(self, problem: Exception) -> None:
        """Cut the client off, and tell it if it reads; an error that is not the client's is logged as ours."""
        if self._closed:
            return
        if isinstance(problem, FloodError | NGH2Error | OSError):
            self._door.notes.add("client cut off", why=str(problem) or repr(problem), client=self._peer())
        else:
            log.error("connection failed", exc_info=problem, client=self._peer())
        flood = isinstance(problem, FloodError | ngh2.DenialOfServiceError)
        with suppress(OSError):
            self._output.send_last(
                GOODBYE + bytes([ErrorCode.ENHANCE_YOUR_CALM if flood else ErrorCode.PROTOCOL_ERROR])
            )
        self.lost()

    def _peer(self) -> Any:
        try:
            return self._socket.getpeername()[:2]
        except OSError:
            return None


async def _unknown(_call: Call) -> None:
    """Stand for an unknown method, whose calls are refused before they run."""


_UNKNOWN = Method(_unknown, None, work=False)
