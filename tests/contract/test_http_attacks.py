"""Contract: what clients of the HTTP server cannot do to it and to others: memory, time, connections, descriptors."""

from __future__ import annotations

import errno
import json
import os
import resource
import struct
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import structlog
import trio
import trio.lowlevel
import trio.testing

from runner.http import read_body, respond, stream_body
from runner.http.frames import MOST_EMPTY_FRAMES
from runner.wire import Budget, accept_all, accepting, listen, silence
from tests.contract.test_http import plain
from tests.http_support import NEVER, QUICK, Client, Server, serving

MIB = 1024 * 1024
HELD_SECONDS = 0.25
"""No client holds the loop longer, even on a slow machine; usual are a few milliseconds."""
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Echo bodies and messages; `/held` ends only by cancellation, `/push` reads no message."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["path"] == "/held":
        await trio.sleep_forever()
    if scope["type"] == "http":
        await respond(send, 200, await read_body(scope, receive, 64 * MIB))
        return
    await send({"type": "websocket.accept"})
    if scope["path"] == "/push":
        await trio.sleep_forever()
    await receive()
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"], "bytes": message["bytes"]})


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, compressed: bool = False) -> bytes:
    """Return a frame of a client, masked with zeros."""
    first = opcode | (0x80 if fin else 0) | (0x40 if compressed else 0)
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + b"\0\0\0\0" + payload


def bomb(size: int) -> bytes:
    """Return a compressed message of `size` spaces."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    out = b"".join(compressor.compress(b" " * MIB) for _ in range(size // MIB))
    return (out + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


def close_code(data: bytes) -> int | None:
    """Return the code of the close frame that ends what a server sent."""
    while data:
        opcode, size = data[0] & 15, data[1]
        start = 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        if opcode == 8:
            return int.from_bytes(data[start : start + 2], "big")
        data = data[start + size :]
    return None


def resident() -> int:
    """Return the bytes of memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def opened(server: Server, more: bytes = b"", path: bytes = b"/ws") -> Client:
    client = await server.connect()
    await client.send(UPGRADE.replace(b"/ws", path) + more + b"\r\n")
    assert (await client.response())[0] == 101
    return client


async def shove(client: Client, data: bytes) -> None:
    """Send as much as the server takes."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await client.send(data)


class Pause:
    """Measures the longest time for which the loop did not run."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        last = time.thread_time()
        while True:
            await trio.lowlevel.checkpoint()
            now = time.thread_time()
            self.longest = max(self.longest, now - last)
            last = now


@asynccontextmanager
async def flooded(**given: Any) -> AsyncIterator[tuple[Server, trio.Nursery, Pause]]:
    """Serve, and measure pauses by the processor time of this thread, which other processes do not change."""
    pause = Pause()
    async with serving(app, **given) as server, trio.open_nursery() as nursery:
        nursery.start_soon(pause.watch)
        yield server, nursery, pause
        nursery.cancel_scope.cancel()


# Memory


async def test_a_compressed_message_is_inflated_to_its_limit_only() -> None:
    data = bomb(1024 * MIB)
    assert len(data) < 2 * MIB
    async with serving(app, max_body_bytes=4 * MIB) as server, trio.open_nursery() as nursery:
        client = await opened(server, DEFLATE)
        before = resident()
        nursery.start_soon(shove, client, frame(1, data, compressed=True))
        assert close_code(await client.rest()) == 1009
        assert resident() - before < 48 * MIB
        assert server.budget.taken == 0
        assert (await server.ask(GET))[0] == 200


async def test_endless_fragments_are_not_kept() -> None:
    async with serving(app, max_body_bytes=4 * MIB, linger_seconds=NEVER) as server, trio.open_nursery() as nursery:
        client = await opened(server)
        before = resident()

        async def send() -> None:
            piece = frame(0, b"x" * MIB, fin=False)
            await shove(client, frame(1, b"x", fin=False))
            for _ in range(256):
                await shove(client, piece)
            await client.stream.aclose()

        nursery.start_soon(send)
        while close_code(client.buffer) is None:
            await client.more()
        assert close_code(client.buffer) == 1009
        with suppress(trio.ClosedResourceError):
            await client.rest()
        assert resident() - before < 48 * MIB


