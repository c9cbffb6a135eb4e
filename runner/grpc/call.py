"""One RPC: its limits, messages and status, between a handler and the stream of a connection."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Self
from urllib.parse import quote

import trio
from attrs import frozen
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.metadata import decode_timeout, encode_grpc_message
from ngh2 import ErrorCode, Header, NGH2Error

from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from runner.api import failure_of
from runner.groups import leaves
from runner.grpc.codec import MalformedError, decode, encode
from runner.grpc.stream import GoneError, SlowReaderError, Stream
from runner.status import CODES
from runner.wire import Share

MAX_STATUS_BYTES = 1000
"""The limit of a status message; on the wire it may take three times as many, and clients accept 8 KiB of trailers."""
MAX_TIMEOUT_CHARACTERS = 9
"""Of `grpc-timeout`: eight digits and a unit."""
MESSAGES = 32
"""After so many messages of a call that did not have to wait, other tasks run."""
LARGE_BYTES = 262_144
"""After a message of this size other tasks run: reading, decoding and encoding are a step each."""
_HEAD: list[Header] = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc+proto"),
    (b"grpc-accept-encoding", b"identity"),
]
_OK: list[Header] = [(b"grpc-status", b"0")]
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if code != 0x25)


@frozen(kw_only=True)
class GrpcLimits:
    """How much of the server a client may use, and for how long. Those without a default are settings of the user."""

    max_message_bytes: int
    """A larger message is answered RESOURCE_EXHAUSTED before it is read."""
    max_connections: int
    """Above this number the longest idle connection is closed; if all have calls, newcomers may only ask for health."""
    max_calls: int
    """Over all connections; more are answered RESOURCE_EXHAUSTED. Health and reflection do not count."""
    message_seconds: float
    """For a first message to arrive, and for a later one from its first byte to its last."""
    send_seconds: float
    """A client that accepts no byte of a message for this long is cut off."""
    graceful_seconds: float = 2.0
    """For running calls to end while the door closes."""
    ping_seconds: float = 30.0
    """After this time without a byte from the client, a ping checks that it is alive."""
    pong_seconds: float = 10.0
    """A client that does not answer a ping in this time is cut off, and its calls are cancelled."""


@frozen
class Method:
    """One method of a service.

    The handler returns the one answer, or sends messages and returns None. An exception becomes the status of the call:
    a RunnerError by the table in `runner.status`, a GRPCError its own status, anything else INTERNAL.
    """

    handler: Callable[[Call], Awaitable[Any | None]]
    request: Any
    """The class of the messages that it receives."""
    work: bool = True
    """Counts as a call: limited in number, and waited for at shutdown."""


class Call:
    """One RPC as its handler sees it. Cancelled when the client cancels or disconnects, or its deadline passes."""

    def __init__(self, stream: Stream, method: Method, metadata: Mapping[str, str], limits: GrpcLimits) -> None:
        self.metadata = metadata
        """The metadata of the request, names in lower case; of a repeated name the last value."""
        self.initial_metadata: list[tuple[str, str]] = []
        """Metadata to send before the first message, names in lower case."""
        self.method = method
        self.stream = stream
        self.share: Share | None = None
        """The memory that the messages of the answer take; it is given back when the call has ended."""
        self._limits = limits
        self._scope = trio.CancelScope()
        self._why: Failure | None = None
        self._reading: trio.CancelScope | None = None
        self._received = 0
        self._stopped = False
        self._ended = False

    # For handlers

    @property
    def remaining(self) -> float | None:
        """Seconds to the client's deadline, None without one."""
        if self._scope.deadline == math.inf:
            return None
        return max(0.001, self._scope.deadline - trio.current_time())

    async def receive(self) -> Any | None:
        """Return the next message, None when the client has ended its side.

        Raises RunnerError: `too_large`, `bad_input`, or `shutdown` when the runner stops meanwhile. Raises GRPCError
        UNIMPLEMENTED for a compressed message.
        """
        data = await self._next()
        if data is None:
            return None
        large = len(data) > LARGE_BYTES
        if large:
            await trio.lowlevel.checkpoint()
        try:
            message = decode(self.method.request, data)
        except MalformedError as problem:
            raise error(ErrorKind.BAD_INPUT, f"the message is malformed: {problem}") from None
        if large:
            await trio.lowlevel.checkpoint()
        self.stream.link.earned(len(data))
        return message

    def has_message(self) -> bool:
        """Return whether `receive` need not wait for the client."""
        head = self.stream.peek(5)
        return self.stream.has(5 + int.from_bytes(head[1:], "big"))

    async def send(self, *messages: Any) -> None:
        """Send messages; waits while the client does not read, but at most `send_seconds` without progress."""
        for message in messages:
            await self._queue(message)
            if self.stream.queued > LARGE_BYTES:
                await self.stream.drain(self._limits.send_seconds)
        await self.stream.drain(self._limits.send_seconds)
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
        """Check the head of the call, and start its deadline. Raises RunnerError or GRPCError for one to refuse."""
        fields = self.metadata
        if fields.get(":method") != "POST" or not fields.get("content-type", "").startswith("application/grpc"):
            raise GRPCError(Status.INVALID_ARGUMENT, "gRPC is POST with content-type application/grpc")
        if not known:
            raise GRPCError(Status.UNIMPLEMENTED, f"there is no method {fields.get(':path', '')}")
        timeout = fields.get("grpc-timeout")
        if timeout is not None:
            try:
                seconds = decode_timeout(timeout[: MAX_TIMEOUT_CHARACTERS + 1])
            except ValueError:
                raise error(ErrorKind.BAD_INPUT, "the deadline is not valid", field="grpc-timeout") from None
            if not seconds:
                raise GRPCError(Status.DEADLINE_EXCEEDED, "the deadline has passed")
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
                    await self._queue(answer)
                del answer  # the queue has its bytes
                self._end(Status.OK, _OK)
                if self.stream.queued:
                    await self.stream.drain(self._limits.send_seconds)
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
                self.refuse(GRPCError(Status.DEADLINE_EXCEEDED, "the deadline passed"))
            else:
                self.refuse(GoneError())

    def cancel(self, why: Failure | None = None) -> None:
        """End the call with the status of `why`; without it, the client is gone."""
        if not self._ended:
            self._why = why
            self._scope.cancel()

    def close(self) -> None:
        """Give back what the call has taken."""
        self.stream.close()
        if self.share is not None:
            self.share.give()

    @property
    def silent_since(self) -> float:
        """When the last bytes of an unfinished message came; inf while the client owes nothing."""
        waiting = self._reading is not None and not self._scope.cancel_called
        return self.stream.heard if waiting and (not self._received or self.stream.has(1)) else math.inf

    def stop_receiving(self) -> None:
        """Refuse further messages, because the runner stops; the call can end with those it has received."""
        if self.method.work:
            self._stopped = True
            if self._reading is not None:
                self._reading.cancel()

    def refuse(self, problem: BaseException) -> None:
        """End the call with the status of an exception. Does not wait, and does not raise."""
        found = _decisive(problem)
        with suppress(NGH2Error):  # the client is gone
            if isinstance(found, GoneError | NGH2Error):
                self.stream.reset(ErrorCode.CANCEL)
            elif isinstance(found, SlowReaderError):
                self.stream.reset(ErrorCode.ENHANCE_YOUR_CALM)
            elif isinstance(found, GRPCError):
                self._end(found.status, _trailers(found.status, found.message or ""))
            else:
                failure = failure_of(found, "a call failed inside the runner", method=self.metadata.get(":path", ""))
                status = Status[CODES[failure.kind].grpc]
                self._end(status, [*_trailers(status, failure.message), *_details(failure)])

    # Bytes

    async def _next(self) -> bytes | None:
        """Return the bytes of the next message."""
        stream, limits = self.stream, self._limits
        if self._received % MESSAGES == MESSAGES - 1:
            await trio.lowlevel.checkpoint()
        await self._wait(5, math.inf if self._received else limits.message_seconds)
        head = stream.peek(5)
        if not head:
            return None
        self._received += 1
        if head[0]:
            raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not supported")
        size = int.from_bytes(head[1:], "big")
        if size > limits.max_message_bytes:
            text = f"the message of {size} bytes is over {limits.max_message_bytes}; the limit is `max_frame`"
            raise error(ErrorKind.TOO_LARGE, text)
        if len(head) == 5:
            await self._wait(5 + size, limits.message_seconds)
        data = stream.take(5 + size, 5)
        if len(head) < 5 or len(data) < size:
            raise error(ErrorKind.BAD_INPUT, "the message is cut off")
        if stream.link.http.want_write:  # a new window, for a client that sends many messages
            stream.link.push()
        return data

    async def _wait(self, size: int, seconds: float) -> None:
        """Wait for so many bytes, or the end of the client's side."""
        stream = self.stream
        if not (self._stopped or stream.has(size)):  # a cancel scope costs as much as the rest of this
            with trio.CancelScope(deadline=trio.current_time() + seconds) as self._reading:
                await stream.wait(size)
            self._reading = None
        if self._stopped:
            raise RunnerError(shutting_down())
        if stream.closed:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise GoneError
        if not stream.has(size):
            raise error(ErrorKind.BAD_INPUT, f"the message did not arrive in {seconds:g} s")

    async def _queue(self, message: Any) -> None:
        """Queue a message, in front of it the head of the answer."""
        stream = self.stream
        if not stream.begun:
            stream.send_head([*_HEAD, *_encoded(self.initial_metadata)] if self.initial_metadata else _HEAD)
        data = encode(message)
        size = len(data)
        stream.link.earned(size)
        if size > LARGE_BYTES:
            await trio.lowlevel.checkpoint()
            stream.send(b"\0" + size.to_bytes(4, "big"))
            stream.send(data)
        else:
            stream.send(b"\0" + size.to_bytes(4, "big") + data)

    def _end(self, status: Status, trailers: list[Header]) -> None:
        """Send the status without a wait. After a part of a message, only a reset can follow."""
        stream = self.stream
        if stream.closed:
            return
        if status is not Status.OK and stream.begun and stream.queued:
            stream.reset(ErrorCode.CANCEL)
            return
        if stream.begun:
            stream.send_trailers(trailers)
        else:
            stream.send_head([*_HEAD, *_encoded(self.initial_metadata), *trailers], last=True)
            if status is not Status.OK and not stream.ended:
                stream.link.refused.add(stream.number)
        self._ended = True
        stream.link.push()
        self._ended = not stream.queued


def _decisive(problem: BaseException) -> BaseException:
    """Return the exception of a group that decides the status: a bug before an intended one."""
    found = list(leaves(problem))
    known = (RunnerError, GRPCError, GoneError, SlowReaderError, NGH2Error)
    return next((leaf for leaf in found if not isinstance(leaf, known)), found[0])


def _encoded(metadata: list[tuple[str, str]]) -> list[Header]:
    return [(name.encode(), value.encode()) for name, value in metadata]


def _trailers(status: Status, text: str) -> list[Header]:
    cut = text.encode()[:MAX_STATUS_BYTES].decode(errors="ignore")
    return _encoded([("grpc-status", str(status.value)), ("grpc-message", encode_grpc_message(cut))])


def _details(failure: Failure) -> list[Header]:
    """Return the trailing metadata with the parts of a failure that its status does not carry."""
    details = [("operato-kind", failure.kind.value)]
    if failure.field is not None:
        details.append(("operato-field", quote(failure.field, safe=_PRINTABLE)))
    if failure.retry_after is not None:
        details.append(("retry-after", str(max(1, math.ceil(failure.retry_after)))))
    return _encoded(details)
