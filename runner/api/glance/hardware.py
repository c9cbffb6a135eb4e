"""The machine under the runner: disk, memory and load, read from the system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from attrs import frozen

_MEMORY: Final = Path("/proc/meminfo")


@frozen
class Hardware:
    """None is a number that the system does not tell. Bytes, except for the load."""

    disk_total: int | None
    """Of the disk with the data directory."""
    disk_free: int | None
    memory_total: int | None
    memory_free: int | None
    """What programs can still take, caches included."""
    load: float | None
    """Processes that want to run, over the last minute."""
    cpus: int

    @classmethod
    def read(cls, data_dir: Path) -> Hardware:
        """Return the state now. Blocks."""
        memory = _memory()
        return cls(*_disk(data_dir), memory.get("MemTotal"), memory.get("MemAvailable"), _load(), os.cpu_count() or 1)


def _disk(path: Path) -> tuple[int | None, int | None]:
    try:
        found = os.statvfs(path)
    except OSError:
        return None, None
    free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
    return found.f_blocks * found.f_frsize, free


def _memory() -> dict[str, int]:
    try:
        lines = _MEMORY.read_text("ascii").splitlines()
        pairs = (line.partition(":") for line in lines)
        return {name: int(text.split()[0]) * 1024 for name, _, text in pairs if name in ("MemTotal", "MemAvailable")}
    except (OSError, ValueError, IndexError):
        return {}


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
