"""Helpers for tests of the HTTP server: raw clients, websockets, and a server on a free port."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from runner.http import HttpLimits, serve
from runner.wire import Budget

PATIENCE = 30
"""Seconds after which a test counts as hung."""
QUICK = 0.2
"""Seconds for a time limit that a test waits for."""
NEVER = 3600
"""Seconds for a time limit that must not end the test."""
MAX_BUFFERED = 256 * 1024 * 1024
LIMITS = {
    **dict.fromkeys(
        ("keep_alive_seconds", "first_byte_seconds", "header_seconds", "body_seconds", "send_seconds"), NEVER
    ),
    "graceful_seconds": QUICK,
    "max_connections": 1000,
    "max_body_bytes": 16 * 1024 * 1024,
}


def limits(**given: Any) -> HttpLimits:
    """Return limits of which only the given ones can end a connection."""
    return HttpLimits(**{**LIMITS, **given})


@attrs.define
class Server:
    """A running server, as its clients see it."""

    port: int
    shutdown: trio.Event
    ended: trio.Event
    scope: trio.CancelScope
    budget: Budget
    clients: list[Client] = attrs.field(factory=list)

    async def connect(self) -> Client:
        client = Client(await trio.open_tcp_stream("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def websocket(self, nursery: trio.Nursery, path: str = "/ws") -> WebSocketConnection:
        # On our own stream, because trio-websocket leaves its stream open when the server closes first.
        client = await self.connect()
        return await wrap_client_stream(nursery, client.stream, "127.0.0.1", path, message_queue_size=1000)

    async def ask(self, raw: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        client = await self.connect()
        async with client.stream:
            await client.send(raw)
            return await client.response(head_only=raw.startswith(b"HEAD"))


@attrs.define
class Client:
    """A raw socket that finds the end of a response."""

    stream: trio.SocketStream
    buffer: bytes = b""

    async def send(self, raw: bytes) -> None:
        await self.stream.send_all(raw)

    async def more(self) -> None:
        data = await self.stream.receive_some(65536)
        if not data:
            raise EOFError(self.buffer)
        self.buffer += data

    async def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            await self.more()
        found, _, self.buffer = self.buffer.partition(mark)
        return found

    async def response(self, *, head_only: bool = False) -> tuple[int, dict[bytes, bytes], bytes]:
        first, *lines = (await self.until(b"\r\n\r\n")).split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        size = 0 if head_only else int(headers.get(b"content-length", 0))
        while len(self.buffer) < size:
            await self.more()
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return int(first.split()[1]), headers, body

    async def rest(self) -> bytes:
        """Return everything up to the end of file or the reset."""
        try:
            while True:
                await self.more()
        except (EOFError, trio.BrokenResourceError):
            return self.buffer

    def reset(self) -> None:
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


@asynccontextmanager
async def serving(
    app: Any, *, tls: ssl.SSLContext | None = None, budget: Budget | None = None, **given: Any
) -> AsyncIterator[Server]:
    """Serve `app`; only the given time limits can end a connection, and the whole ends within PATIENCE."""
    shutdown, ended, budget = trio.Event(), trio.Event(), budget or Budget(MAX_BUFFERED)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def run(*, task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
                with scope:
                    await serve(
                        app,
                        host="127.0.0.1",
                        port=0,
                        limits=limits(**given),
                        budget=budget,
                        shutdown=shutdown,
                        tls=tls,
                        task_status=task_status,
                    )
                ended.set()

            [(host, port)] = await nursery.start(run)
            assert host == "127.0.0.1"
            server = Server(port, shutdown, ended, scope, budget)
            try:
                yield server
            finally:
                shutdown.set()
                for client in server.clients:
                    client.stream.socket.close()
