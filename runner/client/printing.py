"""What a call or a follower shows: output as it was, results, and notes; and Ctrl-C while that goes on."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable

import click
import trio
from attrs import define, field

from protocol.errors import RunnerError
from protocol.events import DroppedEvent, OutputEvent, ProgressEvent, StatusEvent
from protocol.model import Status, Stream
from runner.client.events import End, Message
from runner.status import INTERRUPTED

HELD_BYTES = 16 * 1024 * 1024
"""How much of its output is held back until a call has ended."""
LEAVE_SECONDS = 30.0
"""How long a runner may take to say that an execution ended that was cancelled."""
_RESTARTED = 500_000
"""Numbers jump further when a runner was restarted."""


@define(eq=False)
class Printer:
    """Shows output. `live`: at once, else when it is told to, that of the last attempt. `apart`: stdout to stdout."""

    live: bool
    apart: bool
    _held: deque[tuple[int, bytes]] = field(factory=deque, init=False)
    _held_bytes: int = field(default=0, init=False)
    _left_out: int = field(default=0, init=False)
    _mid_line: bool = field(default=False, init=False)

    async def show(self, event: Message) -> None:
        """Show what an event says. Cancelled, some of it may have been written."""
        if isinstance(event, OutputEvent):
            await self.output(event.stream, event.text)
        elif isinstance(event, DroppedEvent):
            await self._put(2, self._line(dropped_text(event)))
        elif isinstance(event, StatusEvent):
            if event.status is Status.RUNNING and not event.reason:
                self._new_attempt()
            if event.reason:
                await self.note(event.reason)
        elif isinstance(event, ProgressEvent):
            await self.note(progress_text(event))

    async def output(self, stream: Stream, text: str) -> None:
        """Show a piece of output."""
        to = 1 if self.apart and stream is Stream.STDOUT else 2
        if to == 2 and text:
            self._mid_line = not text.endswith("\n")
        await self._put(to, text.encode("utf-8", "replace"))

    async def note(self, text: str) -> None:
        """Say something to a person who watches; nothing where nobody does, so that output stays as it was."""
        if self.live and sys.stderr.isatty():
            await self._put(2, self._line(text))

    def again(self) -> None:
        """Say to a person who watches that the connection was lost, and is made again."""
        if self.live and sys.stderr.isatty():
            click.echo("-- the connection was lost; going on when the runner is there again", err=True)

    async def flush(self) -> None:
        """Show what is held back."""
        if self._left_out:
            await write(2, f"-- the first {self._left_out} bytes of the output are left out\n".encode())
        while self._held:
            await write(*self._held.popleft())
        self._held_bytes = self._left_out = 0

    async def end(self, end: End) -> int:
        """Show how it ended: the result, and exit code 0. Raises RunnerError with the failure."""
        await self.flush()
        if end.failure is not None:
            if self._mid_line:
                await write(2, b"\n")
            raise RunnerError(end.failure)
        if not self.apart:
            await write(1, (end.result or b"null") + b"\n")
        return 0

    def _line(self, text: str) -> bytes:
        start, self._mid_line = ("\n" if self._mid_line else ""), False
        return f"{start}-- {text}\n".encode()

    def _new_attempt(self) -> None:
        if not self.live:
            self._held.clear()
            self._held_bytes = self._left_out = 0
            self._mid_line = False

    async def _put(self, to: int, data: bytes) -> None:
        if self.live:
            await write(to, data)
            return
        self._held.append((to, data))
        self._held_bytes += len(data)
        while self._held_bytes > HELD_BYTES and len(self._held) > 1:
            first = len(self._held.popleft()[1])
            self._held_bytes -= first
            self._left_out += first


def dropped_text(event: DroppedEvent) -> str:
    """Return what a gap means."""
    if event.events >= _RESTARTED and not event.bytes:
        return "the runner was restarted here; some of the output may be missing"
    return f"dropped: {event.events} events with {event.bytes} bytes were not kept"


def progress_text(event: ProgressEvent) -> str:
    """Return how far a handler says it is."""
    numbers = [f"{number:g}" for number in (event.done, event.total) if number is not None]
    return " ".join(part for part in ("/".join(numbers), event.text) if part)


async def write(to: int, data: bytes) -> None:
    """Write to a descriptor. A reader that takes nothing holds up only this. Cancelled, it goes on in its thread."""
    await trio.to_thread.run_sync(_write_all, to, data, abandon_on_cancel=True)


def _write_all(to: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(to, rest) :]
        except BlockingIOError:  # a terminal that somebody else made so
            select.select([], [to], [])


@define(eq=False)
class Interrupts:
    """Ctrl-C and SIGTERM while something goes on: the first is told to the runner, the second leaves at once."""

    cancel: Callable[[], Awaitable[None]] | None = None
    """Ends the execution on the runner; None while there is none, then the first signal leaves."""
    left: bool = False
    _asked: bool = False

    async def run(self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        """Hear signals until cancelled; `scope` is what goes on."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if self.cancel is None or self._asked:
                    self._leave(scope)
                    return
                self._asked = True
                click.echo("cancelling; again leaves without waiting for the end", err=True)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.cancel)
                    nursery.start_soon(self._limit, scope)
                    async for _again in signals:
                        self._leave(scope)
                        return

    async def _limit(self, scope: trio.CancelScope) -> None:
        await trio.sleep(LEAVE_SECONDS)
        self._leave(scope)

    def _leave(self, scope: trio.CancelScope) -> None:
        self.left = True
        scope.cancel()


async def interruptible(work: Callable[[Interrupts], Awaitable[int]]) -> int:
    """Run `work` and return its exit code, 130 when it was left."""
    interrupts = Interrupts()
    code = INTERRUPTED
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            await nursery.start(interrupts.run, scope)
            code = await work(interrupts)
        nursery.cancel_scope.cancel()
    return code
