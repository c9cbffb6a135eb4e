"""Content-addressed environment directories: built in a temporary one, renamed when whole, one build for each key.

Layout under the root: `KEY/` (never modified after the rename; `KEY/operato.json` says what is in it),
`.locks/KEY` (held while building, across processes), `.logs/KEY.log` (the installer's own words), `.tmp/`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio
from attrs import define, field

from environments.base import BuildWatch

_LOCK_POLL_SECONDS = 0.05
MANIFEST = "operato.json"


@define
class Store:
    """The directories of one kind. `get` is single flight within the process and across processes."""

    root: Path
    builds: int = 0
    _locks: dict[str, trio.Lock] = field(factory=dict, init=False)

    def path(self, key: str) -> Path:
        """Return where the environment of `key` is or will be."""
        return self.root / key

    def ready(self, key: str) -> bool:
        """Return whether the environment exists whole."""
        return (self.root / key / MANIFEST).is_file()

    def log_path(self, key: str) -> Path:
        """Return where the build log of `key` is kept; failed builds leave theirs too."""
        return self.root / ".logs" / f"{key}.log"

    async def get(
        self,
        key: str,
        manifest: Mapping[str, Any],
        build: Callable[[Path], Awaitable[None]],
        say: BuildWatch,
        *,
        in_place: bool = False,
    ) -> Path:
        """Return the directory of `key`; when it does not exist, `build(temporary directory)` makes it.

        `in_place`: it is built where it will be, for installers that write down where they are; it counts as soon as
        it has a manifest, which comes last. Cancelled or failed, what was made is removed. Raises what `build` raises,
        and OSError.
        """
        target = self.path(key)
        if self.ready(key):
            return target
        async with self.lock(key, say):
            if not self.ready(key):
                async with say.place():
                    await self._build(key, manifest, build, in_place=in_place)
        return target

    @contextlib.asynccontextmanager
    async def lock(self, key: str, say: Callable[[str], None]) -> AsyncIterator[None]:
        """Be the only one who builds `key`, in this process and among all that share the directory."""
        async with self._locks.setdefault(key, trio.Lock()), self._process_lock(key, say):
            yield

    async def _build(
        self, key: str, manifest: Mapping[str, Any], build: Callable[[Path], Awaitable[None]], *, in_place: bool
    ) -> None:
        target, temporary = self.path(key), self.root / ".tmp" / f"{key}.{os.getpid()}"
        temporary.parent.mkdir(parents=True, exist_ok=True)
        for left in temporary.parent.glob(f"{key}.*"):  # of runners that were killed: the lock is held
            shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # a directory without manifest is no environment
            shutil.rmtree(target)
        folder = target if in_place else temporary
        self.builds += 1
        try:
            await build(folder)
            note = folder / f".{MANIFEST}"
            note.write_text(json.dumps({**manifest, "key": key, "built_at": time.time()}, indent=1))
            note.rename(folder / MANIFEST)
            if folder is not target:
                folder.rename(target)
        finally:
            if not self.ready(key) and folder.exists():
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    @contextlib.asynccontextmanager
    async def _process_lock(self, key: str, say: Callable[[str], None]) -> AsyncIterator[None]:
        """Hold the file lock of a key. Polled, because a blocking flock in a thread cannot be cancelled."""
        path = self.root / ".locks" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            told = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        say("another process is building this environment")
                        told = True
                    await trio.sleep(_LOCK_POLL_SECONDS)
            yield
