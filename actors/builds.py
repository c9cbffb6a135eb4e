"""The environments of one kind's modules: each built once, a few at a time, within its `build_timeout`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio
from attrs import define, field

from actors.pool import Pool
from environments.base import Environment, Prepared
from protocol.errors import ErrorKind, RunnerError, error

_TOLD_LINES = 10

log = structlog.get_logger("builds")


@define(eq=False)
class Builds:
    """Prepares environments; at most `max_builds` are built at a time, those that exist wait for nothing."""

    environment: Environment
    max_builds: int
    _places: trio.CapacityLimiter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._places = trio.CapacityLimiter(self.max_builds)

    async def prepared(self, pool: Pool) -> Prepared:
        """Return the environment of a module; `pool` hears what the build is busy with.

        Raises RunnerError (`environment_failed`, `unavailable`). Callers of one module share a build and its failure.
        Cancelled, nothing half-built is left.
        """
        if pool.prepared is not None:
            return pool.prepared
        async with pool.preparing:
            if pool.prepared is None:
                if pool.last_failure is not None and pool.pause(trio.current_time()):
                    raise RunnerError(pool.last_failure)  # the build that this one waited for
                pool.prepared = await self._build(pool)
        return pool.prepared

    async def _build(self, pool: Pool) -> Prepared:
        spec = pool.module.spec
        pool.say("preparing environment", trio.current_time())
        with trio.move_on_after(spec.build_timeout) as scope:
            watch = _Watch(pool, scope, self._places)
            return await self.environment.prepare(spec, watch)
        text = f"the environment was not built within build_timeout ({spec.build_timeout:g} s)"
        raise error(ErrorKind.ENVIRONMENT_FAILED, "\n".join([text, *watch.lines]), field="build_timeout")


@define(eq=False)
class _Watch:
    """Hears a build, and lets it in when there is a place. Waiting for one does not use up the build's time."""

    pool: Pool
    scope: trio.CancelScope
    places: trio.CapacityLimiter
    lines: list[str] = field(factory=list)

    def __call__(self, line: str) -> None:
        log.debug("build", module=self.pool.module.spec.name, line=line)
        self.lines[:] = [*self.lines[1 - _TOLD_LINES :], line]

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        began = trio.current_time()
        self.pool.say("waiting for other builds", began)
        async with self.places:
            self.scope.deadline += trio.current_time() - began
            self.pool.say("building environment", trio.current_time())
            yield
