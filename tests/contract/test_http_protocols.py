"""Contract: HTTP as others speak it, and websockets that end with the right code, over real sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from runner.http import read_body, respond
from tests.http_support import Client, Server, serving

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the path, the host and the body; echo messages."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["type"] == "http":
        about = {"path": scope["path"], "host": dict(scope["headers"])[b"host"].decode()}
        body = await read_body(scope, receive, 1000)
        if scope["path"] == "/split":
            await respond(send, 200, b"", [(b"x-y", b"a\r\nset-cookie: b")])
        elif scope["path"] == "/short":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
            await send({"type": "http.response.body", "body": body, "more_body": False})
        else:
            await respond(send, 200, json.dumps({**about, "body": body.decode()}).encode())
        return
    await receive()
    if scope["path"] == "/refused":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"], "bytes": message["bytes"]})


async def opened(server: Server, more: bytes = b"") -> Client:
    client = await server.connect()
    await client.send(UPGRADE + more + b"\r\n")
    assert (await client.response())[0] == 101
    return client


async def test_an_absolute_target_and_blank_lines_before_requests() -> None:
    async with serving(app) as server:
        client = await server.connect()
        await client.send(
            b"GET http://other:1/a?b HTTP/1.1\r\nHost: x\r\n\r\n\r\n\r\nGET /c HTTP/1.1\r\nHost: x\r\n\r\n"
        )

        assert json.loads((await client.response())[2]) == {"path": "/a", "host": "other:1", "body": ""}
        assert json.loads((await client.response())[2]) == {"path": "/c", "host": "x", "body": ""}


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
    ],
)
async def test_what_could_be_read_in_two_ways_is_400_at_once(raw: bytes) -> None:
    async with serving(app) as server:
        status, headers, body = await server.ask(raw)
        assert (status, headers[b"content-type"], headers[b"connection"]) == (
            400,
            b"application/problem+json",
            b"close",
        )
        assert json.loads(body)["detail"]


async def test_a_handler_cannot_split_its_response_or_send_another_length() -> None:
    async with serving(app) as server:
        assert (await server.ask(b"GET /split HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 500
        for body, status, end in ((b"12345", 200, b"12345"), (b"123456", 500, b"}"), (b"123", 200, b"123")):
            client = await server.connect()
            raw = b"POST /short HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            await client.send(raw % (len(body), body))
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 %d" % status)
            assert answer.endswith(end)  # the end of a body that is cut off shows by its length


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ((b"Sec-WebSocket-Version: 13\r\n", b""), 426, "version"),
        ((b"Version: 13", b"Version: 8"), 426, "version"),
        ((b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b""), 400, "Key"),
        ((b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ="), 400, "Key"),
        ((b"dGhlIHNhbXBsZSBub25jZQ==", b"?"), 400, "Key"),
        ((b"Connection: Upgrade\r\n", b""), 400, "Connection"),
        ((b"Connection: Upgrade\r\n", b"Connection: keep-alive\r\n"), 400, "Connection"),
        ((b"HTTP/1.1", b"HTTP/1.0"), 400, "HTTP/1.1"),
        ((b"Host: x\r\n", b"Host: x\r\nSec-WebSocket-Protocol: \xff\r\n"), 400, "ASCII"),
        ((b"Host: x\r\n", b"Host: x\r\nContent-Length: 5\r\n"), 400, "handshake"),
        ((b"/ws", b"/refused"), 403, "refused"),
    ],
)
async def test_a_handshake_that_fails_is_answered_with_a_problem(
    change: tuple[bytes, bytes], status: int, word: str
) -> None:
    async with serving(app) as server:
        found, headers, body = await server.ask(UPGRADE.replace(*change) + b"\r\n")

        assert (found, headers[b"content-type"]) == (status, b"application/problem+json")
        assert word in json.loads(body)["detail"]
        assert headers.get(b"sec-websocket-version") == (b"13" if status == 426 else None)


@pytest.mark.parametrize(
    "extension", [b"permessage-deflate", b"permessage-deflate; client_max_window_bits=x", b"other"]
)
async def test_compression_is_agreed_on_or_left_out(extension: bytes) -> None:
    async with serving(app) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"Sec-WebSocket-Extensions: " + extension + b"\r\n\r\n")
        status, headers, _ = await client.response()
        assert status == 101
        assert (b"sec-websocket-extensions" in headers) is (extension == b"permessage-deflate")


@pytest.mark.parametrize(("size", "compressed"), [(1000, True), (100_000, False)])
async def test_large_messages_to_the_client_are_not_compressed(size: int, compressed: bool) -> None:
    async with serving(app, max_body_bytes=1_000_000) as server, trio.open_nursery() as nursery:
        client = await opened(server, b"Sec-WebSocket-Extensions: permessage-deflate\r\n")
        head = (
            bytes([0x82, 0xFF]) + size.to_bytes(8, "big")
            if size > 65535
            else bytes([0x82, 0xFE]) + size.to_bytes(2, "big")
        )
        for _ in range(2):
            nursery.start_soon(client.send, head + bytes(4) + b"x" * size)
            while not client.buffer:
                await client.more()
            assert client.buffer[0] == (0xC2 if compressed else 0x82)
            if compressed:
                client.buffer = b""
            else:
                assert (await client.until(b"x" * size))[1] == 127


def masked(first: int, payload: bytes, size: int | None = None) -> bytes:
    key = b"\x11\x22\x33\x44"
    shown = len(payload) if size is None else size
    return bytes([first, 0x80 | shown]) + key + bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        pytest.param(masked(0x81, b'"\xff"'), 1007, id="text that is not UTF-8"),
        pytest.param(masked(0x01, b"\xe2") + masked(0x80, b"x"), 1007, id="text that is not UTF-8 over two frames"),
        pytest.param(masked(0x88, b"\x03\xe8\xff"), 1007, id="reason that is not UTF-8"),
        pytest.param(b"\x81\x05hello", 1002, id="no mask"),
        pytest.param(masked(0xC1, b"x"), 1002, id="reserved bit"),
        pytest.param(masked(0x83, b"x"), 1002, id="unknown opcode"),
        pytest.param(masked(0x8B, b""), 1002, id="unknown control opcode"),
        pytest.param(masked(0x80, b"x"), 1002, id="continuation of nothing"),
        pytest.param(masked(0x01, b"x") + masked(0x81, b"x"), 1002, id="message within a message"),
        pytest.param(masked(0x09, b""), 1002, id="fragmented ping"),
        pytest.param(masked(0x88, b"x"), 1002, id="close of one byte"),
        pytest.param(masked(0x88, b"\x03\xee"), 1002, id="close with a code that is not sent"),
        pytest.param(masked(0x88, b"\x00\x01"), 1002, id="close with a code that does not exist"),
        pytest.param(b"\x81\xfe\x00\x05" + bytes(9), 1002, id="length in more bytes than needed"),
        pytest.param(b"\x82\xff" + b"\xff" * 8 + bytes(4), 1002, id="negative length"),
        pytest.param(b"\x89\xfe\x00\x7e" + bytes(130), 1002, id="long ping"),
        pytest.param(
            masked(0x82, b"x" * 100) + b"\x82\xff" + (10**6).to_bytes(8, "big") + bytes(4 + 10**4), 1009, id="long"
        ),
        pytest.param(masked(0x88, b"\x0f\xa0bye"), 4000, id="close of the client"),
    ],
)
@pytest.mark.parametrize("piece", [1, 1000])
async def test_a_websocket_that_breaks_a_rule_is_closed_with_its_code(frames: bytes, code: int, piece: int) -> None:
    async with serving(app, max_body_bytes=5000) as server:
        client = await opened(server)
        for at in range(0, min(len(frames), 6000), piece):
            await client.send(frames[at : at + piece])
            if piece == 1 and at > 300:
                piece = 1000
                await client.send(frames[at + 1 :])
                break
        got = await client.rest()
        while got and got[0] != 0x88:  # echoes of earlier messages
            got = got[2 + got[1] :]
        assert int.from_bytes(got[2:4], "big") == code


async def test_a_client_that_closes_is_answered_and_its_handler_learns_the_code() -> None:
    codes: list[int] = []

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            pass
        codes.append(message["code"])

    async with serving(listening) as server:
        client = await opened(server)
        await client.send(masked(0x88, b"\x0f\xa0bye"))
        assert await client.rest() == b"\x88\x05\x0f\xa0bye"
    assert codes == [4000]


async def test_a_ping_between_fragments_is_answered() -> None:
    async with serving(app) as server:
        client = await opened(server)
        await client.send(masked(0x01, b"he") + masked(0x89, b"?") + masked(0x80, b"llo"))
        assert await client.until(b"hello") == b"\x8a\x01?\x81\x05"
        await trio.lowlevel.checkpoint()
