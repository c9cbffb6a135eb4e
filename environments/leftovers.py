"""Folders that are of use only while their process lives, and the remains of killed processes.

A process holds its folder by a lock on a file in it, which the kernel releases at its death, however it dies. The next
runner removes folders without a holder, and kills the processes that were started in them: their working directory or
their HOME is inside.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from environments import proc

BACKUPS = ".backup-*"
"""The copies of databases that a backup makes in the data directory."""
_SHORT = Path("/tmp")  # noqa: S108  (only a link is made, by a name that did not exist)
_LONGEST = 60
"""Characters of a folder below which programs can make sockets: a path of one has at most 107, and multiprocessing adds
32 to the folder for temporary files.
"""
_LOCK = ".held"
_WAIT_SECONDS = 10.0
_PAUSE_SECONDS = 0.01


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Path]:
    """Make a folder that belongs to this process, and remove it with its contents on exit. Raises OSError."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the removal of a dead process's folder may be under way
            if (fd := _lock(folder)) is not None:
                break
        if time.monotonic() > deadline:
            raise BlockingIOError(errno.EAGAIN, "another process uses it", str(folder))
        time.sleep(_PAUSE_SECONDS)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


@contextlib.contextmanager
def shortened(folder: Path) -> Iterator[Path]:
    """Give a short path of a folder: a link in /tmp if its own is too long for sockets. Raises OSError."""
    if len(os.fsencode(folder)) <= _LONGEST or not os.access(_SHORT, os.W_OK):
        yield folder
        return
    while True:
        link = _SHORT / f"operato-{secrets.token_hex(4)}"
        with contextlib.suppress(FileExistsError):
            link.symlink_to(folder)
            break
    try:
        yield link
    finally:
        link.unlink(missing_ok=True)


def remove_links() -> None:
    """Remove the links of `shortened` to folders of workers that are gone, of this data directory or another one."""
    for link in _SHORT.glob("operato-*"):
        with contextlib.suppress(OSError):  # no link, or one of another user
            target = link.readlink()
            if target.parent.name == "work" and not target.exists():
                link.unlink()


def remove_left(parent: Path, pattern: str = "*") -> dict[int, str]:
    """Remove the folders of dead processes, after killing what was started in them; return ids and names. Blocks."""
    killed: dict[int, str] = {}
    for folder in list(parent.glob(pattern)):
        with contextlib.suppress(OSError):  # no folder, or one of another user
            if (fd := _lock(folder)) is not None:
                try:
                    killed |= proc.kill_all(partial(proc.started_in, str(folder)))
                    # Renamed first, so that another process can make a folder of this name at any moment.
                    shutil.rmtree(folder.rename(f"{folder}.removed-{os.getpid()}"), ignore_errors=True)
                finally:
                    os.close(fd)
    return killed


def _lock(folder: Path) -> int | None:
    """Return the descriptor that holds a folder, or None if a process holds it or just removed it. Raises OSError."""
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None
