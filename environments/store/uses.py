"""Uses of environments: a shared file lock for each key prevents its removal; the file's time is the last use.

Every process with workers or modules of an environment has a shared lock on `KEY.use`. Removing or replacing the
environment takes an exclusive lock, or is refused at once. The kernel releases a lock when its process ends in any way.
The files are never deleted: a deleted file that another process waits for could be locked twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO

import trio
from attrs import define, field

_POLL_SECONDS = 0.05
_TOUCH_SECONDS = 60.0
"""The shortest interval between records of the last use."""


@define
class Uses:
    """The uses of environments of one store. `folder` has the lock files."""

    folder: Path
    _held: dict[str, IO[str]] = field(factory=dict, init=False)
    _touched: dict[str, float] = field(factory=dict, init=False)

    def path(self, key: str) -> Path:
        """Return the lock file of a key; its modification time is that of the last use."""
        return self.folder / f"{key}.use"

    async def hold(self, key: str, say: Callable[[str], None]) -> None:
        """Use an environment from now on; wait while another process removes or replaces it. Raises OSError.

        Polled, because a blocking flock in a thread cannot be cancelled. Cancelled, the environment is not in use.
        """
        announced = False
        while not self._try_hold(key):
            if not announced:
                say("another process is removing or replacing this environment")
                announced = True
            await trio.sleep(_POLL_SECONDS)

    def _try_hold(self, key: str) -> bool:
        if key in self._held:
            return True
        file = self._open(key)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._held[key] = file
        self.touch(key)
        return True

    def keep(self, keys: Collection[str]) -> None:
        """Stop using all environments but these. Never blocks."""
        for key in [key for key in self._held if key not in keys]:
            self._touched.pop(key, None)
            self.touch(key)
            del self._touched[key]
            self._held.pop(key).close()

    def touch(self, key: str) -> None:
        """Record that an environment is used now, at most once a minute."""
        now = time.monotonic()
        if now - self._touched.get(key, -_TOUCH_SECONDS) >= _TOUCH_SECONDS:
            self._touched[key] = now
            with contextlib.suppress(OSError):  # a full or read-only disk must not keep a worker from starting
                os.utime(self.path(key))

    def last(self, key: str) -> float | None:
        """Return the time of the last use in seconds since the epoch, or None if unknown."""
        try:
            return self.path(key).stat().st_mtime
        except OSError:
            return None

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[bool]:
        """Try to have exclusive access to an environment; give whether it succeeded. Never waits.

        New users wait in `hold` meanwhile. Raises OSError.
        """
        before = self.last(key)
        with self._open(key) as file:
            if before is None:  # opening created the file, which is not a use
                os.utime(file.fileno(), (0, 0))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def holders(self, key: str) -> tuple[int, ...]:
        """Return the processes that use an environment, as far as `/proc/locks` shows them."""
        try:
            number = self.path(key).stat().st_ino
            lines = Path("/proc/locks").read_text().splitlines()
        except OSError:
            return ()
        found = set()
        for line in lines:
            parts = line.split()
            if len(parts) >= 6 and parts[1] == "FLOCK" and parts[5].rpartition(":")[2] == str(number):
                found.add(int(parts[4]))
        return tuple(sorted(pid for pid in found if pid > 0))

    def _open(self, key: str) -> IO[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.path(key).open("a")
