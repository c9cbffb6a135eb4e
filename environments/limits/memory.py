"""The memory of this machine as the runner may use it: within its control groups, of either version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

_FILES = {
    "": ("memory.max", "memory.current", "inactive_file "),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
}
"""Of the hierarchy of version 2 and of that of version 1: limit, usage, and the part of it that the kernel can drop."""
_PROC = Path("/proc")


@frozen
class MachineMemory:
    """The machine's memory, and that of the control groups above the runner that limit it."""

    proc: Path
    groups: tuple[tuple[Path, str], ...]
    """Each group with its hierarchy, a key of `_FILES`."""

    @classmethod
    def find(cls, groups: Mapping[str, str], mounts: Mapping[str, Path], proc: Path = _PROC) -> MachineMemory:
        """Return the memory for a process in these groups, by hierarchy as in /proc/self/cgroup."""
        found = []
        for hierarchy in _FILES:
            if hierarchy in groups and (mount := mounts.get(hierarchy)) is not None:
                own = mount / groups[hierarchy].lstrip("/")
                found += [(path, hierarchy) for path in (own, *own.parents) if path.is_relative_to(mount)]
        return cls(proc, tuple((path, hierarchy) for path, hierarchy in found if _limit(path, hierarchy) is not None))

    def total(self) -> int:
        """Return how many bytes there are."""
        limits = [_limit(path, hierarchy) for path, hierarchy in self.groups]
        return min([self._of_machine("MemTotal:"), *(limit for limit in limits if limit is not None)])

    def free(self) -> int:
        """Return how many bytes can be used now without swapping."""
        rooms = [self._of_machine("MemAvailable:")]
        for path, hierarchy in self.groups:
            _, usage, droppable = _FILES[hierarchy]
            limit, used = _limit(path, hierarchy), _number(path / usage)
            if limit is not None and used is not None:
                rooms.append(limit - used + _line(path / "memory.stat", droppable))
        return min(rooms)

    def _of_machine(self, name: str) -> int:
        return _line(self.proc / "meminfo", name) * 1024


def _limit(group: Path, hierarchy: str) -> int | None:
    """Return the limit of a group in bytes; None if it has none."""
    limit = _number(group / _FILES[hierarchy][0])
    return limit if limit is not None and limit < 1 << 62 else None  # without one, version 1 has a very large number


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # ValueError: `max`
        return None


def _line(path: Path, name: str) -> int:
    """Return the number in the line that begins with `name`, or 0."""
    try:
        return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name)), 0)
    except OSError:
        return 0
