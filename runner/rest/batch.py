"""`POST /modules/execute/{name}/batch`: many inputs in one request, answered as they end.

The answer is JSON lines. `{"index": N, ...}` is the end of input N, counted from 0: the execution in the form of a
single call, or `problem` if it never began. A line without `index` is the last one, and holds the problem that ended
the batch early. If the answer is cut off, the batch is not complete.

Inputs run while they arrive, so a client has to read while it sends. A client that cannot is safe with a body of at
most `max_frame` and a `Content-Length`: such a body is read whole before anything runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio
from attrs import define, field, frozen

from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from protocol.model import Execution
from runner.api import Answers, Batch, Ended, Input, Left, Service, is_small
from runner.rest.batch_inputs import Array, Lines
from runner.rest.endpoint import Request, Stream, Write, serves
from runner.rest.openapi import JSON, LINES
from runner.rest.render import execution_line, problem_line
from runner.wire import LARGE_BYTES


@serves("executeBatch")
async def batch(request: Request) -> Stream:
    """Run a module on many inputs. Cancelled when the client disconnects: what runs is ended."""
    if request.header("idempotency-key") is not None:
        text = "a batch has no idempotency key; use single calls for inputs that must not run twice"
        raise error(ErrorKind.BAD_INPUT, text, field="Idempotency-Key")
    made = Batch(
        request.service,
        request.principal,
        request["name"],
        version=request["version"],
        parallelism=request["parallel"],
        field="parallel",
    )
    body = _Body(request, made)
    inputs = await _inputs(request, body)

    async def run(write: Write) -> None:
        async def take() -> Input | None:
            found = await inputs.next()
            if found is not None:
                await write(b"")  # the head goes with the first input: a refusal before it is a usual answer
            return found

        problem = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(body.watch)
            try:
                answers = _Answers(request.service.answers, write)
                await made.run(take, answers.add, lambda: request["X-Timeout"], inputs.ready)
            except RunnerError as ended:  # caught here, as the nursery would wrap it in a group
                problem = ended
            nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem

    return Stream(run, problem_line, LINES[0])


@frozen
class _Answers:
    """Writes the answers of inputs as lines."""

    memory: Answers
    write: Write

    async def add(self, ended: Sequence[Ended]) -> None:
        """Write the answers of inputs, those that are small together."""
        lines = bytearray()
        for given, became in ended:
            index = int(given.name)
            if isinstance(became, Failure):
                lines += problem_line(became, index)
            elif is_small(became):
                lines += execution_line(became, index)
            else:
                await self.write(bytes(lines))
                lines.clear()
                await self._add_large(became, index)
            if len(lines) > LARGE_BYTES:
                await self.write(bytes(lines))
                lines.clear()
        await self.write(bytes(lines))

    async def _add_large(self, became: Execution | Left, index: int) -> None:
        share = self.memory.share()
        try:
            await self.write(execution_line(await self.memory.ended(share, became), index))
        finally:
            share.give()


async def _inputs(request: Request, body: _Body) -> Lines | Array:
    """Return the reader for the type of the body. Raises RunnerError."""
    limit = request.service.settings.server.max_frame_bytes
    given = request.header("content-type") or ""
    kind = given.partition(";")[0].strip().lower()
    if kind in ("", JSON):
        return await request.service.checks.whole(Array, await request.body())
    if kind not in LINES:
        types = " or ".join(LINES)
        text = f"the body of a batch is an array (application/json) or JSON lines ({types}), not {given!r:.80}"
        raise error(ErrorKind.BAD_INPUT, text, field="content-type")
    declared = request.header("content-length")
    if declared is not None and int(declared) <= limit:
        return Lines(_once(await request.body()), limit)
    request.stream_body(lambda: not body.batch.unanswered)
    return Lines(body.more, limit)


@define(eq=False)
class _Body:
    """The body of a request, read as the inputs are needed."""

    request: Request
    batch: Batch
    service: Service = field(init=False)
    _waiting: trio.CancelScope | None = field(default=None, init=False)
    _ended: bool = field(default=False, init=False)

    @service.default
    def _service(self) -> Service:
        return self.request.service

    async def more(self) -> bytes | None:
        """Return the next bytes, None at the end.

        Raises RunnerError: `shutdown`, or `bad_input` when nothing arrived for `body_timeout` while no input runs
        whose answer the client could be waiting for.
        """
        limit = self.service.settings.server.body_timeout_seconds
        while not (self._ended or self.service.runs.stopping):
            with trio.move_on_after(limit) as self._waiting:
                data, more = await self.request.piece()
                self._ended = not more
                return data
            if not (self.batch.unanswered or self.service.runs.stopping):
                text = f"no input arrived for {limit:g} s; the limit is `body_timeout`, and a blank line keeps it alive"
                raise error(ErrorKind.BAD_INPUT, text, field="$")
        if self._ended:
            return None
        raise RunnerError(shutting_down())

    async def watch(self) -> None:
        """End the wait for more when the runner shuts down."""
        await self.service.runs.wait_stopping()
        if self._waiting is not None:
            self._waiting.cancel()


def _once(body: bytes) -> Callable[[], Awaitable[bytes | None]]:
    rest: list[bytes | None] = [None, body]

    async def more() -> bytes | None:
        return rest.pop()

    return more


ENDPOINTS: Final = (batch,)
