"""Contract: the HTTP server with TLS, where a connection writes through `TlsWire` instead of to its socket."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import wrap_client_stream

from config.settings import ServerSettings
from runner.http import read_body, respond
from runner.serve.tls import server_context
from runner.wire import TlsWire
from tests.certificates import Authority
from tests.http_support import QUICK, Client, Server, serving

PATIENCE = 30
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HUGE = bytes(range(256)) * 64 * 1024
"""More than the sockets of both sides hold."""


class Tls:
    """The TLS contexts of both sides."""

    def __init__(self, folder: Path, *, asks: bool = False) -> None:
        self.authority = Authority(folder)
        signed = self.authority.sign("server")
        settings = ServerSettings(
            tls_certificate_file=signed.certificate,
            tls_key_file=signed.key,
            tls_client_ca_file=self.authority.file if asks else None,
        )
        self.server = server_context(settings, ["http/1.1"])
        self.client = ssl.create_default_context(cafile=self.authority.file)

    async def connect(self, server: Server, *, strict: bool = False) -> Client:
        """Return a client with TLS; a `strict` one rejects an end of file without a close alert."""
        inner = await trio.open_tcp_stream("127.0.0.1", server.port)
        tls: Any = trio.SSLStream(inner, self.client, server_hostname="localhost", https_compatible=not strict)
        await tls.do_handshake()
        return Client(tls)


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


def plain(handler: Callable[[Any, Any, Any], Any]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await handler(scope, receive, send)

    return app


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = await read_body(scope, receive, 100_000_000)
    await respond(send, 200, body or scope["scheme"].encode())


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_requests_on_one_connection(tls: Tls) -> None:
    async with serving(plain(echo), tls=tls.server) as server:
        client = await tls.connect(server)
        await client.send(GET + post(b"two") + GET)

        answers = [(await client.response())[2] for _ in range(3)]

        assert answers == [b"https", b"two", b"https"]
        await trio.aclose_forcefully(client.stream)


async def test_large_bodies_both_ways(tls: Tls) -> None:
    async with serving(plain(echo), tls=tls.server, max_body_bytes=len(HUGE)) as server:
        client = await tls.connect(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, post(HUGE))
            status, _, body = await client.response()

        assert (status, body == HUGE) == (200, True)
        await trio.aclose_forcefully(client.stream)


async def test_the_end_is_announced_by_a_close_alert(tls: Tls) -> None:
    async with serving(plain(echo), tls=tls.server) as server:
        client = await tls.connect(server, strict=True)
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        await client.response()

        assert await client.stream.receive_some(1) == b""
        await trio.aclose_forcefully(client.stream)


@asynccontextmanager
async def held(tls: Tls, send_huge: bool, **limits: Any) -> AsyncIterator[tuple[Server, trio.Event, trio.Event]]:
    started, cancelled = trio.Event(), trio.Event()

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        started.set()
        try:
            if send_huge:
                await respond(send, 200, HUGE)
                await trio.lowlevel.checkpoint()
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving(plain(handler), tls=tls.server, **limits) as server:
        yield server, started, cancelled


async def test_a_disconnect_cancels_the_handler(tls: Tls) -> None:
    async with held(tls, False) as (server, started, cancelled):
        client = await tls.connect(server)
        await client.send(GET)
        await started.wait()
        await client.stream.aclose()
        await cancelled.wait()


async def test_a_client_that_does_not_read_is_cut_off(tls: Tls) -> None:
    async with held(tls, True, send_seconds=QUICK) as (server, started, cancelled):
        client = await tls.connect(server)
        await client.send(GET)
        await started.wait()
        await cancelled.wait()
        await trio.aclose_forcefully(client.stream)


async def test_websockets(tls: Tls) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            raise NotImplementedError
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        await send({"type": "websocket.send", "text": f"{scope['scheme']} {message['text']}"})
        await send({"type": "websocket.close", "code": 1000})

    async with serving(app, tls=tls.server) as server, trio.open_nursery() as nursery:
        client = await tls.connect(server)
        link = await wrap_client_stream(nursery, client.stream, "localhost", "/ws")
        await link.send_message("hello")

        assert await link.get_message() == "wss hello"
        await link.aclose()


@pytest.mark.parametrize("data", [b"", GET, b"\x16\x03\x01\x00\x05hello", b"\0" * 5000])
async def test_bytes_other_than_tls_end_only_their_connection(tls: Tls, data: bytes) -> None:
    async with serving(plain(echo), tls=tls.server) as server:
        bad = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with bad:
            await bad.send_all(data)
            await bad.send_eof()
            with suppress(trio.BrokenResourceError):
                while await bad.receive_some(1000):
                    pass
        good = await tls.connect(server)
        await good.send(GET)
        assert (await good.response())[0] == 200
        await trio.aclose_forcefully(good.stream)


async def test_a_handshake_that_does_not_end_is_cut_off(tls: Tls) -> None:
    async with serving(plain(echo), tls=tls.server, header_seconds=QUICK) as server:
        silent = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with silent:
            assert await silent.receive_some(1) == b""


async def test_clients_must_show_a_certificate_if_required(tmp_path: Path) -> None:
    tls = Tls(tmp_path, asks=True)
    async with serving(plain(echo), tls=tls.server) as server:
        stranger = await tls.connect(server)  # in TLS 1.3 a client learns of its refusal when it reads
        await stranger.send(GET)
        with pytest.raises((trio.BrokenResourceError, EOFError)):
            await stranger.response()
        await trio.aclose_forcefully(stranger.stream)
        signed = tls.authority.sign("client")
        tls.client.load_cert_chain(signed.certificate, signed.key)
        known = await tls.connect(server)
        await known.send(GET)
        assert (await known.response())[0] == 200
        await trio.aclose_forcefully(known.stream)


async def test_shutdown_lets_an_answer_leave(tls: Tls) -> None:
    go_on, started = trio.Event(), trio.Event()

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        started.set()
        await go_on.wait()
        await respond(send, 200, b"late")

    async with serving(plain(handler), tls=tls.server, graceful_seconds=PATIENCE) as server:
        client, idle = await tls.connect(server), await tls.connect(server)
        await client.send(GET)
        await started.wait()
        server.shutdown.set()
        assert await idle.stream.receive_some(1) == b""
        go_on.set()
        status, headers, body = await client.response()

        assert (status, headers[b"connection"], body) == (200, b"close", b"late")
        for each in (client, idle):
            await trio.aclose_forcefully(each.stream)


async def test_a_wire_without_room_loses_nothing(tls: Tls) -> None:
    """Sending stops where the kernel does, in the middle of a record, and continues there."""
    near, far = trio.socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    assert tls.server is not None
    wire = TlsWire(near, tls.server)
    client: Any = trio.SSLStream(trio.SocketStream(far), tls.client, server_hostname="localhost")
    got = bytearray()
    waits = 0
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            await wire.open()

        async def read() -> None:
            while len(got) < 1_000_000:
                got.extend(await client.receive_some(3000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            rest = memoryview(HUGE)[:1_000_000]
            while rest or wire.pending:
                taken = wire.send_now(rest)
                rest = rest[taken:]
                if rest or wire.pending:
                    waits += 1
                    await trio.lowlevel.wait_writable(near)

        await client.send_all(b"x" * 40_000)
        received = b""
        while len(received) < 40_000:
            received += await wire.receive(1000)
    near.close()
    await trio.aclose_forcefully(client)

    assert bytes(got) == HUGE[:1_000_000]
    assert received == b"x" * 40_000
    assert waits > 1
