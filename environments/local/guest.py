"""A guest that is a process of this machine: its channel, its pipes, its signals. `process.py` starts and ends it."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import trio

from environments import proc
from environments.base import ChannelClosedError, InterruptedWaitError, Printed
from environments.limits import Hold, LimitKeeper, Limits
from environments.local.copies import Copies
from protocol import frames, messages
from protocol.errors import Failure
from protocol.model import Stream

_RECEIVE_BYTES = 256 * 1024
_READ_BYTES = 65536
_DRAINED_READS = 1 + (1 << 20) // _READ_BYTES
"""Enough for the largest pipe; code that continues to print is not followed."""


class Child(Protocol):
    """The used part of `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """The process id."""

    returncode: int

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs. Reaps it."""


class Table(Protocol):
    """The table that started the process and can end it with proof."""

    async def end(self, guest: ProcessGuest) -> tuple[str, ...]:
        """Kill a guest and its whole tree."""

    async def end_children(self, guest: ProcessGuest, keep: frozenset[int], stays: frozenset[int]) -> tuple[str, ...]:
        """Kill everything below a guest, except `keep` with everything below, and `stays`."""


class ProcessGuest:
    """A guest that is a process of this machine: a socketpair for frames, two pipes for output."""

    fault: Failure | None = None

    def __init__(
        self,
        table: Table,
        popen: Child,
        pidfd: int,
        channel: socket.socket,
        outputs: tuple[int, int],
        lifeline: int,
        workdir: Path,
    ) -> None:
        self.pid = popen.pid
        self.name = str(popen.pid)
        self.workdir = workdir
        self.inbox = Copies(workdir)
        self._table = table
        self._keep: frozenset[int] = frozenset()
        self._popen = popen
        self._channel = channel
        self._spoken, self._printed, self._gone = select.poll(), select.poll(), select.poll()
        self._gone.register(pidfd, select.POLLIN)
        self._spoken.register(channel, select.POLLIN)
        for fd in outputs:
            self._printed.register(fd, select.POLLIN)
        self.outputs = outputs
        self._lifeline = lifeline
        self._pidfd = pidfd
        self.closed = False

    async def confine(self, limits: Limits, keeper: LimitKeeper) -> Hold | None:
        """Put the guest under limits; return None if there are no limits. Raises OSError."""
        return await trio.to_thread.run_sync(keeper.apply, self.pid, limits) if limits else None

    async def bring(self, root: Path, entry: Path) -> tuple[str, str]:
        """Return the same paths: the guest sees the same files."""
        return str(root), str(entry)

    async def tend(self, printed: Printed) -> None:
        """Read both pipes until the process has ended."""
        async with trio.open_nursery() as nursery:
            for fd, stream in zip(self.outputs, Stream, strict=True):
                nursery.start_soon(self._read_output, fd, stream, printed)
            await self.wait_ended()
            self.drain(printed)
            nursery.cancel_scope.cancel()

    async def _read_output(self, fd: int, stream: Stream, printed: Printed) -> None:
        data = b"?"
        while data:
            await trio.lowlevel.wait_readable(fd)
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return
            printed(stream, data)

    def drain(self, printed: Printed) -> None:
        """Read all output that is in the pipes now."""
        if self.closed or not self._printed.poll(0):  # one question where nothing was printed
            return
        for fd, stream in zip(self.outputs, Stream, strict=True):
            for _ in range(_DRAINED_READS):
                try:
                    data = os.read(fd, _READ_BYTES)
                except OSError:
                    break
                if not data:
                    break
                printed(stream, data)

    def loaded(self, *, children: bool) -> None:
        """Record the processes that the import left."""
        self._keep = frozenset(proc.descendants(self.pid)) if children else frozenset()

    async def end_children(self, stays: Collection[int]) -> tuple[str, ...]:
        """Kill the processes that an execution left; see `ProcessTable.end_children`."""
        return await self._table.end_children(self, self._keep, frozenset(stays))

    async def stop(self, execution: str) -> None:
        """Announce the stop, so that the guest knows its origin, and send SIGTERM to the group."""
        with contextlib.suppress(OSError):  # a guest that has not read its frame yet cannot be stopped softly
            self._channel.send(frames.encode(messages.encode(messages.Cancel(execution))))
        self.signal_group_nowait(signal.SIGTERM)

    async def end(self) -> tuple[str, ...]:
        """Kill the process and its tree; see `ProcessTable.end`."""
        return await self._table.end(self)

    async def send(self, frame: bytes) -> None:
        """Write one whole frame. Cancelled or interrupted, a frame may be cut off, and the guest must be killed.

        Raises ChannelClosedError and InterruptedWaitError.
        """
        view = memoryview(frame)
        try:
            while True:
                try:
                    sent = self._channel.send(view)
                except BlockingIOError:
                    sent = 0
                if sent == len(view):
                    return
                view = view[sent:]
                await trio.lowlevel.wait_writable(self._channel)
        except trio.ClosedResourceError:
            raise _woken(self.closed, unread=True) from None
        except OSError as problem:
            raise ChannelClosedError(unread=True) from problem

    def has_spoken(self) -> bool:
        """Return whether there is something to receive from a guest that lives."""
        found = self._spoken.poll(0)
        return bool(found) and found[0][1] == select.POLLIN  # with POLLHUP at its end

    async def receive(self) -> bytes:
        """Wait for bytes of frames; never returns empty. Raises ChannelClosedError and InterruptedWaitError."""
        if self.closed:  # the guest has ended while the caller was busy with something else
            raise ChannelClosedError
        try:
            await trio.lowlevel.wait_readable(self._channel)
            data = self._channel.recv(_RECEIVE_BYTES)
        except trio.ClosedResourceError:
            raise _woken(self.closed) from None
        except OSError as problem:
            # A Unix socket closed with unread bytes resets its peer (unix_release_sock in the kernel).
            raise ChannelClosedError(unread=isinstance(problem, ConnectionResetError)) from problem
        if not data:
            raise ChannelClosedError
        return data

    def interrupt(self) -> None:
        """Wake the task that waits for the channel, as if the channel were closed."""
        if not self.closed:
            trio.lowlevel.notify_closing(self._channel)

    def limit_nowait(self, *, open_files: int = 4096) -> None:
        """Set the limits of every guest: no core files, a limited number of descriptors."""
        with contextlib.suppress(ProcessLookupError, PermissionError, ValueError):
            resource.prlimit(self.pid, resource.RLIMIT_CORE, (0, 0))
            hard = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)[1]
            files = open_files if hard == resource.RLIM_INFINITY else min(open_files, hard)
            resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (files, files))

    async def wait_ended(self) -> int:
        """Wait until the guest itself has ended; return its exit code, negative for a signal. Reaps it."""
        if self._popen.poll() is None:
            # Trio lets one task wait for a descriptor, but both `tend` and `end` wait here.
            pidfd = os.dup(self._pidfd)
            try:
                while self._popen.poll() is None:
                    await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return self._popen.returncode

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        # A poll takes a third of the time of a wait; closed, the number may be that of another file.
        return self._popen.poll() if self.closed or self._gone.poll(0) else None

    def signal_nowait(self, number: int) -> None:
        """Send a signal to the guest itself; do nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, number)

    def signal_group_nowait(self, number: int) -> None:
        """Send a signal to the guest's group; do nothing if the guest has ended, since its id may be reused.

        SIGTERM requests a soft stop.
        """
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def close(self) -> None:
        """Close the descriptors and remove the working directory. The process must have ended."""
        if self.closed:
            return
        self.closed = True
        # A task that began to wait after the last look at the events would never hear of the end.
        trio.lowlevel.notify_closing(self._channel)
        self._channel.close()
        for fd in (*self.outputs, self._lifeline, self._pidfd):
            os.close(fd)
        shutil.rmtree(self.workdir, ignore_errors=True)


def _woken(closed: bool, *, unread: bool = False) -> Exception:
    """Return why a wait for the channel ended without an event of it."""
    return ChannelClosedError(unread=unread) if closed else InterruptedWaitError()
