"""One function for each verb, without transport types: what every door calls."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
import structlog
import trio
from attrs import define, evolve, field

from actors.executor import Executor
from actors.history import History
from actors.output import Output
from actors.pool import Phases
from actors.registry import Published, Registry, may_run_in_process
from actors.retry import retry_delay
from actors.worker import Call, Outcome
from config.settings import Settings
from environments.inprocess import InProcess
from protocol import messages
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.ids import execution_id
from protocol.model import Execution, Isolation, Kind, Status, Timings
from runner.auth import Principal

_NOT_BEGUN = (ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE, ErrorKind.SHUTDOWN)
"""Failures of a lease after which nothing has happened that a record would be worth."""

log = structlog.get_logger("service")


@define(eq=False)
class Service:
    """The runner as its doors see it. Every method checks the principal's scope and modules."""

    registry: Registry
    executors: Mapping[Kind, Executor]
    history: History
    settings: Settings
    draining: bool = field(default=False, init=False)
    running: int = field(default=0, init=False)
    _idle: trio.Event = field(factory=trio.Event, init=False)
    _in_process: InProcess = field(factory=InProcess, init=False)

    def module(self, principal: Principal, scope: str, name: str, version: str | None = None) -> Published:
        """Return a module that the principal may use under `scope`.

        Raises RunnerError `forbidden` or `not_found`.
        """
        require(principal, scope)
        if not principal.may_use(name):
            raise error(ErrorKind.FORBIDDEN, f"the token does not allow module {name!r} (claim `modules`)")
        return self.registry.snapshot.get(name, version)

    def modules(
        self, principal: Principal, *, env: Kind | None, tag: str | None, text: str | None, limit: int, cursor: str
    ) -> tuple[list[Published], str | None]:
        """Return the modules after `cursor` (a name) that match and that the principal may use, and the next cursor."""
        require(principal, "modules:read")
        found = [
            m
            for m in self.registry.snapshot.find(env=env, tag=tag, text=text)
            if m.spec.name > cursor and principal.may_use(m.spec.name)
        ]
        return found[:limit], found[limit - 1].spec.name if len(found) > limit else None

    async def execute(
        self, principal: Principal, name: str, data: bytes, *, version: str | None = None, timeout: float | None = None
    ) -> Execution:
        """Run a module and return the whole execution, recorded; a failure of user code is in it, not raised.

        `timeout` in seconds can only shorten the module's own. Raises RunnerError for what never began. Cancelled,
        the execution is ended and recorded as `cancelled` before Cancelled goes on.
        """
        module = self.module(principal, "executions:run", name, version)
        raw = _checked_input(module, data)
        if self.draining:
            raise error(ErrorKind.SHUTDOWN, "the runner is shutting down", retry_after=5)
        if timeout is not None and not timeout > 0:
            raise error(ErrorKind.BAD_INPUT, f"the timeout must be above 0 seconds, not {timeout:g}", field="timeout")
        execution = Execution(
            id=execution_id(),
            module=module.ref,
            env=module.spec.env,
            status=Status.RUNNING,
            created_at=time.time(),
            input=data,
            subject=principal.subject,
        )
        self.running += 1
        try:
            return await self._run(module, execution, raw, timeout)
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no execution runs."""
        while self.running:
            self._idle = trio.Event()
            await self._idle.wait()

    async def _run(self, module: Published, execution: Execution, raw: msgspec.Raw, timeout: float | None) -> Execution:
        spec = module.spec
        seconds = spec.timeout if timeout is None else min(timeout, spec.timeout)
        phases, attempt, ran = Phases(), 0, 0.0
        output = Output(limit=spec.output, keep=self.settings.executor.kept_output_bytes)
        try:
            while True:
                attempt += 1
                output = Output(limit=spec.output, keep=self.settings.executor.kept_output_bytes)
                outcome = await self._attempt(
                    module, execution, Call(execution.id, raw, attempt, seconds, output), phases
                )
                ran += outcome.seconds
                if outcome.failure is None:
                    break
                delay = retry_delay(outcome.failure, attempt, spec.retry, random.uniform(-1, 1))  # noqa: S311
                if delay is None:
                    break
                log.info("trying again", execution=execution.id, kind=outcome.failure.kind, delay=round(delay, 3))
                await trio.sleep(delay)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                failure = Failure(ErrorKind.CANCELLED, "the caller went away, or the runner was shut down")
                outcome = Outcome(failure=failure, exit_code=130)
                await self._record(execution, outcome, output, phases, attempt, ran)
            raise
        return await self._record(execution, outcome, output, phases, attempt, ran)

    async def _record(
        self, execution: Execution, outcome: Outcome, output: Output, phases: Phases, attempt: int, ran: float
    ) -> Execution:
        """Return the ended execution once its record is safe."""
        failure = outcome.failure
        status = Status.SUCCEEDED if failure is None else Status.FAILED
        if failure is not None and failure.kind is ErrorKind.CANCELLED:
            status = Status.CANCELLED
        ended = evolve(
            execution,
            status=status,
            result=outcome.result,
            failure=failure,
            output=output.finish(),
            output_dropped=output.dropped,
            exit_code=outcome.exit_code,
            attempts=attempt,
            timings=Timings(phases.queue, phases.build, phases.start, phases.load, ran),
            finished_at=time.time(),
        )
        await self.history.finish(ended)
        if failure is None:
            log.debug("execution succeeded", execution=ended.id, module=str(ended.module), run=ran)
        else:
            log.info(
                "execution ended",
                execution=ended.id,
                module=str(ended.module),
                kind=failure.kind,
                why=failure.message[:200],
            )
        return ended

    async def _attempt(self, module: Published, execution: Execution, call: Call, phases: Phases) -> Outcome:
        """Run one attempt; it is recorded as running once it has a worker. Raises RunnerError for what never began."""
        spec = module.spec
        if spec.isolation is Isolation.NONE:
            self.history.begin(execution)
            return await self._attempt_in_process(module, call)
        try:
            async with self.executors[spec.env].lease(module, phases) as worker:
                self.history.begin(execution)
                return await worker.execute(call)
        except RunnerError as problem:
            if call.attempt == 1 and problem.failure.kind in _NOT_BEGUN:
                raise
            return Outcome(failure=problem.failure, exit_code=1)

    async def _attempt_in_process(self, module: Published, call: Call) -> Outcome:
        if not may_run_in_process(module):
            raise error(ErrorKind.FORBIDDEN, "`isolation: none` is accepted from the operator's file only")
        began = trio.current_time()
        try:
            result = await self._in_process.call(
                module.digest,
                module.entry,
                module.function,
                module.spec.concurrency,
                bytes(call.input),
                seconds=call.timeout,
            )
        except RunnerError as problem:
            return Outcome(failure=problem.failure, seconds=trio.current_time() - began, exit_code=1)
        return Outcome(result=result, seconds=trio.current_time() - began)

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


def _as_dict(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).__match_args__}


def require(principal: Principal, scope: str) -> None:
    """Raise RunnerError `forbidden` when the principal does not have the scope."""
    if not principal.allows(scope):
        raise error(ErrorKind.FORBIDDEN, f"the token lacks the scope {scope!r} (claim `scope`)")


def _checked_input(module: Published, data: bytes) -> msgspec.Raw:
    """Return the input as a value that can be sent on; an empty body is null. Raises RunnerError `bad_input`."""
    try:
        raw = messages.check_json(data or b"null")
    except messages.InvalidJsonError as problem:
        raise error(ErrorKind.BAD_INPUT, f"the body is not JSON: {problem}", field="$") from None
    if module.spec.input_schema is not None:
        _check_schema(msgspec.json.encode(module.spec.input_schema), bytes(raw))
    return raw


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any:
    from jsonschema.validators import validator_for  # noqa: PLC0415  (0.1 s to import, few modules have a schema)

    document = msgspec.json.decode(schema)
    return validator_for(document)(document)


def _check_schema(schema: bytes, data: bytes) -> None:
    problem = next(iter(_validator(schema).iter_errors(msgspec.json.decode(data))), None)
    if problem is not None:
        raise error(ErrorKind.BAD_INPUT, f"{problem.json_path}: {problem.message}", field=problem.json_path)
