"""A guest that is a container: started, attached, read frame by frame, and removed with proof."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import closing
from io import FileIO
from pathlib import Path
from typing import Any

import structlog
import trio
from attrs import define, evolve, field, frozen

from environments.base import ChannelClosedError, InterruptedWaitError, Printed
from environments.docker.engine import (
    Api,
    Attached,
    Engine,
    EngineAwayError,
    EngineError,
    NotThereError,
    StreamBrokenError,
)
from environments.docker.programs import Waits
from environments.limits import LimitKeeper, Limits, memory_exceeded
from protocol import frames, messages
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.model import Stream

BASE = "/operato"
"""The directory in the container, in memory, with the module's code and the guest's HOME."""
_KILL_SECONDS = 2.0
_REMOVE_SECONDS = 10.0
_AGAIN_SECONDS = 0.25
_PIECE_BYTES = 256 * 1024
_TAIL_BYTES = 4096
_WAITING_MESSAGES = 4
_OF_RELAY = (b'{"type":"output"', b'{"type":"limit"', b'{"type":"ended"')

log = structlog.get_logger("container")


@define(eq=False)
class Container:
    """One container at the engine, by its name."""

    engine: Engine
    name: str
    create: Callable[[Api, str], object]
    """Creates it."""
    made: bool = field(default=False, init=False)

    async def make(self) -> None:
        """Create the container. Raises EngineError; it does not exist then. Cancelled, it may exist."""
        self.made = True
        try:
            await self.engine.call(lambda api: self.create(api, self.name))
        except EngineError:
            self.made = False
            raise

    async def start(self, program: bytes) -> Attached:
        """Start the container with `program` on its standard input. Raises EngineError and StreamBrokenError."""
        attached = await self.engine.attach(self.name)
        try:
            await self.engine.call(lambda api: api.start(self.name))
            await attached.send(program)
        except BaseException:
            attached.close()
            raise
        return attached

    async def state(self) -> Mapping[str, Any]:
        """Return the container's state in the engine's words. Raises EngineError."""
        return await self.engine.call(lambda api: dict(api.inspect_container(self.name)["State"]))

    async def remove(self) -> None:
        """Remove the container if it was made, until the engine confirms that it is gone; give up after ten seconds."""
        deadline = trio.current_time() + _REMOVE_SECONDS
        while self.made:
            try:
                await self.engine.call(lambda api: remove_container(api, self.name))
            except NotThereError:
                self.made = False
                return
            except EngineError as problem:
                if trio.current_time() > deadline:
                    why = problem.failure.message
                    log.error("a container could not be removed", name=self.name, why=why)  # noqa: TRY400
                    return
            await trio.sleep(_AGAIN_SECONDS)


@frozen
class ContainerHold:
    """The limits of a container: the engine enforces them, and the relay reports kills for memory."""

    guest: ContainerGuest

    def exceeded(self) -> str | None:
        """Return which limit was exceeded, as a sentence, or None."""
        if not self.guest.out_of_memory:
            return None
        return memory_exceeded(self.guest.memory_bytes)

    def watched(self) -> bool:
        """Return False: polling `exceeded` is not needed."""
        return False

    def release(self) -> None:
        """Do nothing: the limits end with the container."""


@define(eq=False)
class ContainerInbox:
    """Sends files into the memory of a container, as frames for its relay."""

    _send: Callable[[bytes], Awaitable[None]]
    _place: str = ""
    _whole: trio.Lock = field(factory=trio.Lock)
    """Held for one file, whose frames follow each other."""
    _count: int = field(default=0, init=False)

    async def put(self, source: Path, name: str) -> str:
        """Send a file for the next execution. One that does not fit is the relay's answer to that."""
        self._count += 1
        path = f"files/{self._place}{self._count}/{name}"
        await self.send(source, path)
        return f"{BASE}/{path}"

    async def forget(self) -> None:
        """Do nothing: the relay has removed them."""

    def apart(self, execution: str) -> ContainerInbox:
        """Return the inbox of one of many executions at a time, with a folder of its own."""
        return ContainerInbox(self._send, f"{execution}/", self._whole)

    async def send(self, source: Path, path: str) -> None:
        """Send a file to a path below BASE, read piece by piece in a thread."""
        with closing(await trio.to_thread.run_sync(FileIO, source)) as file:
            async with self._whole:
                await self._send(frames.encode(messages.encode(messages.File(path))))
                while piece := await trio.to_thread.run_sync(file.read, _PIECE_BYTES):
                    await self._send(frames.encode_bytes(piece))
                await self._send(frames.encode_bytes(b""))


