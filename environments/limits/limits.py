"""Memory, CPU and process limits of a worker, enforced from outside its interpreter.

Writable control groups are used (a delegated group of version 2, or version 1). Without them the runner watches the
tree: it samples resident memory and the number of processes, and limits CPUs by affinity.

The two ways enforce `processes` differently, because the kernel refuses a fork while a watcher can only kill:

- In a control group, a fork (or thread: the kernel counts both) over the limit fails inside the handler with EAGAIN.
  Python raises BlockingIOError, or RuntimeError for a thread. The handler may continue; an uncaught exception is a
  `handler_error`. With `isolation: fork`, if the fork of the call itself is refused, it is `worker_crashed`.
- Watched, all processes below the worker are counted every 0.1 s, threads are not. Over the limit, the worker and its
  tree are killed: `worker_crashed`, with the field in the message.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from attrs import frozen

from config.units import format_size
from environments import proc
from environments.limits.cgroup import CONTROLLERS, Delegation, Files, remove_left_over
from environments.limits.memory import MachineMemory

_CPU_PERIOD_US = 100_000
WATCH_SECONDS = 0.1


@frozen
class Limits:
    """Limits for a worker with all processes that it starts; None means no limit."""

    memory_bytes: int | None = None
    cpus: float | None = None
    processes: int | None = None

    def __bool__(self) -> bool:
        return (self.memory_bytes, self.cpus, self.processes) != (None, None, None)


@frozen
class Enforcement:
    """How this machine enforces each limit: `cgroup-v2`, `cgroup-v1`, `watched`, `affinity` or `none`."""

    memory: str
    cpus: str
    processes: str


class Hold(Protocol):
    """The enforced limits of one worker."""

    def exceeded(self) -> str | None:
        """Return which limit was exceeded, as a sentence for the author, or None. Cheap enough for polling."""

    def watched(self) -> bool:
        """Return whether the caller must poll `exceeded` and end the worker."""

    def release(self) -> None:
        """Release the resources; the processes have ended."""


def _own_groups() -> dict[str, str]:
    """Return controller -> path of this process's group; version 2 has the empty string as key."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            for name in names.split(","):
                found[name] = path
    return found


