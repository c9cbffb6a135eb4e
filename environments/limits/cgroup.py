"""Control groups of version 2: preparing a group that was delegated to the runner for groups of workers.

A group with processes cannot enable controllers for groups below it (the rule of no internal processes). So the runner
first moves itself into a leaf of its own:

    DELEGATED/                      the group in which the runner was started
        operato-4711-runner/        the runner, its watcher, and workers without limits
        operato-4711-1/             a worker

The kernel's root group and groups managed by others are never changed. A group counts as delegated if the service
manager marked it (`Delegate=yes`), if it belongs to the runner's user, or if it is the root of a control group
namespace (a container with a writable cgroup2).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog
from attrs import define, field

CONTROLLERS = ("memory", "cpu", "pids")
_MARKS = ("trusted.delegate", "user.delegate")
_OURS = re.compile(r"operato-(?P<pid>\d+)-(?:runner|\d+)")

log = structlog.get_logger("cgroup")


class Files:
    """The operations on groups and their control files. Each raises OSError as the system does."""

    def exists(self, path: Path) -> bool:
        """Return whether a group has a control file."""
        return path.exists()

    def read(self, path: Path) -> str:
        """Return the text of a control file."""
        return path.read_text()

    def write(self, path: Path, text: str) -> None:
        """Write to a control file in one go."""
        path.write_text(text)

    def make(self, group: Path) -> None:
        """Create a group unless it exists."""
        group.mkdir(exist_ok=True)

    def remove(self, group: Path) -> None:
        """Remove a group without processes and without groups below it."""
        group.rmdir()

    def below(self, group: Path) -> list[Path]:
        """Return the groups directly below a group."""
        return [path for path in group.iterdir() if path.is_dir()]

    def delegated(self, group: Path) -> bool:
        """Return whether the manager of control groups gave this group to this process."""
        if os.geteuid() != 0:
            return group.stat().st_uid == os.geteuid()
        for mark in _MARKS:
            with contextlib.suppress(OSError):
                if os.getxattr(group, mark) == b"1":
                    return True
        return False


@define(eq=False)
class Delegation:
    """A group of version 2 in which this process may create groups with `controllers`. `close` undoes everything."""

    group: Path
    controllers: frozenset[str]
    _files: Files
    _pids: Sequence[int]
    _leaf: Path | None = field(default=None, init=False)
    _moved: list[str] = field(factory=list, init=False)
    _enabled: list[str] = field(factory=list, init=False)

    @classmethod
    def open(
        cls, mount: Path, own: str, name: str, pids: Sequence[int], files: Files | None = None
    ) -> Delegation | None:
        """Return the delegation of the group `own`, a path below `mount`; None if not delegated or without controllers.

        All created groups have `name` as prefix. `pids` are the processes to move out of the group: this one, and its
        watcher. A failed step is undone.
        """
        files = files or Files()
        group = mount / own.lstrip("/")
        try:
            if not _may_use(files, group, own):
                return None
            remove_left_over(files, group)
            offered = [name for name in CONTROLLERS if name in files.read(group / "cgroup.controllers").split()]
            opened = cls(group, frozenset(offered), files, pids)
            if offered:
                opened._enable(offered, name)
        except OSError as problem:
            log.debug("no control groups of version 2", group=str(group), why=str(problem))
            return None
        return opened if offered else None

    def _enable(self, wanted: list[str], name: str) -> None:
        """Enable the controllers for groups below. Raises OSError; everything is undone then."""
        given = self._files.read(self.group / "cgroup.subtree_control").split()
        missing = [controller for controller in wanted if controller not in given]
        try:
            if missing:
                self._leave(name)
                self._files.write(self.group / "cgroup.subtree_control", " ".join(f"+{each}" for each in missing))
                self._enabled = missing
            probe = self.group / f"{name}-probe"
            self._files.make(probe)
            self._files.remove(probe)
        except OSError:
            self.close()
            raise

    def _leave(self, name: str) -> None:
        """Move this process and its watcher out of the group into a leaf below it."""
        here = self._files.read(self.group / "cgroup.procs").split()
        self._moved = [pid for pid in map(str, self._pids) if pid in here]
        if not self._moved:
            return
        self._leaf = self.group / f"{name}-runner"
        self._files.make(self._leaf)
        for pid in self._moved:
            self._files.write(self._leaf / "cgroup.procs", pid)

    def close(self) -> None:
        """Disable the controllers, move back into the group and remove the leaf, as far as possible."""
        steps: list[Callable[[], None]] = []
        if self._enabled:
            taken = " ".join(f"-{controller}" for controller in self._enabled)
            steps.append(lambda: self._files.write(self.group / "cgroup.subtree_control", taken))
        if (leaf := self._leaf) is not None:
            steps.extend(partial(self._files.write, self.group / "cgroup.procs", pid) for pid in self._moved)
            steps.append(lambda: self._files.remove(leaf))
        for step in steps:
            try:
                step()
            except OSError as problem:  # an unkillable worker; the group's owner removes the rest
                log.debug("a control group is left", group=str(self.group), why=str(problem))
        self._enabled, self._leaf = [], None


def _may_use(files: Files, group: Path, own: str) -> bool:
    """Return whether the runner may change a group."""
    # Only the kernel's root group has no `cgroup.type`; the root of a namespace has one.
    if not files.exists(group / "cgroup.type") or files.read(group / "cgroup.type").strip() != "domain":
        return False
    return own.strip("/") == "" or files.delegated(group)


def remove_left_over(files: Files, group: Path) -> None:
    """Remove empty groups of killed runners, of either version."""
    for path in files.below(group):
        found = _OURS.fullmatch(path.name)
        if found and not Path("/proc", found["pid"]).exists():
            with contextlib.suppress(OSError):
                files.remove(path)
