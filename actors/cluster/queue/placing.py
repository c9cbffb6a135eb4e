"""What becomes of a job that was delivered to this runner: it runs here, is given back, or is dropped."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.engine import AwayError, Delivery, StaleError
from actors.cluster.letters import Letter, UnreadableError
from actors.cluster.life import Again, Drop, Lost, Run, State, Wait, decide
from actors.cluster.queue.held import Jobs
from actors.cluster.queue.lanes import Lane
from actors.cluster.queue.needed import Around
from actors.cluster.queue.places import Room
from actors.executions import Live, Runs, end_without_module, served
from actors.registry import Published
from protocol.errors import RunnerError
from protocol.model import Execution

SPARE: Final = 4
"""Jobs above the free places that a runner keeps for a moment, as several lanes may deliver at a time."""
_AWAY_SECONDS: Final = 1.0
_STRANGE_SECONDS: Final = 10.0
"""Longest pause before a job is delivered again that this runner cannot run; another one may be the next to ask."""
_FULL_SECONDS: Final = 0.1
_LONGEST_SECONDS: Final = 2.0
_TRIES: Final = 3
"""Decisions about one delivery, when other runners decide at the same time."""

log = structlog.get_logger("queue")


class _UnfitError(Exception):
    """This runner lacks what a job needs, and another may have it."""


@define(eq=False)
class Placing:
    """Decides about deliveries by the last letters of their executions."""

    runs: Runs
    around: Around
    room: Room
    jobs: Jobs
    _deciding: dict[str, Delivery] = field(factory=dict, init=False)
    """The last deliveries of jobs about which this runner decides."""
    _told: str = field(default="", init=False)
    """The last reason in the log."""

    async def place(self, lane: Lane, delivery: Delivery, decided: Callable[[], None]) -> bool:
        """Answer a delivery; what runs here is answered at its end. `decided` is called once, before that.

        Return False for a job that this runner cannot run, and another one may.
        """
        name = delivery.subject.rpartition(".")[2]
        again = name in self._deciding  # it took longer than the ack wait, and the job was delivered again
        self._deciding[name] = delivery
        if again:
            decided()
            return True
        try:
            live = None
            try:
                live = await self._place(name, lane, delivery)
            finally:
                decided()
                delivery = self._deciding.pop(name)
            if live is not None:
                await self.jobs.hold(delivery, live)
        except (AwayError, StaleError) as problem:
            log.debug("a job cannot be decided about", execution=name, why=str(problem))
            await delivery.nak(_AWAY_SECONDS)
        except UnreadableError as problem:
            if str(problem) != self._told:  # else there may be many
                log.warning("a job cannot be read", execution=name, why=str(problem))
            self._told = str(problem)
            await delivery.nak(_unfit_seconds(delivery))
            return False
        except _UnfitError:
            await delivery.nak(_unfit_seconds(delivery))
            return False
        except RunnerError as problem:
            log.warning("a job cannot be taken", execution=name, why=str(problem))
            await delivery.nak(_AWAY_SECONDS)
        return True

    async def _place(self, name: str, lane: Lane, delivery: Delivery) -> Live | None:
        """Answer a delivery, or return the execution that runs here now."""
        here = self.runs.find(name)
        if here is not None:
            if here.superseded:
                await here.ended.wait()  # its handler is being ended; then this may run it again
            elif self.jobs.renew(name, delivery):
                return None
            else:  # it waits for a person, or the job was put twice
                await delivery.nak(_STRANGE_SECONDS)
                return None
        state = await self.around.record.state(name)
        for _ in range(_TRIES):
            module = None if state is None else served(self.runs.registry, state.letter.execution)
            decision = await self._decide(name, state, module, delivery)
            match decision:
                case Run():
                    assert state is not None  # noqa: S101  (a decision about nothing is to wait)
                    return await self._run(lane, state, module, decision, delivery)
                case Again() | Lost():
                    log.warning("the runner of an execution is gone", execution=name, again=isinstance(decision, Again))
                    state = State(decision.letter, await self.around.record.publish(decision.letter, decision.expect))
                case Drop():
                    await delivery.ack()
                    return None
                case Wait():
                    await delivery.nak(decision.seconds)
                    return None
        await delivery.nak(_AWAY_SECONDS)
        return None

    async def _decide(
        self, name: str, state: State | None, module: Published | None, delivery: Delivery
    ) -> Run | Again | Lost | Drop | Wait:
        known = None
        # The ends of others are in the log, unless that was damaged: then jobs come again, too.
        if state is None or state.letter.author.node == self.around.me.node or delivery.delivered > 1:
            known = await self.runs.history.get(name)
        if known is not None and known.status.final and (state is None or not state.letter.execution.status.final):
            self.around.record.owe(name)
        policy = None if module is None else module.spec.retry
        alive, me, now = self.around.presence.alive(), self.around.me, time.time()
        return decide(state, known, me, alive, policy, delivered=delivery.delivered, now=now)

    async def _run(
        self, lane: Lane, state: State, module: Published | None, decision: Run, delivery: Delivery
    ) -> Live | None:
        """Take a place for an execution, or give its job back. Raises _UnfitError."""
        execution = state.letter.execution
        if module is None:
            await self._without_module(execution, state, delivery)
            return None
        if not self.room.fits(module):
            raise _UnfitError
        self.room.arriving -= 1  # this one
        full = not self.room.free(lane, module)
        self.room.arriving += 1
        failing = self.room.openings(module).failing
        if failing and not lane.pinned and delivery.delivered < len(self.around.presence.nodes()):
            raise _UnfitError  # it may start elsewhere; a runner that fails all at once would get most jobs
        if full and (len(self.jobs.waiting()) >= SPARE or failing):
            await delivery.nak(min(_LONGEST_SECONDS, _FULL_SECONDS * delivery.delivered))
            return None
        delivery.in_progress()
        first, me = decision.first_event, self.around.me.node
        taken = replace(execution, module=module.ref, env=module.spec.env, events_count=first, node=me)
        asks = module.spec.tool.confirm and execution.approval is None
        if asks:
            letter = Letter(self.around.me, taken)
            state = State(letter, await self.around.record.publish(letter, state.sequence))
        await self.around.record.take(state, taken)
        live = self.runs.dispatcher.take(module, taken)
        if not asks:
            return live
        await delivery.ack()  # while it waits for a person it is this runner's, and counts in no limit
        return None

    async def _without_module(self, execution: Execution, state: State, delivery: Delivery) -> None:
        """End an execution that this runner has accepted and whose module is gone; others may have the module.

        Raises _UnfitError for one that another runner has accepted.
        """
        if state.letter.author.node != self.around.me.node:
            raise _UnfitError
        await self.around.record.take(state, execution)
        await end_without_module(self.runs.attempts.records, execution)
        await delivery.ack()


def _unfit_seconds(delivery: Delivery) -> float:
    return min(_STRANGE_SECONDS, float(delivery.delivered))