async def test_a_message_is_limited_by_its_bytes_and_not_by_its_characters() -> None:
    async with serving(app, max_body_bytes=3000) as server:
        client = await opened(server)
        await client.send(frame(1, "가".encode() * 1000))
        assert (await client.until("가".encode() * 1000))[-3:] != b""
        await client.send(frame(1, "가".encode() * 1001))
        assert close_code(await client.rest()) == 1009


async def test_unfinished_bodies_share_a_limit() -> None:
    half = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n" + b"x" * 300_000
    async with serving(app, budget=Budget(MIB)) as server:
        first = [await server.connect() for _ in range(3)]
        for client in first:
            await client.send(half)
        while server.budget.taken < 900_000:
            await trio.lowlevel.checkpoint()

        last = await server.connect()
        await last.send(half)
        status, headers, body = await last.response()
        assert (status, headers[b"retry-after"], headers[b"content-type"]) == (503, b"1", b"application/problem+json")
        assert "max_buffered" in json.loads(body)["detail"]
        assert server.budget.taken == 900_000

        await first[0].send(b"x" * 100_000)
        await first[1].stream.aclose()
        while server.budget.taken > 700_000:
            await trio.lowlevel.checkpoint()
        await first[0].send(b"x" * 200_000)
        assert (await first[0].response())[2] == b"x" * 600_000
        await first[2].send(b"x" * 300_000)
        assert (await first[2].response())[0] == 200
        assert server.budget.taken == 0


async def test_unfinished_and_unread_messages_share_the_same_limit() -> None:
    async with serving(app, budget=Budget(MIB)) as server:
        pushed = await opened(server, path=b"/push")
        await pushed.send(frame(2, b"x" * 600_000) + frame(2, b"x" * 300_000, fin=False))
        while server.budget.taken < 900_000:
            await trio.lowlevel.checkpoint()

        client = await opened(server)
        await client.send(frame(2, b"x" * 200_000))
        assert close_code(await client.rest()) == 1013
        await pushed.stream.aclose()
        while server.budget.taken:
            await trio.lowlevel.checkpoint()


# Time


@pytest.mark.parametrize(
    ("piece", "code"),
    [
        pytest.param(frame(9), 1008, id="pings"),
        pytest.param(frame(10), 1008, id="pongs"),
        pytest.param(frame(0, b"x", fin=False), 1008, id="fragments of one byte"),
        pytest.param(frame(0, fin=False), 1008, id="empty fragments"),
    ],
)
async def test_a_flood_of_empty_frames_is_cut_off_and_holds_nobody_up(piece: bytes, code: int) -> None:
    async with flooded() as (server, nursery, pause):
        flooders = [await opened(server) for _ in range(4)]
        for client in flooders:
            nursery.start_soon(shove, client, frame(1, b"x", fin=False) + piece * 50_000)
        assert (await server.ask(GET))[0] == 200
        for client in flooders:
            assert close_code(await client.rest()) == code
        assert pause.longest < HELD_SECONDS


