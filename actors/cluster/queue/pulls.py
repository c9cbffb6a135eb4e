"""Asks the lanes for jobs, as long as this runner has places for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import structlog
import trio
from attrs import define, field

from actors.cluster.engine import PINNED_SECONDS, AwayError, Consumer, Delivery, Engine, RefusedError
from actors.cluster.queue.lanes import UNFIT, Lane
from actors.cluster.queue.places import Room, Wish
from actors.cluster.queue.placing import Placing

_QUIET_SECONDS: Final = 600.0
_WAKE_SECONDS: Final = 0.01
"""Lanes without places are looked at when one becomes free, but not more often than this."""
_PAUSE_SECONDS: Final = 1.0
"""Pause after the engine refused, or had not been there."""
_UNFIT_SECONDS: Final = 2.0 * PINNED_SECONDS
"""For this time after a job that this runner cannot run, and another may, a lane is left to the others."""

log = structlog.get_logger("queue")


@define(eq=False)
class Asking:
    """One lane that is asked."""

    lane: Lane
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    asked: Wish = field(factory=Wish)
    question: trio.CancelScope | None = None
    """The wait for jobs."""
    arriving: int = 0
    """Jobs that are not decided about."""
    last_job: float = field(factory=trio.current_time)
    """Trio time."""
    left_until: float = -math.inf
    """Trio time until which the lane is left to others."""


@define(eq=False)
class Pulls:
    """One task for each lane."""

    engine: Engine
    redelivery_seconds: float
    room: Room
    placing: Placing
    nursery: trio.Nursery
    """Of the jobs; it may outlive the questions."""
    _asking: dict[str, Asking] = field(factory=dict, init=False)
    _extra: dict[str, Lane] = field(factory=dict, init=False)
    """Lanes without modules here that may still have jobs: of removed modules, or put by this runner."""
    _freed: trio.Event = field(factory=trio.Event, init=False)
    """A place may have become free."""
    _look: trio.Event = field(factory=trio.Event, init=False)
    """The lanes without places look again."""

    def ask_too(self, lane: Lane) -> None:
        """Ask a lane that has jobs and no module here, until it has brought none for a while."""
        if lane.name not in self.room.lanes() and lane.fits(self.room.offers()):
            self._extra[lane.name] = lane

    def follow(self, nursery: trio.Nursery) -> None:
        """Ask the lanes of the modules that there are now, and no others; change questions whose terms have changed."""
        lanes, quiet = self.room.lanes(), trio.current_time() - _QUIET_SECONDS
        for name, asking in self._asking.items():
            if name in lanes or asking.last_job < quiet:
                self._extra.pop(name, None)
            else:
                self._extra[name] = asking.lane
        wanted = {**self._extra, **lanes}
        for name, asking in list(self._asking.items()):
            if wanted.get(name) != asking.lane:
                asking.scope.cancel()
                del self._asking[name]
            elif asking.question is not None and self._differs(asking):
                asking.question.cancel()
        for name, lane in wanted.items():
            if name not in self._asking:
                asking = self._asking[name] = Asking(lane)
                nursery.start_soon(self._run, asking, name=f"lane {name}")

    async def run(self) -> None:
        """Let lanes without places look again when one may have become free, but not too often, until cancelled."""
        while True:
            await self._freed.wait()
            self._freed = trio.Event()
            look, self._look = self._look, trio.Event()
            look.set()
            await trio.sleep(_WAKE_SECONDS)

    def freed(self) -> None:
        """Note that a place may have become free."""
        self._freed.set()

    def consumer(self, lane: Lane) -> Consumer:
        """Return the consumer of a lane."""
        names = self.engine.names
        limit = {} if lane.limit is None else {"max_ack_pending": lane.limit}
        return Consumer(
            names.queue,
            lane.name,
            (names.job(lane.name, "*"),),
            self.redelivery_seconds,
            policy="pinned_client" if lane.pinned else "prioritized",
            **limit,
        )

    def _differs(self, asking: Asking) -> bool:
        """Return whether a question should have other terms: no places are left, or another priority."""
        wish = self._wish(asking)
        return wish.count <= 0 or wish.priority != asking.asked.priority

    def _wish(self, asking: Asking) -> Wish:
        """Return what to ask of a lane now."""
        wish = self.room.wish(asking.lane, arriving=asking.arriving > 0)
        if trio.current_time() >= asking.left_until:
            return wish
        return Wish() if asking.lane.pinned else Wish(wish.count, UNFIT)

    async def _run(self, asking: Asking) -> None:
        with asking.scope:
            while True:
                try:
                    await self._pull(asking)
                except (AwayError, RefusedError) as problem:
                    log.info("a lane cannot be asked", lane=asking.lane.name, why=str(problem))
                    await self.engine.wait_connected()
                    await trio.sleep(_PAUSE_SECONDS)

    async def _pull(self, asking: Asking) -> None:
        lane = asking.lane
        async with self.engine.pull(self.consumer(lane)) as puller:
            while True:
                wish = self._wish(asking)
                if wish.count <= 0:
                    puller.pause()
                    with trio.move_on_after(PINNED_SECONDS / 3 if lane.pinned else math.inf):
                        await self._look.wait()
                    if trio.current_time() >= asking.left_until:
                        await puller.keep()
                    continue
                asking.asked = wish
                found: Sequence[Delivery] = ()
                with trio.CancelScope() as question:
                    asking.question = question
                    found = await puller.next(wish.count, priority=wish.priority)
                asking.question = None
                self.room.arriving += len(found)
                asking.arriving += len(found)
                asking.last_job = trio.current_time()
                for delivery in found:
                    self.nursery.start_soon(self._place, asking, delivery, name=f"job of {lane.name}")

    async def _place(self, asking: Asking, delivery: Delivery) -> None:
        def decided() -> None:
            self.room.arriving -= 1
            asking.arriving -= 1

        if not await self.placing.place(asking.lane, delivery, decided):
            asking.left_until = trio.current_time() + _UNFIT_SECONDS
