"""The messages of an agent's client, line by line, on their way to a running server and back."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import trio
from attrs import define, evolve, field
from msgspec import Raw, Struct

from protocol.errors import ErrorKind, RunnerError, error
from runner.client.connection import MAX_ANSWER_BYTES, Answer, Client
from runner.stdio import Lines, standard_lines

_PATH: Final = "/mcp"
_ACCEPT: Final = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
MAX_REQUESTS: Final = 8
"""That run at a time; connections for notifications are left."""
_SESSION: Final = "mcp-session-id"
_VERSION: Final = "mcp-protocol-version"
_MAX_LINE: Final = 16 * 1024 * 1024


class _Meta(Struct, frozen=True, rename={"version": "io.modelcontextprotocol/protocolVersion"}):
    version: str | None = None


class _Params(Struct, frozen=True, rename={"meta": "_meta", "task": "taskId", "request": "requestId"}):
    meta: _Meta = _Meta()
    name: str | None = None
    uri: str | None = None
    task: str | None = None
    request: int | str | None = None


class _Message(Struct, frozen=True):
    method: str = ""
    id: int | str | None = None
    params: _Params = _Params()


class _Result(Struct, frozen=True):
    version: str = msgspec.field(name="protocolVersion", default="")


class _Answered(Struct, frozen=True):
    id: int | str | None = None
    result: _Result | None = None


_NAMES: Final = {"tools/call": "name", "resources/read": "uri"}
_messages: Final = msgspec.json.Decoder(_Message)


@define(eq=False)
class _Relay:
    client: Client
    lines: Lines
    _session: dict[str, str] = field(factory=dict, init=False)
    """The headers that the server wants since `initialize`."""
    _beginning: bytes | None = field(default=None, init=False)
    """The message `initialize`, for a session that is gone."""
    _running: dict[int | str, trio.CancelScope] = field(factory=dict, init=False)
    _limit: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(MAX_REQUESTS), init=False)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            async for line in self.lines.read():
                if not line.strip():
                    continue
                try:
                    message = _messages.decode(line)
                except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                    message = _Message()  # the server tells what is wrong
                cancels = message.method == "notifications/cancelled" and message.params.request is not None
                scope = self._running.get(message.params.request or 0) if cancels else None
                if scope is not None and _VERSION not in self._session:
                    scope.cancel()  # without a session, closing the connection is how a call is cancelled
                elif message.id is None:
                    await self._send(line, message)
                else:
                    await nursery.start(self._answer, line, message)
            nursery.cancel_scope.cancel()

    async def _answer(self, line: bytes, message: _Message, *, task_status: trio.TaskStatus[None]) -> None:
        assert message.id is not None  # noqa: S101  (a request has one)
        async with self._limit:
            with trio.CancelScope() as scope:
                self._running[message.id] = scope
                if message.method == "initialize":
                    await self._send(line, message)  # its answer has what the next messages need
                    task_status.started()
                else:
                    task_status.started()
                    await self._send(line, message)
            if self._running.get(message.id) is scope:
                del self._running[message.id]

    async def _send(self, line: bytes, message: _Message) -> None:
        """Send one message, and write what the server answers."""
        try:
            answer = await self._post(line, message)
            if answer.status == 404 and _SESSION in self._session and self._beginning is not None:
                self._session.pop(_SESSION)
                await self._post(self._beginning, _messages.decode(self._beginning), quiet=True)
                answer = await self._post(line, message)
            if answer.body and message.id is not None:
                await self.lines.write(_with_id(answer.body, message.id))
        except RunnerError as problem:
            if message.id is not None:
                shown = {"code": -32603, "message": problem.failure.message}
                await self.lines.write(msgspec.json.encode({"jsonrpc": "2.0", "id": message.id, "error": shown}))

    async def _post(self, line: bytes, message: _Message, *, quiet: bool = False) -> Answer:
        """Send a message; lines of an answer of 200 are written, or left out if `quiet`. Raises RunnerError."""
        begins, parts = message.method == "initialize", _Parts()

        async def into(head: Answer, part: bytes) -> None:
            if begins and _SESSION in head.headers:
                self._session[_SESSION] = head.headers[_SESSION]
            for each in parts.add(head, part):
                await self._write(each, begins=begins, quiet=quiet)

        if begins:
            self._session.clear()
            self._beginning = line
        answer = await self.client.request(
            "POST", _PATH, body=line, headers=self._headers(message), seconds=None, into=into
        )
        if rest := parts.rest():
            await self._write(rest, begins=begins, quiet=quiet)
        return evolve(answer, body=b"") if answer.status == 200 else answer

    async def _write(self, line: bytes, *, begins: bool, quiet: bool) -> None:
        if begins:
            found = msgspec.json.decode(line, type=_Answered)
            if found.result is not None and found.result.version:
                self._session[_VERSION] = found.result.version
        if not quiet:
            await self.lines.write(line)

    def _headers(self, message: _Message) -> Mapping[str, str]:
        version = message.params.meta.version
        if version is None:
            return {**_ACCEPT, **self._session}
        name = message.params.task or getattr(message.params, _NAMES.get(message.method, "name"))
        headers = {**_ACCEPT, _VERSION: version, "mcp-method": message.method}
        return headers if name is None else {**headers, "mcp-name": _coded(name)}


@define(eq=False)
class _Parts:
    """The lines in the parts of an answer: JSON as one line, of a stream the line of each event."""

    _left: bytearray = field(factory=bytearray, init=False)
    _streamed: bool = field(default=False, init=False)

    def add(self, head: Answer, part: bytes) -> list[bytes]:
        """Return the lines that are whole. Raises RunnerError for one that is too long."""
        self._left += part
        if len(self._left) > MAX_ANSWER_BYTES:
            raise error(ErrorKind.TOO_LARGE, f"a message of {head.address} is over {MAX_ANSWER_BYTES} bytes")
        if not head.headers.get("content-type", "").startswith("text/event-stream"):
            return []
        self._streamed = True
        *events, rest = bytes(self._left).split(b"\n")
        self._left = bytearray(rest)
        return [event.removeprefix(b"data:").strip() for event in events if event.startswith(b"data:")]

    def rest(self) -> bytes:
        """Return the line of an answer that is no stream."""
        return b"" if self._streamed else bytes(self._left)


def _coded(name: str) -> str:
    """Return a name as the header takes it."""
    if name.isascii() and name.isprintable() and name.strip() == name and not name.startswith("=?base64?"):
        return name
    return f"=?base64?{base64.b64encode(name.encode()).decode()}?="


def _with_id(body: bytes, identity: int | str) -> bytes:
    """Return an error with the id of its request, also where the server refused before it read the message."""
    try:
        found: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = {"jsonrpc": "2.0", "error": {"code": -32603, "message": "the server's answer cannot be read"}}
    return msgspec.json.encode({"id": identity, **found}).replace(b"\n", b" ")


async def relay_lines(client: Client) -> int:
    """Carry the messages of standard input to the server, and its answers to standard output, until the input ends.

    Raises RunnerError if no runner can be reached at the beginning.
    """
    await client.request("GET", "/healthz")
    async with standard_lines(min(_MAX_LINE, MAX_ANSWER_BYTES)) as lines:
        await _Relay(client, lines).run()
    return 0