async def test_a_handler_that_receives_without_end_lets_other_tasks_run() -> None:
    seen: list[Any] = []

    async def takes(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        await send({"type": "websocket.accept"})
        await receive()
        await trio.testing.wait_all_tasks_blocked(0.05)  # both messages have arrived
        for _ in range(2):
            with trio.testing.assert_checkpoints():
                seen.append((await receive())["text"])
        await send({"type": "websocket.close"})

    async with serving(takes) as server:
        client = await opened(server)
        await client.send(frame(1, b"1") + frame(1, b"2"))
        await client.rest()
    assert seen == ["1", "2"]


async def test_pings_of_a_polite_client_are_answered() -> None:
    async with serving(app) as server:
        client = await opened(server)
        await client.send(frame(9, b"there?") * (MOST_EMPTY_FRAMES // 2))
        for _ in range(MOST_EMPTY_FRAMES // 2):
            assert await client.until(b"there?") == b"\x8a\x06"


async def test_chunks_of_one_byte_hold_nobody_up_and_take_no_more_than_their_bytes() -> None:
    chunks = b"1\r\nx\r\n" * 300_000
    async with flooded() as (server, nursery, pause):
        clients = [await server.connect() for _ in range(4)]
        before = resident()
        for client in clients:
            head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            nursery.start_soon(shove, client, head + chunks + b"0\r\n\r\n")
        assert (await server.ask(GET))[0] == 200
        for client in clients:
            assert (await client.response())[2] == b"x" * 300_000
        assert pause.longest < HELD_SECONDS
        assert resident() - before < 32 * MIB


async def test_many_small_requests_in_one_piece_hold_nobody_up() -> None:
    async with flooded() as (server, nursery, pause):
        client = await server.connect()
        nursery.start_soon(shove, client, GET * 3000)
        for _ in range(3000):
            assert (await client.response())[0] == 200
        assert pause.longest < HELD_SECONDS


# Connections


async def test_silent_connections_do_not_close_the_door() -> None:
    async with serving(app, max_connections=20) as server:
        silent = [await server.connect() for _ in range(100)]
        for _ in range(3):
            assert (await server.ask(GET))[0] == 200
        assert await silent[0].rest() == b""  # the one that is silent longest was closed
        await silent[-1].send(GET)
        assert (await silent[-1].response())[0] == 200


async def test_unfinished_heads_do_not_close_the_door() -> None:
    async with serving(app, max_connections=5) as server:
        slow = [await server.connect() for _ in range(20)]
        for client in slow[-5:]:
            await client.send(b"GET / HT")
        for _ in range(3):
            assert (await server.ask(GET))[0] == 200


async def test_the_connection_that_is_idle_longest_makes_room() -> None:
    async with serving(app, max_connections=2) as server:
        first, second = await server.connect(), await server.connect()
        for client in (first, second, first):
            await client.send(GET)
            assert (await client.response())[0] == 200

        assert (await server.ask(GET))[0] == 200
        assert await second.rest() == b""
        await first.send(GET)
        assert (await first.response())[0] == 200


async def test_health_checks_are_answered_while_every_connection_is_busy() -> None:
    given = {"max_connections": 3, "reserved_connections": 2, "reserved_paths": frozenset({"/healthz"})}
    async with serving(app, **given) as server:
        busy = [await server.connect() for _ in range(3)]
        for client in busy:
            await client.send(GET.replace(b" / ", b" /held "))
        silent = [await server.connect() for _ in range(10)]  # also in the places for health checks
        for _ in range(5):
            status, headers, _ = await server.ask(HEALTH)
            assert (status, headers[b"connection"]) == (200, b"close")
        status, headers, body = await server.ask(GET)
        assert (status, headers[b"retry-after"]) == (503, b"1")
        assert json.loads(body)["detail"] == "too many connections"

        for client in (busy[0], *silent):
            client.reset()
        while (await server.ask(GET))[0] == 503:
            pass  # its place is free once its handler has ended


async def test_a_body_that_stays_away_gives_its_place_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(silence, "PAUSE_SECONDS", 0.0)
    half = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
    async with serving(app, max_connections=3) as server:
        works = await server.connect()
        await works.send(GET.replace(b" / ", b" /held "))
        slow, silent = await server.connect(), await server.connect()
        for client in (slow, silent):
            await client.send(half + b"1")
            while server.budget.taken < (1 if client is slow else 2):
                await trio.lowlevel.checkpoint()
        await slow.send(b"2")
        while server.budget.taken < 3:
            await trio.lowlevel.checkpoint()

        assert (await server.ask(GET))[0] == 200
        assert (await silent.response())[0] == 503
        await slow.send(b"3")
        assert (await slow.response())[2] == b"123"
        with trio.move_on_after(QUICK):
            pytest.fail(f"a request at work was ended: {await works.rest()!r}")


async def test_a_streamed_body_that_stays_away_gives_its_place_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the answer and after its begin; not while the client waits for something."""
    monkeypatch.setattr(silence, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(silence, "PAUSE_SECONDS", 0.0)
    read: set[str] = set()

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/":
            await respond(send, 200, b"here")
            return
        stream_body(scope, lambda: scope["path"] != "/answering")
        await receive()
        if scope["path"] == "/begun":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        read.add(scope["path"])
        while (await receive())["more_body"]:
            pass
        await respond(send, 200, b"all")

    async with serving(plain(streams), max_connections=2) as server:
        waits = await server.connect()
        await waits.send(b"POST /answering HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1")
        for path, told in (("/unanswered", b"HTTP/1.1 503"), ("/begun", b"HTTP/1.1 200")):
            half = await server.connect()
            await half.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1" % path.encode())
            while not {path, "/answering"} <= read:
                await trio.lowlevel.checkpoint()
            assert (await server.ask(GET))[2] == b"here"
            assert (await half.rest()).startswith(told)
        await waits.send(b"2")
        assert (await waits.response())[2] == b"all"


async def test_a_connection_without_a_byte_is_closed_early() -> None:
    async with serving(app, first_byte_seconds=QUICK) as server:
        silent, kept = await server.connect(), await server.connect()
        await kept.send(GET)
        assert (await kept.response())[0] == 200
        assert await silent.rest() == b""
        await kept.send(GET)
        assert (await kept.response())[0] == 200


# Descriptors


def no_more(_: object) -> tuple[trio.SocketStream, ...]:
    return ()


async def test_connections_that_wait_are_accepted_together_up_to_a_number() -> None:
    [listener] = await listen("127.0.0.1", 0)
    address = listener.socket.getsockname()
    async with listener:
        clients = [await trio.open_tcp_stream(*address) for _ in range(accepting.MOST_AT_ONCE + 9)]
        for number in (accepting.MOST_AT_ONCE - 1, 10, 0):
            accepted = [*accepting.waiting(listener)]
            assert len(accepted) == number
            clients += accepted
        for client in clients:
            await trio.aclose_forcefully(client)


async def test_a_crowd_of_connections_is_served() -> None:
    async with serving(app) as server:
        clients = [await server.connect() for _ in range(3 * accepting.MOST_AT_ONCE)]
        for client in clients:
            await client.send(GET)
        for client in clients:
            assert (await client.response())[0] == 200


class Listener:
    """A listener without descriptors for a while."""

    def __init__(self, problems: int) -> None:
        self.left = problems
        self.accepted = 0

    async def accept(self) -> Any:
        await trio.lowlevel.checkpoint()
        if self.left:
            self.left -= 1
            raise OSError(errno.EMFILE, "too many open files")
        if self.accepted:
            await trio.sleep_forever()
        self.accepted += 1
        return "a connection"


async def test_a_lack_of_descriptors_is_one_line_in_a_period_and_passes(autojump_clock: Any) -> None:
    listener, got, relieved = Listener(problems=100), trio.Event(), []

    def begin(_: object) -> None:
        got.set()

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_all, [listener], begin, lambda: relieved.append(trio.current_time()), no_more)
            begun = trio.current_time()
            await got.wait()
            took = trio.current_time() - begun
            nursery.cancel_scope.cancel()

    assert 90 < took < 100  # a pause of a second after each try
    assert len(relieved) == 100
    assert [entry["log_level"] for entry in logs] == ["warning"] * (1 + int(took // accepting.LOG_SECONDS))


async def test_another_error_of_the_listener_is_raised() -> None:
    class Broken:
        async def accept(self) -> Any:
            raise OSError(errno.EINVAL, "not a listener")

    with pytest.raises(BaseExceptionGroup) as raised:
        await accept_all([Broken()], print, print, no_more)  # type: ignore[list-item]
    assert "not a listener" in repr(raised.value)


async def test_the_server_outlasts_a_lack_of_descriptors() -> None:
    """No file can be opened for a while: the connection that is idle longest is closed, and the next ones wait."""
    async with serving(app) as server:
        idle = await server.connect()
        await idle.send(GET)
        assert (await idle.response())[0] == 200
        waiting = [trio.socket.socket() for _ in range(3)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # all lower numbers are in use
        try:
            with structlog.testing.capture_logs() as logs:
                for each in waiting:
                    await each.connect(("127.0.0.1", server.port))
                    await each.send(GET)
                assert await idle.rest() == b""
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in waiting:
            assert (await each.recv(4096)).startswith(b"HTTP/1.1 200")
            each.close()
    assert [entry["event"] for entry in logs] == ["cannot accept connections; raise the limit of open files"]
