"""One live guest: loads one module version, runs one execution at a time; every death becomes a `Failure`."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio
from attrs import define, evolve, field, frozen

from actors.workers.masking import MaskedLog, Masker
from environments.base import ChannelClosedError
from environments.limits import WATCH_SECONDS
from protocol import frames, messages
from protocol.errors import ErrorKind, Failure, RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actors.events import EventLog
    from actors.registry import Published
    from environments.base import Guest
    from environments.limits import Hold
    from protocol.model import Stream

_GUEST_KINDS = {
    "handler_error": ErrorKind.HANDLER_ERROR,
    "bad_output": ErrorKind.BAD_OUTPUT,
    "out_of_memory": ErrorKind.OUT_OF_MEMORY,
    "worker_crashed": ErrorKind.WORKER_CRASHED,
    "cancelled": ErrorKind.CANCELLED,
    "bad_input": ErrorKind.BAD_INPUT,
}

log = structlog.get_logger("worker")


@define(eq=False)
class Call:
    """One attempt to run a handler, from when it is made until its `Outcome`. `timeout` is in seconds from its start.

    `cancel` ends it from another task; unlike a cancellation of the task that runs it, this comes to an `Outcome`.
    """

    id: str
    input: msgspec.Raw
    attempt: int
    timeout: float
    log: EventLog
    stopped_by: Failure | None = field(default=None, init=False)
    """Why it was cancelled."""
    killed: tuple[str, ...] = field(default=(), init=False)
    """What was ended by force when the task that ran it was cancelled."""
    scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    def cancel(self, why: Failure) -> None:
        """End the handler: soft stop, then the kill of its tree. The first reason counts; never blocks."""
        if self.stopped_by is None:
            self.stopped_by = why
            self.scope.cancel()


@frozen
class Outcome:
    """What one attempt came to: a result as JSON, or a failure; `seconds` is the handler's own time."""

    result: bytes | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    exit_code: int = 0
    killed: tuple[str, ...] = ()
    """The processes that were ended by force, as `pid name`."""
    peak_memory: int | None = None
    reached: bool = True
    """False where the worker was gone before it could have seen the call: nothing has happened."""


class StartError(RunnerError):
    """The worker ended before it was ready, by nothing that its module said: another one may do better."""


