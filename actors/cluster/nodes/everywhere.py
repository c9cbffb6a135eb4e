"""`Everywhere`: the executions of all runners of a cluster, as the doors of one of them reach them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet

import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.engine import AwayError, UnansweredError
from actors.cluster.nodes.arrivals import Arrivals
from actors.cluster.nodes.mirror import Mirror
from actors.cluster.nodes.presence import Neighbours
from actors.cluster.nodes.requests import Requests
from actors.cluster.nodes.wording import (
    Absent,
    Answer,
    Awaiting,
    Cancel,
    Decide,
    Found,
    Question,
    Reach,
    Reasons,
    Refused,
    Several,
    Taken,
    Waits,
)
from actors.events import EventLog
from actors.executions import Here, Live, Runs, served
from actors.history import AT_WORK, History, Query
from actors.registry import Published, Registry
from config.modules import ModuleSpec
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Approval, Execution, Status, Waiting
from protocol.nodes import ClusterState

_SOON_SECONDS: Final = 1.0
"""For parts of an answer that can be left out."""
_CANCEL_SECONDS: Final = 60.0
"""The longest wait for the owner of an execution that is cancelled, while it does not answer."""
_ROUND_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.5
_MOST: Final = 500
"""Executions of other runners that are looked at for one module."""
_MANY: Final = 1_000

log = structlog.get_logger("cluster")


@define(eq=False)
class Everywhere:
    """All runners of the cluster."""

    node: str
    runs: Runs
    registry: Registry
    history: History
    requests: Requests
    neighbours: Neighbours
    adopt: Callable[[Execution], Awaitable[None]]
    """Stores an end that another runner has recorded."""
    end: Callable[[Execution], Awaitable[None]]
    """Records the end of an execution that no runner has in hand. Raises RunnerError, also when one has it meanwhile.
    """
    keep: tuple[int, int]
    """Bytes of output, and of items, that are kept of an execution."""
    cluster: Callable[[], ClusterState]
    """Returns the runners and the state of their connection."""
    queued: Callable[[Execution], Awaitable[Waiting | None]] | None = field(default=None, init=False)
    """Tells why an execution waits in the queue of the cluster, where no runner has it; the queue sets it."""
    _here: Here = field(init=False)
    _arrivals: Arrivals = field(init=False)
    _mirrors: dict[str, WeakSet[Mirror]] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._here, self._arrivals = Here(self.runs), Arrivals(self.history.get)

    # Find

    async def reach(self, name: str) -> Live | None:
        """Return the execution with this id if it has not ended, on whichever runner it is.

        Raises RunnerError `unavailable` when other runners have recorded it, and this one learns of it later.
        """
        live = self.runs.find(name)
        if live is not None:
            return live
        record = await self.history.get(name)
        if record is None:
            found = await self._sought(name)
            if not isinstance(found, Execution):
                return found
            record = found
        if record.status.final or record.status is Status.SCHEDULED:
            return None
        if record.node in (None, self.node):
            return await self._moved(record) if record.asynchronous else None
        answer = await self._asked(record.node or "", Reach(name))
        if isinstance(answer, Found):
            return self.mirror(answer.execution)
        latest = await self.history.get(name) or record
        return None if latest.status.final else await self._moved(latest)

    async def _moved(self, record: Execution) -> Live:
        """Return an execution that is not on the runner of its record: in the queue, or it asks a person elsewhere."""
        module = served(self.registry, record)
        waits = record.status is Status.QUEUED and record.approval is None
        if waits and module is not None and module.spec.tool.confirm:
            found = await self._sought(record.id)
            if isinstance(found, Live):
                return found
        return await self._waiting(record)

    async def _waiting(self, record: Execution) -> Mirror:
        """Return an execution that no runner has in hand, with why it waits."""
        (found,) = await self._explained_by_queue((record,))
        return self.mirror(found)

    def mirror(self, execution: Execution, module: Published | None = None) -> Mirror:
        """Return an execution that this runner does not own, as callers read, follow and wait for it."""
        found = module or served(self.registry, execution) or _unserved(execution)
        mirror = Mirror(execution, found, self.requests, self.runs.find, self.adopt, self.keep)
        if execution.status is Status.QUEUED and mirror.waiting is None:
            mirror.waiting = Waiting("queued", execution.created_at)
        if len(self._mirrors) > _MANY:
            self._mirrors = {name: mirrors for name, mirrors in self._mirrors.items() if mirrors}
        self._mirrors.setdefault(execution.id, WeakSet()).add(mirror)
        return mirror

    def take_over(self, live: Live) -> None:
        """Let those who read an execution go on with the runner that has it now."""
        mirror = self.mirror(live.snapshot(), live.module)
        live.log.go_on_in(mirror.log)
        live.log = EventLog(limit=0, keep=0)

    def project(self, execution: Execution) -> None:
        """Tell those who read an execution of another runner about a later state of it."""
        self._arrivals.tell(execution.id)
        mirrors = self._mirrors.get(execution.id)
        if mirrors is not None:
            for mirror in tuple(mirrors):
                mirror.project(execution)
            if execution.status.final or not mirrors:
                del self._mirrors[execution.id]

    async def _sought(self, name: str) -> Live | Execution | None:
        """Ask all runners for an execution that no record shows yet; a record of it is waited for."""
        found: list[Live] = []
        recorded: list[str] = []

        async def ask(node: str) -> None:
            answer = await self._asked(node, Reach(name, recorded=True), _SOON_SECONDS)
            if isinstance(answer, Taken):
                recorded.append(node)
            if isinstance(answer, Found) and not found:
                found.append(self.mirror(answer.execution))
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for node in self._others():
                nursery.start_soon(ask, node)
        if recorded and not found:
            return await self._arrivals.wait(name, recorded[0])
        return found[0] if found else None

    # Change

    async def cancel(self, live: Live, why: str = "cancelled on request") -> Execution:
        """End an execution in any state, and return it when its end is recorded.

        Raises RunnerError `unavailable` when the runner that has it does not answer.
        """
        if not isinstance(live, Mirror):
            return await self.runs.cancel(live, why)
        until = trio.current_time() + _CANCEL_SECONDS
        question = Cancel(live.execution.id, Failure(ErrorKind.CANCELLED, why), _ROUND_SECONDS)
        while not live.ended.is_set():
            answer = None
            with trio.move_on_after(2 * _ROUND_SECONDS):
                answer = await self._asked(live.owner, question, 2 * _ROUND_SECONDS)
            if isinstance(answer, Found) and answer.execution.status.final:
                await live.end(answer.execution)
            elif isinstance(answer, Refused):
                raise RunnerError(answer.failure)
            elif answer is None or isinstance(answer, Absent):
                if trio.current_time() > until:
                    raise _silent(live)
                await self._end_queued(live, question.why)
                with trio.move_on_after(_PAUSE_SECONDS):
                    await live.ended.wait()
            # else its end takes longer
        return live.execution

    async def _end_queued(self, live: Mirror, why: Failure) -> None:
        """End an execution that waits in the queue of the cluster, where no runner has it in hand."""
        record = await self.history.get(live.execution.id)
        if record is None:
            return
        live.project(record)
        if record.status is not Status.QUEUED or not record.asynchronous:
            return
        ended = replace(record, status=Status.CANCELLED, failure=why, exit_code=130, finished_at=time.time())
        with suppress(RunnerError):  # a runner has it meanwhile, and is asked next
            await self.end(ended)
            self.runs.tally.count(ended)
            live.project(ended)

    async def decide(self, live: Live, decision: Approval) -> Execution:
        """Approve or deny an execution that waits for a person."""
        if not isinstance(live, Mirror):
            return await self._here.decide(live, decision)
        answer = await self._asked(live.owner, Decide(live.execution.id, decision), 3 * _ROUND_SECONDS)
        if isinstance(answer, Refused):
            raise RunnerError(answer.failure)
        if not isinstance(answer, Found):
            raise _silent(live)
        if answer.execution.status.final:
            await live.end(answer.execution)
        return answer.execution

    # Lists

    async def awaiting(self) -> Sequence[Execution]:
        """Return the executions that wait for a person, on all runners that answer soon."""
        found = list(await self._here.awaiting())

        async def ask(node: str) -> None:
            answer = await self._asked(node, Awaiting(), _SOON_SECONDS)
            if isinstance(answer, Several):
                found.extend(answer.executions)

        async with trio.open_nursery() as nursery:
            for presence in self.neighbours.all(trio.current_time()):
                if presence.node != self.node and presence.awaiting:
                    nursery.start_soon(ask, presence.node)
        return sorted(found, key=lambda each: each.created_at if each.waiting is None else each.waiting.since)

    async def explained(self, executions: Iterable[Execution]) -> tuple[Execution, ...]:
        """Return executions with the reasons why they wait, as far as their runners tell them soon."""
        here = self._here.explained_nowait(executions)
        wanted: dict[str, list[str]] = {}
        for each in here:
            if each.status is Status.QUEUED and each.waiting is None and each.node not in (None, self.node):
                wanted.setdefault(each.node or "", []).append(each.id)
        reasons: dict[str, Waiting] = {}

        async def ask(node: str, names: list[str]) -> None:
            answer = await self._asked(node, Reasons(tuple(names)), _SOON_SECONDS)
            if isinstance(answer, Waits):
                reasons.update(answer.reasons)

        async with trio.open_nursery() as nursery:
            for node in wanted.keys() & set(self._others()):
                nursery.start_soon(ask, node, wanted[node])
        told = tuple(replace(each, waiting=reasons[each.id]) if each.id in reasons else each for each in here)
        return await self._explained_by_queue(told)

    async def _explained_by_queue(self, executions: tuple[Execution, ...]) -> tuple[Execution, ...]:
        """Return executions with the reasons of the queue for those without one, as far as it tells them soon."""
        found = {each.id: each for each in executions}
        with trio.move_on_after(_SOON_SECONDS):
            for each in executions:
                asks = each.status is Status.QUEUED and each.asynchronous and each.waiting is None
                if asks and self.queued is not None and self.runs.find(each.id) is None:
                    found[each.id] = replace(each, waiting=await self.queued(each))
        return tuple(found[each.id] for each in executions)

    async def at_work(self, name: str, version: str | None = None) -> Sequence[Live]:
        """Return the executions of a module, or of one version of it, that have not ended."""
        found: dict[str, Live] = {live.execution.id: live for live in self.runs.live_executions(name, version)}
        for status in AT_WORK:
            page = await self.history.list(Query(module=name, version=version, status=status, limit=_MOST))
            found.update((each.id, self.mirror(each)) for each in page.items if each.id not in found)
        return list(found.values())

    async def others(self, status: Status, modules: tuple[str, ...], most: int, /) -> Sequence[Execution]:
        """Return executions that this runner does not have, at most so many, without payloads.

        Those that it accepted and that wait in the queue of the cluster are among them.
        """
        page, own = await self.history.list(Query(status=status, modules=modules, limit=most)), self.node
        return [
            each
            for each in page.items
            if self.runs.find(each.id) is None and (each.node != own or status is Status.QUEUED)
        ]

    def _others(self) -> list[str]:
        return [each.node for each in self.neighbours.all(trio.current_time()) if each.node != self.node]

    async def _asked(self, node: str, question: Question, timeout: float = _ROUND_SECONDS) -> Answer | None:
        """Return the answer of a runner; None if it does not answer."""
        if self.neighbours.get(node, trio.current_time()) is None:
            return None
        try:
            return await self.requests.ask(node, question, timeout=timeout)
        except (AwayError, UnansweredError) as problem:
            log.debug("a runner does not answer", node=node, why=str(problem))
            return None


def _unserved(execution: Execution) -> Published:
    """Return the module of an execution which this runner does not serve."""
    ref, nowhere = execution.module, Path()
    spec = ModuleSpec(name=ref.name, env=execution.env)
    return Published(ref, spec, "", "", nowhere, nowhere, spec.handler, package=False, published_at=0.0)


def _silent(live: Mirror) -> RunnerError:
    text = f"the runner {live.owner}, which has the execution {live.execution.id}, does not answer; try again"
    return error(ErrorKind.UNAVAILABLE, text, field="id", retry_after=5)
