"""`Cluster`: opens the parts by which this runner is one of a cluster, and closes them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from attrs import define, field

from actors.cluster.ends import EndsOfThisRunner
from actors.cluster.engine import Engine, open_engine
from actors.cluster.feed import Feeds, SharedClaims, SharedInstants
from actors.cluster.files import Parts, SharedCollecting, SharedFiles, part_finder
from actors.cluster.letters import Author
from actors.cluster.nodes import RENEW_SECONDS, TTL_SECONDS, Facts, Neighbours, Nodes
from actors.cluster.queue import Around, JobQueue, offered
from actors.cluster.record import POSITIONS_FILE, Mail, Outbox, Positions, Projection, SharedLog
from actors.executions import Live, Runs
from actors.files import Files
from actors.history import History
from actors.keys import ApiKeys
from actors.node import node_name
from actors.registry import Published, Registry
from actors.starts import Schedules
from actors.supervise import supervise
from config.settings import Settings
from protocol.errors import RunnerError
from protocol.model import Execution

_CATCH_UP_SECONDS: Final = 5.0
"""How long a start waits for the states that were recorded while this runner was away."""

_RETRY_SECONDS: Final = 5.0
Following = Callable[[], AbstractAsyncContextManager[None]]

log: Any = structlog.get_logger("cluster")


@define(eq=False)
class Cluster:
    """The parts of this runner in its cluster. `attach`, then `open`."""

    settings: Settings
    me: Author
    engine: Engine
    positions: Positions
    feeds: Feeds
    """Modules, API keys and schedules."""
    shared: SharedLog = field(init=False)
    """Where executions are recorded."""
    files: SharedFiles = field(init=False)
    ends: EndsOfThisRunner = field(init=False)
    """Confirms which ends of executions lead to notices."""
    projection: Projection = field(init=False)
    _history: History = field(init=False)

    @property
    def node(self) -> str:
        """The name of this runner."""
        return self.me.node

    def attach(self, history: History, files: Files) -> SharedLog:
        """Share the history and the files of this runner; return where executions are recorded."""
        kept = self.settings.files.file_retention_seconds
        self._history = history
        self.files = SharedFiles(self.engine, files, self.me, kept)
        files.elsewhere = self.files
        self.files.objects.part_of = part_finder(history.get, self.me)
        ends_kept = self.settings.history.retention_seconds
        mail = Mail(self.engine, self.me, self.files, Parts(self.files), ends_kept)
        self.shared = SharedLog(mail, history)
        self.projection = Projection(mail, history, self.positions)
        self.projection.owe = self.shared.owe
        self.ends = EndsOfThisRunner(self.engine, self.node, history.get)
        return self.shared

    @asynccontextmanager
    async def open(self, runs: Runs, registry: Registry) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Take part in the cluster while the context is open, with the executions `runs`, which run inside of it.

        Call the result when they run: then this runner takes jobs, too.
        """

        def facts() -> Facts:
            unsent = len(self.shared.unsent) + outbox.behind
            unreadable = self.projection.unreadable + self.files.unreadable + len(self.feeds.unreadable)
            return Facts(self.projection.lag, registry.snapshot.file_digest, unsent, unreadable)

        shared, history = self.shared, self._history
        parts = self.engine, self.me, self.settings, runs, registry, history
        nodes = Nodes(*parts, self._adopt, shared.finish, facts)
        alive = Alive(self.engine, nodes.neighbours)
        queue = self._queue(runs, nodes, alive)
        nodes.everywhere.queued = queue.waiting
        runs.claims = SharedClaims(self.engine, self.me, runs, alive.alive)
        is_live = partial(_is_live, runs, queue)
        outbox = Outbox(shared, history, self.positions, is_live, queue.offer, alive.alive, alive.nodes)
        collecting = SharedCollecting(self.files, self.settings.history.retention_seconds, self._is_whole)
        self.projection.hooks += [nodes.project, queue.projected, runs.later.hear]

        async with trio.open_nursery() as nursery:
            for name, actor in (
                ("files of the cluster", self.files),
                ("collection of shared files", collecting),
                ("nodes", nodes),
                ("projection", self.projection),
            ):
                await nursery.start(partial(supervise, actor, name=name))

            async def begin() -> None:
                await nursery.start(partial(supervise, outbox, name="outbox of the cluster"))
                await nursery.start(partial(supervise, queue, name="queue"))

            with trio.move_on_after(_CATCH_UP_SECONDS if self.engine.prepared.is_set() else 0):
                await self.projection.caught_up.wait()
            if self.projection.lag:
                log.info("the history lacks states of executions, which follow", missing=self.projection.lag)
            try:
                yield begin
            finally:
                nursery.cancel_scope.cancel()

    # What others follow

    def following_modules(self, registry: Registry) -> AbstractAsyncContextManager[None]:
        """Keep the registry, which runs, as the cluster has it."""
        return self._following(partial(self.feeds.following_modules, registry), "modules")

    def following_keys(self, keys: ApiKeys) -> AbstractAsyncContextManager[None]:
        """Keep the API keys as the cluster has them."""
        return self._following(partial(self.feeds.following_keys, keys), "API keys")

    def following_schedules(self, schedules: Schedules) -> AbstractAsyncContextManager[None]:
        """Keep the schedules, which do not run yet, as the cluster has them."""
        return self._following(partial(self.feeds.following_schedules, schedules), "schedules")

    def starts(self, runs: Runs) -> tuple[Any, SharedInstants]:
        """Return the feed of the schedules, and what lets each instant start once."""
        return self.feeds.schedules, SharedInstants(self.engine, self.me, runs)

    @asynccontextmanager
    async def _following(self, follow: Following, what: str) -> AsyncIterator[None]:
        """Follow what the cluster has; if its servers are away at the start, from when they come."""
        if self.engine.prepared.is_set():
            async with follow():
                yield
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_late, follow, what)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    async def _follow_late(self, follow: Following, what: str) -> None:
        while True:
            await self.engine.prepared.wait()
            try:
                async with follow():
                    await trio.sleep_forever()
            except RunnerError as problem:
                log.warning("what the cluster has cannot be followed yet", what=what, why=str(problem))
                await trio.sleep(_RETRY_SECONDS)

    def _queue(self, runs: Runs, nodes: Nodes, alive: Alive) -> JobQueue:
        def mirror(module: Published, execution: Execution) -> Live:
            return nodes.everywhere.mirror(execution, module)

        around = Around(self.me, self.shared, alive, mirror)
        cluster, most = self.settings.cluster, self.settings.executor.max_queued
        queue = JobQueue(self.engine, runs, around, cluster.labels, cluster.redelivery_seconds, most)
        runs.dispatcher.queue = queue
        return queue

    def _is_whole(self) -> bool:
        """Return whether the history has all states that were in the log a moment ago."""
        return self.projection.caught_up.is_set() and not self.projection.lag

    async def _adopt(self, execution: Execution) -> None:
        await self._history.adopt([execution])


