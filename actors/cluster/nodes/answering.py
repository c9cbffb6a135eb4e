"""What this runner answers to others about the executions that it has, and the calls that it runs for them."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Final

import msgspec
import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.nodes.wording import (
    Absent,
    Answer,
    Awaiting,
    Broken,
    Cancel,
    Decide,
    Follow,
    Found,
    News,
    Piece,
    Question,
    Reach,
    Reasons,
    Refused,
    Run,
    Several,
    Taken,
    Waits,
    Withhold,
)
from actors.events import EventLog, LeftEvent, log_of
from actors.executions import Here, Live, Runs
from actors.registry import Registry
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.events import ErrorEvent, ResultEvent, encode_all
from protocol.model import Execution

SILENCE_SECONDS: Final = 20.0
"""A call whose runner with the caller has not asked for its events for this long is ended."""
_WITHHELD_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 1.0
_MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
"""Results that no record has, together."""

log = structlog.get_logger("cluster")


@define(eq=False)
class Guest:
    """A call that runs here for a caller of another runner; it stays for a while behind its end, to be fetched."""

    live: Live
    until: float
    """Until then its caller counts as interested."""


@define(eq=False)
class Answering:
    """Answers questions of other runners."""

    node: str
    runs: Runs
    registry: Registry
    guests: dict[str, Guest] = field(factory=dict, init=False)
    """The calls that run here for callers of other runners."""
    _summaries: dict[str, Guest] = field(factory=dict, init=False)
    """Executions whose records lack results for which callers of other runners may wait."""
    _withheld: dict[str, float] = field(factory=dict, init=False)
    """Calls that must not begin here any more."""

    def __attrs_post_init__(self) -> None:
        self.runs.on_enter.append(self._keep)

    def _keep(self, live: Live) -> None:
        """Keep a call whose result is in no record, for a while behind its end."""
        if not (live.execution.summary and live.execution.asynchronous):
            return
        with suppress(RunnerError):
            if self.runs.dispatcher.queue.takes_calls(live.module):
                live.log.followed = True
                self._summaries[live.execution.id] = Guest(live, math.inf)

    def _forget(self, now: float) -> None:
        """Forget results that were not fetched in time, and the oldest ones beyond a bound."""
        size = 0
        for name, guest in reversed(list(self._summaries.items())):
            if guest.live.ended.is_set():
                guest.until = min(guest.until, now + SILENCE_SECONDS)
                size += len(guest.live.execution.result or b"")
                if guest.until < now or size > _MAX_KEPT_BYTES:
                    del self._summaries[name]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End the calls whose callers' runners are gone, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(_LOOK_SECONDS)
            now = trio.current_time()
            self._forget(now)
            self._withheld = {name: until for name, until in self._withheld.items() if until > now}
            for name, guest in list(self.guests.items()):
                if guest.until >= now:
                    continue
                if guest.live.ended.is_set():
                    del self.guests[name]
                else:
                    guest.live.cancel(Failure(ErrorKind.CANCELLED, "the runner with the caller went away"))

    async def answer(self, node: str, question: Question) -> Answer:
        """Answer a runner."""
        try:
            return await self._answer(node, question)
        except RunnerError as problem:
            if isinstance(question, Reach | Follow | Withhold):  # the execution may be there
                return Broken(problem.failure.message)
            return Refused(problem.failure)

    async def _answer(self, node: str, question: Question) -> Answer:
        match question:
            case Follow():
                return await self._follow(question)
            case Cancel():
                return await self._cancel(question)
            case Run():
                return self._run(node, question)
            case Withhold():
                return await self._withhold(question)
            case _:
                return await self._show(question)

    async def _show(self, question: Reach | Decide | Awaiting | Reasons | Piece) -> Answer:
        found: Answer = Absent()
        match question:
            case Reach() if (live := self.runs.find(question.id)) is not None:
                found = Found(self.runs.snapshot(live))
            case Reach() if question.recorded and await self.runs.history.get(question.id) is not None:
                found = Taken()
            case Decide() if (live := self.runs.find(question.id)) is not None:
                found = Found(await self._here.decide(live, question.decision))
            case Awaiting():
                found = Several(tuple(await self._here.awaiting()))
            case Reasons():
                lives = [live for name in question.ids if (live := self.runs.find(name)) is not None]
                reasons = [(live.execution.id, self.runs.waiting(live)) for live in lives]
                found = Waits({name: waiting for name, waiting in reasons if waiting is not None})
        return found

    @property
    def _here(self) -> Here:
        return Here(self.runs)

    async def _recorded(self, name: str) -> Execution | None:
        """Return an execution that has ended."""
        found = await self.runs.history.get(name)
        return found if found is not None and found.status.final else None

    # Events

    async def _follow(self, question: Follow) -> Answer:
        guest = self.guests.get(question.id)
        if guest is not None:
            guest.until = trio.current_time() + SILENCE_SECONDS
        guest = guest or self._summaries.get(question.id)
        live = self.runs.find(question.id) if guest is None else guest.live
        if live is None:
            ended = await self._recorded(question.id)
            return Absent() if ended is None else _news(log_of(ended), question.start, ended)
        if not live.ended.is_set():
            live.log.followed = live.has_followers = True
            with trio.move_on_after(question.seconds):
                await live.log.wait(question.start)
        if live.refusal is not None:
            return Refused(live.refusal.failure, began=live.began_at > 0)
        ended = live.execution if live.ended.is_set() else None
        news = _news(live.log, question.start, ended)
        return replace(news, waiting=self.runs.waiting(live), attempts=live.execution.attempts)

    # Ends

    async def _cancel(self, question: Cancel) -> Answer:
        live = self.runs.find(question.id)
        if live is None:
            ended = await self._recorded(question.id)
            return Absent() if ended is None else Found(ended)
        with trio.move_on_after(question.seconds):
            await self.runs.dispatcher.cancel(live, question.why)
            return Found(await self.runs.wait_ended(live))
        return Taken()

    # Calls of other runners

    def _run(self, node: str, question: Run) -> Answer:
        """Begin a call, or refuse it. Not a checkpoint, so that it has begun, or never will, when others ask for it."""
        execution = question.execution
        if execution.id in self._withheld:
            raise error(ErrorKind.CANCELLED, "the runner with the caller has withdrawn it")
        if self.runs.find(execution.id) is not None:
            return Taken()
        module = self.registry.snapshot.get(execution.module.name, execution.module.version)
        if module.content_digest != question.digest:
            text = f"the runner {self.node} has another {execution.module}"
            raise error(ErrorKind.UNAVAILABLE, text, field="version", retry_after=1)
        executor = self.runs.attempts.executors[module.spec.env]
        if not executor.availability.available or (not question.even_full and executor.must_wait(module)):
            raise error(ErrorKind.OVERLOADED, f"the runner {self.node} has no free place", retry_after=1)
        live = self.runs.start(module, replace(execution, node=self.node), msgspec.Raw(execution.input))
        live.path, live.log.followed = question.path, True
        self.guests[execution.id] = Guest(live, trio.current_time() + SILENCE_SECONDS)
        log.debug("runs a call for another runner", execution=execution.id, door=node)
        return Taken()

    async def _withhold(self, question: Withhold) -> Answer:
        live = self.runs.find(question.id)
        if live is not None:
            return Found(self.runs.snapshot(live))
        if question.id in self.guests:
            return Taken()
        self._withheld[question.id] = trio.current_time() + _WITHHELD_SECONDS
        ended = await self._recorded(question.id)
        return Absent() if ended is None else Found(ended)


def _news(events: EventLog, start: int, ended: Execution | None) -> News:
    """Return a batch of events from a number on; with the last one, the end."""
    found = events.read(start)
    kept = [event for event in found if not isinstance(event, ResultEvent | ErrorEvent | LeftEvent)]
    whole = len(kept) < len(found) or start >= events.next_seq or not found
    return News(encode_all(kept), ended=ended if whole else None)