@define(eq=False)
class ContainerGuest:
    """A container whose first process is the relay. `tend` makes, starts and reads it."""

    container: Container
    program: bytes
    """The first frame on its standard input: the sources of guest and relay."""
    workdir: str
    memory_bytes: int
    max_frame_bytes: int
    name: str = field(init=False)
    """The name of the container."""
    pid: int | None = field(default=None, init=False)
    out_of_memory: bool = field(default=False, init=False)
    exit_code: int | None = field(default=None, init=False)
    fault: Failure | None = field(default=None, init=False)
    inbox: ContainerInbox = field(init=False)
    _waits: Waits = field(factory=Waits, init=False)
    interrupt: Callable[[], None] = field(init=False)
    """Ends the waits of `send` and `receive`."""
    _attached: Attached | None = field(default=None, init=False)
    _sending: trio.Lock = field(factory=trio.Lock, init=False)
    _begun: trio.Event = field(factory=trio.Event, init=False)
    """Set when the start has ended: the guest runs, or `fault` has the reason."""
    _over: trio.Event = field(factory=trio.Event, init=False)
    _wanted: bool = field(default=True, init=False)
    _tended: bool = field(default=False, init=False)
    _loaded: bool = field(default=False, init=False)
    _cut: bool = field(default=False, init=False)
    """A frame to the relay was cut off; nothing more can be sent."""
    _too_large: frames.FrameTooLargeError | None = field(default=None, init=False)
    _killed: tuple[str, ...] = field(default=(), init=False)
    _tail: bytes = field(default=b"", init=False)
    _decoder: frames.FrameDecoder = field(init=False)
    _put: trio.MemorySendChannel[bytes] = field(init=False)
    _get: trio.MemoryReceiveChannel[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.name = self.container.name
        self.inbox = ContainerInbox(self.send)
        self.interrupt = self._waits.end
        self._decoder = frames.FrameDecoder(self.max_frame_bytes + 65536)
        self._put, self._get = trio.open_memory_channel[bytes](_WAITING_MESSAGES)

    async def tend(self, printed: Printed) -> None:
        """Start the container, then read its stream until it has ended. Failures of the engine become `fault`."""
        self._tended = True
        try:
            await self._start()
            if self._attached is not None:
                await self._follow(printed)
        finally:
            self._tended = False

    async def _start(self) -> None:
        try:
            if self._wanted:
                await self.container.make()
            if self._wanted:
                self._attached = await self.container.start(self.program)
        except EngineError as problem:
            if self._attached is None and not isinstance(problem, EngineAwayError):
                problem.failure = evolve(problem.failure, message=f"no container: {problem.failure.message}")
            self._lost(problem.failure)
        except StreamBrokenError:
            await self._look_after()
        finally:
            self._begun.set()

    def _lost(self, failure: Failure) -> None:
        """Note that the container is gone, or out of reach, and that user code is not the reason."""
        self.fault = failure
        self._ended(-9)

    def _ended(self, code: int) -> None:
        self.exit_code = code
        self._put.close()
        self._over.set()

    async def _follow(self, printed: Printed | None) -> None:
        """Read until the end. Without `printed`, output and answers are dropped."""
        assert self._attached is not None  # noqa: S101  (it has started)
        try:
            while not self._over.is_set():
                for stream, data in await self._attached.receive():
                    if stream is Stream.STDERR:  # an error of the relay, or of an image without Python
                        self._tail = (self._tail + data)[-_TAIL_BYTES:]
                        continue
                    for payload in self._decoder.feed(data):
                        await self._take(payload, printed)
        except frames.FrameTooLargeError as problem:
            self._too_large = problem
            self._put.close()
            await self._over.wait()
        except StreamBrokenError:
            if not self._over.is_set():
                await self._look_after()

    async def _take(self, payload: bytes, printed: Printed | None) -> None:
        if not payload.startswith(_OF_RELAY):
            if printed is not None and not self._over.is_set():
                try:
                    await self._put.send(payload)
                except (trio.BrokenResourceError, trio.ClosedResourceError):  # the guest is being ended
                    return
            return
        try:
            message = messages.decode(payload)
        except messages.ProtocolError:
            return
        if isinstance(message, messages.Output):
            # Output between executions belongs to none of them.
            if printed is not None and (message.id or not self._loaded):
                printed(Stream(message.stream), message.text.encode())
        elif isinstance(message, messages.Limit):
            self.out_of_memory = True
        elif isinstance(message, messages.Ended):
            self._killed = message.killed
            self._ended(message.exit_code)

    async def _look_after(self) -> None:
        """Ask the engine why the stream ended before the relay sent `ended`."""
        try:
            state = await self.container.state()
        except NotThereError:
            self._lost(Failure(ErrorKind.UNAVAILABLE, f"the container {self.name} was removed from outside"))
        except EngineError as problem:
            text = f"the container was lost: {problem.failure.message}"
            self._lost(evolve(problem.failure, message=text))
        else:
            if state.get("Running"):
                self._lost(Failure(ErrorKind.UNAVAILABLE, "the engine closed the stream of a running container"))
                return
            self.out_of_memory = self.out_of_memory or bool(state.get("OOMKilled"))
            code = int(state.get("ExitCode") or 0)
            if self._tail:
                text = self._tail.decode(errors="replace")
                log.warning("a container ended", name=self.name, exit_code=code, stderr=text)
            self._ended(128 - code if code > 128 else code)

    async def confine(self, limits: Limits, keeper: LimitKeeper) -> ContainerHold:  # noqa: ARG002  (it was made with them)
        """Wait until the container runs. Raises RunnerError with the engine's message if it cannot start."""
        await self._begun.wait()
        if self.fault is not None:
            raise RunnerError(self.fault)
        return ContainerHold(self)

    async def bring(self, root: Path, entry: Path) -> tuple[str, str]:
        """Send the module's files into the container's memory; paths in the image stay. Raises ChannelClosedError."""
        if not entry.is_absolute():
            return self.workdir, f"{self.workdir.rstrip('/')}/{entry}"
        for path in await trio.to_thread.run_sync(_files, root):
            await self.inbox.send(path, f"code/{root.name}/{path.relative_to(root).as_posix()}")
        return f"{BASE}/code/{root.name}", f"{BASE}/code/{root.name}/{entry.relative_to(root)}"

    async def send(self, frame: bytes) -> None:
        """Write one frame to the relay. Raises ChannelClosedError and InterruptedWaitError."""
        with self._waits.one() as scope:
            await self._begun.wait()
            async with self._sending:
                if self._attached is None or self._cut or self._over.is_set():
                    raise ChannelClosedError(unread=True)
                self._cut = True
                try:
                    await self._attached.send(frame)
                except StreamBrokenError as problem:
                    raise ChannelClosedError from problem
                self._cut = False
        if scope.cancelled_caught:
            raise InterruptedWaitError

    def has_spoken(self) -> bool:
        """Return whether a living worker has sent a frame that was not received."""
        left = self._get.statistics()
        return not self._over.is_set() and bool(left.current_buffer_used or left.tasks_waiting_send)

    async def receive(self) -> bytes:
        """Wait for a frame of the worker. Raises ChannelClosedError, FrameTooLargeError and InterruptedWaitError."""
        with self._waits.one():
            try:
                return frames.encode(await self._get.receive())
            except (trio.EndOfChannel, trio.ClosedResourceError) as problem:
                if self._too_large is not None:
                    raise self._too_large from None
                raise ChannelClosedError from problem
        raise InterruptedWaitError

    def drain(self, printed: Printed) -> None:
        """Do nothing: the relay sends all output before the answer."""

    def loaded(self, *, children: bool) -> None:  # noqa: ARG002  (the relay knows them)
        """Note that output outside of executions is dropped from now on; before, it belongs to the load."""
        self._loaded = True

    async def end_children(self, stays: Collection[int]) -> tuple[str, ...]:  # noqa: ARG002
        """Do nothing: the relay ended them before it passed the answer on, and named them in it."""
        return ()

    async def stop(self, execution: str) -> None:
        """Make the relay send SIGTERM to the worker."""
        try:
            await self.send(frames.encode(messages.encode(messages.Cancel(execution))))
        except ChannelClosedError:
            return

    async def end(self) -> tuple[str, ...]:
        """Make the relay kill everything and name what it killed, then remove the container.

        An engine that does not answer is tried for ten seconds; after that the sweep removes the container later.
        """
        with trio.CancelScope(shield=True):
            self._wanted = False
            self._get.close()  # messages that are not received any more must not hold up the report of the end
            await self._begun.wait()
            if not self._over.is_set():
                with trio.move_on_after(_KILL_SECONDS):
                    try:
                        await self.send(frames.encode(messages.encode(messages.Kill())))
                        await self.wait_ended()
                    except ChannelClosedError:
                        pass
            if not self._over.is_set():
                self._ended(-9)
            await self.container.remove()
        return self._killed

    async def wait_ended(self) -> int:
        """Wait until the worker has ended; return its exit code."""
        if not self._tended and self._attached is not None and not self._over.is_set():
            self._tended = True
            try:
                await self._follow(None)
            finally:
                self._tended = False
        await self._over.wait()
        return self.exit_code if self.exit_code is not None else -9

    def close(self) -> None:
        """Close the stream."""
        if self._attached is not None:
            self._attached.close()


def remove_container(api: Api, name: str) -> None:
    """Kill and remove a container with its volumes. Raises the SDK's NotFound, which proves that it is gone."""
    api.remove_container(name, force=True, v=True)
    api.inspect_container(name)


def _files(root: Path) -> list[Path]:
    """Return the files below a folder."""
    return sorted(path for path in root.rglob("*") if path.is_file())