def _mounts() -> dict[str, Path]:
    """Return controller -> mount point of its version 1 hierarchy; version 2 has the empty string as key."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, where, kind, options, *_ = line.split()
            if kind == "cgroup2":
                found[""] = Path(where)
            elif kind == "cgroup":
                for name in options.split(","):
                    found[name] = Path(where)
    return found


class LimitKeeper:
    """Probes what this machine can enforce (`enforcement`), and puts workers under their limits.

    With a delegated control group of version 2, creating a keeper moves this process and its `watcher` into a leaf of
    the group; `close` moves them back. `groups` and `mounts` default to those of this process, as `_own_groups` and
    `_mounts` return them.
    """

    def __init__(
        self,
        name: str,
        *,
        watcher: int | None = None,
        groups: Mapping[str, str] | None = None,
        mounts: Mapping[str, Path] | None = None,
        files: Files | None = None,
    ) -> None:
        self._name = name
        self._files = files or Files()
        self._count = 0
        groups = _own_groups() if groups is None else groups
        mounts = _mounts() if mounts is None else mounts
        self.memory = MachineMemory.find(groups, mounts)
        self._delegation = None
        pids = [os.getpid()] if watcher is None else [os.getpid(), watcher]
        if "" in groups and "" in mounts:
            self._delegation = Delegation.open(mounts[""], groups[""], name, pids, self._files)
        self._parents = self._probe(groups, mounts)
        self.enforcement = Enforcement(
            memory=self._how("memory", "watched"),
            cpus=self._how("cpu", "affinity"),
            processes=self._how("pids", "watched"),
        )

    def close(self) -> None:
        """Undo the changes to control groups; the workers have ended."""
        if self._delegation is not None:
            self._delegation.close()

    def _how(self, controller: str, otherwise: str) -> str:
        if controller not in self._parents:
            return otherwise
        return "cgroup-v2" if self._by_delegation(controller) else "cgroup-v1"

    def _by_delegation(self, controller: str) -> bool:
        return self._delegation is not None and controller in self._delegation.controllers

    def _probe(self, groups: Mapping[str, str], mounts: Mapping[str, Path]) -> dict[str, Path]:
        """Return controller -> group in which this process may create groups with that controller."""
        usable: dict[str, Path] = {}
        for controller in CONTROLLERS:
            if self._delegation is not None and self._by_delegation(controller):
                usable[controller] = self._delegation.group
            elif controller in mounts:
                parent = mounts[controller] / groups.get(controller, "/").lstrip("/")
                if not parent.is_dir():  # the path is the host's and this is a container
                    parent = mounts[controller]
                with contextlib.suppress(OSError):
                    remove_left_over(self._files, parent)
                if self._can_make(parent):
                    usable[controller] = parent
        return usable

    def _can_make(self, parent: Path) -> bool:
        probe = parent / f"{self._name}-probe"
        try:
            self._files.make(probe)
            self._files.remove(probe)
        except OSError:
            return False
        return True

    def apply(self, pid: int, limits: Limits) -> Hold:
        """Put a process, and all that it will start, under limits. May block for milliseconds: call it in a thread.

        Raises OSError if a group cannot be created although the probe succeeded.
        """
        self._count += 1
        groups: dict[Path, None] = {}
        watch_memory = watch_processes = False
        name = f"{self._name}-{self._count}"
        try:
            if limits.memory_bytes is not None:
                watch_memory = not self._memory(groups, name, limits.memory_bytes)
            if limits.processes is not None:
                watch_processes = not self._processes(groups, name, limits.processes)
            if limits.cpus is not None:
                self._cpus(groups, name, limits.cpus, pid)
            for group in groups:
                self._files.write(group / "cgroup.procs", str(pid))
        except BaseException:
            for group in groups:
                with contextlib.suppress(OSError):
                    self._files.remove(group)
            raise
        return _Held(
            pid=pid,
            groups=tuple(groups),
            limits=limits,
            watch_memory=watch_memory,
            watch_processes=watch_processes,
            files=self._files,
        )

    def _group(self, groups: dict[Path, None], controller: str, name: str) -> Path | None:
        parent = self._parents.get(controller)
        if parent is None:
            return None
        group = parent / name
        self._files.make(group)
        groups[group] = None
        return group

    def _memory(self, groups: dict[Path, None], name: str, size: int) -> bool:
        group = self._group(groups, "memory", name)
        if group is None:
            return False
        if (group / "memory.max").exists():
            (group / "memory.max").write_text(str(size))
            _write_if_there(group / "memory.swap.max", "0")
            _write_if_there(group / "memory.oom.group", "1")
        else:
            (group / "memory.limit_in_bytes").write_text(str(size))
            _write_if_there(group / "memory.memsw.limit_in_bytes", str(size))
        return True

    def _processes(self, groups: dict[Path, None], name: str, count: int) -> bool:
        group = self._group(groups, "pids", name)
        if group is None:
            return False
        # The worker's own process is not counted for the author.
        (group / "pids.max").write_text(str(count + 1))
        return True

    def _cpus(self, groups: dict[Path, None], name: str, cpus: float, pid: int) -> None:
        group = self._group(groups, "cpu", name)
        quota = str(int(cpus * _CPU_PERIOD_US))
        if group is None:
            allowed = sorted(os.sched_getaffinity(0))
            first = self._count % len(allowed)
            os.sched_setaffinity(pid, (allowed + allowed)[first : first + max(1, math.ceil(cpus))])
        elif (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{quota} {_CPU_PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(_CPU_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(quota)


def memory_exceeded(limit: int) -> str:
    """Return the message for an execution over its memory limit, whichever mechanism enforced it."""
    return f"the processes of the execution exceeded the memory limit of {format_size(limit)} (`memory`)"


def _write_if_there(path: Path, text: str) -> None:
    """Write a control file if this kernel has it."""
    with contextlib.suppress(OSError):
        if path.exists():
            path.write_text(text)


@frozen
class _Held:
    pid: int
    groups: tuple[Path, ...]
    limits: Limits
    watch_memory: bool
    watch_processes: bool
    files: Files

    def watched(self) -> bool:
        return self.watch_memory or self.watch_processes

    def exceeded(self) -> str | None:
        memory = self.limits.memory_bytes
        if memory is not None and (self._group_killed() or (self.watch_memory and self._resident() > memory)):
            return memory_exceeded(memory)
        if self.watch_processes and len(proc.descendants(self.pid)) > (self.limits.processes or 0):
            return (
                f"the execution started more than {self.limits.processes} processes; the limit is the field `processes`"
            )
        return None

    def _group_killed(self) -> bool:
        for group in self.groups:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    for line in (group / name).read_text().splitlines():
                        key, _, count = line.partition(" ")
                        if key == "oom_kill" and count != "0":
                            return True
        return False

    def _resident(self) -> int:
        return sum(proc.resident_bytes(pid) for pid in (self.pid, *proc.descendants(self.pid)))

    def release(self) -> None:
        for group in self.groups:
            with contextlib.suppress(OSError):
                self.files.remove(group)