@define(eq=False)
class Alive:
    """The runners that are there, as the queue asks for them."""

    engine: Engine
    neighbours: Neighbours
    _since: float = field(factory=trio.current_time, init=False)

    def __attrs_post_init__(self) -> None:
        self.engine.changed.add(self._changed)

    def _changed(self) -> None:
        self._since = trio.current_time()

    def alive(self) -> Collection[str] | None:
        """Return the boots of all runners; None until all had the time to tell that they are there."""
        now = trio.current_time()
        known = self.engine.connected and now >= self._since + TTL_SECONDS + RENEW_SECONDS
        return self.neighbours.boots(now) if known else None

    def nodes(self) -> Collection[str]:
        """Return the names of the runners that are there."""
        return [each.node for each in self.neighbours.all(trio.current_time())]

    def offers(self) -> Iterable[Collection[str]]:
        """Return the labels and kinds of environment of each runner, of this one once it has told them."""
        return (offered(each.labels, each.kinds) for each in self.neighbours.all(trio.current_time()))

    def modules(self) -> Iterable[str | None]:
        """Return the digest of the modules file of each runner."""
        return (each.modules for each in self.neighbours.all(trio.current_time()))


def _is_live(runs: Runs, queue: JobQueue, name: str) -> bool:
    return runs.find(name) is not None or name in queue.jobs.by_id


@asynccontextmanager
async def open_cluster(settings: Settings, data: Path, release: str) -> AsyncIterator[Cluster]:
    """Connect to the cluster of the settings.

    Servers that are away are waited for, at most 10 s; then the runner serves calls until they come. Raises RunnerError
    `unavailable` when the servers cannot be used, or the name of this runner cannot be read.
    """
    node = await trio.to_thread.run_sync(node_name, settings.cluster, data)
    me = Author(node, secrets.token_hex(8), release)
    async with open_engine(settings.cluster, waits=False) as engine:
        positions = await trio.to_thread.run_sync(Positions.open, data / POSITIONS_FILE)
        try:
            log.info("part of a cluster", node=node, servers=settings.cluster.servers)
            yield Cluster(settings, me, engine, positions, Feeds(engine, me))
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(positions.close)
