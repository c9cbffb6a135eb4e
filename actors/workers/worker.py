"""One live guest: loads one module version, runs one execution at a time, or several; a death becomes a `Failure`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import structlog
import trio
from attrs import define, field

from actors.channel import Channel, UnaskedError
from actors.workers.call import (
    Outcome,
    crash,
    failure_of,
    import_failure,
    limit_failure,
    load_failure,
    printed_too_much,
)
from actors.workers.masking import MaskedLog
from actors.workers.shared import Shared
from environments import proc
from environments.base import ChannelClosedError, InterruptedWaitError, not_copied
from environments.limits import WATCH_SECONDS
from environments.remedies import with_remedy
from protocol import frames, messages
from protocol.errors import ErrorKind, Failure, RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actors.events import EventLog
    from actors.registry import Published
    from actors.workers.call import Call
    from environments.base import Guest, Inbox
    from environments.limits import Hold
    from protocol.model import Stream

_NO_FILES: Final[dict[str, str]] = {}
_DISTURBED: Final = (ChannelClosedError, messages.ProtocolError, frames.FrameTooLargeError)

log = structlog.get_logger("worker")


class StartError(RunnerError):
    """The worker ended before it was ready, not by anything that its module reported: another start may succeed."""


@define(eq=False)
class Footprint:
    """What an idle worker costs, and what another start would cost."""

    start_seconds: float = 0.01
    """The time that its start took."""
    memory_bytes: int = 32 << 20
    """The memory of its process that it shares with no other, as it was measured; a guess before that."""
    peak_bytes: int = 0
    """The peak of its last call, which counts for a container: questions to the engine take milliseconds."""
    _measured: int = -1

    def measure(self, guest: Guest, calls: int) -> None:
        """Measure an idle worker, if it was called since the last time."""
        if self._measured != calls:
            self._measured = calls
            private = 0 if guest.pid is None else proc.resident_bytes(guest.pid)
            self.memory_bytes = private or self.peak_bytes or self.memory_bytes


@define(eq=False)
class Worker:
    """Owns a guest from its launch until nothing of it is left.

    The task that leased it calls `start`, `execute` and `end`; `tend` runs beside them for its whole life.
    """

    guest: Guest
    max_frame_bytes: int
    grace_seconds: float
    environment_key: str
    launched_at: float = field(factory=trio.current_time)
    module: Published | None = field(default=None, init=False)
    hold: Hold | None = field(default=None, init=False)
    calls: int = field(default=0, init=False)
    idle_since: float = field(default=0.0, init=False)
    footprint: Footprint = field(factory=Footprint, init=False)
    ended: bool = field(default=False, init=False)
    reusable: bool = field(default=True, init=False)
    over_limit: str | None = field(default=None, init=False)
    call: Call | None = field(default=None, init=False)
    """The call that it runs."""
    shared: Shared | None = field(default=None, init=False)
    """Its calls, if it runs many at a time. Its `run` must run beside the worker."""
    expect: Callable[[float], None] = field(default=lambda _: None, init=False)
    """Called with the deadline of each call; `Call.interrupt` must follow at that time."""
    masked: MaskedLog | None = field(default=None, init=False)
    """Masks the values of the module's secrets, if it has some. Its `run` must run beside the worker."""
    _ending: trio.Lock = field(factory=trio.Lock, init=False)
    _killed: tuple[str, ...] = field(default=(), init=False)
    _log: EventLog | MaskedLog | None = field(default=None, init=False)
    _channel: Channel = field(init=False)
    _asked: bool = field(default=False, init=False)  # the guest has, or may have, a call

    def __attrs_post_init__(self) -> None:
        self._channel = Channel(self.guest, self.max_frame_bytes)

    async def tend(self, on_death: Callable[[Worker], None]) -> None:
        """Read the output of user code, and notice the guest's death; returns when it has ended."""
        await self.guest.tend(self._printed)
        on_death(self)

    async def watch(self) -> None:
        """Poll the limits that the kernel does not enforce, and kill a guest that passed one; returns at its end."""
        while self.hold is not None and not self.ended:
            self.over_limit = self.hold.exceeded()
            if self.over_limit:
                await self.end()
                return
            await trio.sleep(WATCH_SECONDS)

    def _printed(self, stream: Stream, data: bytes) -> None:
        if data and self._log is not None:
            self._log.write(stream, data)
        elif data and self.shared is not None:
            self.shared.print(stream, data)
        elif data:
            log.debug("output outside of an execution", worker=self.guest.name, stream=stream, bytes=len(data))

    def drain(self) -> None:
        """Read the output up to now: output before the answer belongs to this execution."""
        self.guest.drain(self._printed)
        if self.masked is not None:
            self.masked.flush()

    def shown(self, failure: Failure) -> Failure:
        """Return a failure with its remedy, and without the values of secrets."""
        if (module := self.module) is not None:
            failure = with_remedy(failure, module.spec, module.root, package=module.package)
        return failure if self.masked is None else self.masked.masker.failure(failure)

    async def start(self, module: Published, secrets: Mapping[str, str], printed: EventLog) -> messages.Ready:
        """Load a module, with the values of its secrets; `printed` gets the output of its import and of `init()`.

        Raises RunnerError `load_failed` or `timeout`; the worker has ended then. Cancelled, the worker has ended before
        Cancelled is raised.
        """
        self.module = module
        self._log = printed if self.masked is None else self.masked.before(printed)
        spec = module.spec
        hello = _hello(module, secrets, self.max_frame_bytes)
        failure: Failure | None = None
        try:
            with trio.move_on_after(spec.start_timeout) as scope:
                printed.on_limit = scope.cancel
                hello.root, hello.entry = await self.guest.bring(module.root, module.entry)
                await self._channel.send(hello)
                answer = await self._channel.receive()
            if scope.cancelled_caught:
                failure = import_failure(printed, spec.start_timeout)
            elif isinstance(answer, messages.Ready):
                self.drain()
                self.guest.loaded(children=answer.children)
                self._log = None
                self.shared = Shared(self, self._channel) if spec.calls > 1 else None
                return answer
            elif isinstance(answer, messages.LoadFailed):
                failure = load_failure(answer)
            else:
                failure = Failure(ErrorKind.LOAD_FAILED, "the worker did not speak the protocol while loading")
        except _DISTURBED:
            pass
        except trio.Cancelled:
            await self.end()
            raise
        passed = self.passed_limit()
        await self.end()
        self.drain()
        if failure is not None or passed:
            raise RunnerError(self.shown(failure or limit_failure(passed or "", ErrorKind.LOAD_FAILED)))
        raise StartError(self.shown(crash(self.guest, "while the module was imported", ErrorKind.LOAD_FAILED)))

    async def execute(self, call: Call) -> Outcome:
        """Run the handler once. Never raises for anything that user code does.

        Returns when the handler has answered and every process that it started is gone. When it timed out, printed
        too much, crashed or was stopped by `Call.cancel`, the whole worker is gone. Cancelled, the worker is ended
        before Cancelled is raised, and `call.killed` names the killed processes.
        """
        if self.shared is not None:
            return await self.shared.execute(call)
        log = call.log
        self._log = masked = log if self.masked is None else self.masked.before(log)
        self.calls += 1
        answer: messages.Result | messages.Error | None = None
        broken: Exception | None = None
        try:
            if self._channel.has_spoken():
                # User code sent it after the last answer; this call would take it for its own.
                return await self._died(UnaskedError("it sent a message without a request"))
            call.begin(self._channel.interrupt)
            self.call, log.on_limit = call, call.interrupt
            self.expect(call.deadline)
            try:
                files = await _put(call, self.guest.inbox) if call.files else _NO_FILES
                left = call.deadline - trio.current_time() if files else call.timeout
                self._asked = True
                await self._channel.send(
                    messages.Execute(id=call.id, attempt=call.attempt, deadline=left, files=files, input=call.input)
                )
                answer, call.refused = await self._channel.answer(call.id, call.store, masked, self.drain, call.nested)
            except InterruptedWaitError:
                pass
            except _DISTURBED as problem:
                broken = problem
            except OSError as problem:
                await self.guest.inbox.forget()
                return Outcome(failure=not_copied(problem), exit_code=1)
            finally:
                call.end()
                self._channel.resume()
            if answer is not None and not log.exceeded:
                outcome = await self._finish(answer, call)
                if files:
                    await self.guest.inbox.forget()
                return outcome
            if broken is not None:
                return await self._died(broken)
            return call.cut_off(await self._stop(call.id))
        except BaseException:  # Cancelled: the handler may still be running
            with trio.CancelScope(shield=True):
                call.killed = await self._stop(call.id)
            raise
        finally:
            log.on_limit = self.call = self._log = None
            self._asked = False

    async def _finish(self, answer: messages.Result | messages.Error, call: Call) -> Outcome:
        killed = answer.killed
        if answer.children:
            killed += await self.guest.end_children(answer.stays)
        self.drain()
        if call.log.exceeded:
            return printed_too_much(call.log, killed + await self.end())
        seconds, peak = answer.seconds, answer.peak_memory
        self.footprint.peak_bytes = peak or 0
        if isinstance(answer, messages.Result):
            return Outcome(bytes(answer.value), seconds=seconds, killed=killed, peak_memory=peak)
        failure = call.refused or failure_of(answer)
        if failure.kind in (ErrorKind.CANCELLED, ErrorKind.OUT_OF_MEMORY):
            self.reusable = False
        if failure.kind is ErrorKind.WORKER_CRASHED and (passed := self.passed_limit()):
            failure = limit_failure(passed, failure.kind)
        return Outcome(None, self.shown(failure), seconds, 1, killed, peak)

    async def _died(self, cause: Exception) -> Outcome:
        """Return the outcome of a call whose worker has ended, or whose channel is out of step."""
        passed = self.passed_limit()
        killed = await self.end()
        self.drain()
        kind = ErrorKind.WORKER_CRASHED
        if passed:
            failure = limit_failure(passed, kind)
        else:
            failure = self.shown(crash(self.guest, "during the call", kind, cause))
        reached = not (isinstance(cause, UnaskedError) or (isinstance(cause, ChannelClosedError) and cause.unread))
        return Outcome(failure=failure, exit_code=self.guest.exit_code or 1, killed=killed, reached=reached)

    async def _stop(self, execution: str) -> tuple[str, ...]:
        """Soft stop, then the kill of the process tree; return the killed processes."""
        killed: tuple[str, ...] = ()
        if self.call is not None and self.call.nested is not None:
            self.call.nested.stop()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self.grace_seconds if self._asked else 0.0):
                try:
                    await self.guest.stop(execution)
                    killed = (await self._channel.receive_last()).killed
                except _DISTURBED:
                    pass
            killed += await self.end()
            self.drain()
        return killed

    def passed_limit(self) -> str | None:
        """Return the limit that this worker passed. Asked before its control group, which knows it, is given back."""
        return self.over_limit or (self.hold.exceeded() if self.hold is not None else None)

    async def end(self) -> tuple[str, ...]:
        """Kill the guest and its process tree; return the processes that user code had running. Not cancellable.

        Called again, or by several tasks at once, each call returns the same when all are gone.
        """
        self.reusable = False
        with trio.CancelScope(shield=True):
            async with self._ending:
                if not self.ended:
                    self._killed = await self.guest.end()
                    self.ended = True
        return self._killed

    async def retire(self) -> None:
        """End an idle worker in order: exit handlers run, then the rest is killed. Not cancellable."""
        if self.ended:
            return
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self.grace_seconds), contextlib.suppress(ChannelClosedError):
                await self._channel.send(messages.Shutdown())
                await self.guest.wait_ended()
            await self.end()

    def release(self) -> None:
        """Give back descriptors, limits and the working directory of a guest that has ended."""
        self.guest.close()
        if self.masked is not None:
            self.masked.close()
        if self.hold is not None:
            self.over_limit = self.passed_limit()  # a call that has not noticed yet asks later
            self.hold.release()
            self.hold = None


def _hello(module: Published, secrets: Mapping[str, str], max_frame_bytes: int) -> messages.Hello:
    """Return the first message for a module, without the places of its code."""
    spec = module.spec
    return messages.Hello(
        entry="",
        root="",
        handler=module.function,
        package=module.package,
        isolation=spec.isolation,
        variables={**spec.variables, **secrets},
        max_frame_bytes=max_frame_bytes,
        calls=spec.calls,
    )


async def _put(call: Call, inbox: Inbox) -> dict[str, str]:
    """Make the files of the input visible to the guest; return their paths there.

    Raises OSError and InterruptedWaitError.
    """
    with trio.CancelScope() as scope, call.woken_by(scope.cancel):
        files = {name: await inbox.put(path, shown) for name, (path, shown) in call.files.items()}
        if not call.interrupted:
            return files
    raise InterruptedWaitError
