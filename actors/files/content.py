"""The content of files on disk: folders by the first digits of the digest, and unfinished ones. Everything here blocks.

A content appears whole or not at all, by a rename; unfinished ones of a killed runner are removed at the next start.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from attrs import frozen

from protocol.errors import ErrorKind, RunnerError, error

LEAST_FREE_BYTES: Final = 256 * 1024 * 1024
"""No file takes the last bytes of a disk: the history needs them for the ends of executions."""
PIECE_BYTES: Final = 512 * 1024
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PREFIX: Final = "sha256:"
Stamp: TypeAlias = tuple[int, int, int]
"""Inode, time of change and size: equal as long as nothing wrote to a content."""


@frozen
class Content:
    """The folder of all contents."""

    root: Path
    """`files` in the data directory."""

    def path_of(self, name: str) -> Path:
        """Return the path of the content of a file, present or not."""
        digest = name.removeprefix(_PREFIX)
        return self.root / digest[:2] / digest

    @property
    def _unfinished(self) -> Path:
        return self.root / "unfinished"

    def sweep(self) -> None:
        """Make the folders, and remove the unfinished contents of a runner that was killed. Raises OSError."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._unfinished.mkdir(exist_ok=True, mode=0o700)

    def make(self) -> tuple[BinaryIO, Path]:
        """Return a new unfinished content, readable for its owner only. Raises OSError and RunnerError."""
        fd, name = tempfile.mkstemp(dir=self._unfinished)
        return os.fdopen(fd, "wb", buffering=0), Path(name)

    def place(self, unfinished: Path, name: str) -> Stamp:
        """Make a content, which is on the disk, that of the file `name`. Raises OSError.

        The old content is replaced: this repairs a damaged one, and readers of a whole one keep that which they opened.
        """
        to = self.path_of(name)
        if not to.parent.is_dir():
            to.parent.mkdir(mode=0o700, exist_ok=True)
            _bring_to_disk(self.root)
        unfinished.rename(to)
        _bring_to_disk(to.parent)
        return stamp_of(to)

    def remove(self, name: str) -> None:
        """Remove the content of a file. Raises OSError, but not for one that is gone."""
        self.path_of(name).unlink(missing_ok=True)

    def folders(self) -> list[Path]:
        """Return the folders with contents. Raises OSError."""
        return sorted(path for path in self.root.iterdir() if len(path.name) == 2)

    def names_in(self, folder: Path) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the ids of the contents in a folder."""
        for path in folder.iterdir():
            if len(path.name) == 64:
                with suppress(OSError):
                    yield f"{_PREFIX}{path.name}", path.stat()

    def check_room(self, size: int) -> None:
        """Raise RunnerError `out_of_storage` if `size` more bytes would leave too little of the disk free."""
        free = shutil.disk_usage(self.root).free
        if free - size < LEAST_FREE_BYTES:
            text = f"the disk of {self.root} has {free} bytes free, and {LEAST_FREE_BYTES} of them are left to the"
            raise error(ErrorKind.OUT_OF_STORAGE, f"{text} history; make room on it")


def stamp_of(path: Path) -> Stamp:
    """Return the stamp of a content. Raises OSError."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def digest_of(path: Path, check: Callable[[], None]) -> str:
    """Return the id that a content should have; `check` is called between pieces, and may raise. Raises OSError."""
    digest, buffer = hashlib.sha256(), bytearray(PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
            check()
    return _PREFIX + digest.hexdigest()


def name_of(digest: str) -> str:
    """Return the id of a file by the hexadecimal digest of its content."""
    return _PREFIX + digest


def failed(problem: OSError) -> RunnerError:
    """Return the failure of a content that cannot be written."""
    why = problem.strerror or str(problem)
    if problem.errno in _FULL:
        return error(ErrorKind.OUT_OF_STORAGE, f"the file cannot be stored: {why}; make room on the disk")
    return error(ErrorKind.UNAVAILABLE, f"the file cannot be stored: {why}", retry_after=5.0)


def _bring_to_disk(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