@define(eq=False)
class Worker:
    """Owns a guest from the moment it was launched until nothing of it is left.

    `start`, `execute` and `end` are called by the one who leased it; `tend` runs beside them for its whole life.
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
    ended: bool = field(default=False, init=False)
    reusable: bool = field(default=True, init=False)
    over_limit: str | None = field(default=None, init=False)
    masked: MaskedLog | None = field(default=None, init=False)
    """What hides the values of the module's secrets, where it has some."""
    _ending: trio.Lock = field(factory=trio.Lock, init=False)
    _killed: tuple[str, ...] = field(default=(), init=False)
    _log: EventLog | MaskedLog | None = field(default=None, init=False)
    _decoder: frames.FrameDecoder = field(init=False)
    _pending: list[bytes] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        # Room for the fields round a value of the greatest size.
        self._decoder = frames.FrameDecoder(self.max_frame_bytes + 65536)

    async def tend(self, on_death: Callable[[Worker], None]) -> None:
        """Read what user code prints, and notice the guest's death; returns when it has ended."""
        await self.guest.tend(self._printed)
        on_death(self)

    async def watch(self) -> None:
        """Poll the limits that the kernel does not hold, and kill the guest that passed one; returns at its end."""
        while self.hold is not None and not self.ended:
            self.over_limit = self.hold.exceeded()
            if self.over_limit:
                await self.end()
                return
            await trio.sleep(WATCH_SECONDS)

    def _printed(self, stream: Stream, data: bytes) -> None:
        if not data:
            return
        if self._log is not None:
            self._log.write(stream, data)
        else:
            log.debug("output outside of an execution", worker=self.guest.name, stream=stream, bytes=len(data))

    def _drain(self) -> None:
        """Take what was printed until now: what came before the answer belongs to this execution."""
        self.guest.drain(self._printed)
        if self.masked is not None:
            self.masked.flush()

    def _hidden(self, failure: Failure) -> Failure:
        return failure if self.masked is None else self.masked.masker.failure(failure)

    async def _receive(self) -> messages.GuestMessage:
        while not self._pending:
            self._pending = self._decoder.feed(await self.guest.receive())
        return messages.decode(self._pending.pop(0))

    async def start(self, module: Published, secrets: Mapping[str, str], printed: EventLog) -> messages.Ready:
        """Load a module, with the values of its secrets.

        Raises RunnerError `load_failed` or `timeout`; the worker has ended then. Cancelled, the worker has ended before
        Cancelled goes on.
        """
        self.module = module
        if (masker := Masker.of(secrets.values())) is not None:
            self.masked = MaskedLog(masker)
        self._log = printed
        spec = module.spec
        hello = messages.Hello(
            entry="",
            root="",
            handler=module.function,
            package=module.package,
            isolation=spec.isolation,
            variables={**spec.variables, **secrets},
            max_frame_bytes=self.max_frame_bytes,
        )
        failure: Failure | None = None
        try:
            with trio.move_on_after(spec.start_timeout) as scope:
                printed.on_limit = scope.cancel
                hello.root, hello.entry = await self.guest.bring(module.root, module.entry)
                await self.guest.send(frames.encode(messages.encode(hello)))
                answer = await self._receive()
            if scope.cancelled_caught:
                failure = self._start_failure(printed)
            elif isinstance(answer, messages.Ready):
                self._drain()
                self.guest.loaded(children=answer.children)
                self._log = None
                return answer
            elif isinstance(answer, messages.LoadFailed):
                failure = Failure(ErrorKind.LOAD_FAILED, answer.message, answer.error_type, answer.traceback or None)
            else:
                failure = Failure(ErrorKind.LOAD_FAILED, "the worker did not speak the protocol while loading")
        except (ChannelClosedError, messages.ProtocolError, frames.FrameTooLargeError):
            pass
        except trio.Cancelled:
            await self.end()
            raise
        passed = self._passed_limit()
        await self.end()
        self._drain()
        if failure is not None or passed:
            raise RunnerError(self._hidden(failure or _limit_failure(passed or "", ErrorKind.LOAD_FAILED)))
        raise StartError(self._hidden(self._crash("while the module was imported", ErrorKind.LOAD_FAILED)))

    def _start_failure(self, printed: EventLog) -> Failure:
        if printed.exceeded:
            text = f"more than {printed.limit} bytes were printed while the module was imported"
            return Failure(ErrorKind.OUTPUT_LIMIT, text, field="output")
        spec = self.module.spec if self.module else None
        text = f"the module was not imported within start_timeout ({spec.start_timeout if spec else 0:g} s)"
        return Failure(ErrorKind.LOAD_FAILED, text, field="start_timeout")

    async def execute(self, call: Call) -> Outcome:
        """Run the handler once. Never raises for what user code does.

        Returns when the handler has answered and every process that it started is gone. When it timed out, printed
        too much, crashed or was stopped by `Call.cancel` the whole worker is gone. Cancelled, the worker is ended
        before Cancelled goes on, and `call.killed` says what was killed.
        """
        log = call.log
        self._log = said = log if self.masked is None else self.masked.before(log)
        self.calls += 1
        answer: messages.Result | messages.Error | None = None
        broken: Exception | None = None
        try:
            call.scope.deadline = trio.current_time() + call.timeout
            with call.scope:
                log.on_limit = call.scope.cancel
                execute = messages.Execute(call.id, call.attempt, call.timeout, call.input)
                try:
                    await self.guest.send(frames.encode(messages.encode(execute)))
                    answer = await self._answer(call, said)
                except (ChannelClosedError, messages.ProtocolError, frames.FrameTooLargeError) as problem:
                    broken = problem
            if answer is not None and not log.exceeded:
                return await self._finish(answer, log)
            if broken is not None:
                return await self._died(broken)
            return self._cut_off(call, await self._stop(call.id))
        except BaseException:  # Cancelled: the handler may still be running
            with trio.CancelScope(shield=True):
                call.killed = await self._stop(call.id)
            raise
        finally:
            log.on_limit = None
            self._log = None

    async def _answer(self, call: Call, log: EventLog | MaskedLog) -> messages.Result | messages.Error:
        while True:
            message = await self._receive()
            match message:
                case messages.Result() | messages.Error() if message.id == call.id:
                    return message
                case messages.Item() if message.id == call.id:
                    self._drain()  # what was printed before it comes before it
                    log.item(message.value.copy())
                case messages.Progress() if message.id == call.id:
                    self._drain()
                    log.progress(message.done, message.total, message.text)
                case _:
                    raise messages.ProtocolError(f"an answer was expected, not {type(message).__name__}")

    async def _finish(self, answer: messages.Result | messages.Error, log: EventLog) -> Outcome:
        killed = answer.killed
        if answer.children:
            killed += await self.guest.end_children()
        self._drain()
        if log.exceeded:
            return self._printed_too_much(log, killed + await self.end())
        seconds, peak = answer.seconds, answer.peak_memory
        if isinstance(answer, messages.Result):
            return Outcome(bytes(answer.value), seconds=seconds, killed=killed, peak_memory=peak)
        kind = _GUEST_KINDS.get(answer.kind, ErrorKind.HANDLER_ERROR)
        if kind in (ErrorKind.CANCELLED, ErrorKind.OUT_OF_MEMORY):
            self.reusable = False
        failure = Failure(kind, answer.message, answer.error_type, answer.traceback, answer.field)
        if kind is ErrorKind.WORKER_CRASHED and (passed := self._passed_limit()):
            failure = _limit_failure(passed, kind)
        return Outcome(None, self._hidden(failure), seconds, 1, killed, peak)

    async def _died(self, cause: Exception) -> Outcome:
        """Return what became of a call whose worker has ended, or whose channel is out of step."""
        passed = self._passed_limit()
        killed = await self.end()
        self._drain()
        kind = ErrorKind.WORKER_CRASHED
        failure = _limit_failure(passed, kind) if passed else self._hidden(self._crash("during the call", kind, cause))
        reached = not (isinstance(cause, ChannelClosedError) and cause.unread)
        return Outcome(failure=failure, exit_code=self.guest.exit_code or 1, killed=killed, reached=reached)

    def _cut_off(self, call: Call, killed: tuple[str, ...]) -> Outcome:
        if call.stopped_by is not None:
            return Outcome(failure=call.stopped_by, exit_code=130, killed=killed)
        if call.log.exceeded:
            return self._printed_too_much(call.log, killed)
        failure = Failure(ErrorKind.TIMEOUT, f"the handler did not end within {call.timeout:g} s", field="timeout")
        return Outcome(failure=failure, seconds=call.timeout, exit_code=124, killed=killed)

    def _printed_too_much(self, log: EventLog, killed: tuple[str, ...]) -> Outcome:
        text = f"the execution printed more than {log.limit} bytes; raise `output` or print less"
        return Outcome(failure=Failure(ErrorKind.OUTPUT_LIMIT, text, field="output"), exit_code=1, killed=killed)

    async def _stop(self, execution: str) -> tuple[str, ...]:
        """Soft stop, then the kill of the tree; return what was killed."""
        killed: tuple[str, ...] = ()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self.grace_seconds):
                try:
                    await self.guest.stop(execution)
                    while not isinstance(answer := await self._receive(), messages.Result | messages.Error):
                        pass
                    killed = answer.killed
                except (ChannelClosedError, messages.ProtocolError, frames.FrameTooLargeError):
                    pass
            killed += await self.end()
            self._drain()
        return killed

    def _passed_limit(self) -> str | None:
        """Return which limit this worker passed; asked before the group that knows it is given back."""
        return self.over_limit or (self.hold.exceeded() if self.hold is not None else None)

    def _crash(self, when: str, kind: ErrorKind, cause: Exception | None = None) -> Failure:
        """Return why a guest that has ended is gone."""
        if (fault := self.guest.fault) is not None:
            return evolve(fault, kind=kind) if kind is ErrorKind.WORKER_CRASHED else fault
        if isinstance(cause, messages.ProtocolError) and isinstance(cause.__cause__, RecursionError):
            # Newer interpreters write deeper values than this one reads.
            return Failure(ErrorKind.BAD_OUTPUT, "$: nested too deeply", field="$")
        if isinstance(cause, messages.ProtocolError | frames.FrameTooLargeError):
            return Failure(kind, f"the worker's channel was disturbed {when}: {cause}")
        code = self.guest.exit_code or 0
        if code == -signal.SIGKILL:
            how = "was killed by SIGKILL, or closed the descriptor of its channel,"
        elif code < 0:
            how = f"was ended by {_signal_name(-code)}"
        else:
            how = f"ended with exit code {code}"
        return Failure(kind, f"the worker {how} {when}")

    async def end(self) -> tuple[str, ...]:
        """Kill the guest and its tree; return what user code had running. Not cancellable.

        Called again, or by several tasks at once, each returns the same when all is gone.
        """
        self.reusable = False
        with trio.CancelScope(shield=True):
            async with self._ending:
                if not self.ended:
                    self._killed = await self.guest.end()
                    self.ended = True
        return self._killed

    async def retire(self) -> None:
        """End an idle worker in order: exit handlers run, then whatever is left is killed. Not cancellable."""
        if self.ended:
            return
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self.grace_seconds), contextlib.suppress(ChannelClosedError):
                await self.guest.send(frames.encode(messages.encode(messages.Shutdown())))
                await self.guest.wait_ended()
            await self.end()

    def release(self) -> None:
        """Give back descriptors, limits and the working directory of a guest that has ended."""
        self.guest.close()
        if self.masked is not None:
            self.masked.close()
        if self.hold is not None:
            self.over_limit = self._passed_limit()  # a call that has not noticed yet asks later
            self.hold.release()
            self.hold = None


def _limit_failure(passed: str, otherwise: ErrorKind) -> Failure:
    """Return the failure of a worker that passed a limit, which `passed` names."""
    if "memory" in passed:
        return Failure(ErrorKind.OUT_OF_MEMORY, passed, field="memory")
    return Failure(otherwise, passed, field="processes")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have none
        return f"signal {number}"
