"""A batch: many inputs of one module, a number of them at a time, each answered when it ends. Without transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio
from attrs import frozen

from actors.registry import Published
from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from protocol.model import Execution
from runner.api.answers import Left, is_small, left
from runner.api.following import check_valid, while_valid
from runner.api.internal import failure_of
from runner.api.service import Service
from runner.auth import Principal, Scope

MAX_PARALLELISM = 256
_GATHERING = 0.001
"""Seconds from one write of answers to the next, unless a task waits: a write costs as much as half a small input."""
_GATHERED = 32
"""Answers that may be ready for one write, beside those of inputs that run at a time."""


@frozen
class Input:
    """One input of a batch, and the name of its answer; `refusal`: why the input cannot be run at all."""

    name: str
    data: bytes = b""
    refusal: Failure | None = None


Take = Callable[[], Awaitable[Input | None]]
"""Returns the next input, None after the last; never called concurrently. A RunnerError ends the batch."""
Ended = tuple[Input, Execution | Left | Failure]
"""An input with its execution, one with a large result without it, or why it never began."""
Answer = Callable[[Sequence[Ended]], Awaitable[None]]
"""Sends the answers of inputs that have ended, in this order, small ones in one write; never called concurrently."""


class Batch:
    """A batch that may run: one task for each input that runs at a time, which takes the next input when it is free.

    Answers leave from the task of the batch, in the order of their ends, those of a millisecond in one write. Meanwhile
    a task takes its next input, unless its answer is large or too many answers wait: the client's reading sets the
    pace. Answers leave at once when a task waits for the client or for a write. An input that does not begin is
    answered too, and the batch continues.
    """

    def __init__(
        self,
        service: Service,
        principal: Principal,
        name: str,
        *,
        version: str | None = None,
        parallelism: int | None = None,
        field: str = "parallelism",
    ) -> None:
        """Take a batch; `parallelism` None is the module's `concurrency`, `field` the door's name for it.

        Raises RunnerError `forbidden`, `not_found` or `bad_input`.
        """
        self._service = service
        self._principal = principal
        self._name = name
        self._version = version
        self._module: Published = service.module(principal, Scope.EXECUTIONS_RUN, name, version)
        if parallelism is not None and not 1 <= parallelism <= MAX_PARALLELISM:
            text = f"{field} is 1 to {MAX_PARALLELISM} inputs at a time, not {parallelism}"
            raise error(ErrorKind.BAD_INPUT, text, field=field)
        self._parallelism = parallelism or min(self._module.spec.concurrency, MAX_PARALLELISM)
        self._taking = trio.Lock()
        self._ended: list[Ended] = []
        self._changed = trio.Event()  # something has ended
        self._answered: trio.Event | None = None  # all that has ended until now is answered
        self._urgent = trio.Event()  # a task waits
        self._asking = False  # for the client's next input
        self._working = 0
        self._over = False
        self._problem: RunnerError | None = None
        self.unanswered = 0
        """The number of inputs that were taken and are not answered yet."""

    async def run(
        self, take: Take, answer: Answer, timeout: Callable[[], float | None], ready: Callable[[], bool]
    ) -> None:
        """Run inputs until there are no more; `timeout` returns the time limit of an input that begins now, in seconds.

        `ready` returns whether `take` need not wait for the client: then its wait needs no watch over the caller's key.
        When `take` raises RunnerError, or the runner shuts down, no more inputs are taken; those that run end and are
        answered, and then the error is raised. On cancellation those that run are ended and recorded as `cancelled`.
        """
        async with trio.open_nursery() as nursery:
            self._working = self._parallelism
            for _ in range(self._parallelism):
                nursery.start_soon(self._work, take, timeout, ready)
            while self._working or self._ended:
                if self._ended:
                    await self._answer(answer)
                    await self._gather()
                else:
                    self._changed = trio.Event()
                    await self._changed.wait()
        if self._problem is not None:
            raise self._problem

    async def _answer(self, answer: Answer) -> None:
        ended, self._ended = self._ended, []
        answered, self._answered = self._answered, None
        await answer(ended)
        self.unanswered -= len(ended)
        del ended  # large results are not kept until the next end
        if answered is not None:
            answered.set()

    async def _gather(self) -> None:
        """Wait for more answers, as long as no task waits."""
        if not (self._asking or self._answered is not None or self._over):
            self._urgent = trio.Event()
            with trio.move_on_after(_GATHERING):
                await self._urgent.wait()

    async def _work(self, take: Take, timeout: Callable[[], float | None], ready: Callable[[], bool]) -> None:
        while (given := await self._next(take, ready)) is not None:
            became = given.refusal or await self._run(given.data, timeout)  # without a result that is large
            self._ended.append((given, became))
            self._changed.set()
            if len(self._ended) > self._parallelism + _GATHERED or not (
                isinstance(became, Failure) or is_small(became)
            ):
                if self._answered is None:
                    self._answered = trio.Event()
                self._urgent.set()
                await self._answered.wait()
        self._working -= 1
        self._changed.set()

    async def _next(self, take: Take, ready: Callable[[], bool]) -> Input | None:
        await _own(self._taking)
        try:
            if self._over:
                return None
            given = None
            if self._service.runs.stopping:
                self._problem = RunnerError(shutting_down())
            else:
                try:
                    check_valid(self._principal)
                    if ready():
                        given = await take()
                    else:
                        self._asking = True
                        self._urgent.set()
                        with while_valid(self._principal):
                            given = await take()
                except RunnerError as problem:
                    self._problem = problem
            self._over = given is None
            if self._over:
                self._urgent.set()
            self.unanswered += given is not None
            return given
        finally:
            self._asking = False
            self._taking.release()

    async def _run(self, data: bytes, timeout: Callable[[], float | None]) -> Execution | Left | Failure:
        """Run one input. While the waiting room is full it is tried again, for the module's `queue_timeout` in all."""
        patience = trio.current_time() + self._module.spec.queue_timeout
        while True:
            try:
                return left(
                    await self._service.execute(
                        self._principal, self._name, data, version=self._version, timeout=timeout()
                    )
                )
            except Exception as problem:  # noqa: BLE001  (one input must not end the others)
                failure = failure_of(problem, "an input of a batch failed inside the runner", module=self._name)
            pause = failure.retry_after or 1.0
            if failure.kind is not ErrorKind.OVERLOADED or trio.current_time() + pause > patience:
                return failure
            await trio.sleep(pause)


async def _own(lock: trio.Lock) -> None:
    """Acquire a lock; if it is free without a checkpoint, which would cost a turn of the event loop."""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()
