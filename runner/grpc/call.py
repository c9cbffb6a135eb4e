"""One RPC: its limits, messages and status. Trio only: h2 makes the bytes, and a `Transport` does the waiting."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from typing import Any, Protocol, Self
from urllib.parse import quote

import trio
from attrs import frozen
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error

from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from runner.api import failure_of
from runner.groups import leaves
from runner.grpc.codec import MalformedError, decode, encode
from runner.status import CODES

MAX_STATUS_BYTES = 1000
"""The limit of a status message; on the wire it may take three times as many, and clients accept 8 KiB of trailers."""
_HEAD = [(":status", "200"), ("content-type", "application/grpc+proto"), ("grpc-accept-encoding", "identity")]
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if code != 0x25)


class GrpcStatus(IntEnum):
    """The status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class GrpcError(Exception):
    """A status without an `ErrorKind`."""

    def __init__(self, status: GrpcStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class GoneError(Exception):
    """The client is gone, so an answer would not be read."""


class SlowReaderError(Exception):
    """The client does not read the data sent to it."""


@frozen(kw_only=True)
class GrpcLimits:
    """How much of the server a client may use, and for how long. Those without a default are settings of the user."""

    max_message_bytes: int
    """A larger message is answered RESOURCE_EXHAUSTED before it is read."""
    max_connections: int
    """Connections above this number are closed."""
    max_calls: int
    """Over all connections; more are answered RESOURCE_EXHAUSTED. Health and reflection do not count."""
    message_seconds: float
    """For a first message to arrive, and for a later one from its first byte to its last."""
    send_seconds: float
    """A client that accepts no byte of a message for this long is cut off."""
    graceful_seconds: float = 2.0
    """For running calls to end while the door closes."""
    ping_seconds: float = 30.0
    """The time between two pings, which check that a client is alive."""
    pong_seconds: float = 10.0
    """A client that does not answer a ping in this time is cut off, and its calls are cancelled."""


@frozen
class Method:
    """One method of a service.

    The handler returns the one answer, or sends messages and returns None. An exception becomes the status of the call:
    a RunnerError by the table in `runner.status`, a GrpcError its own status, anything else INTERNAL.
    """

    handler: Callable[[Call], Awaitable[Any | None]]
    request: Any
    """The class of the messages that it receives."""
    work: bool = True
    """Counts as a call: limited in number, and waited for at shutdown."""


class Transport(Protocol):
    """The parts of a connection and a stream that a call uses."""

    http: H2Connection
    stream_id: int

    @property
    def writable(self) -> bool:
        """Whether the buffer of the connection has room."""

    def has(self, size: int) -> bool:
        """Return whether `read` can return `size` bytes without a wait; False also when that is unknown."""

    async def read(self, size: int) -> bytes:
        """Return `size` bytes from the client, b"" at its end. Raises AssertionError for an end before `size` bytes."""

    async def wait_writable(self) -> None:
        """Wait until the buffer of the connection has room, or the client opens its window."""

    def flush(self) -> None:
        """Send what h2 has ready. Raises GoneError."""

    def replied(self) -> None:
        """Count an answer that was sent without a wait; a client that leaves too many unread is cut off."""


class Call:
    """One RPC as its handler sees it. Cancelled when the client cancels or disconnects, or its deadline passes."""

    def __init__(self, transport: Transport, method: Method, metadata: Mapping[str, str], limits: GrpcLimits) -> None:
        self.metadata = metadata
        """The metadata of the request, names in lower case; of a repeated name the last value."""
        self.initial_metadata: list[tuple[str, str]] = []
        """Metadata to send before the first message, names in lower case."""
        self.method = method
        self._transport = transport
        self._limits = limits
        self._scope = trio.CancelScope()
        self._why: Failure | None = None
        self._reading: trio.CancelScope | None = None
        self._first = True
        self._stopped = False
        self._begun = False  # the head of the answer is sent
        self._torn = False  # a message is sent in part

    # For handlers

    @property
    def remaining(self) -> float | None:
        """Seconds to the client's deadline, None without one."""
        if self._scope.deadline == math.inf:
            return None
        return max(0.001, self._scope.deadline - trio.current_time())

    async def receive(self) -> Any | None:
        """Return the next message, None when the client has ended its side.

        Raises RunnerError: `too_large`, `bad_input`, or `shutdown` when the runner stops meanwhile. Raises GrpcError
        UNIMPLEMENTED for a compressed message.
        """
        head = await self._read(5, self._limits.message_seconds if self._first else math.inf)
        if not head:
            return None
        self._first = False
        if head[0]:
            raise GrpcError(GrpcStatus.UNIMPLEMENTED, "compressed messages are not supported")
        size = int.from_bytes(head[1:], "big")
        if size > self._limits.max_message_bytes:
            text = f"the message of {size} bytes is over {self._limits.max_message_bytes}; the limit is `max_frame`"
            raise error(ErrorKind.TOO_LARGE, text)
        data = await self._read(size, self._limits.message_seconds) if size else b""
        if len(data) < size:
            raise error(ErrorKind.BAD_INPUT, "the message is cut off")
        try:
            return decode(self.method.request, data)
        except MalformedError as problem:
            raise error(ErrorKind.BAD_INPUT, f"the message is malformed: {problem}") from None

    async def send(self, *messages: Any) -> None:
        """Send messages; waits while the client does not read, but at most `send_seconds` without progress."""
        for message in messages:
            await self._write(encode(message))
        self._transport.flush()
        await trio.lowlevel.checkpoint()

    # Names that grpclib's reflection uses

    recv_message = receive
    send_message = send

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    # For the door

    def begin(self, *, known: bool, full: bool, draining: bool) -> None:
        """Check the head of the call, and start its deadline. Raises RunnerError or GrpcError for one to refuse."""
        fields = self.metadata
        if fields.get(":method") != "POST" or not fields.get("content-type", "").startswith("application/grpc"):
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "gRPC is POST with content-type application/grpc")
        if not known:
            raise GrpcError(GrpcStatus.UNIMPLEMENTED, f"there is no method {fields.get(':path', '')}")
        if "grpc-timeout" in fields:
            found = _TIMEOUT.fullmatch(fields["grpc-timeout"])
            if found is None:
                raise error(ErrorKind.BAD_INPUT, "the deadline is not valid", field="grpc-timeout")
            seconds = int(found[1]) * _UNITS[found[2]]
            if not seconds:
                raise GrpcError(GrpcStatus.DEADLINE_EXCEEDED, "the deadline has passed")
            self._scope.deadline = trio.current_time() + seconds
        if self.method.work and draining:
            raise RunnerError(shutting_down())
        if self.method.work and full:
            raise error(ErrorKind.OVERLOADED, "too many calls are running", retry_after=1)

    async def run(self) -> None:
        """Serve the call to its end. Raises only a cancellation from outside."""
        with self._scope:
            try:
                answer = await self.method.handler(self)
                if answer is not None:
                    await self._write(encode(answer))
                self._end(GrpcStatus.OK, [])
            except Exception as problem:  # noqa: BLE001  (`refuse` logs bugs)
                self.refuse(problem)
            except BaseExceptionGroup as group:
                cancelled, rest = group.split(trio.Cancelled)
                if rest is not None:
                    self.refuse(rest)
                if cancelled is not None:
                    raise cancelled from None
        if self._scope.cancelled_caught:
            if self._why is not None:
                self.refuse(RunnerError(self._why))
            elif trio.current_time() >= self._scope.deadline:
                self.refuse(GrpcError(GrpcStatus.DEADLINE_EXCEEDED, "the deadline passed"))

    def cancel(self, why: Failure | None = None) -> None:
        """End the call with the status of `why`; without it, the client is gone."""
        self._why = why
        self._scope.cancel()

    def stop_receiving(self) -> None:
        """Refuse further messages, because the runner stops; the call can end with those it has received."""
        if self.method.work:
            self._stopped = True
            if self._reading is not None:
                self._reading.cancel()

    def refuse(self, problem: BaseException) -> None:
        """End the call with the status of an exception. Does not wait, and does not raise."""
        found = _decisive(problem)
        if isinstance(found, GoneError | H2Error | ConnectionError):
            self._reset(ErrorCodes.CANCEL)
        elif isinstance(found, SlowReaderError):
            self._reset(ErrorCodes.ENHANCE_YOUR_CALM)
        elif isinstance(found, GrpcError):
            self._end(found.status, _message(str(found)))
        else:
            failure = failure_of(found, "a call failed inside the runner", method=self.metadata.get(":path", ""))
            self._end(GrpcStatus[CODES[failure.kind].grpc], [*_message(failure.message), *_details(failure)])

    # Bytes

    async def _read(self, size: int, seconds: float) -> bytes:
        if self._stopped:
            raise RunnerError(shutting_down())
        if self._transport.has(size):  # nearly always, and a cancel scope costs as much as the rest of this
            return await self._transport.read(size)
        self._reading = trio.CancelScope(deadline=trio.current_time() + seconds)
        try:
            with self._reading:
                return await self._transport.read(size)
        except AssertionError:  # as grpclib raises it
            raise error(ErrorKind.BAD_INPUT, "the message is cut off") from None
        finally:
            self._reading = None
        if self._stopped:
            raise RunnerError(shutting_down())
        raise error(ErrorKind.BAD_INPUT, f"the message did not arrive in {seconds:g} s")

    async def _write(self, data: bytes) -> None:
        """Pass a message to h2, in parts as the client's window allows. Its last part may wait for the next flush."""
        transport, stream = self._transport, self._transport.stream_id
        http = transport.http
        if not self._begun:
            self._begun = True
            http.send_headers(stream, [*_HEAD, *self.initial_metadata])
        rest = memoryview(b"\0" + len(data).to_bytes(4, "big") + data)
        while True:
            room = min(http.local_flow_control_window(stream), http.max_outbound_frame_size)
            if transport.writable and room > 0:
                http.send_data(stream, bytes(rest[:room]))
                rest = rest[room:]
                if not rest:
                    self._torn = False
                    return
                self._torn = True
                transport.flush()
                await trio.lowlevel.checkpoint()
            else:
                transport.flush()
                with trio.move_on_after(self._limits.send_seconds) as scope:
                    await transport.wait_writable()
                if scope.cancelled_caught:
                    raise SlowReaderError(f"the client read nothing for {self._limits.send_seconds:g} s")

    def _end(self, status: GrpcStatus, details: list[tuple[str, str]]) -> None:
        """Send the status without a wait. After a part of a message, only a reset can follow."""
        if self._torn:
            self._reset(ErrorCodes.CANCEL)
            return
        transport = self._transport
        head = [] if self._begun else _HEAD
        try:
            transport.http.send_headers(
                transport.stream_id, [*head, ("grpc-status", str(int(status))), *details], end_stream=True
            )
            if status is not GrpcStatus.OK:
                self._reset(ErrorCodes.NO_ERROR)  # the client may send more, and it is not read
            transport.flush()
            transport.replied()
        except (H2Error, GoneError):
            pass  # the client is gone, or has cancelled

    def _reset(self, code: ErrorCodes) -> None:
        """End the stream, if a side of it is open, and send the bytes that are ready."""
        transport = self._transport
        with suppress(H2Error, GoneError):
            stream = transport.http.streams.get(transport.stream_id)
            if stream is not None and not stream.closed:
                transport.http.reset_stream(transport.stream_id, code)
        with suppress(GoneError):
            transport.flush()


def _decisive(problem: BaseException) -> BaseException:
    """Return the exception of a group that decides the status: a bug before an intended one."""
    found = list(leaves(problem))
    known = (RunnerError, GrpcError, GoneError, SlowReaderError, H2Error)
    return next((leaf for leaf in found if not isinstance(leaf, known)), found[0])


def _message(text: str) -> list[tuple[str, str]]:
    cut = text.encode()[:MAX_STATUS_BYTES].decode(errors="ignore")
    return [("grpc-message", quote(cut, safe=_PRINTABLE))]


def _details(failure: Failure) -> list[tuple[str, str]]:
    """Return the trailing metadata with the parts of a failure that its status does not carry."""
    details = [("operato-kind", failure.kind.value)]
    if failure.field is not None:
        details.append(("operato-field", quote(failure.field, safe=_PRINTABLE)))
    if failure.retry_after is not None:
        details.append(("retry-after", str(max(1, math.ceil(failure.retry_after)))))
    return details
