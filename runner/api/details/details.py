"""`Details`: what a page about a module shows besides the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio
from attrs import define

from actors.history import History, ModuleStats
from actors.registry import Registry
from actors.workers import BuildLog, Executor
from protocol.model import Kind
from runner.api.details.code import CodeFile, read_code
from runner.api.details.numbers import Span
from runner.auth import Principal, Scope, require


@define(eq=False)
class Details:
    """Looks into modules."""

    registry: Registry
    executors: Mapping[Kind, Executor]
    history: History

    async def code(self, principal: Principal, name: str, version: str | None = None) -> tuple[CodeFile, ...]:
        """Return the files of a module to callers with the scope to replace them.

        Code can hold secrets, so that readers of modules see none. Raises RunnerError `forbidden`,
        `not_found`, `unavailable`.
        """
        require(principal, Scope.MODULES_WRITE)
        module = self.registry.snapshot.get(name, version, principal.may_use)
        return await trio.to_thread.run_sync(read_code, module.root)

    async def stats(self, principal: Principal, name: str, *, since: float | None, until: float | None) -> ModuleStats:
        """Return the counts of a module's executions that ended in a window of time, also of a deleted module.

        Raises RunnerError `forbidden`, or `not_found` when neither a module nor an execution has the name.
        """
        require(principal, Scope.EXECUTIONS_READ)
        snapshot = self.registry.snapshot
        if not principal.may_use(name):
            raise snapshot.unknown(name, principal.may_use)
        found = await self.history.stats(name, since=since, until=until)
        if found.total == 0 and name not in snapshot.modules and name not in snapshot.registered:
            raise snapshot.unknown(name, principal.may_use)
        return found

    async def over_time(self, principal: Principal, name: str, span: Span) -> Sequence[ModuleStats]:
        """Return statistics of a module for each step of a span of time until now, the oldest first.

        Raises RunnerError `forbidden`, `not_found`, `unavailable`.
        """
        require(principal, Scope.EXECUTIONS_READ)
        if not principal.may_use(name):
            raise self.registry.snapshot.unknown(name, principal.may_use)
        return await self.history.stats_over(name, seconds=span.seconds, step=span.step)

    async def lately(self, principal: Principal) -> Mapping[str, ModuleStats]:
        """Return statistics of the modules that ran since yesterday, by name: since the last midnight but one, UTC.

        Raises RunnerError `forbidden`, `unavailable`.
        """
        require(principal, Scope.EXECUTIONS_READ)
        found = await self.history.stats_lately()
        return {name: stats for name, stats in found.items() if principal.may_use(name)}

    def build(self, principal: Principal, name: str, version: str | None = None) -> BuildLog | None:
        """Return the last build of the environment of a module, which may still run; None without one since the start.

        Raises RunnerError `forbidden`, `not_found`.
        """
        require(principal, Scope.MODULES_READ)
        module = self.registry.snapshot.get(name, version, principal.may_use)
        pools = self.executors[module.spec.env].pools()
        return next((pool.build for pool in pools if pool.module.digest == module.digest), None)
