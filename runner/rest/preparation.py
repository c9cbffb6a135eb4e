"""`POST /modules/{name}/prepare`: build a module's environment now. Plain ASGI, ahead of quart.

Whoever asks follows the one build of the module's executor: concurrent requests share it. A client that goes away ends
its own waiting only; the build goes on, also with nobody waiting for it, because the next call of the module needs it.
"""

from __future__ import annotations

import msgspec
import trio
from attrs import frozen

from actors.registry import Published
from actors.workers import BuildLog
from protocol.errors import ErrorKind, Failure, RunnerError
from runner.api import Service
from runner.auth import Verifier, authenticate
from runner.http import BodyError, BodyTooLargeError, Message, Receive, Send, read_body, respond
from runner.rest.openapi import module_operations, shapes
from runner.rest.render import failure_headers, problem_json
from runner.rest.streams import KEEP_ALIVE_SECONDS, STILL_HERE, arguments, begin_events, header, identity_in
from runner.status import CODES

_PROBLEM = b"application/problem+json"
_TOLD_LINES = 20
_MAX_BODY = 64 * 1024
"""A body says nothing here; one of this size is read over."""


@frozen
class Preparation:
    """One answer when the environment is ready or has failed, or with `Accept: text/event-stream` lines as they come.

    The events: `line` with `number` and `text`, `dropped` with the number of `lines` that a slow reader has missed, and
    last `ready` or `error`, which hold what the one answer would.
    """

    service: Service
    verifier: Verifier

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            principal = await authenticate(self.verifier, header(scope, b"authorization"))
            version = arguments(scope, module_operations.PREPARE).get("version")
            await read_body(scope, receive, _MAX_BODY)
            module, build = self.service.prepare(principal, identity_in(scope, module_operations.PREPARE), version)
        except RunnerError as problem:
            await _refuse(send, problem.failure)
            return
        except BodyError as problem:
            kind = ErrorKind.TOO_LARGE if isinstance(problem, BodyTooLargeError) else ErrorKind.BAD_INPUT
            await _refuse(send, Failure(kind, f"{problem}; send none", field="$"))
            return
        if "text/event-stream" in (header(scope, b"accept") or ""):
            await _stream(send, module, build)
            return
        await build.wait_ended()
        if build.failure is not None:
            await _refuse(send, build.failure)
        else:
            await respond(send, 200, msgspec.json.encode(_ready(module, build)))


async def _stream(send: Send, module: Published, build: BuildLog) -> None:
    await begin_events(send)
    number, more = 0, True
    while more:
        with trio.move_on_after(KEEP_ALIVE_SECONDS):
            await build.wait(number)
        found = build.read(number)
        number, more = found.next, not build.ended
        body = [_event("dropped", msgspec.json.encode({"lines": found.dropped}))] if found.dropped else []
        for at, line in enumerate(found.lines, found.first):
            body.append(_event("line", msgspec.json.encode({"number": at, "text": line})))
        if build.failure is not None:
            body.append(_event("error", problem_json(build.failure)))
        elif not more:
            body.append(_event("ready", msgspec.json.encode(_ready(module, build))))
        await send({"type": "http.response.body", "body": b"".join(body) or STILL_HERE, "more_body": more})


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _ready(module: Published, build: BuildLog) -> shapes.Preparation:
    prepared = build.prepared
    return {
        "module": module.ref.name,
        "version": module.ref.version,
        "key": None if prepared is None else prepared.key,
        "built_seconds": 0.0 if prepared is None else round(prepared.built_seconds, 3),
        "log": build.last(_TOLD_LINES),
    }


async def _refuse(send: Send, failure: Failure) -> None:
    await respond(send, CODES[failure.kind].http, problem_json(failure), failure_headers(failure), _PROBLEM)
