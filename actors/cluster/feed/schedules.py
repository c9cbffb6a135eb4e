"""`SharedStarts`: the schedules of the API of all runners of a cluster, and how far each schedule has come."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import structlog
import trio
from attrs import define, field

from actors.cluster.engine import Engine, Stored
from actors.cluster.feed.follower import Follower
from actors.cluster.feed.news import SCHEDULE, STATE, ScheduleNews, StateNews, token, unpack
from actors.cluster.letters import Author, UnreadableError
from actors.one_file import InTurn, OvertakenError, until_first
from actors.starts import StartsFile, State, StoredSchedule
from protocol.errors import RunnerError

_AT_A_TIME: Final = 32
"""States that are on their way."""

log = structlog.get_logger("cluster")
Hear = Callable[[Sequence[State], Sequence[StoredSchedule], Sequence[str]], None]


@define(eq=False)
class SharedStarts:
    """The feed of the schedules of one runner in a cluster. `hear` gets states, schedules and deleted ones."""

    engine: Engine
    author: Author
    file: StartsFile
    in_file: InTurn
    hear: Hear | None = None
    follower: Follower = field(init=False)
    _states: dict[str, State] = field(factory=dict, init=False)
    """The states that are known to all, of which this runner has read since its start."""
    _theirs: dict[str, StoredSchedule] = field(factory=dict, init=False)
    """Schedules of the API that the cluster had when this runner joined it."""

    def __attrs_post_init__(self) -> None:
        topics = (SCHEDULE, STATE)
        self.follower = Follower(self.engine, self.author, topics, self.file, self.in_file, self._apply)

    async def write(
        self, states: Sequence[State] = (), schedules: Sequence[StoredSchedule] = (), deleted: Sequence[str] = ()
    ) -> None:
        """Tell all runners of schedules and states."""
        base = self.follower.base(SCHEDULE)
        for schedule in schedules:
            news = ScheduleNews(**self._head(), name=schedule.id, schedule=schedule)
            base = await self.follower.change(SCHEDULE, token(schedule.id), news, base)
        for name in deleted:
            news = ScheduleNews(**self._head(), name=name)
            base = await self.follower.change(SCHEDULE, token(name), news, base)
        problems = list[RunnerError]()
        turns = trio.CapacityLimiter(_AT_A_TIME)
        async with trio.open_nursery() as nursery:
            for state in states:
                if self._states.get(state.id) != state:
                    nursery.start_soon(self._write_state, state, turns, problems)
        if problems:
            raise next((each for each in problems if not isinstance(each, OvertakenError)), problems[0])

    async def forget(self, names: Sequence[str]) -> None:
        """Delete states here: another runner may have the module."""
        await self.in_file(self.file.forget, tuple(names))

    async def _write_state(self, state: State, turns: trio.CapacityLimiter, problems: list[RunnerError]) -> None:
        async with turns:
            try:
                await self.follower.replace(STATE, token(state.id), StateNews(**self._head(), state=state))
            except RunnerError as problem:
                problems.append(problem)

    def _head(self) -> dict[str, Any]:
        return {"author": self.author, "id": secrets.token_hex(8), "at": time.time()}

    async def _apply(self, cluster: int, place: int, batch: Sequence[Stored]) -> None:
        states, schedules, deleted = dict[str, State](), dict[str, StoredSchedule](), set[str]()
        for stored in batch:
            topic = stored.subject.rsplit(".", 2)[1]
            try:
                if topic == STATE:
                    state = unpack(stored.data, StateNews).state
                    states[state.id] = state
                elif topic == SCHEDULE:
                    news = unpack(stored.data, ScheduleNews)
                    schedules.pop(news.name, None)
                    deleted.discard(news.name)
                    if news.schedule is None:
                        deleted.add(news.name)
                        states.pop(news.name, None)
                    else:
                        schedules[news.name] = news.schedule
            except UnreadableError as problem:
                self.follower.leave_out(stored, problem)
        changed = list(states.values()), list(schedules.values()), list(deleted)
        await self.in_file(self.file.adopt, cluster, self.follower.noted(place), *changed)
        for name in deleted:
            self._states.pop(name, None)
        self._states.update(states)
        if self.follower.joining:
            kept = {name: each for name, each in self._theirs.items() if name not in deleted}
            self._theirs = {**kept, **schedules}
        if self.hear is not None:
            self.hear(*changed)

    # Join

    async def mine(self) -> tuple[list[StoredSchedule], list[State]]:
        """Return schedules and states of this runner before it joins. Raises RunnerError `unavailable`."""
        self._theirs.clear()
        self._states.clear()
        return await self.in_file(self.file.load)

    async def join(self, mine: tuple[list[StoredSchedule], list[State]]) -> list[str]:
        """Bring schedules and states that the cluster does not have; return what is lost, in words."""
        lost, states = [], {state.id: state for state in mine[1]}
        for schedule in mine[0]:
            await until_first(partial(self._bring, schedule))
            if self._theirs.get(schedule.id, schedule) != schedule:
                lost.append(f"the schedule {schedule.id}, which the cluster has too")
        for state in states.values():
            if state.id not in self._states:
                await until_first(partial(self._bring_state, state))
        return lost

    async def _bring(self, schedule: StoredSchedule) -> None:
        if schedule.id not in self._theirs:
            await self.write(schedules=[schedule])
            log.info("a schedule is now one of the cluster", schedule=schedule.id)

    async def _bring_state(self, state: State) -> None:
        if state.id not in self._states:
            await self.write(states=[state])
