"""Tool calls: an execution is begun and followed, its end becomes the result of the tool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import msgspec
import trio
from attrs import define
from msgspec import UnsetType

from actors.events import Follower, LastEvent, LeftEvent
from actors.files import StoredFile, Viewer
from actors.registry import Published
from protocol.errors import ErrorKind, RunnerError, error, shutting_down
from protocol.events import ErrorEvent, ResultEvent, failure_fields
from protocol.scan import LongCheckError
from runner.api import Service
from runner.auth import Scope
from runner.mcp.exchange import Exchange
from runner.mcp.forms import (
    EMBEDDED_BYTES,
    INVALID_PARAMS,
    MAX_STRUCTURED_BYTES,
    MAX_TEXT_BYTES,
    Block,
    Notes,
    RpcError,
    decoded,
    embedded,
    failed,
    file_uri,
    files_in,
    input_of,
    is_media,
    link,
    media,
    result_uri,
    shown_output,
    shown_result,
    task_of,
    text,
)
from runner.mcp.sessions import MAX_CALLS

TASK_SECONDS: Final = 5.0
"""A call that takes longer becomes a task, for a client that knows tasks."""
_BETWEEN_SECONDS: Final = 0.1
"""Between two sendings of notifications."""
_QUIET_SECONDS: Final = 10.0
"""A call without anything to tell shows that it still runs this often."""
_MAX_EMBEDDED: Final = 16
_EMBEDDED_BUDGET: Final = 1024 * 1024
"""Bytes of all files within one result."""
_OF_THE_CALL: Final = frozenset({"Idempotency-Key", "timeout"})
"""Fields of a request besides its input."""


@define(eq=False)
class Calls:
    """Runs modules for agents."""

    service: Service

    async def call(self, exchange: Exchange) -> dict[str, Any]:
        """Run the tool of a request. Raises RpcError and RunnerError where it cannot begin.

        **Cancellation** ends the execution of a client of 2026-07-28, which cancels by its disconnect only, unless it
        has an idempotency key. Those of older clients go on.
        """
        module = self._tool(exchange)
        arguments = exchange.params.arguments
        size = 0 if isinstance(arguments, UnsetType) else memoryview(arguments).nbytes
        data = await self.service.checks.sized(size, partial(input_of, module, arguments))
        key = exchange.params.meta.key or exchange.key
        tasks = exchange.has_tasks and exchange.principal.allows(Scope.EXECUTIONS_READ)
        begin = self._submitted if tasks else self._begun
        try:
            identity, follower = await begin(exchange, data, key)
        except RunnerError as problem:
            failure = problem.failure
            if failure.kind not in (ErrorKind.BAD_INPUT, ErrorKind.TOO_LARGE) or failure.field in _OF_THE_CALL:
                raise
            return failed(failure_fields(failure), traceback=False)  # the agent can call again with another input
        with self._cancelled_by(exchange, identity, keyed=key is not None):
            last = await _end_of(exchange, follower, TASK_SECONDS if tasks else None)
        if last is None:
            return {**task_of(await self.service.get(exchange.principal, identity)), "resultType": "task"}
        return await self.result(exchange, module, identity, last)

    def _tool(self, exchange: Exchange) -> Published:
        name = exchange.params.name
        if name is None:
            raise RpcError(INVALID_PARAMS, "the parameters lack `name`", status=400)
        try:
            module = self.service.module(exchange.principal, Scope.EXECUTIONS_RUN, name)
        except RunnerError as problem:
            if problem.failure.kind is not ErrorKind.NOT_FOUND:
                raise
            module = None
        if module is None or not module.spec.tool.offered:
            raise RpcError(INVALID_PARAMS, f"Unknown tool: {name[:100]}")
        return module

    async def _begun(self, exchange: Exchange, data: bytes, key: str | None) -> tuple[str, Follower]:
        name = exchange.params.name or ""
        return await self.service.begin(exchange.principal, name, data, key=key, via=exchange.via)

    async def _submitted(self, exchange: Exchange, data: bytes, key: str | None) -> tuple[str, Follower]:
        name = exchange.params.name or ""
        accepted = await self.service.submit(exchange.principal, name, data, key=key, via=exchange.via)
        return accepted.id, await self.service.follow(exchange.principal, accepted.id)

    @contextmanager
    def _cancelled_by(self, exchange: Exchange, identity: str, *, keyed: bool) -> Iterator[None]:
        """Let the client cancel this execution, by a message of its session or by going away."""
        request, calls = exchange.call.id, None if exchange.session is None else exchange.session.calls
        if calls is not None and request is not None:
            if len(calls) >= MAX_CALLS:
                del calls[next(iter(calls))]
            calls[request] = identity
        left = False
        try:
            yield
        except trio.Cancelled:
            left = not exchange.modern  # the call continues, and can be cancelled by a message
            if exchange.modern and not keyed:
                self.service.abandon(identity)
            raise
        finally:
            if not left and calls is not None and request is not None and calls.get(request) == identity:
                del calls[request]

    async def result(
        self, exchange: Exchange, module: Published | None, identity: str, last: LastEvent
    ) -> dict[str, Any]:
        """Return the result of an execution by its last event; without a `module` that is gone. Raises RunnerError."""
        typed = _is_typed(exchange, module)
        if isinstance(last, LeftEvent) and not (typed and last.size <= MAX_STRUCTURED_BYTES):
            shown = self._large(exchange, identity, last.size, typed=typed)
        else:
            (event,) = await self.service.answers.turn_of(exchange.share, (last,))
            if isinstance(event, ErrorEvent):
                may_read = exchange.principal.allows(Scope.EXECUTIONS_READ)
                shown = failed(msgspec.json.decode(event.error), traceback=may_read)
            else:
                assert isinstance(event, ResultEvent)  # noqa: S101  (the last event is one of the two)
                shown = await self._succeeded(exchange, module, identity, bytes(event.result))
        about = {"operato/execution": identity}
        if exchange.params.meta.traceparent is not None:
            about["traceparent"] = exchange.params.meta.traceparent[:100]
        return {**shown, "_meta": about}

    def _large(self, exchange: Exchange, identity: str, size: int, *, typed: bool) -> dict[str, Any]:
        """Return a link in place of a large result. A result without its value is an error where it has a schema."""
        words = f"The call succeeded; do not repeat it. Its result has about {size} bytes, too many for a tool result."
        if not exchange.principal.allows(Scope.EXECUTIONS_READ):
            more = f"It is in the record of execution {identity}; reading it needs the scope `executions:read`."
            return {"content": [text(f"{words} {more}")], "isError": typed}
        uri = result_uri(identity)
        words = f"{words} Read the resource {uri} for the whole."
        return {"content": [text(words), link(uri, "result", "application/json", size)], "isError": typed}

    async def _succeeded(
        self, exchange: Exchange, module: Published | None, identity: str, data: bytes
    ) -> dict[str, Any]:
        checks, legacy = self.service.checks, not exchange.modern
        typed = _is_typed(exchange, module)
        if len(data) > (MAX_STRUCTURED_BYTES if typed else MAX_TEXT_BYTES):  # its module records no results
            words = (
                f"The call succeeded; do not repeat it. Its result of {len(data)} bytes is too large and not recorded."
            )
            return {"content": [text(words)], "isError": typed}
        value = await checks.whole(decoded, data)
        shown = shown_result(data, value, typed=typed, legacy=legacy)
        if typed and module is not None and (wrong := await self._misfit(module, data)):
            words = (
                f"bad_output: the result is not what the module declares: {wrong}. The call ran; this is its result:"
            )
            return {"content": [text(words), *shown["content"]], "isError": True}
        if len(data) > MAX_TEXT_BYTES:
            shown["content"] = self._large(exchange, identity, len(data), typed=False)["content"]
        if b'"$file"' in data and module is not None:
            shown["content"] += await self._files(module, identity, files_in(value))
        return shown

    async def _misfit(self, module: Published, data: bytes) -> str:
        """Return why a result does not fit its schema, "" if it does or the check would take long."""
        check = module.outputs
        try:
            wrong = None if check is None else check.check(data, quickly=True)
        except LongCheckError:
            return ""
        return "" if wrong is None else wrong.message

    async def _files(self, module: Published, identity: str, files: list[Mapping[str, Any]]) -> list[Block]:
        """Return a block for each file of a result: its content if that is small, else a link."""
        blocks: list[Block] = []
        left = _EMBEDDED_BUDGET
        viewer = Viewer("", (module.ref.name,))
        for file in files:
            stored = await self.service.files.find(file["id"], viewer)
            if stored is None:
                continue
            name, kind = str(file.get("name", stored.name))[:255], str(file.get("type", stored.type))[:255]
            uri = file_uri(identity, stored.id)
            small = stored.size <= EMBEDDED_BYTES or is_media(kind, stored.size)
            if not small or stored.size > left or len(blocks) >= _MAX_EMBEDDED:
                blocks.append(link(uri, name, kind, stored.size))
                continue
            left -= stored.size
            data = await read_file(stored)
            blocks.append(media(kind, data) if is_media(kind, stored.size) else embedded(uri, kind, data))
        return blocks


def _is_typed(exchange: Exchange, module: Published | None) -> bool:
    """Return whether the client knows a schema of the result."""
    return module is not None and shown_output(module, legacy=not exchange.modern) is not None


async def read_file(stored: StoredFile) -> bytes:
    """Return the content of a stored file. Raises RunnerError `unavailable`."""
    try:
        return await trio.to_thread.run_sync(stored.path.read_bytes)
    except OSError as problem:
        text = f"the stored file {stored.id} cannot be read: {problem.strerror}"
        raise error(ErrorKind.UNAVAILABLE, text) from None


async def _end_of(exchange: Exchange, follower: Follower, seconds: float | None) -> LastEvent | None:
    """Return the last event; None if it does not come in time. The client hears of those before it, as it wants."""
    notes = Notes(exchange.params.meta.token, exchange.level) if exchange.notify is not None else Notes(None, None)
    begin = trio.current_time()
    until = None if seconds is None else begin + seconds
    sends_at, quiet_at = begin, begin + _QUIET_SECONDS
    while True:
        deadline = min(sends_at if notes.pending else quiet_at, quiet_at if until is None else until)
        events: tuple[Any, ...] | None = ()
        with trio.move_on_at(deadline):
            events = await follower.next()
        if events is None:
            raise RunnerError(shutting_down())
        last: LastEvent | None = None
        for event in events:
            if isinstance(event, (ResultEvent, ErrorEvent, LeftEvent)):
                last = event
            else:
                notes.add(event)
        now = trio.current_time()
        if notes.pending and exchange.notify is not None and (last or notes.full or now >= sends_at):
            for message in notes.take():
                await exchange.notify(message)
            now = trio.current_time()
            sends_at, quiet_at = now + _BETWEEN_SECONDS, now + _QUIET_SECONDS
        if last is not None or (until is not None and now >= until):
            return last
        if now >= quiet_at:
            if exchange.idle is not None:
                await exchange.idle()
            quiet_at = trio.current_time() + _QUIET_SECONDS
