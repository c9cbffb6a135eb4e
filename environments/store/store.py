"""Content-addressed environment directories: built once for each key, in a temporary directory that is then renamed.

Layout under the root: `KEY/` (never modified after the rename; `KEY/operato.json` is its manifest), `.locks/KEY`
(locked while building, across processes), `.locks/KEY.use` (locked while in use), `.logs/KEY.log` (the output of the
installer), `.tmp/` (builds as `KEY.PID`, removals as `old.KEY.PID`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import trio
from attrs import define, field

from environments.base import BuildWatch, Stored
from environments.store.uses import Uses
from protocol.errors import ErrorKind, error

_LOCK_POLL_SECONDS = 0.05
_BLOCK_BYTES = 512
"""The unit of `st_blocks`."""
MANIFEST = "operato.json"


@define
class Sizes:
    """Measures each environment once: it does not change, and has up to tens of thousands of files."""

    _known: dict[str, tuple[object, int]] = field(factory=dict, init=False)

    def measure(self, built: Mapping[str, tuple[Path, object]]) -> dict[str, int]:
        """Return the sizes of environments; they are given by key, each with its folder and the time of its build."""
        known = self._known
        self._known = {
            key: known[key] if key in known and known[key][0] == time else (time, _size(path))
            for key, (path, time) in built.items()
        }
        return {key: size for key, (_, size) in self._known.items()}


@define
class Store:
    """The directories of one kind. Concurrent builds of one key are one build, also across processes."""

    root: Path
    builds: int = 0
    uses: Uses = field(init=False)
    _locks: dict[str, trio.Lock] = field(factory=dict, init=False)
    _sizes: Sizes = field(factory=Sizes, init=False)

    def __attrs_post_init__(self) -> None:
        self.uses = Uses(self.root / ".locks")

    def path(self, key: str) -> Path:
        """Return the directory of `key`, existing or not."""
        return self.root / key

    def ready(self, key: str) -> bool:
        """Return whether the environment is complete: its manifest, written last, is there and can be read."""
        return self.manifest(key).get("key") == key

    def spoil(self, key: str) -> None:
        """Note that an environment is damaged: it is not complete, and the next `get` builds it again."""
        (self.path(key) / MANIFEST).unlink(missing_ok=True)

    def log_path(self, key: str) -> Path:
        """Return the build log of `key`; failed builds leave one too."""
        return self.root / ".logs" / f"{key}.log"

    @contextlib.contextmanager
    def build_log(self, key: str, say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
        """Give a function that passes lines on to `say` and writes them to the build log of `key`, begun anew."""
        path = self.log_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", buffering=1) as file:

            def keep(line: str) -> None:
                file.write(line + "\n")
                say(line)

            yield keep

    def manifest(self, key: str) -> dict[str, Any]:
        """Return the manifest of an environment, empty if it cannot be read."""
        try:
            found = json.loads((self.path(key) / MANIFEST).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    # Building

    async def get(
        self,
        key: str,
        manifest: Mapping[str, Any],
        build: Callable[[Path], Awaitable[None]],
        say: BuildWatch,
        *,
        in_place: bool = False,
    ) -> Path:
        """Return the directory of `key`, which is in use from now on (see `Uses.keep`).

        If it does not exist, `build(temporary directory)` creates it. `in_place`: it is built in its final directory,
        for installers that write its path into files; it is complete with its manifest, which is written last.
        Cancelled or failed, the partial build is removed. Raises the exceptions of `build`, and OSError.
        """
        target = self.path(key)
        await self.uses.hold(key, say)
        if self.ready(key):
            return target
        async with self.lock(key, say):
            if not self.ready(key):
                async with say.place(key):
                    await self._build(key, manifest, build, target if in_place else None)
                    if not in_place:
                        self._temporary(key).rename(target)
        return target

    async def replace(
        self,
        key: str,
        manifest: Mapping[str, Any],
        build: Callable[[Path], Awaitable[None]],
        say: BuildWatch,
        *,
        in_place: bool = False,
    ) -> Path:
        """Build an environment again beside the existing one, and replace it; parameters as `get`.

        Raises RunnerError `conflict` if it is in use, and as `get`; nothing has changed then. Cancelled or failed, the
        existing one stays. During a build `in_place`, other users wait.
        """
        target = self.path(key)
        async with self.lock(key, say), say.place(key):
            with self.alone(key):
                if in_place:
                    old = self._set_aside(key)
                    try:
                        await self._build(key, manifest, build, target)
                    except BaseException:
                        if old is not None:
                            old.rename(target)
                        raise
            if not in_place:
                await self._build(key, manifest, build, None)
                try:
                    with self.alone(key):
                        old = self._set_aside(key)
                        self._temporary(key).rename(target)
                finally:
                    await _remove_tree(self._temporary(key))
            await _remove_tree(old)
        return target

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Have exclusive access to an environment. Raises RunnerError `conflict`, with its users, if it is in use."""
        with self.uses.alone(key) as alone:
            if not alone:
                pids = self.uses.holders(key)
                user = f"process {', '.join(map(str, pids))}" if pids else "a process outside of this namespace"
                text = f"{key} is in use by {user}; end that use, then try again"
                raise error(ErrorKind.CONFLICT, text, field="key")
            yield

    @contextlib.asynccontextmanager
    async def lock(self, key: str, say: BuildWatch) -> AsyncIterator[None]:
        """Be the only builder of `key`, among all processes that share the directory."""
        lock = self._locks.setdefault(key, trio.Lock())
        if lock.locked():
            say.building()
            say("this environment is being built for another module")
        async with lock, self._process_lock(key, say):
            yield

    def _temporary(self, key: str) -> Path:
        return self.root / ".tmp" / f"{key}.{os.getpid()}"

    async def _build(
        self, key: str, manifest: Mapping[str, Any], build: Callable[[Path], Awaitable[None]], where: Path | None
    ) -> None:
        """Build in `where`, or in the temporary directory of the key; write the manifest last."""
        target, temporary = self.path(key), self._temporary(key)
        folder = where or temporary
        temporary.parent.mkdir(parents=True, exist_ok=True)
        for left in temporary.parent.glob(f"{key}.*"):  # of killed runners, since this one has the lock
            shutil.rmtree(left, ignore_errors=True)
        if not self.ready(key):  # a directory without manifest is incomplete
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(target)
        self.builds += 1
        whole = False
        try:
            await build(folder)
            note = folder / f".{MANIFEST}"
            note.write_text(json.dumps({**manifest, "key": key, "built_at": time.time()}, indent=1))
            note.rename(folder / MANIFEST)
            whole = True
        finally:
            if not whole:
                await _remove_tree(folder)

    @contextlib.asynccontextmanager
    async def _process_lock(self, key: str, say: BuildWatch) -> AsyncIterator[None]:
        """Take the file lock of a key. Polled, because a blocking flock in a thread cannot be cancelled."""
        path = self.root / ".locks" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            announced = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not announced:
                        say.building()
                        say("another process is building this environment")
                        announced = True
                    await trio.sleep(_LOCK_POLL_SECONDS)
            yield

    # Listing and removing

    async def stored(self) -> list[Stored]:
        """Return the complete environments, by key."""
        return await trio.to_thread.run_sync(self._stored)

    def _stored(self) -> list[Stored]:
        keys = sorted(path.parent.name for path in self.root.glob(f"[!.]*/{MANIFEST}"))
        sizes = self._sizes.measure({key: (self.path(key), self.manifest(key).get("built_at")) for key in keys})
        return [self.describe(key, sizes[key]) for key in keys]

    def describe(self, key: str, size: int) -> Stored:
        """Return the description of an environment of `size` bytes."""
        manifest = self.manifest(key)
        kind, _, rest = key.partition("-py")
        built = float(manifest.get("built_at") or 0.0)
        with self.uses.alone(key) as alone:
            used = not alone
        return Stored(
            key=key,
            kind=str(manifest.get("kind") or kind),
            python=str(manifest.get("python") or rest.rpartition("-")[0]),
            path=str(self.path(key)),
            log=str(self.log_path(key)) if self.log_path(key).exists() else "",
            size_bytes=size,
            built_at=built,
            used_at=max(built, self.uses.last(key) or 0.0),
            in_use=used,
            users=self.uses.holders(key) if used else (),
            manifest=manifest,
        )

    async def remove(self, key: str) -> bool:
        """Remove an environment unless it is in use; return whether it was removed.

        It is renamed first, so that a partial environment never exists. Not cancellable. Raises OSError.
        """
        with self.uses.alone(key) as alone:
            if not alone:
                return False
            old = self._set_aside(key)
        self.log_path(key).unlink(missing_ok=True)
        await _remove_tree(old)
        return True

    async def tidy(self) -> int:
        """Remove the directories of killed builds and removals; return how many there were."""
        count = 0
        for path in sorted((self.root / ".tmp").glob("*")):
            key = path.name.removeprefix("old.").rpartition(".")[0]
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            with (self.root / ".locks" / key).open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # the build or removal still runs
                    continue
                await _remove_tree(path)
                count += 1
        return count

    def _set_aside(self, key: str) -> Path | None:
        """Rename an environment out of the way; return its new path, or None if it did not exist."""
        old = self.root / ".tmp" / f"old.{key}.{os.getpid()}"
        old.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        try:
            return self.path(key).rename(old)
        except FileNotFoundError:
            return None


async def _remove_tree(path: Path | None) -> None:
    if path is not None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(path, ignore_errors=True))


def _size(root: Path) -> int:
    """Return the bytes of a folder on disk; a file with several hard links counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(folder, name))  # noqa: PTH118  (tens of thousands of them)
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    total += found.st_blocks * _BLOCK_BYTES
    return total
