"""One of the calls of a shared worker: what its messages have brought, and the storing of its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from environments.base import refusal, storing
from protocol import frames, messages
from protocol.errors import Failure, RunnerError
from protocol.model import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.events import EventLog
    from actors.workers.call import Call
    from actors.workers.masking import MaskedLog

_ON_THEIR_WAY: Final = 64 << 20
"""Bytes of a file that a guest may still send after a refusal."""
_STREAMS: Final = {stream.value: stream for stream in Stream}


@define(eq=False)
class Running:
    """A call that runs beside others. The reader of the worker's messages feeds it, its own task waits."""

    call: Call
    log: EventLog | MaskedLog
    answer: messages.Result | messages.Error | None = field(default=None, init=False)
    broken: Exception | None = field(default=None, init=False)
    """Why no answer comes: the worker has ended."""
    sent: bool = field(default=False, init=False)
    """The guest has the call, or may have it."""
    stopping: bool = field(default=False, init=False)
    _woken: trio.Event = field(factory=trio.Event, init=False)
    _file: messages.Store | None = field(default=None, init=False)
    _put: trio.MemorySendChannel[bytes] | None = field(default=None, init=False)
    _get: trio.MemoryReceiveChannel[bytes] | None = field(default=None, init=False)
    _stored: int = field(default=0, init=False)
    _dropped: int = field(default=0, init=False)

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self.answer is not None or self.broken is not None

    def wake(self) -> None:
        """Let its task look at it; a file that is being stored is abandoned."""
        if self._put is not None:
            self._put.close()
            self._put = None
        self._woken.set()

    def end(self, cause: Exception) -> None:
        """Note that no answer comes; the first cause counts."""
        if not self.over:
            self.broken = cause
        self.wake()

    async def wait(self) -> None:
        """Wait until it is woken."""
        await self._woken.wait()
        self._woken = trio.Event()

    # What the reader has for it

    async def take(self, message: messages.GuestMessage) -> None:
        """Take a message. Raises ProtocolError."""
        match message:
            case messages.Result() | messages.Error():
                if self.call.nested is not None and self.call.nested.open and not self.stopping:
                    raise messages.ProtocolError("it answered while its calls of modules were open")
                self.answer = message
                self.wake()
            case messages.Printed():
                if (stream := _STREAMS.get(message.stream)) is None:
                    raise messages.ProtocolError("output of an unknown stream")
                self.log.write(stream, message.text.encode("utf-8", "replace"))
            case messages.Item():
                if not self.stopping:
                    self.log.item(message.value.copy())
            case messages.Progress():
                if not self.stopping:
                    self.log.progress(message.done, message.total, message.text)
            case messages.Store() if self._put is None:
                self._file = message
                self._put, self._get = trio.open_memory_channel[bytes](1)
                self._woken.set()
            case _:
                raise messages.ProtocolError(f"an answer was expected, not {type(message).__name__}")

    async def take_part(self, payload: bytes) -> None:
        """Take a byte frame of its file. Waits for the disk only: nothing that is sent can be in its way."""
        if len(payload) > frames.MAX_PIECE + 1:
            raise messages.ProtocolError(f"a byte frame of more than {frames.MAX_PIECE} bytes")
        put = self._put
        if put is not None:
            try:
                await put.send(payload[1:])
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                put = None
            else:
                return
        self._dropped += len(payload)
        if self._dropped > _ON_THEIR_WAY:
            raise messages.ProtocolError("the guest continued a file that was refused")

    # Its own task

    async def store(self, say: Callable[[messages.HostMessage], None]) -> None:
        """Store the file that has begun, if one has, and answer it."""
        message, parts = self._file, self._get
        if message is None or parts is None:
            return
        self._file = self._get = None
        call = self.call
        try:
            with parts:
                async with storing(call.store, message.name, message.media_type, self._stored) as writing:
                    async for part in parts:
                        if part:
                            await writing.write(part)
                            continue
                        stored = await writing.finish()
                        self._stored += 1
                        self._put = None
                        say(messages.Stored(call.id, stored.described))
                        return
        except RunnerError as problem:
            failure: Failure = refusal(problem)
            call.refused = failure
            self._put = None
            say(messages.Refused(call.id, failure.kind, failure.message))
