"""Who uses an environment: a shared file lock for each key keeps it from being removed, and says when it was used last.

`KEY.use` is locked shared by every process that has workers of the environment or serves a module of it; whoever
removes or replaces the environment locks it exclusively, and leaves it alone when that cannot be had at once. The
kernel gives a lock back when its process ends, however it does. The files stay: one that was removed while somebody
waits for its lock could be locked twice.
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
"""The time of the last use is written down this often at most."""


@define
class Uses:
    """The uses of the environments of one store. `folder` is where the lock files are."""

    folder: Path
    _held: dict[str, IO[str]] = field(factory=dict, init=False)
    _touched: dict[str, float] = field(factory=dict, init=False)

    @property
    def held(self) -> frozenset[str]:
        """The keys that this process uses."""
        return frozenset(self._held)

    def path(self, key: str) -> Path:
        """Return the lock file of a key; its modification time is that of the last use."""
        return self.folder / f"{key}.use"

    async def hold(self, key: str, say: Callable[[str], None]) -> None:
        """Use an environment from now on; waits while another process removes or replaces it. Raises OSError.

        Polled, because a blocking flock in a thread cannot be cancelled. Cancelled, it is not used.
        """
        told = False
        while not self._try_hold(key):
            if not told:
                say("another process is removing or replacing this environment")
                told = True
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
        """Use no others than these any more. Never blocks."""
        for key in [key for key in self._held if key not in keys]:
            self._touched.pop(key, None)
            self.touch(key)
            del self._touched[key]
            self._held.pop(key).close()

    def touch(self, key: str) -> None:
        """Note that an environment is used now; written down once a minute at most."""
        now = time.monotonic()
        if now - self._touched.get(key, -_TOUCH_SECONDS) >= _TOUCH_SECONDS:
            self._touched[key] = now
            with contextlib.suppress(OSError):  # a full or read-only disk must not keep a worker from starting
                os.utime(self.path(key))

    def last(self, key: str) -> float | None:
        """Return when the environment was used last, in seconds since the epoch; None when that is not known."""
        try:
            return self.path(key).stat().st_mtime
        except OSError:
            return None

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[bool]:
        """Be the only one who has to do with an environment; gives whether that could be had. Never waits.

        Those who come meanwhile wait in `hold`. Raises OSError.
        """
        before = self.last(key)
        with self._open(key) as file:
            if before is None:  # the file is made by looking, which is no use
                os.utime(file.fileno(), (0, 0))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def holders(self, key: str) -> tuple[int, ...]:
        """Return the processes that use an environment, as far as the kernel lets them be seen (`/proc/locks`)."""
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
