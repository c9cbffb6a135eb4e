"""Printing a call or an execution: its output unchanged, its result, notes; and Ctrl-C during that."""

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
from protocol.model import Stream
from runner.client.events import End, Message
from runner.status import INTERRUPTED

KEPT_BYTES = 16 * 1024 * 1024
"""How much output of a call is kept back until its end."""
LEAVE_SECONDS = 30.0
"""How long to wait for the end of a cancelled execution."""
_RESTARTED = 500_000
"""A restart of the runner leaves a larger gap in the numbers."""


@define(eq=False)
class Printer:
    """Prints output. `live`: at once, else the last attempt's at `flush`. `apart`: stdout to stdout, not to stderr."""

    live: bool
    apart: bool
    _attempt: int = field(default=1, init=False)
    _kept: deque[tuple[int, bytes]] = field(factory=deque, init=False)
    _kept_bytes: int = field(default=0, init=False)
    _left_out: int = field(default=0, init=False)
    _mid_line: bool = field(default=False, init=False)

    async def show(self, event: Message) -> None:
        """Print an event. Cancelled, a part of it may have been written."""
        if isinstance(event, OutputEvent):
            await self.output(event.stream, event.text)
        elif isinstance(event, DroppedEvent):
            await self._put(2, self._line(dropped_text(event)))
        elif isinstance(event, StatusEvent):
            if event.attempt > self._attempt:
                self._attempt = event.attempt
                self._new_attempt()
            if event.reason:
                await self.note(event.reason)
        elif isinstance(event, ProgressEvent):
            await self.note(progress_text(event))

    async def output(self, stream: Stream, text: str) -> None:
        """Print a piece of output."""
        to = 1 if self.apart and stream is Stream.STDOUT else 2
        if to == 2 and text:
            self._mid_line = not text.endswith("\n")
        await self._put(to, text.encode("utf-8", "replace"))

    async def note(self, text: str) -> None:
        """Print a note on a terminal; elsewhere nothing, so that the output stays unchanged."""
        if self.live and sys.stderr.isatty():
            await self._put(2, self._line(text))

    def again(self) -> None:
        """Print on a terminal that the connection was lost and is reopened."""
        if self.live and sys.stderr.isatty():
            click.echo("-- the connection was lost; continuing when the runner is back", err=True)

    async def flush(self) -> None:
        """Print the output kept back."""
        if self._left_out:
            await write(2, f"-- the first {self._left_out} bytes of the output are omitted\n".encode())
        while self._kept:
            await write(*self._kept.popleft())
        self._kept_bytes = self._left_out = 0

    async def end(self, end: End, *, to_stdout: bool = True) -> int:
        """Print the result, unless it goes elsewhere, and return exit code 0. Raises RunnerError with the failure."""
        await self.flush()
        if end.failure is not None:
            if self._mid_line:
                await write(2, b"\n")
            raise RunnerError(end.failure)
        if to_stdout and not self.apart:
            await write(1, (end.result or b"null") + b"\n")
        return 0

    def _line(self, text: str) -> bytes:
        start, self._mid_line = ("\n" if self._mid_line else ""), False
        return f"{start}-- {text}\n".encode()

    def _new_attempt(self) -> None:
        if not self.live:
            self._kept.clear()
            self._kept_bytes = self._left_out = 0
            self._mid_line = False

    async def _put(self, to: int, data: bytes) -> None:
        if self.live:
            await write(to, data)
            return
        self._kept.append((to, data))
        self._kept_bytes += len(data)
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            first = len(self._kept.popleft()[1])
            self._kept_bytes -= first
            self._left_out += first


def dropped_text(event: DroppedEvent) -> str:
    """Return the meaning of a gap in the events."""
    if event.events >= _RESTARTED and not event.bytes:
        return "the runner was restarted here; some of the output may be missing"
    return f"dropped: {event.events} events with {event.bytes} bytes were not kept"


def progress_text(event: ProgressEvent) -> str:
    """Return the progress reported by a handler."""
    numbers = [f"{number:g}" for number in (event.done, event.total) if number is not None]
    return " ".join(part for part in ("/".join(numbers), event.text) if part)


async def write(to: int, data: bytes) -> None:
    """Write to a descriptor; a slow reader blocks only this call. Cancelled, its thread continues to write."""
    await trio.to_thread.run_sync(_write_all, to, data, abandon_on_cancel=True)


def _write_all(to: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(to, rest) :]
        except BlockingIOError:  # another process made the terminal non-blocking
            select.select([], [to], [])


@define(eq=False)
class Interrupts:
    """Ctrl-C and SIGTERM while work runs: the first one cancels on the runner, the second one stops waiting."""

    cancel: Callable[[], Awaitable[None]] | None = None
    """Cancels the execution on the runner; while it is None, the first signal stops waiting."""

    async def run(self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        """Receive signals until cancelled; `scope` is that of the work."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if self.cancel is None:
                    scope.cancel()
                    return
                click.echo("cancelling; press Ctrl-C again to stop waiting for the end", err=True)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.cancel)
                    nursery.start_soon(self._limit, scope)
                    async for _again in signals:
                        scope.cancel()
                        return

    async def _limit(self, scope: trio.CancelScope) -> None:
        await trio.sleep(LEAVE_SECONDS)
        scope.cancel()


async def interruptible(work: Callable[[Interrupts], Awaitable[int]]) -> int:
    """Run `work`; return its exit code, or 130 if it was interrupted."""
    interrupts = Interrupts()
    code = INTERRUPTED
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            await nursery.start(interrupts.run, scope)
            code = await work(interrupts)
        nursery.cancel_scope.cancel()
    return code
