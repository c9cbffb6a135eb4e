"""Copies of stored files for user code, which may change them: in a folder of their own for each call."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import trio
from attrs import define, field

_STEP_BYTES = 8 << 20
"""Copied between two checks; a disk takes milliseconds for it."""
_NOT_HERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""Why a kernel does not copy within itself: other file systems, old kernels."""


@define
class Copies:
    """The copies for one call, below a folder. `add` and `remove` block, `put` and `forget` use them in a thread."""

    folder: Path
    _made: Path | None = field(default=None, init=False)
    _count: int = field(default=0, init=False)

    async def put(self, source: Path, name: str) -> str:
        """Copy a file; return the path of the copy. Raises OSError. Cancelled, it ends at once."""
        return str(await trio.to_thread.run_sync(self.add, source, name, trio.from_thread.check_cancelled))

    def apart(self, execution: str) -> Copies:  # noqa: ARG002  (each has a folder of a name of its own)
        """Return the copies for one of many calls at a time."""
        return Copies(self.folder)

    async def forget(self) -> None:
        """Remove all copies."""
        await trio.to_thread.run_sync(self.remove)

    def add(self, source: Path, name: str, check: Callable[[], None]) -> Path:
        """Copy a file; return the copy, of that name. `check` is called between steps, and may raise. Raises OSError.

        It is never a link, since user code could change the stored file through it.
        """
        if self._made is None:
            self._made = Path(tempfile.mkdtemp(prefix="files-", dir=self.folder))  # no other program has this name
        self._count += 1
        inside = self._made / str(self._count)
        inside.mkdir(mode=0o700)
        copy = inside / name
        from_ = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            to = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _copy(from_, to, check)
            finally:
                os.close(to)
        finally:
            os.close(from_)
        return copy

    def remove(self) -> None:
        """Remove all copies."""
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)
            self._made = None


def _copy(source: int, target: int, check: Callable[[], None]) -> None:
    done, by_kernel = 0, True
    while True:
        check()
        try:
            if by_kernel:
                copied = os.copy_file_range(source, target, _STEP_BYTES, done)
            else:
                copied = os.sendfile(target, source, done, _STEP_BYTES)
        except OSError as problem:
            if not by_kernel or problem.errno not in _NOT_HERE:
                raise
            by_kernel = False
            continue
        if not copied:
            return
        done += copied
