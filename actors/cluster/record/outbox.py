"""`Outbox`: offers to the log of the engine what it lacks of the executions of this runner.

The history of this runner is the outbox. A cursor goes through the ends in it, by their revisions: in a running cluster
these are calls that were answered without the engine, at a join all that was before. Accepted executions that have not
ended are offered with their jobs, at the start, whenever the engine comes back, and every 30 seconds: so what the
engine has lost comes back. A state that is not in the log any more is offered some seconds before its job: a runner
that knows a later one offers that meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final

import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.engine import AwayError, EngineError, OversizeError, StaleError
from actors.cluster.letters import Letter, UnreadableError
from actors.cluster.life import Publish, State, forsaken, is_expired, lost, owed, resolve
from actors.cluster.record.positions import Position, Positions
from actors.cluster.record.repair import Repair, in_parallel, tell
from actors.cluster.record.sharedlog import SharedLog, letter_of
from actors.history import Ended, History, ended_after, join, open_ones, own, stage_of, summary_of
from protocol.errors import RunnerError
from protocol.model import Execution, Status

_NAME: Final = "outbox"
_MANY: Final = 256
_GATHER_SECONDS: Final = 0.25
"""Ends of calls are gathered for so long: as long as the history gathers them."""
_SWEEP_SECONDS: Final = 30.0
_SETTLE_SECONDS: Final = 5.0
"""How long runners have to tell that they know more of an execution which the log had lost."""
_SWEPT: Final = 1000
"""Executions that a sweep looks at, but for those at the start and at a return of the engine."""
_RETRY_SECONDS: Final = 1.0

log = structlog.get_logger("cluster")


@define(eq=False)
class Outbox:
    """The actor."""

    shared: SharedLog
    history: History
    positions: Positions
    is_live: Callable[[str], bool]
    """Whether this runner runs an execution, or has its job."""
    offer_job: Callable[[Execution], Awaitable[bool]]
    """Puts the job of an execution, unless it is there; returns whether the engine answered."""
    alive: Callable[[], Collection[str] | None]
    """Returns the boots of the runners that are there; None while they are not known."""
    nodes: Callable[[], Collection[str]]
    """Returns the names of the runners that are there."""
    behind: int = field(default=0, init=False)
    """Executions whose last state the log may lack, as of the last look."""
    _wake: trio.Event = field(factory=trio.Event, init=False)
    _back: trio.Event = field(factory=trio.Event, init=False)
    """The engine came back, or another server leads."""
    _jobless: list[str] = field(factory=list, init=False)
    """Executions that the log had lost, and which are offered without their jobs."""
    _swept: str = field(default="", init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Offer until cancelled."""
        engine = self.shared.mail.engine
        self.shared.wake = lambda: self._wake.set()  # noqa: PLW0108  (it is replaced)
        began = self.history.revision
        engine.changed.add(self._changed)
        try:
            task_status.started()
            await engine.prepared.wait()
            await self.history.change(join)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._offer_ends, began)
                nursery.start_soon(self._sweep)
                parts = self.shared, self.history, self.positions, self._offer, self.nodes, self._changed
                nursery.start_soon(Repair(*parts).run)
        finally:
            engine.changed.discard(self._changed)

    def _changed(self) -> None:
        if self.shared.mail.engine.connected:
            self._wake.set()
            self._back.set()

    # Ends

    async def _offer_ends(self, began: int) -> None:
        cursor, told = await self._begin(), ""
        while True:
            self._wake, recorded = trio.Event(), self.history.revision
            try:
                await self._offer_unsent()
                reached = await self._offer_after(cursor, began)
            except (EngineError, RunnerError) as problem:
                told = tell("ends are published later", str(problem), told)
                await trio.sleep(_RETRY_SECONDS)
                await self.shared.mail.engine.wait_connected()
                continue
            told = ""
            if reached != cursor.number:
                cursor = Position(reached, cursor.of)
                await trio.to_thread.run_sync(partial(self.positions.put, _NAME, cursor))
            if reached >= recorded:  # else some of it is on its way to the database
                with trio.move_on_after(_SWEEP_SECONDS):
                    await self._wake.wait()
            await trio.sleep(_GATHER_SECONDS)

    async def _begin(self) -> Position:
        """Return where to go on: at the begin of the history for a log that was made again."""
        known, engine = await trio.to_thread.run_sync(self.positions.get, _NAME), self.shared.mail.engine
        while True:
            try:
                made = (await engine.extent(engine.names.log)).made
            except EngineError as problem:
                log.info("it is not known yet what the log of executions lacks", why=str(problem))
                await trio.sleep(_RETRY_SECONDS)
            else:
                return known if known.of == made else Position(0, made)

    async def _offer_unsent(self) -> None:
        """Offer the states whose publishing had no answer."""
        for name in self.shared.unsent - self.shared.accepting:
            self.shared.renewed.discard(name)
            execution = await self.history.get(name)
            if execution is not None:
                await self._offer(execution)
            if name not in self.shared.renewed:
                self.shared.unsent.discard(name)
        self.shared.renewed &= self.shared.unsent

    async def _offer_after(self, at: Position, began: int) -> int:
        """Offer all ends with revisions after a position; return the revision up to which all are in the log."""
        cursor = at.number
        node, until = self.shared.node, self.history.room.lacking(self.history.revision + 1) - 1
        while True:
            read = partial(ended_after, node=node, after=cursor, until=until, most=_MANY)
            found: list[Ended] = await self.history.read(read)
            wanted = [each for each in found if not (each.shared and each.revision > began)]
            self.behind = len(wanted)
            await in_parallel(self._offer_end, wanted)
            if wanted:
                await self.history.change(partial(own, node=node, names=[each.id for each in wanted]))
            self.behind = 0
            if len(found) < _MANY:
                return max(cursor, until)
            cursor = found[-1].revision
            await trio.to_thread.run_sync(partial(self.positions.put, _NAME, Position(cursor, at.of)))

    async def _offer_end(self, ended: Ended) -> None:
        execution = self.shared.recent.take(ended.id) or await self.history.get(ended.id)
        if execution is None:  # deleted meanwhile
            return
        execution = replace(execution, node=self.shared.node, reruns=(), children=())
        if ended.shared:
            await self._offer(execution)
            return
        try:
            await self.shared.mail.send(letter_of(self.shared.mail.me, execution), 0)
        except StaleError:  # it is in the log already
            pass
        except OversizeError as problem:
            log.warning("an end stays on this runner", execution=ended.id, why=str(problem))

    async def _offer(self, row: Execution, *, puts: bool = True) -> None:
        """Offer a state of the history; `puts` its job, too. If the log has a later one, that counts here."""
        try:
            await self._offer_state(row, puts=puts)
        except UnreadableError as problem:  # a later release has decided since
            log.warning(
                "a state is not offered, as the log has one that cannot be read", execution=row.id, why=str(problem)
            )
        except OversizeError as problem:  # those after it go on
            log.warning("a state stays on this runner", execution=row.id, why=str(problem))

    async def _offer_state(self, row: Execution, *, puts: bool) -> None:
        me, node = self.shared.mail.me, row.node or self.shared.node
        row = replace(row, node=node, reruns=(), children=())
        state = found = await self.shared.mail.state(row.id, fresh=True)
        if found is None and is_expired(row, self.shared.mail.retention_seconds, time.time()):
            row = lost(row, time.time())
            await self.history.finish(row)
        if row.status is Status.RUNNING and node == me.node and self.is_live(row.id):
            letter: Letter | None = letter_of(me, row)  # it was in the log when its handler was called
        else:
            letter = owed(summary_of(row) if row.summary else row, node, me, state)
        if letter is not None:
            state = await self._sent(letter, state)
        if state is None or self.is_live(row.id):
            return
        if stage_of(state.letter.execution).follows(stage_of(row)):
            await self.history.adopt([state.letter.execution])
        if found is None and not puts:
            self._jobless.append(row.id)
        elif state.letter == letter and row.status is Status.QUEUED:  # it was not in the log before, so it has no job
            await self._put(row)
        else:
            await self._put_job(state)

    async def _sent(self, letter: Letter, state: State | None) -> State | None:
        """Put a letter into the log if that lacks it; `state` is its last one. Return the last one after that."""
        match resolve(letter, state):
            case Publish(expect):
                try:
                    return State(letter, await self.shared.mail.send(letter, expect))
                except StaleError:
                    return await self.shared.mail.state(letter.execution.id, fresh=True)
            case _:
                return state

    async def _put_job(self, state: State) -> None:
        """Put the job of an execution again that the queue has lost."""
        execution, engine = state.letter.execution, self.shared.mail.engine
        put = forsaken(state, self.shared.mail.me, self.alive())
        if put is None or await engine.last(engine.names.job("*", execution.id), fresh=True) is not None:
            return
        if put.letter is not None:
            try:
                await self.shared.publish(put.letter, put.expect)
            except StaleError:  # another runner has decided
                return
        await self._put(execution)

    async def _put(self, execution: Execution) -> None:
        if not await self.offer_job(execution):
            raise AwayError("a job cannot be put")

    # Accepted executions

    async def _sweep(self) -> None:
        told = ""
        while True:
            everything, self._back = self._back.is_set() or not self._swept, trio.Event()
            jobless, self._jobless = self._jobless, []
            try:
                await in_parallel(self._offer_open, jobless)
                await self._sweep_once(everything=everything)
            except (EngineError, RunnerError) as problem:
                told = tell("accepted executions are offered later", str(problem), told)
                self._swept = ""
                await trio.sleep(_RETRY_SECONDS)
                await self.shared.mail.engine.wait_connected()
                continue
            told = ""
            with trio.move_on_after(_SETTLE_SECONDS if self._jobless else _SWEEP_SECONDS):
                await self._back.wait()

    async def _sweep_once(self, *, everything: bool) -> None:
        """Offer accepted executions that have not ended: all, or the next ones."""
        if everything:
            self._swept = ""
        looked = 0
        while everything or looked < _SWEPT:
            found = await self.history.read(partial(open_ones, after=self._swept, most=_MANY))
            names = [name for name, _ in found if not self.is_live(name)]
            await in_parallel(self._offer_open, names)
            self._swept = found[-1][0] if found else " "
            looked += len(found)
            if len(found) < _MANY:
                self._swept = " "  # before all ids, and not nothing
                return

    async def _offer_open(self, name: str) -> None:
        """Offer an accepted execution of this runner, or of one that is gone."""
        execution = await self.history.get(name)
        if execution is None or execution.status.final or self.is_live(name) or name in self.shared.accepting:
            return
        if execution.node in (None, self.shared.node) or execution.node not in self.nodes():
            await self._offer(execution, puts=False)
