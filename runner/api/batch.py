"""A batch: many inputs of one module, so many at a time, each answered when it ends. All doors use it; no transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio
from attrs import frozen

from actors.registry import Published
from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from protocol.model import Execution
from runner.api.service import Service
from runner.auth import Principal

log = structlog.get_logger("batch")

MAX_PARALLELISM = 256


@frozen
class Input:
    """One input of a batch, under the name that its answer has; `refusal` says why it cannot be run at all."""

    name: str
    data: bytes = b""
    refusal: Failure | None = None


Take = Callable[[], Awaitable[Input | None]]
"""Returns the next input, None behind the last; never called twice at a time. A RunnerError of it ends the batch."""
Answer = Callable[[Input, Execution | Failure], Awaitable[None]]
"""Sends what became of an input: its execution, or why it never began; never called twice at a time."""


class Batch:
    """A batch that may run: so many tasks as inputs run at a time, each takes the next input when it is free.

    Nothing is taken ahead, and a task that cannot get rid of its answer takes nothing: the client's reading sets the
    pace. An input that does not begin is answered, and the batch goes on.
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
        """`parallelism` None is the module's `concurrency`; `field` is what the door calls it.

        Raises RunnerError `forbidden`, `not_found` or `bad_input`.
        """
        self._service = service
        self._principal = principal
        self._name = name
        self._version = version
        self._module: Published = service.module(principal, "executions:run", name, version)
        if parallelism is not None and not 1 <= parallelism <= MAX_PARALLELISM:
            text = f"{field} is 1 to {MAX_PARALLELISM} inputs at a time, not {parallelism}"
            raise error(ErrorKind.BAD_INPUT, text, field=field)
        self._parallelism = parallelism or min(self._module.spec.concurrency, MAX_PARALLELISM)
        self._taking = trio.Lock()
        self._answering = trio.Lock()
        self._over = False
        self._problem: RunnerError | None = None
        self.unanswered = 0
        """Inputs that were taken and are not answered yet."""

    async def run(self, take: Take, answer: Answer, timeout: Callable[[], float | None]) -> None:
        """Run inputs until there are no more; `timeout` says how many seconds one that begins now may run.

        When `take` raises RunnerError, or the runner shuts down, no more are taken, what runs is let end and answered,
        and then it is raised. Cancelled, what runs is ended and recorded as `cancelled`.
        """
        async with trio.open_nursery() as nursery:
            for _ in range(self._parallelism):
                nursery.start_soon(self._work, take, answer, timeout)
        if self._problem is not None:
            raise self._problem

    async def _work(self, take: Take, answer: Answer, timeout: Callable[[], float | None]) -> None:
        while (given := await self._next(take)) is not None:
            became = given.refusal or await self._run(given.data, timeout)
            async with self._answering:
                await answer(given, became)
            self.unanswered -= 1

    async def _next(self, take: Take) -> Input | None:
        async with self._taking:
            if self._over:
                return None
            given = None
            if self._service.runs.stopping:
                self._problem = RunnerError(shutting_down())
            else:
                try:
                    given = await take()
                except RunnerError as problem:
                    self._problem = problem
            self._over = given is None
            self.unanswered += given is not None
            return given

    async def _run(self, data: bytes, timeout: Callable[[], float | None]) -> Execution | Failure:
        """Run one input. It is tried again while the waiting room is full, for the module's `queue_timeout` in all."""
        patience = trio.current_time() + self._module.spec.queue_timeout
        while True:
            try:
                return await self._service.execute(
                    self._principal, self._name, data, version=self._version, timeout=timeout()
                )
            except RunnerError as problem:
                failure = problem.failure
            except Exception:
                log.exception("an input of a batch failed inside the runner", module=self._name)
                return Failure(ErrorKind.INTERNAL, "the runner failed; its log says why")
            pause = failure.retry_after or 1.0
            if failure.kind is not ErrorKind.OVERLOADED or trio.current_time() + pause > patience:
                return failure
            await trio.sleep(pause)
