"""Publishing the modules file again: on SIGHUP, and when it or a file that it names changes.

Two mechanisms together lose no change. Notices of the kernel come at once; each one about a named file asks for another
reading, even while one is under way. The *marks* of all named files (times, size, inode) are taken before a reading
begins, and compared at every other notice and every few seconds: they catch changes between two watches, behind a link,
and on a file system without notices.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import aclosing, nullcontext
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
    from runner.serve.dev import Dev

_LOOK_SECONDS = 5.0
"""How often the marks are compared without a notice."""
_SETTLE_SECONDS = 0.2
_LONGEST_PAUSE = 60.0
"""The longest pause before the kernel is asked for notices again after an error."""
_Mark: TypeAlias = tuple[int, int, int, int] | None
"""ctime, mtime, size and inode; None for a missing file."""

log = structlog.get_logger("reload")


@define(eq=False)
class Bell:
    """Asks for a reload. Any number of rings before a wait count as one."""

    _rung: trio.Event = field(factory=trio.Event, init=False)

    def ring(self) -> None:
        """Ask for a reload."""
        self._rung.set()

    async def wait_rung(self) -> None:
        """Wait for a ring since the last wait."""
        await self._rung.wait()
        self._rung = trio.Event()


@define(eq=False)
class Reloader:
    """Keeps the published modules equal to a modules file. `modules` was published before `run` begins."""

    modules: ModulesFile
    system: System
    bell: Bell
    look_seconds: float = _LOOK_SECONDS
    dev: Dev | None = None
    """Serves one file for its author: reads it, tries it before it is published, and prints the outcome."""
    watched: dict[Path, int] = field(factory=dict, init=False)
    """The watched folders with their inodes: a folder replaced by another one is watched again."""
    _marks: dict[Path, _Mark] = field(factory=dict, init=False)
    _told: tuple[dict[Path, _Mark], str] | None = field(default=None, init=False)
    """The marks and the mistakes of the last report to the author: two notices may come of one change."""
    _watch: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    async def run(self, *, watching: bool = True) -> None:
        """Publish again when the bell rings, and with `watching` when a file changes, until cancelled.

        Modules that cannot be published change nothing, and the reason is logged.
        """
        published = self.modules
        await self._mark(since=published.read_at)
        if await trio.to_thread.run_sync(_may_have_changed, self._named()):
            self.bell.ring()
        async with trio.open_nursery() as nursery:
            while True:
                if watching:
                    await self._follow(nursery)
                await self.bell.wait_rung()
                published = await self._reload(published)

    async def _reload(self, published: ModulesFile) -> ModulesFile:
        """Read the file and publish it; return the published file."""
        before: RegistrySnapshot = self.system.registry.snapshot
        self._marks = await trio.to_thread.run_sync(marks, self._named())
        began = time.time()
        try:
            # A file with mistakes is watched too, with the files it names: the fix may be in one of those.
            read = read_modules if self.dev is None else self.dev.read
            self.modules, mistakes = await trio.to_thread.run_sync(read, published.path, abandon_on_cancel=True)
            await self._mark(since=began)
            if mistakes:
                raise ConfigError(mistakes)  # noqa: TRY301  (reported like a failure of publishing)
            async with nullcontext() if self.dev is None else self.dev.trying(self.system, self.modules.modules):
                await self.system.publish(self.modules.modules)
        except (ConfigError, RunnerError, OSError) as problem:
            why = problem.failure.message if isinstance(problem, RunnerError) else str(problem)
            told = dict(self._marks), why
            if self.dev is None:
                log.warning("not reloaded, the modules are unchanged", file=str(published.path), why=why)
            elif told != self._told:
                self._told = told
                self.dev.refused(problem)
            return published
        except Exception:
            # No content of files may end the runner.
            log.exception("not reloaded, the modules are unchanged", file=str(published.path))
            return published
        changes = await trio.to_thread.run_sync(self.system.registry.snapshot.since, before)
        if self.dev is not None:
            self._told = None
            self.dev.reloaded(changed=bool(changes))
        log.info("reloaded" if changes else "reloaded, no changes", file=str(published.path), **changes.summary())
        if self.modules.runner != published.runner:
            log.warning("the section `runner:` is read only at the start; restart the runner to apply its changes")
        return self.modules

    def _named(self) -> frozenset[Path]:
        return frozenset({self.modules.path, *self.modules.files})

    async def _mark(self, *, since: float) -> None:
        """Mark the files that have no mark; ring if one has changed since then."""
        found = await trio.to_thread.run_sync(marks, self._named())
        late = [mark for path, mark in found.items() if path not in self._marks and mark and mark[0] >= since * 1e9]
        named = self._named()
        # Older marks stay, even of missing files: their disappearance is a change to detect.
        self._marks = found | {path: mark for path, mark in self._marks.items() if _concerns(path, named)}
        if late:
            self.bell.ring()

    async def _look(self) -> None:
        """Ring if a file differs from its mark."""
        if await trio.to_thread.run_sync(marks, self._named()) != self._marks:
            self.bell.ring()

    async def _follow(self, nursery: trio.Nursery) -> None:
        """Watch the folders of the named files."""
        folders = await trio.to_thread.run_sync(folders_of, self._named())
        if folders != self.watched:
            self._watch.cancel()
            self._watch = trio.CancelScope()
            self.watched = folders
            nursery.start_soon(self._watch_folders, list(folders), self._watch)

    async def _watch_folders(self, folders: list[Path], scope: trio.CancelScope) -> None:
        with scope:
            pause, told = _SETTLE_SECONDS, set[str]()
            while True:
                began = trio.current_time()
                try:
                    stop = trio.Event()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_set_at_the_end, stop)
                        nursery.start_soon(self._look_when_settled)
                        await self._hear(folders, stop)
                except* Exception as problem:  # noqa: BLE001 - no error of the library may end the runner
                    # A folder has disappeared, the kernel has no more watches, or the library cannot read the name of
                    # a file that lies beside (it is not UTF-8): the marks must do.
                    reason = _reason(problem)
                    if reason not in told:
                        log.warning("changes are detected late", every=self.look_seconds, why=reason)
                    told.add(reason)
                if trio.current_time() - began > _LONGEST_PAUSE:
                    pause = _SETTLE_SECONDS
                await self._look_until(trio.current_time() + pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _look_until(self, end: float) -> None:
        """Look at once, since the notice of a change may be lost, and then every few seconds without notices."""
        await self._look()
        while trio.current_time() < end:
            await trio.sleep(min(self.look_seconds, end - trio.current_time()))
            await self._look()

    async def _look_when_settled(self) -> None:
        """Look once after the watch has started: changes since the last watch gave no notice."""
        await trio.sleep(_SETTLE_SECONDS)
        await self._look()

    async def _hear(self, folders: Iterable[Path], stop: trio.Event) -> None:
        """Ring at each notice about a named file; look at other notices, and after a time without one.

        The thread that waits for notices cannot be cancelled, it ends when `stop` is set. Raises OSError.
        """
        from watchfiles import awatch  # noqa: PLC0415  (0.02 s, and `run` does not watch)

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


def _reason(problem: BaseExceptionGroup[Exception]) -> str:
    first: BaseException = problem
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return f"{type(first).__name__}: {first}"


async def _set_at_the_end(event: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        event.set()


def _concerns(path: Path, named: frozenset[Path]) -> bool:
    """Return whether a file is named, or is code in a named folder."""
    if path in named:
        return True
    for above in path.parents:
        if above in named:
            return not any(is_left_out(part) for part in path.relative_to(above).parts)
    return False


def _may_have_changed(named: Iterable[Path]) -> bool:
    """Return whether a change may precede the first marks: a file is missing or behind links. Blocks."""
    return any(_marked(path) is None or os.path.realpath(path) != str(path) for path in named)


def marks(named: Iterable[Path]) -> dict[Path, _Mark]:
    """Return the marks of files, and of the contents of folders. Blocks."""
    return {path: _marked(path) for each in named for path in (each, *_inside(each))}


def _marked(path: Path) -> _Mark:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(status.st_mode):  # its times change with ignored files, too
        return 0, 0, 0, status.st_ino
    return status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_ino


def _inside(path: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(path):
        names[:] = [name for name in names if not is_left_out(name)]
        yield from (Path(folder, name) for name in (*names, *files) if not is_left_out(name))


def folders_of(named: Iterable[Path]) -> dict[Path, int]:
    """Return the folders to watch for these files, which may be missing, with their inodes. Blocks."""
    found: set[Path] = set()
    for path in named:
        for place in {path, Path(os.path.realpath(path))}:
            found.add(next(folder for folder in place.parents if _is_folder(folder)))
            found.update(inner for inner in (place, *_inside(place)) if _is_folder(inner))
    return {folder: mark[3] for folder in found if (mark := _marked(folder)) is not None}


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  (no error without permission)
