"""`Mirror`: an execution that another runner owns, as the doors of this one read, follow and wait for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.engine import AwayError, UnansweredError
from actors.cluster.nodes.requests import Requests
from actors.cluster.nodes.wording import Answer, Follow, News
from actors.events import EventLog, last_of, log_of
from actors.executions import Live
from actors.registry import Published
from protocol.errors import RunnerError
from protocol.events import decode_all
from protocol.model import Execution

FOLLOW_SECONDS: Final = 5.0
"""How long the owner waits for events before it answers that there are none."""
_PAUSE_SECONDS: Final = 0.5
"""Between two tries, while the owner does not have it or does not answer."""

log = structlog.get_logger("cluster")


class FedLog(EventLog):
    """The events of an execution of another runner. A task that waits for events asks for them."""

    def __init__(self, feed: Callable[[], Awaitable[None]], keep: int, keep_items: int) -> None:
        super().__init__(limit=0, keep=keep, keep_items=keep_items)
        self._feed = feed
        self._feeding = trio.Lock()

    async def wait(self, start: int) -> None:
        """Wait until there is an event with the number `start`, or the end. Cancellation leaves nothing behind."""
        while start >= self.next_seq and self.last is None:
            async with self._feeding:
                if start >= self.next_seq and self.last is None:
                    await self._feed()


@define(eq=False)
class FedEnding:
    """The end of an execution of another runner. Tasks that wait for it ask for its events: so they hear of it soon."""

    log: EventLog
    _event: trio.Event = field(factory=trio.Event, init=False)

    def is_set(self) -> bool:
        """Return whether the execution has ended."""
        return self._event.is_set()

    def set(self) -> None:
        """Wake those that wait."""
        self._event.set()

    async def wait(self) -> None:
        """Wait for the end, which is the last event of the log as well."""
        await trio.lowlevel.checkpoint()
        while not self._event.is_set():
            await self.log.wait(self.log.next_seq)


class Mirror(Live):
    """One execution of another runner, or of the queue. It ends when its end is projected, or its owner tells it."""

    def __init__(
        self,
        execution: Execution,
        module: Published,
        requests: Requests,
        here: Callable[[str], Live | None],
        adopt: Callable[[Execution], Awaitable[None]],
        keep: tuple[int, int],
    ) -> None:
        """Mirror an execution, with the events that it has.

        `here` finds executions of this runner, `adopt` stores an end here, `keep` bounds the events.
        """
        super().__init__(execution, module, FedLog(self._feed, *keep), execution.attempts)
        self.log.followed = True
        self.ended = FedEnding(self.log)
        self.requests = requests
        self.waiting = execution.waiting
        self._here = here
        self._adopt = adopt
        self._asking: trio.CancelScope | None = None
        self._summary: Execution | None = None
        """The end without its result, which the owner may still have."""
        events = decode_all(execution.events)
        if events or execution.events_count:
            self.log.restore(events, execution.events_count, execution.created_at)

    @property
    def owner(self) -> str:
        """The name of the runner that has it."""
        return self.execution.node or ""

    def project(self, execution: Execution) -> None:
        """Take a later state of the execution: its end, or another runner that has it now."""
        if self.ended.is_set():
            return
        moved = execution.node != self.execution.node
        if execution.status.final and execution.summary:
            self._summary, moved = execution, moved or self._asks_nobody
            self.execution = replace(self.execution, node=execution.node)
        elif execution.status.final:
            self._finish(execution)
        else:
            kept = replace(execution, events=self.execution.events, events_count=self.execution.events_count)
            self.execution, self.waiting = kept, None
        if self._asking is not None and (moved or not execution.status.final):
            self._asking.cancel()

    def _finish(self, execution: Execution) -> None:
        self.execution = execution
        if execution.events_count > self.log.next_seq:
            for event in log_of(execution).kept(self.log.next_seq):
                self.log.take(event)
        self.log.end(last_of(execution))
        self.ended.set()
        if self._asking is not None:
            self._asking.cancel()

    async def end(self, execution: Execution) -> None:
        """Take the end from the owner, which has recorded it. The history of this runner gets it too."""
        if not self.ended.is_set():
            try:
                await self._adopt(execution)
            except RunnerError as problem:  # the projection brings it
                log.warning("the end of an execution is not here yet", execution=execution.id, why=str(problem))
            self._finish(execution)

    async def _feed(self) -> None:
        """Ask for the next events once. A later state ends the wait for them."""
        answer, last = None, self._summary
        with trio.CancelScope() as self._asking:
            if last is None and self._asks_nobody:
                await trio.sleep(FOLLOW_SECONDS)  # a later state names the runner that has it
            else:
                answer = await self._asked()
                if not isinstance(answer, News) and last is None:
                    await trio.sleep(_PAUSE_SECONDS)  # a later state names its next owner
        self._asking = None
        if isinstance(answer, News):
            for event in decode_all(answer.events):
                self.log.take(event)
            self.waiting = answer.waiting
            if answer.ended is not None:
                await self.end(answer.ended)
        if last is not None and not isinstance(answer, News) and not self.ended.is_set():
            self._finish(last)

    @property
    def _asks_nobody(self) -> bool:
        """Whether no runner has it: it is in the queue."""
        return self.owner == self.requests.node and self._here(self.execution.id) is None

    async def _asked(self) -> Answer | None:
        question = Follow(self.execution.id, self.log.next_seq, FOLLOW_SECONDS)
        try:
            async with self.requests.turns:
                return await self.requests.ask(self.owner, question, timeout=2 * FOLLOW_SECONDS)
        except (AwayError, UnansweredError):
            log.debug("the owner of an execution does not answer", execution=self.execution.id, owner=self.owner)
            return None
