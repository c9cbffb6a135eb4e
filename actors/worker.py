"""One live guest: loads one module version, runs one execution at a time; every death becomes a `Failure`."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import define, evolve, field, frozen

from environments.base import ChannelClosedError
from environments.limits import WATCH_SECONDS
from protocol import frames, messages
from protocol.errors import ErrorKind, Failure, RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from actors.output import Output
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


@frozen
class Call:
    """One attempt to run a handler. `timeout` is in seconds from now; `on_event` gets items and progress."""

    id: str
    input: msgspec.Raw
    attempt: int
    timeout: float
    output: Output
    on_event: Callable[[messages.Item | messages.Progress], None] | None = None


@frozen
class Outcome:
    """What one attempt came to: a result as JSON, or a failure; `seconds` is the handler's own time."""

    result: bytes | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    exit_code: int = 0
    killed: tuple[str, ...] = ()


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
    _ending: trio.Lock = field(factory=trio.Lock, init=False)
    _killed: tuple[str, ...] = field(default=(), init=False)
    _output: Output | None = field(default=None, init=False)
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
        if self._output is not None:
            self._output.write(stream, data)
        elif data:
            log.debug("output outside of an execution", worker=self.guest.name, stream=stream, bytes=len(data))

    def _drain(self) -> None:
        """Take what was printed until now: what came before the answer belongs to this execution."""
        self.guest.drain(self._printed)

    async def _receive(self) -> messages.GuestMessage:
        while not self._pending:
            self._pending = self._decoder.feed(await self.guest.receive())
        return messages.decode(self._pending.pop(0))

    async def start(self, module: Published, output: Output) -> messages.Ready:
        """Load a module. Raises RunnerError `load_failed` or `timeout`; the worker has ended then.

        Cancelled, the worker has ended before Cancelled goes on.
        """
        self.module = module
        self._output = output
        spec = module.spec
        hello = messages.Hello(
            entry="",
            root="",
            handler=module.function,
            package=module.package,
            isolation=spec.isolation,
            variables=dict(module.variables),
            max_frame_bytes=self.max_frame_bytes,
        )
        failure: Failure | None = None
        try:
            with trio.move_on_after(spec.start_timeout) as scope:
                output.on_limit = scope.cancel
                hello.root, hello.entry = await self.guest.bring(module.root, module.entry)
                await self.guest.send(frames.encode(messages.encode(hello)))
                answer = await self._receive()
            if scope.cancelled_caught:
                failure = self._start_failure(output)
            elif isinstance(answer, messages.Ready):
                self._drain()
                self.guest.loaded(children=answer.children)
                self._output = None
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
        raise RunnerError(failure or self._crash("while the module was imported", ErrorKind.LOAD_FAILED, passed))

    def _start_failure(self, output: Output) -> Failure:
        if output.exceeded:
            text = f"more than {output.limit} bytes were printed while the module was imported"
            return Failure(ErrorKind.OUTPUT_LIMIT, text)
        spec = self.module.spec if self.module else None
        text = f"the module was not imported within start_timeout ({spec.start_timeout if spec else 0:g} s)"
        return Failure(ErrorKind.LOAD_FAILED, text, field="start_timeout")

    async def execute(self, call: Call) -> Outcome:
        """Run the handler once. Never raises for what user code does.

        Returns when the handler has answered and every process that it started is gone. When it timed out, printed
        too much or crashed the whole worker is gone. Cancelled, the worker is ended before Cancelled goes on.
        """
        self._output = output = call.output
        self.calls += 1
        answer: messages.Result | messages.Error | None = None
        broken: Exception | None = None
        try:
            with trio.move_on_after(call.timeout) as scope:
                output.on_limit = scope.cancel
                execute = messages.Execute(call.id, call.attempt, call.timeout, call.input)
                try:
                    await self.guest.send(frames.encode(messages.encode(execute)))
                    answer = await self._answer(call)
                except (ChannelClosedError, messages.ProtocolError, frames.FrameTooLargeError) as problem:
                    broken = problem
            if answer is not None and not output.exceeded:
                return await self._finish(answer, output)
            if broken is not None:
                passed = self._passed_limit()
                killed = await self.end()
                self._drain()
                failure = self._crash("during the call", ErrorKind.WORKER_CRASHED, passed, broken)
                return Outcome(failure=failure.with_killed(killed), exit_code=self.guest.exit_code or 1, killed=killed)
            killed = await self._stop(call.id)
            return self._cut_off(call, killed)
        except BaseException:  # Cancelled, or whoever listens to events failed: the handler may still be running
            with trio.CancelScope(shield=True):
                await self._stop(call.id)
            raise
        finally:
            output.on_limit = None
            self._output = None

    async def _answer(self, call: Call) -> messages.Result | messages.Error:
        while True:
            message = await self._receive()
            if isinstance(message, messages.Result | messages.Error) and message.id == call.id:
                return message
            if isinstance(message, messages.Item | messages.Progress) and message.id == call.id:
                if call.on_event is not None:
                    call.on_event(message)
                continue
            raise messages.ProtocolError(f"an answer was expected, not {type(message).__name__}")

    async def _finish(self, answer: messages.Result | messages.Error, output: Output) -> Outcome:
        killed = answer.killed
        if answer.children:
            killed += await self.guest.end_children()
        self._drain()
        if output.exceeded:
            return self._printed_too_much(output, killed + await self.end())
        if isinstance(answer, messages.Result):
            return Outcome(result=bytes(answer.value), seconds=answer.seconds, killed=killed)
        kind = _GUEST_KINDS.get(answer.kind, ErrorKind.HANDLER_ERROR)
        if kind in (ErrorKind.CANCELLED, ErrorKind.OUT_OF_MEMORY):
            self.reusable = False
        if kind is ErrorKind.WORKER_CRASHED and (text := self._passed_limit()):
            kind, answer.message = ErrorKind.OUT_OF_MEMORY, text
        failure = Failure(kind, answer.message, answer.error_type, answer.traceback, answer.field, killed=killed)
        return Outcome(failure=failure, seconds=answer.seconds, exit_code=1, killed=killed)

    def _cut_off(self, call: Call, killed: tuple[str, ...]) -> Outcome:
        if call.output.exceeded:
            return self._printed_too_much(call.output, killed)
        text = f"the handler did not end within {call.timeout:g} s"
        return Outcome(
            failure=Failure(ErrorKind.TIMEOUT, text, field="timeout", killed=killed),
            seconds=call.timeout,
            exit_code=124,
            killed=killed,
        )

    def _printed_too_much(self, output: Output, killed: tuple[str, ...]) -> Outcome:
        text = f"the execution printed more than {output.limit} bytes; raise `output` or print less"
        failure = Failure(ErrorKind.OUTPUT_LIMIT, text, field="output", killed=killed)
        return Outcome(failure=failure, exit_code=1, killed=killed)

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

    def _crash(self, when: str, kind: ErrorKind, passed: str | None, cause: Exception | None = None) -> Failure:
        """Return why a guest that has ended is gone."""
        if (fault := self.guest.fault) is not None:
            return evolve(fault, kind=kind) if kind is ErrorKind.WORKER_CRASHED else fault
        if passed:
            return Failure(ErrorKind.OUT_OF_MEMORY if "memory" in passed else ErrorKind.WORKER_CRASHED, passed)
        if isinstance(cause, messages.ProtocolError) and isinstance(cause.__cause__, RecursionError):
            # Newer interpreters write deeper values than this one reads.
            return Failure(ErrorKind.BAD_OUTPUT, "$: nested too deeply", field="$")
        if isinstance(cause, messages.ProtocolError | frames.FrameTooLargeError):
            return Failure(kind, f"the worker's channel was disturbed {when}: {cause}")
        code = self.guest.exit_code or 0
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how = "was killed by SIGKILL, or closed the descriptor of its channel,"
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
        if self.hold is not None:
            self.hold.release()
            self.hold = None
