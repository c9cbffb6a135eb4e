"""`Verifying`: a content is read once before its use, and again when its time, size or inode has changed."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from actors.files.content import Stamp, digest_of, failed, stamp_of
from actors.files.model import StoredFile
from protocol.errors import ErrorKind, error

_REMEMBERED: Final = 10_000
"""Contents whose check is remembered; the oldest is forgotten first."""
log: Any = structlog.get_logger("files")


class Verifying:
    """The checks of contents, in threads."""

    def __init__(self, threads: trio.CapacityLimiter) -> None:
        """Check in these threads."""
        self._threads = threads
        self._checked: OrderedDict[str, tuple[Stamp, bool]] = OrderedDict()
        self.damaged: set[str] = set()
        """Ids of files that were found damaged, and not stored again since."""

    async def check(self, stored: StoredFile, exists: Callable[[str], Awaitable[bool]]) -> StoredFile | None:
        """Return the file, or None if it was deleted meanwhile, of which `exists` tells.

        Raises RunnerError `unavailable` if its content is damaged. Cancellation ends the check.
        """
        known = self._checked.get(stored.id)

        def work() -> tuple[Stamp, bool]:
            stamp = stamp_of(stored.path)
            if known is not None and known[0] == stamp:
                return known
            return stamp, digest_of(stored.path, trio.from_thread.check_cancelled) == stored.id

        reason = "its content has another digest"
        try:
            stamp, whole = await trio.to_thread.run_sync(work, limiter=self._threads)
        except OSError as problem:
            stamp, whole, reason = (0, 0, 0), False, problem.strerror or str(problem)
        if whole:
            self.remember(stored.id, stamp)
            return stored
        if not await exists(stored.id):
            return None
        if stored.id not in self.damaged:
            log.error("a stored file is damaged", file=stored.id, path=str(stored.path), reason=reason)
        self.damaged.add(stored.id)
        self._note(stored.id, (stamp, False))
        text = f"the stored file {stored.id} is damaged: {reason}; upload it again"
        raise error(ErrorKind.UNAVAILABLE, text, field="$file.id")

    async def digest(self, path: Path) -> str:
        """Return the id of a content that was written, when it is on the disk. Raises RunnerError."""

        def work() -> str:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            return digest_of(path, trio.from_thread.check_cancelled)

        try:
            return await trio.to_thread.run_sync(work, limiter=self._threads)
        except OSError as problem:
            raise failed(problem) from problem

    def remember(self, name: str, stamp: Stamp) -> None:
        """Note that a content with this stamp is whole."""
        self.damaged.discard(name)
        self._note(name, (stamp, True))

    def forget(self, name: str) -> None:
        """Forget a file that was deleted."""
        self.damaged.discard(name)
        self._checked.pop(name, None)

    def _note(self, name: str, found: tuple[Stamp, bool]) -> None:
        self._checked[name] = found
        if len(self._checked) > _REMEMBERED:
            self._checked.popitem(last=False)
