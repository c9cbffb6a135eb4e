"""The verbs of the machine, without transport types. Each checks the scope, and shows callers their modules only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio
from attrs import define

from actors.executions import Owners
from actors.registry import Published
from actors.workers import BuildLog, Executor, PoolState
from environments.base import Managed, Stored
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Kind
from runner.api.machine.nodes import ShownCluster, shown_cluster
from runner.api.machine.shown import BuiltEnvironment, ShownWorker, shown_environment, shown_workers
from runner.auth import Principal, Scope, require

LOG_BYTES: Final = 64 * 1024
"""Of a build log, its end."""
Users: TypeAlias = dict[str, list[Published]]
"""Modules by the key of their environment."""


@define(eq=False)
class Machine:
    """Shows what this machine has for the modules."""

    executors: Mapping[Kind, Executor]
    owners: Callable[[], Owners]
    """Returns the runners whose executions the doors serve."""

    def kinds(self, principal: Principal) -> list[dict[str, Any]]:
        """Return each kind of environment: whether this machine has it, how it enforces limits, and its statistics."""
        require(principal, Scope.MODULES_READ)
        return [_kind(kind, executor) for kind, executor in self.executors.items()]

    def workers(self, principal: Principal) -> list[ShownWorker]:
        """Return the workers of the caller's modules, by module, those that are being started included."""
        require(principal, Scope.MODULES_READ)
        pools = [
            pool
            for executor in self.executors.values()
            for pool in executor.pools()
            if (pool.workers or pool.starting) and principal.may_use(pool.module.spec.name)
        ]
        return [each for pool in sorted(pools, key=lambda pool: str(pool.module.ref)) for each in shown_workers(pool)]

    def nodes(self, principal: Principal) -> ShownCluster:
        """Return the runners of the cluster; none on a single machine. Raises RunnerError `forbidden`."""
        require(principal, Scope.METRICS_READ)
        return shown_cluster(self.owners().cluster())

    async def built(self, principal: Principal) -> list[BuiltEnvironment]:
        """Return the built environments, the largest first; for callers with some modules only, those of these."""
        require(principal, Scope.MODULES_READ)
        found = [shown for kind in self.executors for shown, _ in await self._built(principal, kind)]
        return sorted(found, key=lambda one: (-one["size_bytes"], one["key"]))

    async def environment(self, principal: Principal, key: str) -> tuple[BuiltEnvironment, str, BuildLog | None]:
        """Return a built environment, the end of its build log, and the last build by this runner.

        Raises RunnerError `forbidden` or `not_found`.
        """
        require(principal, Scope.MODULES_READ)
        for kind, executor in self.executors.items():
            for shown, log in await self._built(principal, kind):
                if shown["key"] == key:
                    builds = [pool.build for pool in executor.pools() if pool.key == key and pool.build is not None]
                    build = next((each for each in builds if not each.ended or each.failure), None)
                    return shown, await _end_of(log), build
        raise error(ErrorKind.NOT_FOUND, f"there is no environment {key!r:.80}", field="key")

    async def rebuild(self, principal: Principal, key: str) -> BuildLog:
        """Build an environment again, and replace it; return the build to follow, which continues without followers.

        Its idle workers end first, and calls wait for it. Raises RunnerError `forbidden`, also where it is shared with
        modules that the caller may not use; `not_found`; `conflict` while a call or another process uses it, and where
        no module of this runner does.
        """
        require(principal, Scope.MODULES_WRITE)
        found, _, _ = await self.environment(principal, key)
        kind = Kind(found["env"])
        users = (await self._users(kind)).get(key, [])
        if not users:
            text = "no module of this runner uses it, so its content is unknown; `operato-runner env gc` removes it"
            raise error(ErrorKind.CONFLICT, text, field="key")
        if not all(principal.may_use(module.spec.name) for module in users):
            text = "other modules share this environment; it can be built again with the permission for all of them"
            raise error(ErrorKind.FORBIDDEN, text, field="key")
        return self.executors[kind].rebuild(users[0])

    async def _built(self, principal: Principal, kind: Kind) -> list[tuple[BuiltEnvironment, str]]:
        """Return the environments of a kind that the caller may see, each with the path of its build log."""
        users = await self._users(kind)
        found = []
        for one in await _stored(self.executors[kind]):
            own = [str(each.ref) for each in users.get(one.key, ()) if principal.may_use(each.spec.name)]
            if own or not principal.modules:
                found.append((shown_environment(one, own), one.log))
        return found

    async def _users(self, kind: Kind) -> Users:
        """Return the modules of a kind whose environments are known."""
        users: Users = {}
        executor = self.executors[kind]
        for pool in executor.pools():
            key = pool.key
            if key is not None and kind is Kind.DOCKER:  # the key of a worker has the limits of its container as well
                key = await _key_of_image(executor.environment, pool)
            if key is not None:
                users.setdefault(key, []).append(pool.module)
        return users


async def _key_of_image(environment: Any, pool: PoolState) -> str | None:
    """Return the key of the image that was built for a module."""
    managed: Managed = environment
    try:
        return (await managed.known(pool.module.spec)).key if pool.module.spec.requirements else None
    except RunnerError:  # the engine has gone
        return None


async def _stored(executor: Executor) -> list[Stored]:
    """Return the built environments of a kind; none while its engine does not answer, which `kinds` shows."""
    environment: Any = executor.environment
    if not hasattr(environment, "stored"):  # `inline` builds nothing
        return []
    managed: Managed = environment
    try:
        return await managed.stored()
    except RunnerError:
        return []


async def _end_of(path: str) -> str:
    """Return the end of a build log, cut at a line; empty without one."""

    def read() -> bytes:
        with Path(path).open("rb") as file:
            file.seek(0, 2)
            start = max(0, file.tell() - LOG_BYTES)
            file.seek(start)
            data = file.read(LOG_BYTES)
        return data.partition(b"\n")[2] if start else data

    if not path:
        return ""
    try:
        return (await trio.to_thread.run_sync(read)).decode(errors="replace")
    except OSError:
        return ""


def _kind(kind: Kind, executor: Executor) -> dict[str, Any]:
    return {
        "env": kind.value,
        "available": executor.availability.available,
        "reason": executor.availability.reason or None,
        "detail": dict(executor.availability.detail),
        "limits": dict(executor.availability.limits) or _as_dict(executor.limits.enforcement),
        "statistics": _as_dict(executor.statistics()),
    }


def _as_dict(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).__match_args__}
