"""Processes as /proc shows them: children, names, memory. Any process may be gone at any moment."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PROC = Path("/proc")
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
    return (_PROC / str(pid) / "task" / str(pid) / "children").exists()


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


def session(pid: int) -> int:
    """Return the session of a process, or 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[3]) if fields else 0


def name(pid: int) -> str:
    """Return the command name of a process, or `?` if it is gone."""
    try:
        return (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def helps(pid: int) -> bool:
    """Return whether a process is a helper of multiprocessing, which ends when those are gone that it serves.

    A resource tracker then removes the shared memory that they left. Any process may claim to be one. A process without
    a command is in the middle of its exec or of its exit, so it may be one too.
    """
    try:
        command = (_PROC / str(pid) / "cmdline").read_bytes()
        return not command or _HELPER.search(command) is not None
    except OSError:
        return False


def resident_bytes(pid: int) -> int:
    """Return the private resident memory of a process in bytes, without memory shared with others."""
    try:
        fields = (_PROC / str(pid) / "statm").read_bytes().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES
