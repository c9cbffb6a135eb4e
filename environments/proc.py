"""Processes as /proc shows them: children, names, memory; and their end. Any process may be gone at any moment.

The watcher of the runner is a bare interpreter with this file: it imports little.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterable

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 512 * 1024
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_KILL_SECONDS = 10.0
_PAUSE_SECONDS = 0.002
_DESCRIPTORS = 65536
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_HELPER = re.compile(rb"\.(resource_tracker|forkserver) import main")
"""In the command of a helper of multiprocessing."""


def children(pid: int) -> list[int]:
    """Return the direct children of a process, zombies included; empty if it is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  (names, not paths)
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123  (read after every sweep)
                found.extend(map(int, file.read().split()))
        except FileNotFoundError:
            if not _children_file_exists():
                return _children_by_scan(pid)
        except OSError:
            continue
    return found


def _children_file_exists() -> bool:
    """Return whether this kernel has the `children` file (CONFIG_PROC_CHILDREN)."""
    pid = os.getpid()
    return os.path.exists(f"/proc/{pid}/task/{pid}/children")  # noqa: PTH110  (see above: no pathlib)


def _children_by_scan(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208  (names, not paths)
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields and int(fields[1]) == pid:
                found.append(int(entry))
    return found


def descendants(pid: int) -> list[int]:
    """Return every process below `pid`, parents before their children."""
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children(todo.pop())
        found.extend(below)
        todo.extend(below)
    return found


def _stat(pid: int) -> list[bytes] | None:
    """Return the fields of /proc/PID/stat from the state on, or None if the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  (read after every sweep)
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def alive(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in (b"Z", b"X")


def stopped(pid: int) -> bool:
    """Return whether a signal has stopped the process."""
    fields = _stat(pid)
    return fields is not None and fields[0] == b"T"


def session(pid: int) -> int:
    """Return the session of a process, or 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[3]) if fields else 0


def name(pid: int) -> str:
    """Return the command name of a process, or `?` if it is gone."""
    try:
        with open(f"/proc/{pid}/comm", errors="replace", encoding="utf-8") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError:
        return "?"


def helps(pid: int) -> bool:
    """Return whether a process is a helper of multiprocessing, which ends when those are gone that it serves.

    A resource tracker then removes the shared memory that they left. Any process may claim to be one. A process without
    a command is in the middle of its exec or of its exit, so it may be one too.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123  (see `children`)
            command = file.read()
    except OSError:
        return False
    return not command or _HELPER.search(command) is not None


def resident_bytes(pid: int) -> int:
    """Return the private resident memory of a process in bytes, without memory shared with others."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123
            fields = file.read().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES


def started_in(folder: str) -> list[int]:
    """Return the processes whose working directory or HOME is a folder or below it, as far as they can be seen.

    Where a guest hides both, its command names the directory, also for its forks. Without this process and its parent.
    One with a terminal is the shell of an operator, unless its HOME is there.
    """
    ours = (os.getpid(), os.getppid())
    inside = os.path.realpath(folder)
    marks = tuple(b"HOME=" + os.fsencode(each) + b"/" for each in {folder, inside})
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208  (names, not paths)
        if not entry.isdigit() or (pid := int(entry)) in ours or not alive(pid):
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
                last = file.read().rstrip(b"\0").rpartition(b"\0")[2]
            if (b"HOME=" + last).startswith(marks) and not has_terminal(pid):
                found.append(pid)
                continue
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
                at_home = any(variable.startswith(marks) for variable in file.read().split(b"\0"))
            where = os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")  # noqa: PTH115
            if at_home or (f"{where}/".startswith(f"{inside}/") and not has_terminal(pid)):
                found.append(pid)
    return found


def has_terminal(pid: int) -> bool:
    """Return whether a process has a controlling terminal."""
    fields = _stat(pid)
    return fields is not None and fields[4] != b"0"


def become_subreaper() -> bool:
    """Make orphans below this process its children, also after `exec`; return whether the system allows it."""
    import ctypes  # noqa: PLC0415  (the watcher does not need it)

    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def allow_descriptors() -> None:
    """Let this process open as many files as its hard limit allows: each worker needs five descriptors."""
    import resource  # noqa: PLC0415  (see above)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def hide() -> None:
    """Keep workers, which have the same user, out of this process's memory and descriptors; root reaches them still.

    Where /proc hides what its reader cannot trace (hidepid), other commands of this user would not see this process any
    more: not there.
    """
    import ctypes  # noqa: PLC0415  (see above)

    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            hidden = "hidepid=" in file.read()
    except OSError:
        hidden = False
    if not hidden:
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def give_back_memory() -> None:
    """Let the C library give large buffers back to the system when they are freed.

    By itself it keeps them in the heap from the second one on, where others cut the free space into pieces: after some
    floods of large bodies, hundreds of MiB. A C library without this setting has no such heap.
    """
    import ctypes  # noqa: PLC0415  (see above)

    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def trim_memory() -> None:
    """Give the free pages of the C library's heaps, of which threads have their own, back to the system. Blocks."""
    import ctypes  # noqa: PLC0415  (see above)

    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def kill_all(find: Callable[[], Iterable[int]], seconds: float = _KILL_SECONDS) -> dict[int, str]:
    """Kill what `find` returns, again until nothing that it finds is alive; return the names. Blocks.

    A process that the kernel does not let go is waited for `seconds`.
    """
    killed: dict[int, str] = {}
    deadline = time.monotonic() + seconds
    while True:
        found = list(find())
        # Zombies too: the threads of a process may outlive its first one.
        for pid in found:
            if pid not in killed and alive(pid):
                killed[pid] = name(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not any(map(alive, found)) or time.monotonic() > deadline:
            return killed
        time.sleep(_PAUSE_SECONDS)
