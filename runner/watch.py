"""The watcher: a small process above the runner, which kills all processes that the runner leaves when it dies.

The process that the user started is the watcher; the runner is its child, in a session of its own. The watcher is the
subreaper of all processes below: when the runner is killed, its workers and their children become children of the
watcher, in any session and any group. It kills them, and ends as the runner ended.

- Signals to the watcher are passed on. As the runner has its own session, those of the terminal reach it once, too.
- Ctrl-Z stops both.
- If the watcher is killed, the runner notices, kills everything below itself, and ends as if it was killed.
- The watcher reaps orphans, which in a container belong to process 1.

It is a bare interpreter without site-packages; of the runner it imports this file and `environments/proc.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Collection

from environments import proc

TYPE_CHECKING = False  # `typing` is not in the watcher
if TYPE_CHECKING:
    import threading
    from typing import NoReturn

_PASSED_ON = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
_WAITED_FOR = {signal.SIGCHLD, signal.SIGTSTP, *_PASSED_ON}
_FREEZE = signal.SIGRTMIN + 1
_FREEZE_SECONDS = 1.0
"""How long the main thread may take to notice a signal; one call of C code delays it."""
_NAME = "operato-watcher"
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from runner.watch import main; main()"


def be_watched() -> int | None:
    """Continue as a child of the calling process, which becomes the watcher; return the watcher's process id.

    Returns None, in the same process, if the system has no subreapers. To be called before any thread is started.
    """
    if not proc.become_subreaper():
        return None
    watcher = os.getpid()
    others = proc.children(watcher)
    # Blocked signals wait for the watcher's first look, over fork and exec.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    runner = os.fork()
    if runner:
        _become_watcher(runner, others)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    import threading  # noqa: PLC0415  (not in the watcher)

    frozen = threading.Event()
    signal.signal(_FREEZE, lambda *_: _freeze(frozen))
    threading.Thread(target=_follow, args=(watcher, frozen, threading.get_ident()), name="watcher", daemon=True).start()
    return watcher


def _freeze(frozen: threading.Event) -> NoReturn:
    frozen.set()
    while True:
        signal.pause()


def _follow(watcher: int, frozen: threading.Event, main_thread: int) -> None:
    """Wait for the end of the watcher; then kill everything below this process, and this process.

    The main thread does nothing meanwhile: it would record that the workers crashed.
    """
    import select  # noqa: PLC0415  (not in the watcher)

    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(watcher)
        if os.getppid() == watcher:  # else it has ended, and its id may be that of another process
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            ended.poll()
    signal.pthread_kill(main_thread, _FREEZE)
    frozen.wait(_FREEZE_SECONDS)
    me = os.getpid()
    proc.kill_all(lambda: proc.descendants(me))
    os.kill(me, signal.SIGKILL)


def _become_watcher(runner: int, others: Collection[int]) -> None:
    """Watch in an interpreter without what this one has imported; does not return."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  (no pathlib)
    with contextlib.suppress(OSError):  # without `exec` this process watches, with more memory
        argv = [sys.executable, "-I", "-S", "-B", "-c", _BOOT, root, str(runner), *map(str, others)]
        os.execv(sys.executable, argv)  # noqa: S606
    watch(runner, others)


def main() -> None:
    """Watch the first process of the command line; the others were not started by the runner, and are spared."""
    runner, *others = map(int, sys.argv[2:])
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(_NAME)
    watch(runner, others)


def watch(runner: int, others: Collection[int]) -> None:
    """Pass signals on until the runner ends, kill everything below this process except `others`, and end likewise."""
    proc.hide()  # its variables are those of the runner
    code = None
    while code is None:
        number = signal.sigwait(_WAITED_FOR)
        if number == signal.SIGCHLD:
            code = _reap(runner)
        elif number == signal.SIGTSTP:
            os.kill(runner, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(runner, signal.SIGCONT)
        else:
            os.kill(runner, number)
    me = os.getpid()
    proc.kill_all(lambda: [p for top in proc.children(me) if top not in others for p in (top, *proc.descendants(top))])
    if code < 0:
        _die_by(-code)
    os._exit(code)


def _reap(runner: int) -> int | None:
    """Reap what has ended; return the exit code of the runner, negative for a signal, or None while it lives."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == runner:
                code = os.waitstatus_to_exitcode(ended[1])
    return code


def _die_by(number: int) -> None:
    """Die by a signal, without a core file over that of the runner."""
    import resource  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os._exit(128 + number)  # process 1 does not die by its own signals
