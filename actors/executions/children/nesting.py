"""What a call of a module by a handler does: the checks of any call, then an execution below that of the handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

import msgspec
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.executions.children.children import Begun, Children, FailedCallError, Open, Parent, Turn
from actors.executions.children.rules import check_allowed, child_of, globs_of
from actors.files import Files, Viewer, references
from actors.registry import Published, Registry
from actors.turns import Terms, group_of, terms_of
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Execution, Status

_NULL = msgspec.Raw(b"null")
_FILE = b'"$file"'

First: TypeAlias = Callable[[Execution, Callable[[Execution], Awaitable[Any]]], Awaitable[Any]]
"""Returns the first execution with the idempotency key of this one, live or ended; without one, begins it."""
Submit: TypeAlias = Callable[[Published, Execution], Awaitable[Begun]]
"""Accepts an execution that runs when its turn comes. Raises RunnerError."""


class Checks(Protocol):
    """Look at what callers send. Raise RunnerError `bad_input`."""

    def quick_input(self, module: Published, data: bytes) -> msgspec.Raw | None:
        """Return what `input` returns; None where that takes long."""

    async def input(self, module: Published, data: bytes) -> msgspec.Raw:
        """Return an input that a module accepts."""


class Executions(Protocol):
    """The executions of the runner."""

    async def execute(
        self,
        module: Published,
        execution: Execution,
        raw: msgspec.Raw,
        *,
        parent: Parent | None = None,
        begun: Callable[[Any], None] | None = None,
    ) -> Execution:
        """Run an execution in this task and return it ended and recorded. Raises RunnerError when it never began."""

    def start(self, module: Published, execution: Execution, raw: msgspec.Raw, parent: Parent | None = None) -> Any:
        """Run an execution in a task of its own. Raises RunnerError."""

    async def wait_ended(self, live: Any) -> Execution:
        """Return an execution when its end is recorded. Raises RunnerError when it never began or was not recorded."""


@define(eq=False)
class Nesting:
    """Makes the calls of all handlers, in `nursery`. Those before `serve`, of recovered executions, wait for it."""

    registry: Registry
    executions: Executions
    submit: Submit
    files: Files
    nursery: trio.Nursery | None = field(default=None, init=False)
    _served: trio.Event = field(factory=trio.Event, init=False)
    _checks: Checks | None = field(default=None, init=False)
    _first: First | None = field(default=None, init=False)
    called: int = field(default=0, init=False)
    """Calls of handlers since the start of the runner."""

    def serve(self, checks: Checks, first: First) -> None:
        """Make calls from now on."""
        self._checks, self._first = checks, first
        self._served.set()

    def children(self, parent: Parent, turn: Turn | None) -> Children | None:
        """Return what takes the calls of an attempt; None if its module may call none, or the runner ends."""
        if not parent.module.spec.calls_modules or self.nursery is None:
            return None
        return Children(parent, self.nursery, self.answer, turn)

    async def answer(self, parent: Parent, made: Open) -> tuple[str, msgspec.Raw]:
        """Execute what was called; return the id of the execution and its result. Raises RunnerError."""
        message = made.message
        self.called += 1
        if made.why is not None:
            raise RunnerError(made.why)
        if not self._served.is_set():
            await made.wait(self._served.wait)
        module, execution, raw = await self._new(parent, made)
        if message.key is not None:
            execution = replace(execution, idempotency_key=message.key)
        parent.log.child(execution.id, module.spec.name)
        if not message.waits:
            terms = terms_of(0.0, priority=message.priority)
            return await made.wait(partial(self._submitted, module, execution, raw, terms)), _NULL
        if message.key is None:
            ended = await self.executions.execute(
                module, execution, raw, parent=parent, begun=partial(made.begun, owned=True)
            )
        else:
            ended = await made.wait(partial(self._keyed, module, execution, raw, parent, made))
        if ended.failure is not None:
            raise FailedCallError(ended.failure, ended.id)
        result = ended.result or b"null"
        if _FILE in result:  # it may become a part of what the handler returns
            await self.files.use(parent.execution.id, parent.module.spec.name, references(result))
        return ended.id, msgspec.Raw(result)

    async def _new(self, parent: Parent, made: Open) -> tuple[Published, Execution, msgspec.Raw]:
        """Return an execution that may begin. Raises RunnerError."""
        caller, name, data = parent.execution, made.message.module, bytes(made.message.input)
        check_allowed(caller, parent.module.spec.calls_modules, name, (*parent.path, caller.module.name))
        module = self.registry.snapshot.get(name, made.message.version)
        assert self._checks is not None  # noqa: S101  (after `serve`)
        raw = self._checks.quick_input(module, data)
        if raw is None:
            raw = await made.wait(partial(self._checks.input, module, data))
        group = None if module.spec.group is None else group_of(module.spec.group.key, data)
        execution = child_of(caller, module, data, group)
        if _FILE in data:
            globs = globs_of(caller)
            viewer = Viewer(caller.subject, globs) if globs else None
            await made.wait(partial(self.files.use, execution.id, name, references(data), viewer))
        return module, execution, raw

    async def _submitted(self, module: Published, execution: Execution, raw: msgspec.Raw, terms: Terms) -> str:
        """Accept an execution; return the id of it, or of the first one with its key."""
        priority = execution.priority if terms.priority is None else terms.priority
        accepted = replace(execution, asynchronous=True, status=Status.QUEUED, priority=priority, input=bytes(raw))
        begin = partial(self.submit, module)
        if accepted.idempotency_key is None or self._first is None:
            return (await begin(accepted)).execution.id
        known = await self._first(accepted, begin)
        return known.id if isinstance(known, Execution) else str(known.execution.id)

    async def _keyed(
        self, module: Published, execution: Execution, raw: msgspec.Raw, parent: Parent, made: Open
    ) -> Execution:
        """Return the ended first execution with the key of this one."""

        async def begin(child: Execution) -> Begun:
            live: Begun = self.executions.start(module, child, raw, parent)
            made.begun(live, owned=True)
            return live

        assert self._first is not None  # noqa: S101  (after `serve`)
        known = await self._first(execution, begin)
        if isinstance(known, Execution):
            return known
        if made.child is None:
            if waits_for(known, parent):
                text = f"the execution {known.execution.id}, which has the key {made.message.key!r}, waits for this one"
                raise error(ErrorKind.CONFLICT, f"{text}; use another key", field="key")
            made.begun(known, owned=False)
        return await self.executions.wait_ended(known)


def waits_for(execution: Begun, other: Parent) -> bool:
    """Return whether an execution is another one, or waits for it: to wait for the first would have no end."""
    todo, seen = [execution], set[str]()
    while todo:
        found = todo.pop()
        if found.execution.id == other.execution.id:
            return True
        if found.execution.id not in seen and found.children is not None:
            seen.add(found.execution.id)
            todo += found.children.awaited()
    return False
