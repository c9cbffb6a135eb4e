"""`Nodes`: the part of the cluster that knows the other runners. It puts itself where the doors reach executions."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio
from attrs import define, field, frozen

from actors.cluster.letters import VERSION, Author
from actors.cluster.nodes.answering import Answering
from actors.cluster.nodes.everywhere import Everywhere
from actors.cluster.nodes.forwarding import Forwarding
from actors.cluster.nodes.presence import Neighbours
from actors.cluster.nodes.present import Board, Present
from actors.cluster.nodes.requests import Carrier, Requests
from actors.executions import Runs
from actors.history import History
from actors.registry import Registry
from config.settings import Settings
from protocol.model import Execution
from protocol.nodes import ClusterState, Load, Presence


class Engine(Board, Carrier, Protocol):
    """The engine, as far as it is used here."""


@frozen
class Facts:
    """What other parts of the cluster know about this runner."""

    lag: int = 0
    """States of executions that the history does not have yet."""
    modules: str | None = None
    """The digest of modules.yaml."""
    unsent: int = 0
    """Executions of this runner whose state the cluster does not have yet."""
    unreadable: int = 0
    """Messages that this release could not read, since the start."""


@define(eq=False)
class Nodes:
    """The actor of the other runners, and of the requests between them."""

    engine: Engine
    author: Author
    """This runner."""
    settings: Settings
    runs: Runs
    registry: Registry
    history: History
    adopt: Callable[[Execution], Awaitable[None]]
    """Stores an end that another runner has recorded. Raises RunnerError."""
    end: Callable[[Execution], Awaitable[None]]
    """Records the end of an execution that no runner has in hand. Raises RunnerError."""
    facts: Callable[[], Facts]
    started_at: float = field(factory=time.time, init=False)
    neighbours: Neighbours = field(init=False)
    everywhere: Everywhere = field(init=False)
    forwarding: Forwarding = field(init=False)
    present: Present = field(init=False)
    _requests: Requests = field(init=False)
    _answering: Answering = field(init=False)

    def __attrs_post_init__(self) -> None:
        node, runs, executor = self.author.node, self.runs, self.settings.executor
        keep = executor.kept_output_bytes, self.settings.server.max_frame_bytes
        self.neighbours = Neighbours(node, self.author.boot)
        self._requests = Requests(node, self.author.release, self.engine)
        self._answering = Answering(node, runs, self.registry)
        self._requests.answer = self._answering.answer
        self.everywhere = Everywhere(
            node,
            runs,
            self.registry,
            self.history,
            self._requests,
            self.neighbours,
            self.adopt,
            self.end,
            keep,
            self.state,
        )
        self.forwarding = Forwarding(
            runs,
            runs.dispatcher.live,
            self._requests,
            self.neighbours,
            self.settings.cluster.labels,
            self.adopt,
            self._answering.guests,
        )
        self.present = Present(self.engine, self.neighbours, self.look)
        runs.owners, runs.forward = self.everywhere, self.forwarding.run
        runs.dispatcher.live.on_pass.append(self.everywhere.take_over)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be one of the runners of the cluster until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._requests.run)
            await nursery.start(self._answering.run)
            await nursery.start(self.present.run)
            task_status.started()
            await self.runs.wait_stopping()
            self.present.tell_soon()

    def look(self) -> Presence:
        """Return this runner as it is now."""
        runs, facts = self.runs.statistics(), self.facts()
        most = self.settings.executor.max_workers
        kinds: dict[str, Load] = {}
        for kind, executor in self.runs.attempts.executors.items():
            if executor.availability.available:
                found = executor.statistics()
                kinds[kind.value] = Load(most, found.busy + found.starting - found.parked, found.waiting)
        return Presence(
            self.author.node,
            self.author.boot,
            self.author.release,
            VERSION,
            self.started_at,
            self.settings.cluster.labels,
            kinds,
            running=runs.live - runs.queued,
            queued=runs.queued,
            awaiting=runs.awaiting,
            draining=self.runs.stopping,
            lag=facts.lag,
            modules=facts.modules,
        )

    def state(self) -> ClusterState:
        """Return the runners that are there, this one as it is now, and the state of the connection."""
        found, facts = {each.node: each for each in self.neighbours.all(trio.current_time())}, self.facts()
        found[self.author.node] = self.look()
        nodes = tuple(found[name] for name in sorted(found))
        connected, forwarded = self.engine.connected, self.forwarding.forwarded
        return ClusterState(self.author.node, connected, nodes, facts.lag, facts.unsent, facts.unreadable, forwarded)

    def project(self, execution: Execution, _sequence: int = 0) -> None:
        """Take a later state of an execution, as the hook of the projection."""
        self.everywhere.project(execution)
