"""The environments of one kind's modules: each built once, a few at a time, within its `build_timeout`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import structlog
import trio
from attrs import define, evolve, field

from actors.registry import Published
from actors.workers.build_log import BuildLog
from actors.workers.pool import Pool
from config.modules import ModuleSpec
from environments.base import BuildWatch, Environment, Prepared
from environments.installer import WHEELS_REMEDY, only_wheels
from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down

_FAILURE_LINES = 10
"""Last lines of a build that its failure shows."""
_LOGGED_CHARACTERS = 500
"""Characters of a failure in the runner's log."""
_BUILDING = "building environment"
T = TypeVar("T")

log = structlog.get_logger("builds")


@define(eq=False)
class Builds:
    """Prepares environments. At most `max_builds` are built at a time; existing ones wait for nothing."""

    environment: Environment
    max_builds: int
    wheels_only: bool = False
    """Modules that were registered over the API install wheels only."""
    running: int = field(default=0, init=False)
    """Environments being prepared."""
    built: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)
    _places: trio.CapacityLimiter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._places = trio.CapacityLimiter(self.max_builds)

    async def prepared(self, pool: Pool) -> Prepared:
        """Return the environment of a module; `pool` gets the steps of the build, `pool.build` its lines.

        Raises RunnerError (`environment_failed`, `unavailable`). Callers of one module share a build and its failure.
        Cancelled, nothing half-built is left.
        """
        if pool.prepared is not None:
            return pool.prepared
        try:
            async with pool.preparing:
                if pool.prepared is None:
                    if pool.last_failure is not None and pool.pause(trio.current_time()):
                        raise RunnerError(pool.last_failure)  # noqa: TRY301  (of the build that this one waited for)
                    pool.prepared = await self._build(pool)
        except BaseException as problem:
            if pool.build is not None:  # its followers must not wait for ever
                pool.build.end(failure=_failure_of(problem))
            raise
        return pool.prepared

    async def rebuild(self, pool: Pool, used: Collection[str]) -> None:
        """Build the environment of a pool again, whose callers wait, and replace the existing one.

        `used` are the environments of others. Raises as `prepared`, and `conflict` if another process uses it; the
        existing one stays then.
        """
        lines = pool.log_build()
        managed: Any = self.environment  # a kind that builds nothing has no key that a caller could name
        self.environment.keep(used)
        self.running += 1
        pool.build_begins(trio.current_time())
        try:
            with self._allowed(pool.module) as spec:
                pool.prepared = await build(managed.rebuild, spec, self._places, lines, partial(_report, pool))
        except BaseException as problem:
            self.failed += isinstance(problem, RunnerError | OSError)
            lines.end(failure=_failure_of(problem))
            raise
        finally:
            self.running -= 1
            pool.build_ended(trio.current_time())
        self.built += 1
        lines.end(prepared=pool.prepared)

    async def lock(self, module: Published) -> None:
        """Resolve a module's unpinned requirements within its `build_timeout`. Raises as `prepared`, and OSError."""
        with self._allowed(module) as spec:
            await build(self.environment.lock, spec, self._places, BuildLog(), lambda _activity: None)

    @contextmanager
    def _allowed(self, module: Published) -> Iterator[ModuleSpec]:
        """Give a module with what it may install; a failure has the remedy. Raises RunnerError `environment_failed`."""
        spec = module.spec
        limited = only_wheels(spec) if self.wheels_only and not module.trusted else spec
        if limited is spec:
            yield spec
            return
        try:
            yield limited
        except RunnerError as problem:
            if problem.failure.kind is not ErrorKind.ENVIRONMENT_FAILED:
                raise
            text = f"{problem.failure.message}\n{WHEELS_REMEDY}"
            raise RunnerError(evolve(problem.failure, message=text)) from problem

    async def _build(self, pool: Pool) -> Prepared:
        lines = pool.log_build()
        self.running += 1
        pool.build_begins(trio.current_time())
        try:
            report = partial(_report, pool)
            with self._allowed(pool.module) as spec:
                prepared = await build(self.environment.prepare, spec, self._places, lines, report)
        except (RunnerError, OSError):
            self.failed += 1
            raise
        finally:
            self.running -= 1
            pool.build_ended(trio.current_time())
        self.built += prepared.built_seconds > 0
        lines.end(prepared=prepared)
        return prepared


def _report(pool: Pool, activity: str) -> None:
    pool.report_build(activity, trio.current_time())


def _failure_of(problem: BaseException) -> Failure:
    """Return the failure of a build, for its followers."""
    if isinstance(problem, RunnerError):
        return problem.failure
    if isinstance(problem, OSError):
        return Failure(ErrorKind.UNAVAILABLE, f"the environment cannot be built: {problem}")
    if isinstance(problem, Exception):
        return Failure(ErrorKind.INTERNAL, "the build failed inside the runner; the runner's log has the reason")
    return shutting_down()


async def build(
    make: Callable[[ModuleSpec, BuildWatch], Awaitable[T]],
    spec: ModuleSpec,
    places: trio.CapacityLimiter,
    lines: BuildLog,
    report: Callable[[str], None],
) -> T:
    """Return the result of `make` for a module; its lines go to `lines`, its steps to `report`.

    Raises RunnerError, `environment_failed` with the last lines when `build_timeout` has passed, and OSError.
    """
    report("preparing environment")
    with trio.move_on_after(spec.build_timeout) as scope:
        return await make(spec, _Watch(spec.name, lines, scope, places, report))
    text = f"the environment was not built within build_timeout ({spec.build_timeout:g} s)"
    raise error(ErrorKind.ENVIRONMENT_FAILED, "\n".join([text, *lines.last(_FAILURE_LINES)]), field="build_timeout")


@define(eq=False)
class _Watch:
    """Listens to a build, and admits it when there is a place. Waiting for a place does not use up the build's time."""

    module: str
    lines: BuildLog
    scope: trio.CancelScope
    places: trio.CapacityLimiter
    report: Callable[[str], None]

    def __call__(self, line: str) -> None:
        log.debug("build", module=self.module, line=line)
        self.lines.add(line)

    def building(self) -> None:
        self.report(_BUILDING)

    @asynccontextmanager
    async def place(self, key: str) -> AsyncIterator[None]:
        began = trio.current_time()
        self.report("waiting for other builds")
        async with self.places:
            self.scope.deadline += trio.current_time() - began
            self.report(_BUILDING)
            with self._logged(key):
                yield

    @contextmanager
    def _logged(self, key: str) -> Iterator[None]:
        """Log begin and end of a build."""
        began, result, why = trio.current_time(), "failed", ""
        log.info("build began", module=self.module, key=key)
        try:
            yield
            result = "built"
        except trio.Cancelled:
            result = "timed out" if self.scope.cancel_called else "cancelled"
            raise
        except RunnerError as problem:
            why = problem.failure.message[:_LOGGED_CHARACTERS]
            raise
        except OSError as problem:
            why = str(problem)
            raise
        finally:
            seconds = round(trio.current_time() - began, 3)
            say = log.info if result == "built" else log.warning
            say(
                "build ended",
                module=self.module,
                key=key,
                result=result,
                seconds=seconds,
                **({"why": why} if why else {}),
            )
