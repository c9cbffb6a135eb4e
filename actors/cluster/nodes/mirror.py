"""`Mirror`: an execution that another runner owns, as the doors of this one read, follow and wait for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio
from msgspec.structs import replace

from actors.cluster.engine import AwayError, UnansweredError
from actors.cluster.nodes.requests import Requests
from actors.cluster.nodes.wording import Answer, Follow, News
from actors.events import EventLog, last_of
from actors.executions import Live
from actors.registry import Published
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


class Mirror(Live):
    """One execution of another runner. It ends when its end is projected, or when its owner tells it."""

    def __init__(
        self,
        execution: Execution,
        module: Published,
        requests: Requests,
        adopt: Callable[[Execution], Awaitable[None]],
        keep: tuple[int, int],
    ) -> None:
        """Mirror an execution, with the events that it has. `adopt` stores its end here, `keep` bounds its events."""
        super().__init__(execution, module, FedLog(self._feed, *keep), execution.attempts)
        self.requests = requests
        self.waiting = execution.waiting
        self._adopt = adopt
        self._asking: trio.CancelScope | None = None
        self._restore(execution)

    def _restore(self, execution: Execution) -> None:
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
        if execution.status.final:
            self.execution = execution
            if self.log.followed:
                self.log.end(last_of(execution))
            self.ended.set()
        else:
            kept = replace(execution, events=self.execution.events, events_count=self.execution.events_count)
            self.execution, self.waiting = kept, None
        if self._asking is not None:
            self._asking.cancel()

    async def end(self, execution: Execution) -> None:
        """Take the end of the execution from its owner: when this returns, the history has it."""
        if not self.ended.is_set():
            await self._adopt(execution)
            self.project(execution)

    async def _feed(self) -> None:
        """Ask for the next events once. A later state ends the wait for them."""
        answer: Answer | None = None
        with trio.CancelScope() as self._asking:
            try:
                question = Follow(self.execution.id, self.log.next_seq, FOLLOW_SECONDS)
                async with self.requests.turns:
                    answer = await self.requests.ask(self.owner, question, timeout=2 * FOLLOW_SECONDS)
            except (AwayError, UnansweredError):
                log.debug("the owner of an execution does not answer", execution=self.execution.id, owner=self.owner)
            if not isinstance(answer, News):
                await trio.sleep(_PAUSE_SECONDS)  # a later state names its next owner
        self._asking = None
        if isinstance(answer, News):
            for event in decode_all(answer.events):
                self.log.take(event)
            self.waiting = answer.waiting
            if answer.ended is not None:
                await self.end(answer.ended)
