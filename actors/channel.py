"""Messages and bytes over the frames of a guest, and the storing of the bytes that it sends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec
import trio

from environments.base import Guest, InterruptedWaitError, Store, refusal, storing
from protocol import frames, messages
from protocol.errors import ErrorKind, Failure, RunnerError

_ON_THEIR_WAY: Final = 64 << 20
"""Bytes that a guest may still send until it notices a refusal."""


class Log(Protocol):
    """Takes the events of one execution."""

    def item(self, value: msgspec.Raw) -> None:
        """Add an item."""

    def progress(self, done: float | None, total: float | None, text: str) -> None:
        """Add progress."""


class Nested(Protocol):
    """The calls of other modules that a handler makes."""

    @property
    def open(self) -> int:
        """How many have no answer yet."""

    def begin(self, message: messages.Call, reply: Callable[[messages.HostMessage], Awaitable[None]]) -> None:
        """Begin one; `reply` sends its answer. Raises ProtocolError for a number that is in use, and for too many."""

    def withdraw(self, number: int) -> None:
        """End one that is not waited for any more."""

    def stop(self) -> None:
        """End all, as the handler is being stopped; begin no more."""


class UnaskedError(messages.ProtocolError):
    """The guest said something before it read the call, so the handler was not reached."""


class Channel:
    """Messages over the frames of a guest.

    Raises ChannelClosedError, ProtocolError, FrameTooLargeError and InterruptedWaitError.
    """

    def __init__(self, guest: Guest, max_frame_bytes: int) -> None:
        self._guest = guest
        # Room for the fields around a value of the greatest size.
        self._decoder = frames.FrameDecoder(max_frame_bytes + 65536)
        self._pending: list[bytes] = []
        self._answered = ""  # the id of the last answer
        self._interrupted = False
        self._replied: trio.Event | None = None  # set when the reply on its way has been sent

    def interrupt(self) -> None:
        """Make the wait for the guest, and until `resume` each later one, raise InterruptedWaitError."""
        self._interrupted = True
        self._guest.interrupt()

    def resume(self) -> None:
        """Wait for the guest again."""
        self._interrupted = False

    async def send(self, message: messages.HostMessage) -> None:
        """Send a message."""
        await self._guest.send(frames.encode(messages.encode(message)))

    async def receive(self) -> messages.GuestMessage:
        """Return the next message. Bytes are not allowed here."""
        return messages.decode(await self.payload())

    def has_spoken(self) -> bool:
        """Return, without waiting, whether there is something to receive, or the beginning of it."""
        return bool(self._pending) or self._decoder.partial or self._guest.has_spoken()

    async def answer(
        self,
        execution: str,
        store: Store | None,
        log: Log,
        drain: Callable[[], None],
        nested: Nested | None = None,
    ) -> tuple[messages.Result | messages.Error, Failure | None]:
        """Return the answer to an execution, and why a file of it was refused, if one was.

        `log` gets items and progress, after `drain` has read the output before them, `nested` the calls of modules.
        """

        def progress(message: messages.Progress) -> None:
            drain()
            log.progress(message.done, message.total, message.text)

        stored = 0
        while True:
            message = await self.receive()
            match message:
                case messages.Result() | messages.Error() if message.id == execution:
                    self._end(execution, nested)
                    return message, None
                case messages.Item() if message.id == execution:
                    drain()
                    log.item(message.value.copy())
                case messages.Progress() if message.id == execution:
                    progress(message)
                case messages.Store() if message.id == execution:
                    answer, refused = await self._store(message, store, progress, stored)
                    stored += 1
                    if answer is not None:
                        self._answered = execution
                        return answer, refused
                case messages.Call() | messages.Withdraw() if message.id == execution:
                    drain()
                    await self._call(message, nested)
                case messages.Result() | messages.Error() if message.id == self._answered:
                    # A second answer, so the first was written by user code; the guest has not read this call.
                    raise UnaskedError("it answered twice")
                case _:
                    raise messages.ProtocolError(f"an answer was expected, not {type(message).__name__}")

    def _end(self, execution: str, nested: Nested | None) -> None:
        """Note that an execution has its answer."""
        if nested is not None and nested.open:
            raise messages.ProtocolError("it answered while its calls of modules were open")
        self._answered = execution

    async def _call(self, message: messages.Call | messages.Withdraw, nested: Nested | None) -> None:
        """Begin or withdraw a call of a module; without `nested` it is refused."""
        if isinstance(message, messages.Withdraw):
            if nested is not None:
                nested.withdraw(message.number)
            return
        if nested is not None:
            nested.begin(message, self.reply)
            return
        await self.reply(no_call(message))

    async def reply(self, message: messages.HostMessage) -> None:
        """Send the answer to a message of a running handler; in any task, also while another one receives."""
        while self._replied is not None:  # a part of its frame may be sent
            await self._replied.wait()
        self._replied = replied = trio.Event()
        try:
            await self.send(message)
        finally:
            self._replied = None
            replied.set()

    async def receive_last(self) -> messages.Result | messages.Error:
        """Return the answer to an execution that is being stopped; drop everything before it."""
        while True:
            payload = await self.payload()
            if payload[:1] != frames.MARK and isinstance(
                message := messages.decode(payload), messages.Result | messages.Error
            ):
                return message

    async def _store(
        self, message: messages.Store, store: Store | None, hear: Callable[[messages.Progress], None], before: int
    ) -> tuple[messages.Error | None, Failure | None]:
        """Store the bytes that follow `message`, and answer it; `hear` gets the progress that comes between.

        Returns the answer to the execution, if the guest gave it instead and so abandoned the file, and why the file
        was refused, if it was.
        """
        try:
            async with storing(store, message.name, message.media_type, before) as writing:
                while isinstance(part := await self._part(message.id, hear), memoryview):
                    if part:
                        await writing.write(part)
                        continue
                    stored = await writing.finish()
                    await self.reply(messages.Stored(message.id, stored.described))
                    return None, None
                return abandoned(part, message.id), None
        except RunnerError as problem:
            failure = refusal(problem)
        await self.reply(messages.Refused(message.id, failure.kind, failure.message))
        left = _ON_THEIR_WAY
        while isinstance(part := await self._part(message.id, hear), memoryview):
            left -= len(part)
            if left < 0:
                raise messages.ProtocolError("the guest continued a file that was refused")
        return abandoned(part, message.id), failure

    async def _part(
        self, execution: str, hear: Callable[[messages.Progress], None]
    ) -> memoryview | messages.GuestMessage:
        """Return the next bytes of a file, empty at its end, or the message that abandons it."""
        while True:
            payload = await self.payload()
            if payload[:1] == frames.MARK:
                if len(payload) > frames.MAX_PIECE + 1:
                    raise messages.ProtocolError(f"a byte frame of more than {frames.MAX_PIECE} bytes")
                return memoryview(payload)[1:]
            message = messages.decode(payload)
            if not (isinstance(message, messages.Progress) and message.id == execution):
                return message
            hear(message)

    async def payload(self) -> bytes:
        """Return the payload of the next frame."""
        while not self._pending:
            if self._interrupted:
                raise InterruptedWaitError
            self._pending = self._decoder.feed(await self._guest.receive())
        return self._pending.pop(0)


def no_call(message: messages.Call) -> messages.CallFailed:
    """Return the answer to a call by a module that may call none."""
    text = f"the module calls {message.module!r}, but none is in its field `calls_modules`; add the name there"
    return messages.CallFailed(message.id, message.number, ErrorKind.FORBIDDEN, text, field="calls_modules")


def abandoned(message: messages.GuestMessage, execution: str) -> messages.Error:
    """Return a message that stands in place of the end of a file. Raises ProtocolError unless it is a failure."""
    if isinstance(message, messages.Error) and message.id == execution:
        return message
    raise messages.ProtocolError(f"bytes of a file were expected, not {type(message).__name__}")
