"""The protocol over standard input and output: one message in each line, for one client that is its own user."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import trio
from attrs import define, field

from runner.api import Service
from runner.auth import Principal
from runner.mcp.exchange import Exchange
from runner.mcp.forms import (
    Call,
    Id,
    Params,
    RpcError,
    check_headers,
    error_message,
    is_modern,
    read_call,
    read_params,
)
from runner.mcp.methods import Methods
from runner.mcp.sessions import Session

MAX_REQUESTS: Final = 64
"""That run at a time; the next line is read when one of them has ended."""


@define(eq=False)
class Lines:
    """One client and its requests."""

    service: Service
    principal: Principal
    write: Callable[[bytes], Awaitable[None]]
    """Sends one line; called by one task at a time."""
    _session: Session = field(init=False)
    _methods: Methods = field(init=False)
    _running: dict[Id, trio.CancelScope] = field(factory=dict, init=False)
    _limit: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(MAX_REQUESTS), init=False)
    _writing: trio.Lock = field(factory=trio.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self._session, self._methods = Session(self.principal.subject, None), Methods(self.service)

    async def run(self, lines: AsyncIterator[bytes]) -> None:
        """Answer messages until there are no more; calls that still run are cancelled then."""
        async with trio.open_nursery() as nursery:
            async for line in lines:
                if line.strip():
                    await self._read(line, nursery)
            nursery.cancel_scope.cancel()

    async def _read(self, line: bytes, nursery: trio.Nursery) -> None:
        identity: Id | None = None
        try:
            call = await self.service.checks.whole(read_call, line)
            identity = call.id
            params = read_params(call)
            modern = is_modern(params, {})
            if modern:
                check_headers(call, params, None)
        except RpcError as problem:
            await self._send(error_message(identity, problem))
            return
        if call.method == "initialize" and not modern:
            self._session.client = params.client
        if call.id is not None:
            await nursery.start(self._answer, self._exchange(call, params, modern=modern))
            return
        self._methods.hear(self._exchange(call, params, modern=modern))
        scope = self._running.get(params.request) if params.request is not None else None
        if scope is not None and call.method == "notifications/cancelled":
            scope.cancel()

    def _exchange(self, call: Call, params: Params, *, modern: bool) -> Exchange:
        share = self.service.answers.share()
        return Exchange(call, params, self.principal, modern, share, self._send, None, self._session)

    async def _answer(self, exchange: Exchange, *, task_status: trio.TaskStatus[None]) -> None:
        identity = exchange.call.id
        assert identity is not None  # noqa: S101  (a request has one)
        async with self._limit:
            task_status.started()
            with trio.CancelScope() as scope:
                self._running[identity] = scope
                try:
                    message, _ = await self._methods.answer(exchange)
                    await self._send(message)
                finally:
                    exchange.share.give()
                    if self._running.get(identity) is scope:
                        del self._running[identity]

    async def _send(self, message: bytes) -> None:
        async with self._writing:
            with trio.CancelScope(shield=True):  # half a line would break the stream
                await self.write(message + b"\n")


async def serve_lines(
    service: Service,
    principal: Principal,
    stream: trio.abc.ReceiveStream,
    write: Callable[[bytes], Awaitable[None]],
) -> None:
    """Answer the messages of one client until it ends its stream."""
    limit = service.settings.server.max_frame_bytes
    await Lines(service, principal, write).run(lines_of(stream, limit))


async def lines_of(stream: trio.abc.ReceiveStream, limit: int) -> AsyncIterator[bytes]:
    """Yield lines; of one over `limit` bytes only the beginning, which is no message."""
    parts: deque[bytes] = deque()
    size, cut = 0, False
    while data := await stream.receive_some(65_536):
        first, *rest = data.split(b"\n")
        for number, part in enumerate((first, *rest)):
            if number:
                yield b"".join(parts)
                parts.clear()
                size, cut = 0, False
            if not cut:
                size += len(part)
                parts.append(part)
                cut = size > limit
    if parts:
        yield b"".join(parts)
