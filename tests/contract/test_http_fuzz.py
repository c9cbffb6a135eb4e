"""Contract: no bytes of a client raise an exception in the HTTP server, keep a connection or harm another client.

`corpus/` has the inputs that were interesting, one in a line as a Python literal without its quotes; a failure of the
fuzz tests belongs there. `FUZZ_EXAMPLES=20000 pytest tests/contract/test_http_fuzz.py` looks for longer.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.http import read_body, respond
from tests.http_support import QUICK, serving

CORPUS = Path(__file__).parent / "corpus"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
GOOD = b"POST /good HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\ngood"
FUZZED = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def corpus(name: str) -> list[bytes]:
    """Return the inputs of a file of the corpus."""
    lines = (CORPUS / name).read_text("ascii").splitlines()
    return [ast.literal_eval(f'b"{line}"') for line in lines if line and not line.startswith("#")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Echo bodies and messages."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["type"] == "http":
        await respond(send, 200, await read_body(scope, receive, 10_000))
        return
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"], "bytes": message["bytes"]})


async def attack(pieces: Sequence[bytes], end: str) -> None:
    """Send the pieces, end the connection, and check that the server is as before."""
    async with serving(app, max_body_bytes=10_000, linger_seconds=QUICK) as server:
        client, other = await server.connect(), await server.connect()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for piece in pieces:
                await client.send(piece)
                await trio.lowlevel.checkpoint()
            if end == "end of file":
                await client.stream.send_eof()
            elif end == "reset":
                client.reset()
        if end == "end of file":
            with suppress(trio.ClosedResourceError):
                await client.rest()
        await other.send(GOOD)
        assert (await other.response())[2] == b"good"
        client.stream.socket.close()
        while server.budget.taken:
            await trio.lowlevel.checkpoint()
        server.shutdown.set()
        assert await other.rest() == b""
        await server.ended.wait()


def survives(pieces: Sequence[bytes], end: str) -> None:
    with structlog.testing.capture_logs() as logs:
        trio.run(attack, pieces, end)
    problems = [entry for entry in logs if entry["log_level"] == "error"]
    # An upload that ends early is the handler's `ClientGoneError`, which the runner answers and this one does not.
    assert [entry for entry in problems if "BodyError" not in str(type(entry["exc_info"]).__mro__)] == []


def cut(raw: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Return `raw` in pieces; the last one has the rest."""
    pieces = []
    for size in sizes:
        pieces.append(raw[:size])
        raw = raw[size:]
    return [piece for piece in (*pieces, raw) if piece]


ENDS = st.sampled_from(["end of file", "reset", "close"])
SIZES = st.lists(st.integers(1, 60), max_size=6)
HTTP = corpus("http.txt")
FRAMES = corpus("websocket.txt")
LINES = st.sampled_from(
    [line for raw in HTTP for line in raw.splitlines(keepends=True) if len(line) < 400]
    + [b"\r\n", b"0\r\n\r\n", b"\n", b"\0"]
)
REQUESTS = st.lists(
    st.one_of(st.sampled_from([raw for raw in HTTP if len(raw) < 2000]), LINES, st.binary(max_size=20)), max_size=6
)
MESSAGES = st.lists(
    st.one_of(st.sampled_from([raw for raw in FRAMES if len(raw) < 2000]), st.binary(max_size=20)), max_size=8
)


@pytest.mark.parametrize("end", ["end of file", "close"])
@pytest.mark.parametrize("raw", HTTP, ids=range(len(HTTP)))
def test_each_request_of_the_corpus(raw: bytes, end: str) -> None:
    survives([raw], end)
    survives(cut(raw, [1] * min(len(raw), 100)), end)


@pytest.mark.parametrize("raw", FRAMES, ids=range(len(FRAMES)))
@pytest.mark.parametrize("compressed", [False, True])
def test_each_frame_of_the_corpus(raw: bytes, compressed: bool) -> None:
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n" if compressed else b""
    survives([UPGRADE + offer + b"\r\n", raw], "end of file")
    survives([UPGRADE + offer + b"\r\n", *cut(raw, [1] * min(len(raw), 100))], "close")


@FUZZED
@given(REQUESTS, SIZES, ENDS)
def test_requests_of_any_kind(parts: list[bytes], sizes: list[int], end: str) -> None:
    survives(cut(b"".join(parts), sizes), end)


@FUZZED
@given(MESSAGES, SIZES, ENDS, st.booleans())
def test_frames_of_any_kind(parts: list[bytes], sizes: list[int], end: str, compressed: bool) -> None:
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n" if compressed else b""
    survives([UPGRADE + offer + b"\r\n", *cut(b"".join(parts), sizes)], end)
