"""The calls of a worker that runs many at a time: one task reads all messages of its guest, one writes to it.

A call ends softly by itself. Only if it does not end in time, or disturbs the channel, its worker is ended; the others
are `lost` then, and their modules' `retry` decides.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import define, field

from actors.channel import no_call
from actors.workers.call import Outcome, crash, failure_of, limit_failure, printed_too_much
from actors.workers.masking import MaskedLog
from actors.workers.shared.running import Running
from environments.base import ChannelClosedError, not_copied
from protocol import frames, messages
from protocol.errors import ErrorKind, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from actors.channel import Channel, Nested
    from actors.workers.call import Call
    from environments.base import Guest, Inbox
    from protocol.model import Stream

_DISTURBED: Final = (ChannelClosedError, messages.ProtocolError, frames.FrameTooLargeError)
_LOST: Final = Failure(
    ErrorKind.LOST, "the worker was ended, because another one of its calls did not stop in time; see `calls`"
)


class LostError(Exception):
    """The worker is ended because one of its calls did not stop."""


class Owner(Protocol):
    """The worker."""

    guest: Guest
    grace_seconds: float
    masked: MaskedLog | None
    reusable: bool

    @property
    def expect(self) -> Callable[[float], None]:
        """Takes the deadline of each call, which is interrupted then."""

    def drain(self) -> None:
        """Read the output up to now."""

    def shown(self, failure: Failure) -> Failure:
        """Return a failure with its remedy, and without the values of secrets."""

    def passed_limit(self) -> str | None:
        """Return the limit that the worker passed."""

    async def end(self) -> tuple[str, ...]:
        """End the worker; return the processes that user code had running."""


@define(eq=False)
class Shared:
    """The calls of one worker. `run` must run beside them."""

    owner: Owner
    channel: Channel
    _running: dict[str, Running] = field(factory=dict, init=False)
    _sending: deque[tuple[bytes, Running | None]] = field(factory=deque, init=False)
    _to_send: trio.Event = field(factory=trio.Event, init=False)
    _tidy: trio.Event | None = field(default=None, init=False)
    """Set when the processes that were left have ended; until then no call begins."""
    _broken: Exception | None = field(default=None, init=False)
    _part_of: Running | None = field(default=None, init=False)
    _nursery: trio.Nursery | None = field(default=None, init=False)
    _begun: trio.Event = field(factory=trio.Event, init=False)

    @property
    def calls(self) -> Collection[Call]:
        """The calls that run."""
        return [running.call for running in self._running.values()]

    # The channel

    async def run(self) -> None:
        """Read and write for all calls until the guest has ended."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._begun.set()
                nursery.start_soon(self._write)
                try:
                    while True:
                        await self._take(await self.channel.payload())
                except _DISTURBED as problem:
                    self._break(problem)
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._break(ChannelClosedError())

    async def _write(self) -> None:
        while True:
            while self._sending:
                frame, running = self._sending.popleft()
                if running is not None:
                    running.sent = True
                try:
                    await self.owner.guest.send(frame)
                except ChannelClosedError as problem:
                    self._break(problem)
                    return
            self._to_send = trio.Event()
            await self._to_send.wait()

    def _say(self, message: messages.HostMessage, running: Running | None = None) -> None:
        """Send a message after those before it. Each call has few on their way."""
        self._sending.append((frames.encode(messages.encode(message)), running))
        self._to_send.set()

    async def _take(self, payload: bytes) -> None:
        """Pass a message on to its call. Raises ProtocolError."""
        part_of, self._part_of = self._part_of, None
        if payload[:1] == frames.MARK:
            if part_of is None:
                raise messages.ProtocolError("bytes of no file")
            await part_of.take_part(payload)
            return
        message = messages.decode(payload)
        if isinstance(message, messages.Pong):
            return
        running = self._running.get(getattr(message, "id", ""))
        if part_of is not None or running is None:
            raise messages.ProtocolError(f"{type(message).__name__} of no call that runs")
        if isinstance(message, messages.Part):
            self._part_of = running
            return
        if not isinstance(message, messages.Printed):
            self.owner.drain()
        if isinstance(message, messages.Call | messages.Withdraw):
            self._call(running.call.nested, message)
            return
        await running.take(message)
        if running.answer is not None:
            del self._running[running.call.id]

    def _call(self, nested: Nested | None, message: messages.Call | messages.Withdraw) -> None:
        """Begin or withdraw a call of a module. Raises ProtocolError."""
        if nested is None:
            if isinstance(message, messages.Call):
                self._say(no_call(message))
        elif isinstance(message, messages.Call):
            nested.begin(message, self._reply)
        else:
            nested.withdraw(message.number)

    async def _reply(self, message: messages.HostMessage) -> None:
        """Send the answer to a call of a module."""
        self._say(message)

    def _break(self, cause: Exception) -> None:
        """End all calls: the guest is gone, or cannot be trusted. The first cause counts."""
        if self._broken is None:
            self._broken = cause
            self.owner.reusable = False
        for running in list(self._running.values()):
            running.end(self._broken)

    def print(self, stream: Stream, data: bytes) -> None:
        """Give output that is of no single call to all calls that run."""
        for running in list(self._running.values()):
            running.log.write(stream, data, shared=True)

    # The calls

    async def execute(self, call: Call) -> Outcome:
        """Run the handler once, as `Worker.execute` does; the worker lives on if the call ends softly."""
        masked = self.owner.masked
        if not self._begun.is_set():
            await self._begun.wait()
        if masked is None or self._nursery is None:
            return await self._execute(Running(call, call.log))
        log = MaskedLog(masked.masker)
        self._nursery.start_soon(log.run)
        try:
            return await self._execute(Running(call, log.before(call.log)))
        finally:
            log.close()

    async def _execute(self, running: Running) -> Outcome:
        call = running.call
        while self._tidy is not None and self._broken is None:
            await self._tidy.wait()
        if self._broken is not None or self._nursery is None:
            running.end(self._broken or ChannelClosedError())
            return await self._died(running)
        self._running[call.id] = running
        inbox = self.owner.guest.inbox.apart(call.id)
        try:
            call.begin(running.wake)
            call.log.on_limit = call.interrupt
            self.owner.expect(call.deadline)
            try:
                await self._begin(running, inbox)
                while not running.over and not call.interrupted:
                    await running.wait()
                    await running.store(self._say)
            except OSError as problem:
                return Outcome(failure=not_copied(problem), exit_code=1)
            finally:
                call.end()
            return await self._outcome(running)
        except BaseException:  # Cancelled: the handler may still be running
            call.killed = await self._stop(running)
            raise
        finally:
            call.log.on_limit = None
            self._running.pop(call.id, None)
            if call.files:
                with trio.CancelScope(shield=True):
                    await inbox.forget()

    async def _begin(self, running: Running, inbox: Inbox) -> None:
        """Send the call with its files. Raises OSError. A copy that does not end in time ends the worker."""
        call = running.call
        files: dict[str, str] = {}
        if call.files:
            # Shielded: what is cut off on its way into a container ends that.
            with trio.CancelScope(shield=True, deadline=call.deadline + self.owner.grace_seconds) as scope:
                try:
                    files = {name: await inbox.put(path, shown) for name, (path, shown) in call.files.items()}
                except ChannelClosedError as problem:
                    self._break(problem)
            if scope.cancelled_caught:
                self._break(LostError())
                await self.owner.end()
        if not running.over and not call.interrupted:
            left = max(0.0, call.deadline - trio.current_time()) if files else call.timeout
            execute = messages.Execute(id=call.id, attempt=call.attempt, deadline=left, files=files, input=call.input)
            self._say(execute, running)
        elif files:  # a container keeps them until the answer that will not come
            self.owner.reusable = False

    async def _outcome(self, running: Running) -> Outcome:
        call, answer = running.call, running.answer
        if answer is not None and not call.log.exceeded:
            return await self._finish(running, answer)
        if running.broken is not None and not call.interrupted:
            return await self._died(running)
        return call.cut_off(await self._stop(running))

    async def _finish(self, running: Running, answer: messages.Result | messages.Error) -> Outcome:
        killed = answer.killed
        if answer.children and not self._running:  # else they may belong to another call
            self._tidy = trio.Event()
            try:
                killed += await self.owner.guest.end_children(answer.stays)
            finally:
                self._tidy.set()
                self._tidy = None
        flush(running)
        if running.call.log.exceeded:
            return printed_too_much(running.call.log, killed)
        seconds, peak = answer.seconds, answer.peak_memory
        if isinstance(answer, messages.Result):
            return Outcome(bytes(answer.value), seconds=seconds, killed=killed, peak_memory=peak)
        failure = running.call.refused or failure_of(answer)
        if failure.kind is ErrorKind.OUT_OF_MEMORY:
            self.owner.reusable = False
        return Outcome(None, self.owner.shown(failure), seconds, 1, killed, peak)

    async def _died(self, running: Running) -> Outcome:
        """Return the outcome of a call whose worker has ended, or whose channel is out of step."""
        passed = self.owner.passed_limit()
        killed = await self.owner.end()
        self.owner.drain()
        flush(running)
        kind, guest, cause = ErrorKind.WORKER_CRASHED, self.owner.guest, running.broken
        if passed:
            failure = limit_failure(passed, kind)
        elif isinstance(cause, LostError):
            failure = _LOST
        else:
            failure = self.owner.shown(crash(guest, "during the call", kind, cause))
        return Outcome(failure=failure, exit_code=guest.exit_code or 1, killed=killed, reached=running.sent)

    async def _stop(self, running: Running) -> tuple[str, ...]:
        """Stop a call softly, and end the worker if it does not answer in time; return the killed processes."""
        running.stopping = True
        if running.call.nested is not None:
            running.call.nested.stop()
        if not running.sent:
            self._sending = deque(each for each in self._sending if each[1] is not running)
            return ()
        with trio.CancelScope(shield=True):
            if not running.over:
                self._say(messages.Cancel(running.call.id))
                with trio.move_on_after(self.owner.grace_seconds):
                    while not running.over:
                        await running.wait()
            if running.answer is not None:
                killed = running.answer.killed
            else:
                self._running.pop(running.call.id, None)
                self._break(LostError())
                killed = await self.owner.end()
                self.owner.drain()
            flush(running)
        return killed


def flush(running: Running) -> None:
    """Write the output that the masker holds back."""
    if isinstance(running.log, MaskedLog):
        running.log.flush()
