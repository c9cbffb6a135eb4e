"""`POST /modules/execute/{name}/batch`: many inputs in one request, answered as they end. Plain ASGI, ahead of quart.

The answer is JSON lines. `{"index": N, ...}` is what became of input N, counted from 0: the execution as a single call
answers it, or `problem` for one that never began. A line without `index` is the last one, and says what ended the batch
early. An answer that does not end as HTTP says is cut off.

Inputs are read as they run, so a client has to read while it sends. One that cannot is safe with a body of at most
`max_frame` and a `Content-Length`, which is taken as a whole first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio
from attrs import define, field, frozen

from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from protocol.model import Execution
from runner.api import Batch, Input, Service
from runner.auth import Verifier, authenticate
from runner.http import (
    BodyError,
    BodyTooLargeError,
    ClientGoneError,
    Message,
    Receive,
    Send,
    read_body,
    respond,
    stream_body,
)
from runner.rest.batch_inputs import Array, Lines
from runner.rest.openapi import BATCH, LINES
from runner.rest.render import execution_line, failure_headers, problem_json, problem_line
from runner.rest.streams import arguments, header, identity_in
from runner.rest.web import seconds_of
from runner.status import CODES

ARRAY = ("", "application/json")
_PROBLEM = b"application/problem+json"
_HEAD = [
    (b"content-type", b"application/x-ndjson"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # Nginx gathers what it passes on unless it is told not to
]

log = structlog.get_logger("rest")


@frozen
class BatchExecution:
    """The route."""

    service: Service
    verifier: Verifier

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one batch. Cancelled when the client goes away: what runs is ended."""
        answer = _Answer(send)
        try:
            await self._serve(scope, receive, answer)
        except RunnerError as problem:
            failure = problem.failure
        except ClientGoneError:
            return
        except BodyError as problem:
            kind = ErrorKind.TOO_LARGE if isinstance(problem, BodyTooLargeError) else ErrorKind.BAD_INPUT
            text = f"{problem}; the limit is `max_frame`, and JSON lines without a Content-Length have none"
            failure = Failure(kind, text, field="$")
        except Exception:
            log.exception("a batch failed inside the runner", path=scope["path"])
            failure = Failure(ErrorKind.INTERNAL, "the runner failed; its log says why")
        else:
            await answer.end()
            return
        await answer.fail(failure)

    async def _serve(self, scope: Message, receive: Receive, answer: _Answer) -> None:
        """Answer all inputs. Raises RunnerError or BodyError for what ends the batch."""
        principal = await authenticate(self.verifier, header(scope, b"authorization"))
        if header(scope, b"idempotency-key") is not None:
            text = "a batch has no idempotency key; call one by one what must not run twice"
            raise error(ErrorKind.BAD_INPUT, text, field="Idempotency-Key")
        given = arguments(scope, BATCH)
        batch = Batch(
            self.service,
            principal,
            identity_in(scope, BATCH),
            version=given.get("version"),
            parallelism=_number(given["parallel"]) if "parallel" in given else None,
            field="parallel",
        )
        limit = header(scope, b"x-timeout")
        timeout = None if limit is None else seconds_of("X-Timeout", limit)
        body = _Body(receive, self.service, batch)
        inputs = await self._inputs(scope, receive, body)

        async def take() -> Input | None:
            found = await inputs.next()
            if found is not None:
                await answer.begin()
            return found

        problem = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(body.watch)
            try:
                await batch.run(take, answer.add, lambda: timeout)
            except RunnerError as ended:
                problem = ended
            nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem

    async def _inputs(self, scope: Message, receive: Receive, body: _Body) -> Lines | Array:
        """Return what the body says by its type. Raises RunnerError or BodyError."""
        limit = self.service.settings.server.max_frame_bytes
        given = header(scope, b"content-type") or ""
        kind = given.partition(";")[0].strip().lower()
        if kind in ARRAY:
            return Array(await read_body(scope, receive, limit))
        if kind not in LINES:
            text = f"a batch is an array (application/json) or JSON lines ({' or '.join(LINES)}), not {given!r:.80}"
            raise error(ErrorKind.BAD_INPUT, text, field="Content-Type")
        declared = header(scope, b"content-length")
        if declared is not None and int(declared) <= limit:
            return Lines(_once(await read_body(scope, receive, limit)), limit)
        stream_body(scope)
        return Lines(body.more, limit)


@define(eq=False)
class _Answer:
    """The lines that are sent; its head goes with the first input, so that what is refused before is a usual answer."""

    send: Send
    begun: bool = field(default=False, init=False)

    async def begin(self) -> None:
        """Send the head."""
        if not self.begun:
            self.begun = True
            await self.send({"type": "http.response.start", "status": 200, "headers": _HEAD})

    async def add(self, given: Input, became: Execution | Failure) -> None:
        """Send a line. Waits while the client does not read, for `send_timeout` at most."""
        index = int(given.name)
        line = problem_line(became, index) if isinstance(became, Failure) else execution_line(became, index)
        await self._line(line, more=True)

    async def fail(self, failure: Failure) -> None:
        """Say what ended the batch: as the answer, or as the last line of it."""
        if self.begun:
            await self._line(problem_line(failure), more=False)
        else:
            headers = failure_headers(failure)
            await respond(self.send, CODES[failure.kind].http, problem_json(failure), headers, _PROBLEM)

    async def end(self) -> None:
        """End the answer, which may have no line."""
        await self.begin()
        await self._line(b"", more=False)

    async def _line(self, line: bytes, *, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": line, "more_body": more})


@define(eq=False)
class _Body:
    """The body of a request, read as it is needed."""

    receive: Receive
    service: Service
    batch: Batch
    _waiting: trio.CancelScope | None = field(default=None, init=False)
    _ended: bool = field(default=False, init=False)

    async def more(self) -> bytes | None:
        """Return what came, None at the end.

        Raises RunnerError: `shutdown`, or `bad_input` when nothing came for `body_timeout` and nothing runs that the
        client could be waiting for.
        """
        limit = self.service.settings.server.body_timeout_seconds
        while not (self._ended or self.service.runs.stopping):
            with trio.move_on_after(limit) as self._waiting:
                message = await self.receive()
                if message["type"] != "http.request":
                    raise ClientGoneError("the client closed before its body was whole")
                self._ended = not message.get("more_body", False)
                return bytes(message.get("body", b""))
            if not (self.batch.unanswered or self.service.runs.stopping):
                text = f"no input came for {limit:g} s; the limit is `body_timeout`, and a blank line is a sign of life"
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


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise error(ErrorKind.BAD_INPUT, f"parallel is a number of inputs, not {text!r:.40}", field="parallel")
    return int(text)
