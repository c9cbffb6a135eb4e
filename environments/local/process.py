"""Processes that run user code: started, and ended with proof. The only importer of subprocess.

Every guest leads its own session and is the subreaper of the processes that its user code starts: the whole tree,
double forks and setsid children included, stays below it. The runner is the subreaper above: processes of a dead guest
become children of the runner that it did not start, and the sweep kills them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import structlog
import trio

from environments import proc
from environments.local.guest import ProcessGuest

_KILL_SECONDS = 10.0
_HELPER_SECONDS = 2.0
"""The time that helpers of multiprocessing have to clean up and end when the processes that they serve are gone."""

log = structlog.get_logger("process")


class ProcessTable:
    """All processes that this runner started; ending one also ends everything that it left."""

    def __init__(self, work_dir: Path, short_dir: Path | None = None) -> None:
        """Put the guests into `work_dir`; `short_dir` is a short path of it, for temporary files and sockets."""
        self.work_dir, self._short_dir = work_dir, short_dir or work_dir
        self._known: set[int] = set()
        self._count = 0
        self.subreaper = proc.become_subreaper()
        proc.allow_descriptors()

    def spawn(self, argv: Sequence[str], environ: Mapping[str, str]) -> ProcessGuest:
        """Start a guest. Synchronous on purpose: Popen on the main thread takes 0.4 ms.

        The numbers of the frame and lifeline descriptors are appended to `argv`, and the directory of the guest, which
        is its HOME, working directory and, by a short path, TMPDIR: in a command it can be seen where those are hidden.
        Raises OSError if it cannot be started; nothing is left open then.
        """
        self._count += 1
        workdir = self.work_dir / f"{os.getpid()}-{self._count}"
        workdir.mkdir(parents=True, mode=0o700)
        home = str(workdir)
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, home, ignore_errors=True)
            host, guest = socket.socketpair()
            undo.callback(host.close)
            pipes = []
            for _ in range(3):
                ends = os.pipe()
                pipes.append(ends)
                undo.callback(os.close, ends[0])
                undo.callback(os.close, ends[1])
            (out_r, out_w), (err_r, err_w), (life_r, life_w) = pipes
            with guest:
                popen = subprocess.Popen(
                    [*argv, str(guest.fileno()), str(life_r), home],
                    stdin=subprocess.DEVNULL,
                    stdout=out_w,
                    stderr=err_w,
                    pass_fds=(guest.fileno(), life_r),
                    start_new_session=True,
                    cwd=home,
                    env={**environ, "HOME": home, "TMPDIR": f"{self._short_dir}/{workdir.name}"},
                )
            undo.callback(popen.wait)
            undo.callback(popen.kill)
            pidfd = os.pidfd_open(popen.pid)
            undo.pop_all()
        for fd in (out_w, err_w, life_r):
            os.close(fd)
        host.setblocking(False)
        for fd in (out_r, err_r):
            os.set_blocking(fd, False)
        self._known.add(popen.pid)
        started = ProcessGuest(self, popen, pidfd, host, (out_r, err_r), life_w, workdir)
        started.limit_nowait()
        return started

    async def end(self, guest: ProcessGuest) -> tuple[str, ...]:
        """Kill a guest and its whole tree; return `pid name` of each process that user code had started.

        Returns when all are gone. Not cancellable: an execution has ended only when its processes are gone.
        """
        with trio.CancelScope(shield=True):
            # Stopped first, so that it cannot fork between the search and the kill.
            guest.signal_nowait(signal.SIGSTOP)

            def below() -> Iterable[int]:
                """Return the processes below the guest but its helpers, which come to the sweep after its end."""
                found = proc.descendants(guest.pid) if guest.exit_code is None else ()
                return [pid for pid in found if not proc.helps(pid)]

            killed = await self._kill(below)
            guest.signal_nowait(signal.SIGKILL)
            with trio.move_on_after(_KILL_SECONDS) as late:
                await guest.wait_ended()
            if late.cancelled_caught:
                log.error("a killed worker does not end", pid=guest.pid)
            else:
                self._known.discard(guest.pid)
            killed += await self.sweep()
        return killed

    async def end_children(self, guest: ProcessGuest, keep: frozenset[int], stays: frozenset[int]) -> tuple[str, ...]:
        """Kill the processes that an execution left below a guest, except `keep` with everything below, and `stays`.

        Returns `pid name` of each when all are gone. Not cancellable.
        """

        def left() -> Iterable[int]:
            kept = keep | stays
            for pid in keep - stays:
                kept = kept.union(proc.descendants(pid))
            return [pid for pid in proc.descendants(guest.pid) if pid not in kept]

        with trio.CancelScope(shield=True):
            killed = await self._kill(left)
        return killed

    async def sweep(self) -> tuple[str, ...]:
        """Kill every child of the runner that it did not start, left by dead guests. Return `pid name` of each."""
        me = os.getpid()
        # Guests lead their own sessions; processes in the runner's session come from trusted in-process handlers.
        session = os.getsid(0)

        def orphans() -> list[int]:
            return [pid for pid in proc.children(me) if pid not in self._known and proc.session(pid) != session]

        found = orphans()
        if not found:
            return ()
        with trio.CancelScope(shield=True):
            killed = await self._kill(lambda: [*(top := orphans()), *(pid for o in top for pid in proc.descendants(o))])
        return killed

    async def _kill(self, find: Callable[[], Iterable[int]]) -> tuple[str, ...]:
        """Kill what `find` returns, again until nothing that it finds is alive. Helpers may first end by themselves."""
        killed: dict[int, str] = {}
        patience = trio.current_time() + _HELPER_SECONDS
        deadline = trio.current_time() + _KILL_SECONDS
        me = os.getpid()
        while True:
            pids = list(find())
            living = [pid for pid in pids if proc.alive(pid)]
            mine = set(proc.children(me)) - self._known
            for pid in mine.intersection(pids).difference(living):
                _reap(pid)
            if not living:
                return tuple(f"{pid} {name}" for pid, name in killed.items())
            if trio.current_time() > deadline:
                log.error("killed processes do not end", pids=living)
                return tuple(f"{pid} {name}" for pid, name in killed.items())
            doomed = [pid for pid in living if not proc.helps(pid)]
            if not doomed and trio.current_time() < patience:
                await trio.sleep(0.002)
                continue
            for pid in doomed or living:
                killed.setdefault(pid, proc.name(pid))
                _signal(pid, signal.SIGKILL)
            for pid in doomed or living:
                await _wait_gone(pid)

    async def run(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str],
        *,
        on_line: Callable[[str], None],
        cwd: Path | None = None,
    ) -> int:
        """Run a tool (an installer) to its end; return the exit code. `on_line` gets each line of its output.

        Cancelled, the tool's process group is killed before Cancelled propagates.
        """
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
            env=dict(environ),
        )
        self._known.add(popen.pid)
        assert popen.stdout is not None  # noqa: S101  (it was asked for)
        fd = popen.stdout.fileno()
        os.set_blocking(fd, False)
        pidfd = os.pidfd_open(popen.pid)
        rest = b""
        try:
            while True:
                await trio.lowlevel.wait_readable(fd)
                try:
                    data = os.read(fd, 65536)
                except BlockingIOError:
                    continue
                *lines, rest = (rest + data).split(b"\n")
                for line in lines if data else [rest]:
                    on_line(line.decode(errors="replace").rstrip("\r"))
                if not data:
                    break
            while popen.poll() is None:
                await trio.lowlevel.wait_readable(pidfd)
            return popen.returncode
        finally:
            with trio.CancelScope(shield=True):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(popen.pid, signal.SIGKILL)
                while popen.poll() is None:
                    await trio.lowlevel.wait_readable(pidfd)
                self._known.discard(popen.pid)
                await self.sweep()
            os.close(pidfd)
            popen.stdout.close()

    def statistics(self) -> int:
        """Return the number of processes that were started and have not ended."""
        return len(self._known)


def _default_signals() -> None:
    """Give a process that an in-process handler forked the signals of a program instead of those of the runner."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_default_signals)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def _wait_gone(pid: int) -> None:
    """Wait until a killed process is at least a zombie; for a second at most, since a kernel call may delay its end."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        with trio.move_on_after(1.0):
            await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
