"""The program as a process, quickly: a fork of one that has imported it, since imports take most of a start.

The process that is forked runs this file. It has imported the program and done nothing else; each command is a process
of its own with its own folder, variables, streams and exit code. How the program starts and what it imports are tested
with real starts (`tests/acceptance/test_start.py`, `test_dist.py`).
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import io
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
_SECONDS = 60.0


def run_program(
    arguments: Sequence[str | bytes],
    *,
    cwd: Path,
    environ: Mapping[str, str],
    stdin: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """Run a command of the program, in a folder and with exactly these variables, as `subprocess.run` would."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        process = start_program(arguments, cwd=cwd, environ=environ, streams=(given, out, err))
        try:
            code = process.wait(_SECONDS)
        except BaseException:
            process.send_signal(signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(arguments, code, _content(out), _content(err))


def start_program(
    arguments: Sequence[str | bytes], *, cwd: Path, environ: Mapping[str, str], streams: Sequence[IO[bytes]]
) -> Forked | subprocess.Popen[bytes]:
    """Start the program with files as its standard streams.

    With variables that Python or the loader of programs reads, and that differ from those here, it really starts.
    """
    early = {name: value for name, value in environ.items() if name.startswith(("PYTHON", "LD_"))}
    if early.items() - os.environ.items():
        command = [sys.executable, str(ROOT / "main.py"), *arguments]
        stdin, stdout, stderr = streams
        return subprocess.Popen(command, cwd=cwd, env=environ, stdin=stdin, stdout=stdout, stderr=stderr)
    return _forks().start([os.fsdecode(each) for each in arguments], cwd, dict(environ), streams)


class Forked:
    """A process of the program, which the tests can ask and signal as one of their own."""

    def __init__(self, line: socket.socket, asked: bytes) -> None:
        self.returncode: int | None = None
        self._line = line
        line.settimeout(_SECONDS)
        with line.makefile("rwb", buffering=0) as both:
            both.write(asked + b"\n")
            self.pid = int(both.readline())

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended, or raise `subprocess.TimeoutExpired`."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(["operato-runner"], timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None:
            self._line.settimeout(seconds)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                self.returncode = int(self._line.recv(16))
                self._line.close()
        return self.returncode

    def __del__(self) -> None:
        self._line.close()


class _Forks:
    """The process that is forked, which ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, str(Path(__file__)), str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        atexit.register(self.close)

    def start(self, arguments: list[str], cwd: Path, environ: dict[str, str], streams: Sequence[IO[bytes]]) -> Forked:
        asked = json.dumps({"arguments": arguments, "cwd": str(cwd), "environ": environ}).encode()
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            fds = array.array("i", [*(stream.fileno() for stream in streams), theirs.fileno()])
            self._line.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        return Forked(ours, asked)

    def close(self) -> None:
        self._line.close()
        self._process.wait()


_made: list[_Forks] = []
_making = threading.Lock()


def _forks() -> _Forks:
    with _making:
        if not _made:
            _made.append(_Forks())
        return _made[0]


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


# -- the process that is forked ----------------------------------------------------------------------------------------


def _serve(line: socket.socket) -> None:
    """Fork a process for each command, until the tests have ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets those that have reported
    while True:
        sent, control, *_ = line.recvmsg(1, socket.CMSG_SPACE(4 * array.array("i").itemsize))
        if not sent:
            return
        fds = array.array("i")
        for _, _, content in control:
            fds.frombytes(content)
        if os.fork() == 0:
            line.close()
            _report(socket.socket(fileno=fds[3]), fds[:3])
        for fd in fds:
            os.close(fd)


def _report(line: socket.socket, streams: Sequence[int]) -> NoReturn:
    """Start one command; tell its process ID and, when it has ended, its exit code."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with line.makefile("rb") as asked:
            wanted = json.loads(asked.readline())
        pid = os.fork()
        if pid == 0:
            line.close()
            _become(wanted, streams)
        for fd in streams:
            os.close(fd)
        line.sendall(f"{pid}\n".encode())
        line.sendall(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    finally:
        os._exit(0)


def _become(asked: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    """Be the program from here on, as a process that was started."""
    code = 1
    try:
        for fd, stream in enumerate(streams):
            os.dup2(stream, fd)
        os.closerange(3, 1024)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["environ"])
        main = str(ROOT / "main.py")
        sys.argv = [main, *asked["arguments"]]
        sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False))  # noqa: SIM115  (open to the end)
        sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False))  # noqa: SIM115
        sys.stderr = io.TextIOWrapper(
            open(2, "wb", closefd=False),  # noqa: SIM115
            errors="backslashreplace",
            line_buffering=True,
        )
        code = _ran(main)
        sys.stdout.flush()
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _ran(main: str) -> int:
    """Run a file as `python FILE` does; return its exit code."""
    try:
        runpy.run_path(main, run_name="__main__")
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        print(left.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BaseException:  # noqa: BLE001  (as Python does)
        traceback.print_exc()
        return 1
    return 0


def _import_all() -> None:
    """Import what commands import, so that forks need not."""
    for package in ("protocol", "config", "environments", "actors", "runner"):
        for found in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
            if not found.name.startswith(("protocol.authors", "runner.__main__")) and found.name not in _OTHERS:
                import_module(found.name)
    for library in ("httpx", "rich.progress", "rich.table", "jsonschema"):
        import_module(library)


_OTHERS = {
    *(f"protocol.{name}" for name in ("guest", "many", "parts", "relay", "sharing", "values")),
    "environments.conda.child",
    "runner.health",
    "runner.backup",
}
"""Programs of their own."""


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    _import_all()
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
