"""One function for each verb, without transport types: what every door calls. Each checks scope and modules first."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
from attrs import define, evolve, field

from actors.events import EventLog, Follower, log_of
from actors.executions import Idempotency, Live, Runs
from actors.history import History, ModuleStats, Page, Query
from actors.registry import Published, Registry
from actors.workers import BuildLog, Executor
from config.schema import MAX_STEPS, TooManyStepsError, fit, mismatch, validator
from config.settings import Settings
from protocol import messages
from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from protocol.ids import execution_id
from protocol.model import Execution, Kind, Status
from runner.api.management import Management
from runner.auth import Principal, require, require_module

_LARGE_BYTES = 256 * 1024
"""Input from which on the fast look at it is the only one: the other one would hold everybody up for seconds."""


@define(eq=False)
class Service:
    """The runner as its doors see it."""

    registry: Registry
    executors: Mapping[Kind, Executor]
    history: History
    runs: Runs
    settings: Settings
    management: Management = field(init=False)
    _idempotency: Idempotency = field(init=False)

    def __attrs_post_init__(self) -> None:
        work = self.settings.store.data_dir.absolute() / "work" / str(os.getpid())
        self.management = Management(self.registry, self.executors, self.runs, work)
        seconds = self.settings.history.idempotency_seconds
        self._idempotency = Idempotency(self.history, seconds, self.runs.find_keyed)

    # Modules and environments

    def module(self, principal: Principal, scope: str, name: str, version: str | None = None) -> Published:
        """Return a module that the principal may use under `scope`.

        Raises RunnerError `forbidden` or `not_found`.
        """
        require(principal, scope)
        require_module(principal, name)
        return self.registry.snapshot.get(name, version, principal.may_use)

    def modules(
        self,
        principal: Principal,
        *,
        envs: Iterable[Kind],
        tags: Iterable[str],
        text: str | None,
        limit: int,
        cursor: str,
    ) -> tuple[list[Published], str | None]:
        """Return the modules after `cursor` (a name) that match and that the principal may use, and the next cursor."""
        require(principal, "modules:read")
        found = [
            m
            for m in self.registry.snapshot.find(envs=envs, tags=tags, text=text)
            if m.spec.name > cursor and principal.may_use(m.spec.name)
        ]
        return found[:limit], found[limit - 1].spec.name if len(found) > limit else None

    def environments(self, principal: Principal) -> list[dict[str, Any]]:
        """Return each kind of environment: whether it can be used here, how limits are held, and its statistics."""
        require(principal, "modules:read")
        return [
            {
                "env": kind.value,
                "available": executor.availability.available,
                "reason": executor.availability.reason or None,
                "detail": dict(executor.availability.detail),
                "limits": dict(executor.availability.limits) or _as_dict(executor.limits.enforcement),
                "statistics": _as_dict(executor.statistics()),
            }
            for kind, executor in self.executors.items()
        ]

    def prepare(self, principal: Principal, name: str, version: str | None = None) -> tuple[Published, BuildLog]:
        """Build a module's environment where it is missing; return the module, and the build to be followed.

        Callers share a build; it goes on when none of them follows it any more. Raises RunnerError `forbidden`,
        `not_found`, `unavailable`, `shutdown`, and for a moment what the last build failed with.
        """
        module = self.module(principal, "modules:write", name, version)
        return module, self.executors[module.spec.env].prepare(module)

    # Executions that begin

    async def execute(
        self,
        principal: Principal,
        name: str,
        data: bytes,
        *,
        version: str | None = None,
        timeout: float | None = None,
        key: str | None = None,
    ) -> Execution:
        """Run a module and return the whole execution, recorded; a failure of user code is in it, not raised.

        `timeout` in seconds can only shorten the module's own. Raises RunnerError for what never began. Cancelled,
        the execution is ended and recorded as `cancelled` before Cancelled goes on; one with an idempotency `key`
        goes on, for the caller who repeats it.
        """
        module, execution, raw = self._new(principal, name, data, version, timeout)
        if key is None:
            return await self.runs.execute(module, execution, raw)
        execution = evolve(execution, idempotency_key=key)

        async def begin() -> Live:
            return self.runs.start(module, execution, raw)

        known = await self._idempotency.first(execution, begin)
        return known if isinstance(known, Execution) else await self.runs.wait_ended(known)

    async def submit(
        self,
        principal: Principal,
        name: str,
        data: bytes,
        *,
        version: str | None = None,
        timeout: float | None = None,
        key: str | None = None,
    ) -> Execution:
        """Accept an execution that runs when it is its turn, also after a restart, and return it as it is then.

        Parameters as `execute`. Raises RunnerError for what was not accepted. Cancelled, it may have been.
        """
        module, execution, raw = self._new(principal, name, data, version, timeout)
        execution = evolve(execution, status=Status.QUEUED, asynchronous=True, input=bytes(raw), idempotency_key=key)

        async def begin() -> Live:
            return await self.runs.dispatcher.submit(module, execution)

        known = await begin() if key is None else await self._idempotency.first(execution, begin)
        return known if isinstance(known, Execution) else self.runs.snapshot(known)

    def begin(
        self, principal: Principal, name: str, data: bytes, *, version: str | None = None, timeout: float | None = None
    ) -> tuple[str, Follower]:
        """Begin an execution and return its id, and its events from the first on; whoever follows may `abandon` it.

        Parameters and errors as `execute`, but for those that come after the begin: they are the last event.
        """
        module, execution, raw = self._new(principal, name, data, version, timeout)
        return execution.id, Follower(self.runs.start(module, execution, raw).log)

    def abandon(self, name: str, why: str = "the caller went away") -> None:
        """End an execution whose only reader has gone away, or asks for it. Never blocks."""
        live = self.runs.find(name)
        if live is not None:
            live.cancel(Failure(ErrorKind.CANCELLED, why))

    def _new(
        self, principal: Principal, name: str, data: bytes, version: str | None, timeout: float | None
    ) -> tuple[Published, Execution, msgspec.Raw]:
        """Return an execution that may begin. Raises RunnerError."""
        module = self.module(principal, "executions:run", name, version)
        raw = _checked_input(module, data)
        if self.runs.stopping:
            raise RunnerError(shutting_down())
        if timeout is not None and not timeout > 0:
            raise error(ErrorKind.BAD_INPUT, f"the timeout must be above 0 seconds, not {timeout:g}", field="timeout")
        execution = Execution(
            id=execution_id(),
            module=module.ref,
            env=module.spec.env,
            status=Status.RUNNING,
            created_at=time.time(),
            input=data or b"null",
            subject=principal.subject,
            timeout=timeout,
        )
        return module, execution, raw

    # Executions that are there

    async def get(self, principal: Principal, name: str) -> Execution:
        """Return one execution in its latest state. Raises RunnerError `forbidden` or `not_found`."""
        require(principal, "executions:read")
        live = self.runs.find(name)
        execution = await self.history.get(name) if live is None else self.runs.snapshot(live)
        if execution is None:
            raise error(ErrorKind.NOT_FOUND, f"there is no execution {name!r}", field="id")
        require_module(principal, execution.module.name)
        return execution

    async def list(self, principal: Principal, query: Query) -> Page:
        """Return a page of executions, newest first, without payloads and events; those alive say why they wait."""
        require(principal, "executions:read")
        page = await self.history.list(evolve(query, modules=principal.modules))
        return evolve(page, items=tuple(map(self._with_waiting, page.items)))

    def _with_waiting(self, execution: Execution) -> Execution:
        live = self.runs.find(execution.id)
        return execution if live is None else evolve(execution, waiting=self.runs.waiting(live))

    async def stats(self, principal: Principal, name: str, *, since: float | None, until: float | None) -> ModuleStats:
        """Return what became of a module's executions in a window of time; also of one that is not served any more.

        Raises RunnerError `forbidden`, or `not_found` when no module has the name and none of its executions is known.
        """
        require(principal, "executions:read")
        require_module(principal, name)
        found = await self.history.stats(name, since=since, until=until)
        snapshot = self.registry.snapshot
        if found.total == 0 and name not in snapshot.modules and name not in snapshot.registered:
            raise snapshot.unknown(name, principal.may_use)
        return found

    async def cancel(self, principal: Principal, name: str) -> Execution:
        """End an execution in whatever state it is; return it when its end is recorded. Again, it changes nothing.

        Who may not read executions is not shown what it was given, printed and returned.

        Raises RunnerError `forbidden`, `not_found`, or `unavailable` when the end cannot be recorded.
        """
        require(principal, "executions:run")
        live = self.runs.find(name)
        if live is not None:
            require_module(principal, live.execution.module.name)
            return _shown(principal, await self.runs.cancel(live))
        execution = await self.history.get(name)
        if execution is None:
            raise error(ErrorKind.NOT_FOUND, f"there is no execution {name!r}", field="id")
        require_module(principal, execution.module.name)
        return _shown(principal, execution)

    async def follow(self, principal: Principal, name: str, start: int = 0) -> Follower:
        """Return the events of an execution from number `start` on, what was and what comes.

        Raises RunnerError `forbidden`, `not_found`, or `bad_input` for a negative number.
        """
        require(principal, "executions:read")
        if start < 0:
            raise error(ErrorKind.BAD_INPUT, f"the first event is number 0, not {start}", field="from")
        return Follower(await self._log(principal, name), start)

    async def _log(self, principal: Principal, name: str) -> EventLog:
        live = self.runs.find(name)
        if live is not None:
            require_module(principal, live.execution.module.name)
            return live.log
        return log_of(await self.get(principal, name))


def _shown(principal: Principal, execution: Execution) -> Execution:
    if principal.allows("executions:read"):
        return execution
    return evolve(execution, input=b"null", result=None, events=b"[]")


def _as_dict(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).__match_args__}


def _checked_input(module: Published, data: bytes) -> msgspec.Raw:
    """Return the input as a value that can be sent on; an empty body is null. Raises RunnerError `bad_input`."""
    try:
        raw = messages.check_json(data or b"null")
    except messages.InvalidJsonError as problem:
        raise error(ErrorKind.BAD_INPUT, f"the input is not JSON: {problem}", field="$") from None
    if module.input_schema is not None:
        _check_schema(msgspec.json.encode(module.input_schema), bytes(raw))
    return raw


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any:
    return validator(msgspec.json.decode(schema))


@lru_cache(maxsize=256)
def _decoder(schema: bytes) -> msgspec.json.Decoder[Any] | None:
    return fit.decoder(msgspec.json.decode(schema))


def _check_schema(schema: bytes, data: bytes) -> None:
    fast = _decoder(schema)
    told = ("$", f"the input takes more than {MAX_STEPS} steps to check by its schema; send less at once")
    if fast is not None:
        try:
            fast.decode(data)
        except msgspec.MsgspecError as problem:
            told = path, why = fit.told(problem)
            if len(data) > _LARGE_BYTES:
                raise error(ErrorKind.BAD_INPUT, f"{path}: {why}", field=path) from None
        else:
            return
    try:
        found = mismatch(_validator(schema), msgspec.json.decode(data))
    except msgspec.DecodeError as refused:  # a number of a size that handlers may take, and no schema can look at
        raise error(ErrorKind.BAD_INPUT, f"the input cannot be checked by its schema: {refused}", field="$") from None
    except TooManyStepsError:
        path, why = told
        raise error(ErrorKind.BAD_INPUT, f"{path}: {why}", field=path) from None
    except RecursionError:
        text = "the input is nested too deeply to be checked by its schema"
        raise error(ErrorKind.BAD_INPUT, text, field="$") from None
    if found is not None:
        path, why = found
        raise error(ErrorKind.BAD_INPUT, f"{path}: {why}", field=path)
