"""The protocol over standard input and output: one message in each line, for one client that is its own user."""

from __future__ import annotations

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
from runner.stdio import Lines

MAX_REQUESTS: Final = 64
"""That run at a time; the next line is read when one of them has ended."""


@define(eq=False)
class Messages:
    """One client and its requests."""

    service: Service
    principal: Principal
    write: Callable[[bytes], Awaitable[None]]
    """Sends one line."""
    _session: Session = field(init=False)
    _methods: Methods = field(init=False)
    _running: dict[Id, trio.CancelScope] = field(factory=dict, init=False)
    _limit: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(MAX_REQUESTS), init=False)

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
            await self.write(error_message(identity, problem))
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
        return Exchange(call, params, self.principal, modern, share, self.write, None, self._session)

    async def _answer(self, exchange: Exchange, *, task_status: trio.TaskStatus[None]) -> None:
        identity = exchange.call.id
        assert identity is not None  # noqa: S101  (a request has one)
        async with self._limit:
            task_status.started()
            with trio.CancelScope() as scope:
                self._running[identity] = scope
                try:
                    message, _ = await self._methods.answer(exchange)
                    await self.write(message)
                finally:
                    exchange.share.give()
                    if self._running.get(identity) is scope:
                        del self._running[identity]


async def serve_lines(service: Service, principal: Principal, lines: Lines) -> None:
    """Answer the messages of one client until it ends its input."""
    await Messages(service, principal, lines.write).run(lines.read())
