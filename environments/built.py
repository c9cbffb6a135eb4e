"""The kinds whose environments are directories of a store: planned, built at the first use, shared, removed."""

from __future__ import annotations

import errno
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import structlog

from config.modules import ModuleSpec
from environments.base import BuildWatch, Guest, Prepared, Stored
from environments.local import Launcher
from environments.store import Store


class Plan(Protocol):
    """What goes into an environment: everything is locked."""

    @property
    def key(self) -> str:
        """The environment's key, a hash of its content."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What `operato.json` of the directory records."""

    @property
    def in_place(self) -> bool:
        """Whether it is built in its final directory, whose name the installer writes into files."""


_UNUSABLE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC, errno.ELOOP})
"""What the system says of an interpreter that is damaged, and not of a machine that lacks memory or processes."""

log = structlog.get_logger("environments")

P = TypeVar("P", bound=Plan)


class BuiltEnvironment(ABC, Generic[P]):
    """One such kind: it plans, builds and starts; the store does the rest."""

    __slots__ = ()
    launcher: Launcher
    store: Store

    @abstractmethod
    async def _plan(self, spec: ModuleSpec, say: Callable[[str], None]) -> P:
        """Return the plan of a module's environment; lock what is not pinned. Raises RunnerError."""

    @abstractmethod
    async def _build(self, to: Path, plan: P, say: Callable[[str], None]) -> None:
        """Build the environment in a directory; `say` also writes the build log. Raises RunnerError."""

    @abstractmethod
    async def _prepared(self, plan: P, path: Path, seconds: float) -> Prepared:
        """Return the environment in `path`, ready to start guests; 0 `seconds` if it was not built now."""

    async def prepare(self, spec: ModuleSpec, say: BuildWatch) -> Prepared:
        """Return the module's environment: lock what is not pinned, build it if it does not exist."""
        began = time.perf_counter()
        plan = await self._plan(spec, say)
        existed = self.store.ready(plan.key)
        path = await self.store.get(plan.key, plan.manifest, self._builder(plan, say), say, in_place=plan.in_place)
        return await self._prepared(plan, path, 0.0 if existed else time.perf_counter() - began)

    async def rebuild(self, spec: ModuleSpec, say: BuildWatch) -> Prepared:
        """Build the module's environment again from the same lock, and replace the existing one."""
        began = time.perf_counter()
        plan = await self._plan(spec, say)
        path = await self.store.replace(plan.key, plan.manifest, self._builder(plan, say), say, in_place=plan.in_place)
        return await self._prepared(plan, path, time.perf_counter() - began)

    def _builder(self, plan: P, say: BuildWatch) -> Callable[[Path], Any]:
        async def build(to: Path) -> None:
            with self.store.build_log(plan.key, say) as keep:
                await self._build(to, plan, keep)

        return build

    async def lock(self, spec: ModuleSpec, say: BuildWatch) -> None:
        """Fix the version of everything that the module needs and does not pin."""
        await self._plan(spec, say)

    def launch(self, prepared: Prepared) -> Guest:
        """Start a guest that waits for its `hello`."""
        self.store.uses.touch(prepared.key)
        return self.launcher.launch(prepared)

    async def mend(self, prepared: Prepared) -> bool:
        """Have the guest program right; an environment whose Python does not start is not complete any more."""
        self.launcher.mend()
        lines: list[str] = []
        try:
            command = [prepared.argv[0], "-I", "-c", "import json, signal"]
            status = await self.launcher.table.run(command, prepared.environ, on_line=lines.append)
            if status in (0, -signal.SIGKILL):  # killed: memory was short
                return False
        except OSError as problem:
            if problem.errno not in _UNUSABLE:
                raise
            lines.append(str(problem))
        log.warning("an environment is damaged; it is built again", key=prepared.key, why=lines[-1:])
        self.store.spoil(prepared.key)
        return True

    async def stored(self) -> list[Stored]:
        """Return the built environments, by key."""
        return await self.store.stored()

    async def remove(self, key: str) -> bool:
        """Remove an environment unless it is in use; return whether it was removed."""
        return await self.store.remove(key)

    async def tidy(self) -> int:
        """Remove the remains of killed builds and removals; return how many there were."""
        return await self.store.tidy()

    def keep(self, keys: Collection[str]) -> None:
        """Stop using all environments but these."""
        self.store.uses.keep(keys)
