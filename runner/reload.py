"""Publishing the modules file again: on SIGHUP, and whenever it or what it names changes.

Two things together lose no change. Notices of the system come at once, and each one that concerns a named file asks for
another reading, also while one is under way. The *marks* of all named files (times, size, inode), taken before a
reading begins, are compared whenever something else stirs and every few seconds: they see what happened between two
watches, behind a link, or on a file system that notifies nobody.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import structlog
import trio
from attrs import define, field

from actors.registry import RegistrySnapshot
from config.code import is_left_out
from config.mistakes import ConfigError
from config.modules import ModulesFile, read_modules
from protocol.errors import RunnerError

if TYPE_CHECKING:
    from actors.system import System

_LOOK_SECONDS = 5.0
"""How often the marks are compared when nothing stirs."""
_SETTLE_SECONDS = 0.2
_Mark: TypeAlias = tuple[int, int, int, int] | None
"""Time of the change, time of the content, size and inode; None for what is not there."""

log = structlog.get_logger("reload")


@define(eq=False)
class Bell:
    """Asks for a reload. Rung while nobody waits, it is heard once by the next one who does."""

    _rung: trio.Event = field(factory=trio.Event, init=False)

    def ring(self) -> None:
        """Ask."""
        self._rung.set()

    async def wait_rung(self) -> None:
        """Wait until somebody has asked, since the last time that this was waited for."""
        await self._rung.wait()
        self._rung = trio.Event()


@define(eq=False)
class Reloader:
    """Keeps what is published equal to a modules file. `modules` was published before `run` begins."""

    modules: ModulesFile
    system: System
    bell: Bell
    look_seconds: float = _LOOK_SECONDS
    watched: dict[Path, int] = field(factory=dict, init=False)
    """The folders that the system tells changes of, with their inodes: one put in the place of another is another."""
    _marks: dict[Path, _Mark] = field(factory=dict, init=False)
    _watch: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    async def run(self, *, watching: bool = True) -> None:
        """Publish again whenever the bell rings, and with `watching` when a file changes, until cancelled.

        What cannot be published changes nothing, and the log says why.
        """
        published = self.modules
        await self._mark(since=published.read_at)
        if await trio.to_thread.run_sync(_cannot_tell, self._named()):
            self.bell.ring()
        async with trio.open_nursery() as nursery:
            while True:
                if watching:
                    await self._follow(nursery)
                await self.bell.wait_rung()
                published = await self._reload(published)

    async def _reload(self, published: ModulesFile) -> ModulesFile:
        """Read the file and publish it; return what is published now."""
        before: RegistrySnapshot = self.system.registry.snapshot
        self._marks = await trio.to_thread.run_sync(marks, self._named())
        began = time.time()
        try:
            # What has mistakes is followed as well: it may be mended in another file than that of the mistake.
            self.modules, mistakes = await trio.to_thread.run_sync(read_modules, published.path, abandon_on_cancel=True)
            await self._mark(since=began)
            if mistakes:
                raise ConfigError(mistakes)  # noqa: TRY301  (told like those of publishing)
            await self.system.publish(self.modules.modules)
        except (ConfigError, RunnerError, OSError) as problem:
            why = problem.failure.message if isinstance(problem, RunnerError) else str(problem)
            log.warning("not reloaded, the modules stay as they were", file=str(published.path), why=why)
            return published
        changes = self.system.registry.snapshot.since(before)
        log.info("reloaded" if changes else "reloaded, nothing has changed", file=str(published.path), **changes.told())
        if self.modules.runner != published.runner:
            log.warning("the section `runner:` is read at the start only; restart the runner for its changes")
        return self.modules

    def _named(self) -> frozenset[Path]:
        return frozenset({self.modules.path, *self.modules.files})

    async def _mark(self, *, since: float) -> None:
        """Mark the files that have no mark yet; one that has changed since then has to be read again."""
        found = await trio.to_thread.run_sync(marks, self._named())
        late = [mark for path, mark in found.items() if path not in self._marks and mark and mark[0] >= since * 1e9]
        named = self._named()
        # Older marks are kept, also those of files that are gone: that is a change to be found.
        self._marks = found | {path: mark for path, mark in self._marks.items() if _concerns(path, named)}
        if late:
            self.bell.ring()

    async def _look(self) -> None:
        """Ring when a file is not as it was marked."""
        if await trio.to_thread.run_sync(marks, self._named()) != self._marks:
            self.bell.ring()

    async def _follow(self, nursery: trio.Nursery) -> None:
        """Watch the folders of what is named now."""
        folders = await trio.to_thread.run_sync(folders_of, self._named())
        if folders != self.watched:
            self._watch.cancel()
            self._watch = trio.CancelScope()
            self.watched = folders
            nursery.start_soon(self._watch_folders, list(folders), self._watch)

    async def _watch_folders(self, folders: list[Path], scope: trio.CancelScope) -> None:
        with scope:
            while True:
                try:
                    stop = trio.Event()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_set_at_the_end, stop)
                        nursery.start_soon(self._look_when_settled)
                        await self._hear(folders, stop)
                except* OSError as problem:
                    # A folder is gone, or the system has no more watches to give: the marks have to do.
                    log.warning("changes are noticed late", every=self.look_seconds, why=str(problem.exceptions[0]))
                await trio.sleep(self.look_seconds)
                await self._look()

    async def _look_when_settled(self) -> None:
        """Look once when the watch is on: what changed since the last one was off was not told."""
        await trio.sleep(_SETTLE_SECONDS)
        await self._look()

    async def _hear(self, folders: Iterable[Path], stop: trio.Event) -> None:
        """Ring at each notice that concerns what is named; look at any other one, and when there is none.

        The thread that waits for notices cannot be cancelled, it ends when `stop` is set. Raises OSError.
        """
        from watchfiles import awatch  # noqa: PLC0415  (not every command serves)

        notices = awatch(
            *folders,
            watch_filter=None,
            recursive=False,
            stop_event=stop,
            yield_on_timeout=True,
            rust_timeout=int(self.look_seconds * 1000),
        )
        async with aclosing(notices):
            async for changes in notices:
                named = self._named()
                if any(_concerns(Path(path), named) for _, path in changes):
                    self.bell.ring()
                else:
                    await self._look()


async def _set_at_the_end(event: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        event.set()


def _concerns(path: Path, named: frozenset[Path]) -> bool:
    """Return whether a file is named, or is code in a folder that is."""
    if path in named:
        return True
    for above in path.parents:
        if above in named:
            return not any(is_left_out(part) for part in path.relative_to(above).parts)
    return False


def _cannot_tell(named: Iterable[Path]) -> bool:
    """Return whether the first marks of published files may hide a change: one is gone, or is behind links. Blocks."""
    return any(_marked(path) is None or os.path.realpath(path) != str(path) for path in named)


def marks(named: Iterable[Path]) -> dict[Path, _Mark]:
    """Return the marks of files, and of all that is in those that are folders. Blocks."""
    return {path: _marked(path) for each in named for path in (each, *_inside(each))}


def _marked(path: Path) -> _Mark:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(status.st_mode):  # its times change with what is left out as well
        return 0, 0, 0, status.st_ino
    return status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_ino


def _inside(path: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(path):
        names[:] = [name for name in names if not is_left_out(name)]
        yield from (Path(folder, name) for name in (*names, *files) if not is_left_out(name))


def folders_of(named: Iterable[Path]) -> dict[Path, int]:
    """Return the folders, with their inodes, in which a change may concern what is named, there or not. Blocks."""
    found: set[Path] = set()
    for path in named:
        for place in {path, Path(os.path.realpath(path))}:
            found.add(next(folder for folder in place.parents if _is_folder(folder)))
            found.update(inner for inner in (place, *_inside(place)) if _is_folder(inner))
    return {folder: mark[3] for folder in found if (mark := _marked(folder)) is not None}


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  (no error where one may not look)
