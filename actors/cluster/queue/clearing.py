"""Takes jobs off the queue that no runner would pull: their executions have ended, or their modules are gone.

A job is pulled by runners that have its module and what that needs. If there are none, as after the removal of a
module, an execution that is cancelled, or whose module no runner has, would leave its job behind.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import structlog
import trio
from attrs import define, field

from actors.cluster.engine import AwayError, Engine, EngineError
from actors.cluster.letters import UnreadableError
from actors.cluster.life import Lost, Run, decide
from actors.cluster.queue.held import Jobs
from actors.cluster.queue.needed import Around
from actors.executions import Runs, end_without_module, served
from actors.history import stages
from protocol.errors import RunnerError

LOOK_SECONDS: Final = 30.0
_MOST: Final = 256
"""Executions that have not ended, of which one look asks for the module; the next one follows."""

log = structlog.get_logger("queue")


@define(eq=False)
class Clearing:
    """The actor. Of the runners that are there, the first by name does it."""

    engine: Engine
    runs: Runs
    around: Around
    jobs: Jobs
    _looked: str = field(default="", init=False)
    """The last execution that was asked for its module."""

    async def run(self) -> None:
        """Look every 30 seconds until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            if self.around.me.node != min(self.around.presence.nodes(), default=""):
                continue
            try:
                await self.look()
            except (EngineError, UnreadableError, RunnerError) as problem:
                log.info("jobs that are not needed stay in the queue", why=str(problem))

    async def look(self) -> None:
        """Take off what is not needed. Raises EngineError, UnreadableError and RunnerError."""
        found = await self._ask("INFO", {"subjects_filter": self.engine.names.job("*", "*")})
        subjects = {subject.rpartition(".")[2]: subject for subject in found["state"].get("subjects") or ()}
        names = sorted(name for name in subjects if name not in self.jobs.by_id)
        known = await self.runs.history.read(partial(stages, names=names))
        for name in names:
            if name in known and known[name].status.final and self.around.record.settled(name):
                await self._ask("PURGE", {"filter": subjects[name]})
        await self._end_removed([name for name in names if name in known and not known[name].status.final])

    async def _end_removed(self, names: Sequence[str]) -> None:
        """End those of some executions whose module no runner has; their jobs are taken off by the next look."""
        if len(set(self.around.presence.modules())) > 1:  # another runner may have a module that this one lacks
            return
        following = [name for name in names if name > self._looked][:_MOST]
        self._looked = following[-1] if len(following) == _MOST else ""
        for name in following:
            execution = await self.runs.history.get(name)
            if execution is not None and served(self.runs.registry, execution) is None:
                await self._end(name)

    async def _end(self, name: str) -> None:
        record, me, alive = self.around.record, self.around.me, self.around.presence.alive()
        state = await record.state(name)
        if state is None:
            return
        match decide(state, None, me, alive, None, delivered=1, now=time.time()):
            case Run():
                await record.take(state, state.letter.execution)
                await end_without_module(self.runs.attempts.records, state.letter.execution)
            case Lost(letter, expect):
                await record.publish(letter, expect)
            case _:  # a runner has it
                return

    async def _ask(self, verb: str, question: Mapping[str, Any]) -> dict[str, Any]:
        subject = f"$JS.API.STREAM.{verb}.{self.engine.names.queue}"
        answer: dict[str, Any] = msgspec.json.decode(await self.engine.ask(subject, msgspec.json.encode(question)))
        if "error" in answer:
            raise AwayError(answer["error"].get("description", "refused"))
        return answer
