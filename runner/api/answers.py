"""The memory for large answers on their way out: taken before an answer is made, given back when it has left."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeGuard

from attrs import field, frozen

from actors.events import LeftEvent
from actors.history import History
from protocol.errors import ErrorKind, RunnerError, error
from protocol.events import Event, ItemEvent, ResultEvent, last_event
from protocol.model import Execution
from runner.wire import LARGE_BYTES, Budget, Share

_RETRY_SECONDS = 1.0
_RESERVE_BYTES = 8 * 1024 * 1024


@frozen
class Left:
    """An ended execution whose answer is large: it is left to its record until there is memory for the answer."""

    name: str
    size: int


@frozen(eq=False)
class Answers:
    """Bounds what all callers together make the runner keep for them. Small answers take nothing."""

    budget: Budget
    seconds: float
    """The longest wait for a turn: clients that do not read are cut off after this time."""
    held: Budget
    """The memory of results that wait for their turn and are in no record."""
    _history: History
    _reserve: Budget = field(factory=lambda: Budget(_RESERVE_BYTES))
    """For metrics, which do not depend on the clients that read other answers."""

    def share(self) -> Share:
        """Return the share of one call, which takes nothing yet. Give it back in any case."""
        return Share(self.budget)

    def reserved(self) -> Share:
        """Return the share of one answer with metrics. Give it back in any case."""
        return Share(self._reserve)

    def take(self, share: Share, size: int) -> None:
        """Take the bytes of an answer that the caller can ask for again. Raises RunnerError `unavailable`."""
        if not share.take(size):
            raise _full()

    def take_whole(self, share: Share, execution: Execution) -> None:
        """Take the bytes of an execution with its input. Raises RunnerError `unavailable`."""
        self.take(share, _size(execution) + len(execution.input))

    async def turn(self, share: Share, size: int) -> None:
        """Wait for the bytes of an answer. Raises RunnerError `unavailable`."""
        if not await share.wait(size, self.seconds):
            raise _full()

    async def turn_of(self, share: Share, events: Collection[Event | LeftEvent]) -> list[Event]:
        """Return events, whole, when there is memory for them. Raises RunnerError `unavailable`, `not_found`."""
        await self.turn(share, sum(map(event_size, events)))
        return [
            last_event(await self._record(event.execution)) if isinstance(event, LeftEvent) else event
            for event in events
        ]

    async def ended(self, share: Share, execution: Execution | Left) -> Execution:
        """Return an execution that has ended, when there is memory for its answer.

        Until then it is left to its record, so that many results that wait take no memory: the caller must not keep
        `execution` meanwhile.

        Raises RunnerError `unavailable`, which names the execution.
        """
        left = execution if isinstance(execution, Left) else Left(execution.id, _size(execution))
        if share.take(left.size):
            return await self._record(left.name) if isinstance(execution, Left) else execution
        if isinstance(execution, Execution) and execution.summary:
            return await self._held(share, execution, left.size)
        del execution
        if not await share.wait(left.size, self.seconds):
            raise _full(f"; the execution {left.name} has ended and can be read")
        return await self._record(left.name)

    async def _record(self, name: str) -> Execution:
        found = await self._history.get(name)
        if found is None:
            raise error(ErrorKind.NOT_FOUND, f"the execution {name} has ended; its record is gone", field="id")
        return found

    async def _held(self, share: Share, execution: Execution, size: int) -> Execution:
        """Return an execution whose record has no result, when there is memory for its answer."""
        kept = Share(self.held)
        try:
            if kept.take(size) and await share.wait(size, self.seconds):
                return execution
        finally:
            kept.give()
        raise _full(f"; the execution {execution.id} has ended, and its module records summaries only")


def left(execution: Execution) -> Execution | Left:
    """Return an execution as it may wait for its answer: a large one is left to its record, if that is whole."""
    return Left(execution.id, _size(execution)) if is_large(execution) and not execution.summary else execution


def is_small(ended: Execution | Left) -> TypeGuard[Execution]:
    """Return whether the answer for an execution that has ended takes no memory that is bounded."""
    return isinstance(ended, Execution) and not is_large(ended)


def is_large(execution: Execution) -> bool:
    """Return whether the answer for an execution takes memory that is bounded."""
    return _size(execution) > LARGE_BYTES


def _size(execution: Execution) -> int:
    return len(execution.result or b"") + len(execution.events)


def event_size(event: Event | LeftEvent) -> int:
    """Return the bytes of an event; output is read in small pieces."""
    if isinstance(event, LeftEvent):
        return event.size
    if isinstance(event, ResultEvent):  # small, unless the record of the execution has no result
        return memoryview(event.result).nbytes
    return memoryview(event.value).nbytes if isinstance(event, ItemEvent) else 0


def _full(more: str = "") -> RunnerError:
    text = f"answers that clients have not read take all the memory of `max_buffered`; try again{more}"
    return error(ErrorKind.UNAVAILABLE, text, retry_after=_RETRY_SECONDS)
