"""One method for each verb, without transport types: what every door calls. Each checks scope and modules first."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial

import msgspec
from attrs import define, evolve, field
from msgspec.structs import replace

from actors.events import EventLog, Follower, log_of
from actors.executions import Delivery, Idempotency, Live, Runs, fingerprint, reach_of, use_named
from actors.files import Files
from actors.history import History, Page, Query
from actors.keys import ApiKeys
from actors.registry import Published, Registry
from actors.starts import Outbox, Schedules
from actors.turns import AT_ONCE, Terms, group_of
from actors.workers import BuildLog, Executor
from config.settings import Settings
from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from protocol.ids import execution_id
from protocol.model import Execution, Kind, Record, Status
from runner.api.answers import Answers
from runner.api.checks import Checks
from runner.api.details import Details
from runner.api.files import StoredFiles, viewer_of
from runner.api.following import Following, check_valid, current_log, following_call
from runner.api.keys import KeyVerbs
from runner.api.machine import Machine
from runner.api.management import Management
from runner.api.outputs import Outputs
from runner.api.reruns import Cancels, Decisions, Reruns, seen, shown
from runner.api.starts import Scheduling
from runner.auth import Principal, Scope, require
from runner.wire import Budget


@define(eq=False)
class Service:
    """The runner, as its doors see it."""

    registry: Registry
    executors: Mapping[Kind, Executor]
    history: History
    runs: Runs
    files: Files
    settings: Settings
    api_keys: ApiKeys | None = None
    starts: Schedules | None = None
    outbox: Outbox | None = None
    budget: Budget = field(init=False)
    """The memory that unfinished requests of all doors share."""
    answers: Answers = field(init=False)
    """The memory that large answers of all doors share."""
    management: Management = field(init=False)
    machine: Machine = field(init=False)
    details: Details = field(init=False)
    stored: StoredFiles = field(init=False)
    keys: KeyVerbs = field(init=False)
    reruns: Reruns = field(init=False)
    cancels: Cancels = field(init=False)
    decisions: Decisions = field(init=False)
    outputs: Outputs = field(init=False)
    schedules: Scheduling = field(init=False)
    checks: Checks = field(factory=Checks, init=False)
    signatures_refused: Counter[str] = field(factory=Counter, init=False)
    """Requests of endpoints whose signature was refused, by the reason."""
    _idempotency: Idempotency = field(init=False)

    def __attrs_post_init__(self) -> None:
        work = self.settings.store.data_dir.absolute() / "work" / str(os.getpid())
        server = self.settings.server
        limit = max(server.max_buffered_bytes, server.max_frame_bytes)  # or the largest would never fit
        self.budget = Budget(limit)
        self.answers = Answers(Budget(limit), server.send_timeout_seconds, Budget(limit), self.history)
        self.management = Management(self.registry, self.executors, self.runs, work)
        self.details = Details(self.registry, self.executors, self.history)
        self.machine, self.stored = (
            Machine(self.executors, lambda: self.runs.owners),
            StoredFiles(self.files, self.budget),
        )
        self.keys = KeyVerbs(self.registry.audit, self.api_keys)
        self.schedules = Scheduling(self.registry, self.runs, self.checks, self.starts)
        self.reruns = Reruns(self.history, self.runs, self.registry, self.checks, self.submit)
        self.decisions = Decisions(self.history, self.runs, self.registry)
        self.cancels, self.outputs = Cancels(self.history, self.runs), Outputs(self.history, self.runs, self.checks)
        self._idempotency = Idempotency.of(self.runs, self.settings.history.idempotency_seconds)
        self.runs.nesting.serve(self.checks, self._idempotency.first_child)

    # Modules and environments

    def module(self, principal: Principal, scope: Scope, name: str, version: str | None = None) -> Published:
        """Return a module that the principal may use with `scope`.

        Raises RunnerError `forbidden` or `not_found`.
        """
        require(principal, scope)
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
        require(principal, Scope.MODULES_READ)
        found = [
            m
            for m in self.registry.snapshot.find(envs=envs, tags=tags, text=text)
            if m.spec.name > cursor and principal.may_use(m.spec.name)
        ]
        return found[:limit], found[limit - 1].spec.name if len(found) > limit else None

    def prepare(self, principal: Principal, name: str, version: str | None = None) -> tuple[Published, BuildLog]:
        """Build a module's environment if it is missing; return the module and the build to follow.

        Callers share a build, which continues without followers too. Raises RunnerError `forbidden`, `not_found`,
        `unavailable`, `shutdown`, and for a moment after a failed build its failure.
        """
        module = self.module(principal, Scope.MODULES_WRITE, name, version)
        return module, self.executors[module.spec.env].prepare(module)

    def damaged(self) -> list[str]:
        """Return the stored parts that were found damaged, as the metrics name them."""
        return _damaged(self)

    # Executions that begin

    async def execute(
        self,
        principal: Principal,
        name: str,
        data: bytes,
        *,
        version: str | None = None,
        timeout: float | None = None,
        key: str | Delivery | None = None,
        on_item: Callable[[str, EventLog], None] | None = None,
    ) -> Execution:
        """Run a module and return the whole recorded execution; a failure of user code is in it, not raised.

        `timeout` in seconds can only shorten the module's own. Raises RunnerError if no execution begins. When the
        caller is cancelled, the execution is ended and recorded as `cancelled` before Cancelled propagates; an
        execution with an idempotency `key` continues, for a caller that repeats the call. Without one, `on_item` is
        called with its id and events when the handler, a generator, has made its first item.
        """
        module, execution, raw = await self._new(principal, name, data, version, timeout)
        if key is None:
            return await self.runs.execute(module, execution, raw, on_item)
        keyed = await _keyed(execution, key, self.checks)
        begin = partial(_started, self.runs, module, keyed, raw)
        known = await self._idempotency.first(keyed, begin, _delivery(key))
        return _begun(known) if isinstance(known, Execution) else await self.runs.wait_ended(known)

    async def submit(
        self,
        principal: Principal,
        name: str,
        data: bytes,
        *,
        version: str | None = None,
        timeout: float | None = None,
        key: str | Delivery | None = None,
        terms: Terms = AT_ONCE,
        via: str | None = None,
    ) -> Execution:
        """Accept an execution that runs when its turn comes, even after a restart, and return its present state.

        `via` is recorded with it; the other parameters are those of `execute`. Raises RunnerError if it is not
        accepted. When the caller is cancelled, it may have been accepted.
        """
        module, execution, raw = await self._new(principal, name, data, version, timeout)
        execution = replace(terms.applied(execution), input=bytes(raw), via=via)
        if key is not None:
            execution = await _keyed(execution, key, self.checks)

        async def begin() -> Live | Execution:
            if execution.status is Status.SCHEDULED:
                return await self.runs.later.accept(execution)
            return await self.runs.dispatcher.submit(module, execution)

        known = await begin() if key is None else await self._idempotency.first(execution, begin, _delivery(key))
        return known if isinstance(known, Execution) else self.runs.snapshot(known)

    async def begin(
        self,
        principal: Principal,
        name: str,
        data: bytes,
        *,
        version: str | None = None,
        timeout: float | None = None,
        key: str | None = None,
        via: str | None = None,
    ) -> tuple[str, Follower]:
        """Begin an execution and return its ID, and its events from the first on; the follower may `abandon` it.

        With an idempotency `key` it may have begun before. `via` is recorded with it. The other parameters and the
        errors are those of `execute`, except that errors after the begin are the last event.
        """
        module, execution, raw = await self._new(principal, name, data, version, timeout)
        execution = replace(execution, via=via)
        if key is None:
            return execution.id, following_call((await _started(self.runs, module, execution, raw)).log, principal)
        keyed = await _keyed(execution, key, self.checks)
        known = await self._idempotency.first(keyed, partial(_started, self.runs, module, keyed, raw))
        log = log_of(_begun(known)) if isinstance(known, Execution) else known.log
        return (known.id if isinstance(known, Execution) else known.execution.id), following_call(log, principal)

    def check_room(self, principal: Principal, name: str, version: str | None = None) -> None:
        """Raise the RunnerError with which a call would be refused at once, without its input."""
        module = self.module(principal, Scope.EXECUTIONS_RUN, name, version)
        if self.runs.stopping:
            raise RunnerError(shutting_down())
        self.executors[module.spec.env].check_room(module)

    def abandon(self, name: str, why: str = "the caller went away") -> None:
        """End an execution whose only reader has gone or asks for it. Never blocks."""
        live = self.runs.find(name)
        if live is not None:
            live.cancel(Failure(ErrorKind.CANCELLED, why))

    async def _new(
        self, principal: Principal, name: str, data: bytes, version: str | None, timeout: float | None
    ) -> tuple[Published, Execution, msgspec.Raw]:
        """Return an execution that may begin. Raises RunnerError."""
        check_valid(principal)  # a batch may have run long
        module = self.module(principal, Scope.EXECUTIONS_RUN, name, version)
        raw = await self.checks.input(module, data)
        if self.runs.stopping:
            raise RunnerError(shutting_down())
        execution = _new_execution(module, principal, data, timeout)
        if (policy := module.spec.group) is not None:
            group = await self.checks.whole(partial(group_of, policy.key), data)
            execution = replace(execution, group=group)
        await use_named(self.files, execution.id, module.spec.name, data, viewer_of(principal))
        return module, execution, raw

    # Executions that exist

    async def get(self, principal: Principal, name: str) -> Execution:
        """Return the latest state of an execution. Raises RunnerError `forbidden` or `not_found`."""
        require(principal, Scope.EXECUTIONS_READ)
        live = await self.runs.owners.reach(name)
        return seen(principal, name, await (_stored(self, name) if live is None else _snapshot(self, live)))

    async def list(self, principal: Principal, query: Query) -> Page:
        """Return a page of executions, newest first, without payloads and events; live ones with why they wait."""
        require(principal, Scope.EXECUTIONS_READ)
        page = await self.history.list(evolve(query, modules=principal.modules))
        return evolve(page, items=await self.runs.owners.explained(page.items))

    async def cancel(self, principal: Principal, name: str) -> Execution:
        """End an execution in any state, and return it when its end is recorded. A second call changes nothing.

        Without the scope `executions:read`, input, output and result are omitted.
        Raises RunnerError `forbidden`, `not_found`, or `unavailable` when the end cannot be recorded.
        """
        require(principal, Scope.EXECUTIONS_RUN)
        live = await self.runs.owners.reach(name)
        if live is not None:
            seen(principal, name, live.execution)
            return shown(principal, await self.runs.owners.cancel(live))
        found = seen(principal, name, await self.history.get(name))
        return shown(principal, await self.runs.cancel_scheduled(found))

    async def follow(self, principal: Principal, name: str, start: int = 0) -> Follower:
        """Return the events of an execution: past ones from number `start`, then live ones.

        Its `next` raises RunnerError `unauthenticated` once the token of the caller has expired. Raises RunnerError
        `forbidden`, `not_found`, or `bad_input` for a negative number.
        """
        require(principal, Scope.EXECUTIONS_READ)
        if start < 0:
            raise error(ErrorKind.BAD_INPUT, f"the first event is number 0, not {start}", field="from")
        return Following(await self._log(principal, name), start, principal)

    async def _log(self, principal: Principal, name: str) -> EventLog:
        async def read() -> Execution:
            return _begun(await self.get(principal, name))

        return await current_log(read, partial(self.runs.owners.reach, name))


async def _started(runs: Runs, module: Published, execution: Execution, raw: msgspec.Raw) -> Live:
    if runs.dispatcher.queue.takes_calls(module):
        return await runs.queued_calls.begin(module, execution)
    return runs.start(module, execution, raw)


async def _stored(service: Service, name: str) -> Execution | None:
    found = await service.history.get(name)
    if found is None or found.status.final:
        return found
    return (await service.runs.owners.explained((found,)))[0]


async def _snapshot(service: Service, live: Live) -> Execution:
    """Return a live execution as it is now, with its input, which is only in the history while it is queued."""
    found = service.runs.snapshot(live)
    if found.status is not Status.QUEUED or found.input != b"null" or found.input_bytes == len(found.input):
        return found
    stored = await service.history.get(found.id)
    return found if stored is None else replace(found, input=stored.input)


def _new_execution(module: Published, principal: Principal, data: bytes, timeout: float | None) -> Execution:
    """Return an execution with this input; no data is null. Raises RunnerError `bad_input` for the timeout."""
    if timeout is not None and not timeout > 0:
        raise error(ErrorKind.BAD_INPUT, f"the timeout must be above 0 seconds, not {timeout:g}", field="timeout")
    given = data or b"null"
    return Execution(
        id=execution_id(),
        module=module.ref,
        env=module.spec.env,
        status=Status.RUNNING,
        created_at=time.time(),
        input=given,
        subject=principal.subject,
        reach=reach_of(principal.modules) if module.spec.calls_modules else None,
        timeout=timeout,
        on_end=module.telling,
        summary=module.spec.record is Record.SUMMARY,
        input_bytes=len(given),
    )


async def _keyed(execution: Execution, key: str | Delivery, checks: Checks) -> Execution:
    """Return the execution with an idempotency key, and with the hash of an input that is not kept."""
    found = await checks.whole(fingerprint, execution.input) if execution.summary else None
    text = key.key if isinstance(key, Delivery) else key
    return replace(execution, idempotency_key=text, input_hash=found)


def _delivery(key: str | Delivery) -> Delivery | None:
    return key if isinstance(key, Delivery) else None


def _begun(execution: Execution) -> Execution:
    """Return an execution that does not wait for its time, as it can be neither followed nor waited for."""
    if execution.status is Status.SCHEDULED:
        at = datetime.fromtimestamp(execution.run_at or 0.0, UTC).isoformat(timespec="seconds")
        text = f"the execution {execution.id} is scheduled for {at}; follow it, or repeat the call, from then on"
        raise error(ErrorKind.CONFLICT, text, field="id")
    return execution


def _damaged(service: Service) -> list[str]:
    catalog = service.registry.catalog
    found = {
        "code": bool(service.registry.damaged),
        "files": bool(service.files.statistics().damaged),
        "keys": service.keys.damaged,
        "modules": catalog is not None and catalog.damaged,
        "schedules": service.schedules.damaged,
    }
    return sorted([*service.history.statistics().damaged, *(part for part, damaged in found.items() if damaged)])
