"""The verbs that repeat executions, without transport types. Each checks scope and modules first."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import trio
from attrs import evolve, field, frozen
from msgspec.structs import replace

from actors.executions import Runs
from actors.history import History, Query
from actors.registry import Registry
from actors.turns import AT_ONCE, Terms
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Execution
from runner.api.checks import Checks
from runner.auth import Principal, Scope, require

SAME: Final = "same"
ACTIVE: Final = "active"
_DROPPED: Final = b'{"$dropped"'
"""The begin of an input that was replaced when the disk was full."""
_STOPPING: Final = (ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE, ErrorKind.SHUTDOWN)
"""Kinds of refusal that hold for all that follow, too."""


@frozen
class Again:
    """What became of one execution of a list: its repetition, or why it has none; neither in a dry run."""

    execution: Execution
    repetition: Execution | None = None
    problem: Failure | None = None


class Submit(Protocol):
    """`Service.submit`."""

    def __call__(
        self,
        principal: Principal,
        name: str,
        data: bytes,
        *,
        version: str | None,
        timeout: float | None,
        key: str | None,
        terms: Terms,
    ) -> Awaitable[Execution]:
        """Accept an execution. Raises RunnerError."""


@frozen
class Reruns:
    """The verbs of repetitions."""

    history: History
    runs: Runs
    registry: Registry
    checks: Checks
    submit: Submit
    _lists: trio.Lock = field(factory=trio.Lock, init=False)
    """Held by the one that repeats a list: two at a time would repeat an execution twice."""

    async def one(
        self,
        principal: Principal,
        identity: str,
        *,
        version: str = SAME,
        data: bytes | None = None,
        key: str | None = None,
        terms: Terms = AT_ONCE,
    ) -> Execution:
        """Accept an execution that repeats an ended one, and return its present state.

        `version` is `same`, `active` or the name of one; without `data` the input is the same, and so is the priority
        unless the terms have one. Without the scope `executions:read` the answer omits the input.

        Raises RunnerError: `conflict` when it has not ended or its input is not kept,
        `not_found` for the execution, its module and its version, and what `submit` raises.
        """
        require(principal, Scope.EXECUTIONS_RUN)
        origin = await self._origin(principal, identity, with_input=data is None)
        repetition = await self._submit(principal, origin, version, data, key, terms)
        await self.history.catch_up()  # so that the first one shows it from now on
        return shown(principal, repetition)

    async def many(
        self, principal: Principal, query: Query, *, version: str = SAME, dry_run: bool = False
    ) -> tuple[list[Again], str | None]:
        """Repeat the executions of one page of a list, the oldest first; return what became of each, and the cursor.

        Of a chain of repetitions only the last one is repeated, so a second call repeats nothing twice. With `dry_run`
        nothing is. Raises RunnerError `forbidden`, `bad_input` for the query, and `overloaded` while another list is
        repeated.
        """
        require(principal, Scope.EXECUTIONS_RUN)
        if query == Query(limit=query.limit, cursor=query.cursor):
            text = "give a filter, such as `unresolved=true` or `module`: all executions would be repeated"
            raise error(ErrorKind.BAD_INPUT, text, field="unresolved")
        if dry_run:
            return await self._page(principal, query, version, dry_run=True)
        try:
            self._lists.acquire_nowait()
        except trio.WouldBlock:
            text = "another list of executions is being repeated; repeat this one when it is done"
            raise error(ErrorKind.OVERLOADED, text, retry_after=1) from None
        try:
            return await self._page(principal, query, version, dry_run=False)
        finally:
            self._lists.release()

    async def _page(
        self, principal: Principal, query: Query, version: str, *, dry_run: bool
    ) -> tuple[list[Again], str | None]:
        await self.history.catch_up()  # a caller before may have gone away in the middle of a list
        page = await self.history.list(evolve(query, modules=principal.modules))
        found: list[Again] = []
        stopped: Failure | None = None
        for listed in reversed(page.items):
            if stopped is not None:
                found.append(Again(listed, problem=stopped))
                continue
            try:
                found.append(Again(listed, await self._again(principal, listed, version, dry_run=dry_run)))
            except RunnerError as problem:
                found.append(Again(listed, problem=problem.failure))
                if problem.failure.kind in _STOPPING:
                    stopped = problem.failure
        await self.history.catch_up()
        return found, page.next_cursor

    async def _origin(self, principal: Principal, identity: str, *, with_input: bool) -> Execution:
        """Return an execution that can be repeated. Raises RunnerError."""
        live = await self.runs.owners.reach(identity)
        found = seen(principal, identity, await self.history.get(identity) if live is None else live.execution)
        if live is not None or not found.status.final:
            text = f"the execution {identity} is {found.status}; only one that has ended can be repeated"
            raise error(ErrorKind.CONFLICT, text, field="id")
        if with_input and found.summary:
            text = f"the module of the execution {identity} records summaries, so its input was not kept; give `input`"
            raise error(ErrorKind.CONFLICT, text, field="input")
        if with_input and found.input.startswith(_DROPPED):
            text = f"the input of the execution {identity} was not kept, as the disk was full; give `input`"
            raise error(ErrorKind.CONFLICT, text, field="input")
        return found

    async def _again(self, principal: Principal, listed: Execution, version: str, *, dry_run: bool) -> Execution | None:
        last = await self.history.last_repetition(listed.rerun_root or listed.id)
        if last is not None and last > listed.id:
            raise error(ErrorKind.CONFLICT, f"it was repeated later, by the execution {last}", field="id")
        origin = await self._origin(principal, listed.id, with_input=True)
        if not dry_run:
            return await self._submit(principal, origin, version, None, None, AT_ONCE)
        with _explaining(origin, version):
            snapshot = self.registry.snapshot
            module = snapshot.get(origin.module.name, _version(origin, version), principal.may_use)
        await self.checks.input(module, origin.input)
        return None

    async def _submit(
        self,
        principal: Principal,
        origin: Execution,
        version: str,
        data: bytes | None,
        key: str | None,
        terms: Terms,
    ) -> Execution:
        priority = origin.priority if terms.priority is None else terms.priority
        root = origin.rerun_root or origin.id
        with _explaining(origin, version):
            return await self.submit(
                principal,
                origin.module.name,
                origin.input if data is None else data,
                version=_version(origin, version),
                timeout=origin.timeout,
                key=key,
                terms=evolve(terms, priority=priority, rerun_of=origin.id, rerun_root=root),
            )


def seen(principal: Principal, name: str, execution: Execution | None) -> Execution:
    """Return an execution that exists for the caller: one of a module that it may not use does not."""
    if execution is None or not principal.may_use(execution.module.name):
        raise error(ErrorKind.NOT_FOUND, f"there is no execution {name!r}", field="id")
    return execution


def shown(principal: Principal, execution: Execution) -> Execution:
    """Return an execution as the answer to a caller, whose scopes may not include `executions:read`."""
    if principal.allows(Scope.EXECUTIONS_READ):
        return execution
    return replace(execution, input=b"null", result=None, events=b"[]")


def _version(origin: Execution, version: str) -> str | None:
    return origin.module.version if version == SAME else None if version == ACTIVE else version


@contextmanager
def _explaining(origin: Execution, version: str) -> Iterator[None]:
    """Add the remedy to the refusal of a version that is gone."""
    try:
        yield
    except RunnerError as problem:
        failure = problem.failure
        if failure.kind is ErrorKind.NOT_FOUND and failure.field == "version" and version == SAME:
            text = f"{failure.message}; the execution {origin.id} can be repeated with the version `{ACTIVE}`"
            raise RunnerError(evolve(failure, message=text)) from None
        raise
