"""Cluster: runners in one process that share a queue and a log of executions, without their other parts."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.engine import Engine, StaleError, open_engine
from actors.cluster.letters import Author, Letter, pack, unpack
from actors.cluster.life import State
from actors.cluster.queue import Around, JobQueue
from actors.events import EventLog, last_of
from actors.executions import Here, Live, SupersededError
from actors.history import History
from protocol.errors import ErrorKind, Failure
from protocol.model import Status
from runner.api import Service
from tests.support import open_service


@define(eq=False)
class Log:
    """An execution log over the history of one runner: small states only, and no outbox."""

    history: History
    engine: Engine
    me: Author
    _known: dict[str, int] = field(factory=dict)
    _settled: set[str] = field(factory=set)

    @property
    def node(self):
        return self.me.node

    def __getattr__(self, name):
        return getattr(self.history, name)

    async def submit(self, execution):
        await self.history.submit(execution)
        await self._publish(execution)

    async def finish(self, execution):
        await self._publish(execution)
        await self.history.finish(execution)
        self._settled.add(execution.id)

    async def _publish(self, execution):
        if execution.asynchronous:
            try:
                await self._send(Letter(self.me, execution), self.known(execution.id))
            except StaleError:
                raise SupersededError(execution.id) from None

    async def _send(self, letter, expect):
        name = letter.execution.id
        subject = self.engine.names.state(name)
        self._known[name] = await self.engine.publish(subject, pack(letter).data, expect=expect)
        return self._known[name]

    async def publish(self, letter, expect):
        sequence, execution = await self._send(letter, expect), letter.execution
        await (self.history.finish if execution.status.final else self.history.submit)(execution)
        if execution.status.final:
            self._settled.add(execution.id)
        return sequence

    async def state(self, name):
        found = await self.engine.last(self.engine.names.state(name))
        return None if found is None else State(unpack(found.data), found.sequence)

    async def take(self, state, execution):
        if await self.history.get(execution.id) is None:
            await self.history.adopt([execution])
        self._known[execution.id] = state.sequence

    def known(self, name):
        return self._known.get(name, 0)

    def owe(self, name):
        """Nothing is owed here: the server answers."""

    def settled(self, name):
        return name in self._settled


@define(eq=False)
class Doors(Here):
    """The executions of this runner, and those in the queue."""

    log: Log

    async def cancel(self, live, why="cancelled on request"):
        state = await self.log.state(live.execution.id)
        if self.runs.find(live.execution.id) is not None or state.letter.execution.status is not Status.QUEUED:
            return await super().cancel(live, why)
        failure = Failure(ErrorKind.CANCELLED, why)
        ended = replace(state.letter.execution, status=Status.CANCELLED, failure=failure, finished_at=time.time())
        await self.log.take(state, ended)
        await self.log.finish(ended)
        return ended


@define(eq=False)
class Neighbourhood:
    """The runners that are there."""

    boots: set[str] = field(factory=set)
    queues: list[JobQueue] = field(factory=list)
    files: list[str] = field(factory=lambda: ["a"])
    """The digests of their modules files."""

    def alive(self):
        return frozenset(self.boots)

    def offers(self):
        return [queue.room.offers() for queue in self.queues]

    def nodes(self):
        return ["one", "other"][: len(self.boots)]

    def modules(self):
        return self.files


@define(eq=False)
class Side:
    """One runner."""

    service: Service
    engine: Engine
    queue: JobQueue
    log: Log
    me: Author
    mirrors: dict[str, Live]
    begun: list[str] = field(factory=list)
    """Executions that became live here."""

    @property
    def runs(self):
        return self.service.runs

    async def project(self):
        async with self.engine.read(self.engine.names.log, after=0) as reader:
            while True:
                for stored in await reader.batch():
                    letter = unpack(stored.data)
                    if letter.author.boot != self.me.boot:
                        await self.service.history.adopt([letter.execution])
                    self.queue.projected(letter.execution, stored.sequence)
                    mirror = self.mirrors.get(letter.execution.id)
                    if mirror is not None:
                        mirror.execution = letter.execution
                        if letter.execution.status.final:
                            mirror.log.end(last_of(letter.execution))
                            mirror.ended.set()


@asynccontextmanager
async def open_side(
    path, name, nats_settings, modules, around, *, labels=(), redelivery=6.0, max_queued=1000, **settings
) -> AsyncIterator[Side]:
    """Open a runner; it is there for the others until it is closed, which drains it."""
    me = Author(name, secrets.token_hex(4), "1")
    async with open_engine(nats_settings) as engine, open_service(path / name, modules, **settings) as service:
        log, runs = Log(service.history, engine, me), service.runs
        runs.attempts.records = runs.dispatcher.live.records = log
        mirrors: dict[str, Live] = {}

        def mirror(module, execution):
            return mirrors.setdefault(execution.id, Live(execution, module, EventLog(limit=0, keep=0)))

        parts = Around(me, log, around, mirror)
        runs.owners = Doors(runs, log)
        queue = JobQueue(engine, runs, parts, labels, redelivery, max_queued)
        runs.dispatcher.queue, runs.dispatcher.places.labels = queue, labels
        side = Side(service, engine, queue, log, me, mirrors)
        runs.on_enter.append(lambda live: side.begun.append(live.execution.id))
        around.boots.add(me.boot)
        around.queues.append(queue)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.project)
            await nursery.start(queue.run)
            try:
                yield side
            finally:
                with trio.CancelScope(shield=True):
                    await service_drained(service)
                around.boots.discard(me.boot)
                around.queues.remove(queue)
                nursery.cancel_scope.cancel()


async def service_drained(service: Service) -> None:
    """End all executions of a runner."""
    runs = service.runs
    runs.stop(at_once=True)
    with trio.move_on_after(10):
        await runs.wait_idle()
