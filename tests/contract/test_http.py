"""Contract: the promises of the HTTP server to clients and handlers, over real sockets.

Each known trap of stock hypercorn on Trio has a test, which names it (hypercorn #225, #329).
"""

from __future__ import annotations

import contextvars
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import structlog
import trio
from quart import Response, request, websocket
from quart_trio import QuartTrio
from trio_websocket import ConnectionClosed

from runner.http import (
    BodyError,
    BodyTooLargeError,
    read_body,
    respond,
    serve,
    stream_body,
)
from runner.http.asgi import ClientGoneError
from runner.http.connection import UNREAD_BYTES
from runner.wire import Budget
from tests.http_support import NEVER, PATIENCE, QUICK, Client, limits, serving

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
HUGE = b"x" * 32 * 1024 * 1024
"""More than the sockets of both sides hold."""


def plain(handler: Callable[[Any, Any, Any], Any]) -> Any:
    """Return an application that consists of this handler."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await handler(scope, receive, send)

    return app


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, 200, await read_body(scope, receive, 10_000_000))


def post(body: bytes, path: str = "/", headers: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (path.encode(), headers, len(body), body)


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Held:
    """A handler that ends only by cancellation."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.cancelled = trio.Event()

    async def __call__(self, *_: Any) -> None:
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()


def quart_app() -> QuartTrio:
    app = QuartTrio(__name__)

    @app.post("/hello")
    async def hello() -> dict[str, str]:
        return {"message": f"Hello, {(await request.get_json())['name']}"}

    @app.websocket("/ws")
    async def ws() -> None:
        while True:
            await websocket.send(await websocket.receive())

    return app


# Requests and responses


async def test_one_connection_serves_many_requests_each_answered_in_one_write() -> None:
    async with serving(plain(echo)) as server:
        client = await server.connect()
        for n in range(3):
            await client.send(post(b"body %d" % n))
            await client.more()

            assert client.buffer.endswith(b"\r\n\r\nbody %d" % n)
            assert (await client.response())[0] == 200


async def test_pipelined_requests_are_answered_in_order_and_do_not_share_context_variables() -> None:
    seen: list[str | None] = []
    variable: contextvars.ContextVar[str | None] = contextvars.ContextVar("variable", default=None)

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        seen.append(variable.get())
        variable.set("mine")
        await echo(scope, receive, send)

    async with serving(plain(handler)) as server:
        client = await server.connect()
        await client.send(b"".join(post(b"%d" % n) for n in range(20)))

        assert [b"%d" % n for n in range(20)] == [(await client.response())[2] for _ in range(20)]
        assert seen == [None] * 20


async def test_more_pipelined_requests_than_buffers_hold_are_all_answered() -> None:
    body = b"x" * 60_000
    async with serving(plain(echo)) as server, trio.open_nursery() as nursery:
        client = await server.connect()
        nursery.start_soon(client.send, post(body) * 100)
        for _ in range(100):
            assert (await client.response())[2] == body


async def test_chunked_request_body_even_when_it_arrives_byte_by_byte() -> None:
    raw = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    async with serving(plain(echo)) as server:
        assert (await server.ask(raw))[2] == b"abcdefg"

        client = await server.connect()
        for n in range(len(raw)):
            await client.send(raw[n : n + 1])
        assert (await client.response())[2] == b"abcdefg"


async def test_large_bodies_pass_both_ways() -> None:
    body = bytes(range(256)) * 20_000
    async with serving(plain(echo)) as server, trio.open_nursery() as nursery:
        client = await server.connect()
        nursery.start_soon(client.send, post(body))
        assert (await client.response())[2] == body


async def test_a_stream_sends_its_head_at_once_and_each_event_without_delay() -> None:
    step = trio.Event()

    async def events() -> AsyncIterator[bytes]:
        await step.wait()
        yield b"data: 1\n\n"
        yield b"data: 2\n\n"

    app = quart_app()

    @app.get("/events")
    async def stream() -> Response:
        answer = Response(events(), content_type="text/event-stream")  # type: ignore[arg-type]
        answer.timeout = None
        return answer

    async with serving(app) as server:
        client = await server.connect()
        await client.send(GET.replace(b" / ", b" /events "))
        status, headers, _ = await client.response()
        assert (status, headers[b"transfer-encoding"]) == (200, b"chunked")

        step.set()
        assert await client.until(b"\r\n0\r\n\r\n") == b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n"
        await client.send(GET.replace(b" / ", b" /nowhere "))
        assert (await client.response())[0] == 404


async def test_head_has_the_headers_and_no_body() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, 200, b"four")

    async with serving(plain(handler)) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(GET.replace(b"GET", b"HEAD"))
            status, headers, _ = await client.response(head_only=True)
            assert (status, headers[b"content-length"], client.buffer) == (200, b"4", b"")


@pytest.mark.parametrize("behind", ["plain", "quart"])
@pytest.mark.parametrize("how", [b"HTTP/1.1\r\nConnection: close", b"HTTP/1.0"])
async def test_connection_close_is_followed_by_the_end_of_file(behind: str, how: bytes) -> None:
    """Stock hypercorn under quart sent none within 20 s: quart's handler cancels itself before the close."""
    async with serving(plain(echo) if behind == "plain" else quart_app(), linger_seconds=NEVER) as server:
        client = await server.connect()
        body = b'{"name": "you"}'
        await client.send(post(body, "/hello", b"Content-Type: application/json\r\n").replace(b"HTTP/1.1", how))
        with trio.fail_after(PATIENCE):  # the server does not wait for the client to close its side
            answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"you" in answer


async def test_expect_100_continue_is_answered_when_the_handler_reads() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/no":
            await respond(send, 401)
        else:
            await echo(scope, receive, send)

    raw = post(b"body", headers=b"Expect: 100-continue\r\n")
    async with serving(plain(handler)) as server:
        client = await server.connect()
        await client.send(raw.removesuffix(b"body"))
        assert (await client.response())[0] == 100
        await client.send(b"body")
        assert (await client.response())[2] == b"body"

        client = await server.connect()
        await client.send(raw.removesuffix(b"body").replace(b" / ", b" /no "))
        status, headers, _ = await client.response()
        assert (status, headers[b"connection"]) == (401, b"close")


async def test_a_body_over_the_limit_is_413_before_the_handler_or_while_it_reads() -> None:
    async with serving(plain(echo), max_body_bytes=1000) as server:
        status, headers, body = await server.ask(post(b"x" * 1001))
        assert (status, headers[b"content-type"]) == (413, b"application/problem+json")
        assert json.loads(body)["status"] == 413

        chunk = b"200\r\n" + b"x" * 512 + b"\r\n"
        raw = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
        client = await server.connect()
        await client.send(raw)
        await client.send(chunk)
        assert (await client.response())[0] == 413

        assert (await server.ask(post(b"x" * 1000)))[0] == 200


async def test_a_handler_that_reads_no_body_answers_whatever_its_length() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, 401)

    async with serving(plain(refuse), max_body_bytes=1000) as server:
        status, headers, _ = await server.ask(post(b"x" * 1001).replace(b"Length: 1001", b"Length: 100100"))
        assert (status, headers[b"connection"]) == (401, b"close")


async def test_a_streamed_body_has_only_the_limits_of_its_handler() -> None:
    size, held = 3 * UNREAD_BYTES, trio.Event()

    async def count(scope: Any, receive: Any, send: Any) -> None:
        await held.wait()  # the server has stopped reading by now
        stream_body(scope)
        total, more = 0, True
        while more:
            message = await receive()
            total, more = total + len(message["body"]), message["more_body"]
        await respond(send, 200, b"%d" % total)

    async with serving(plain(count), max_body_bytes=1000, body_seconds=QUICK) as server:
        client = await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, post(b"x" * size).removesuffix(b"x"))
            await trio.sleep(2 * QUICK)
            held.set()
        await trio.sleep(2 * QUICK)
        await client.send(b"x")
        assert (await client.response())[2] == b"%d" % size


async def test_the_413_reaches_a_client_that_is_still_uploading() -> None:
    async def upload(client: Client) -> None:
        for _ in range(1000):
            await client.send(b"x" * 1000)

    async with (
        serving(plain(echo), max_body_bytes=1000, linger_seconds=NEVER) as server,
        trio.open_nursery() as nursery,
    ):
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        nursery.start_soon(upload, client)
        assert (await client.response())[0] == 413


async def test_read_body_raises_an_error_with_the_reason() -> None:
    seen: list[type[BodyError]] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        try:
            await read_body(scope, receive, 3)
        except BodyError as error:
            seen.append(type(error))
            await respond(send, 413)

    async with serving(plain(handler)) as server:
        assert (await server.ask(post(b"four")))[0] == 413
        chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert (await server.ask(chunked + b"4\r\nfour\r\n"))[0] == 413
    assert [BodyTooLargeError, BodyTooLargeError] == seen

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGoneError):
        await read_body({"headers": []}, gone, 3)


async def test_a_handler_need_not_read_the_body() -> None:
    """Stock hypercorn: once its queue of pieces is full, the handler's last message waits for room for ever."""
    uploaded = trio.Event()

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await uploaded.wait()
        await respond(send, 200, b"fine")

    async with serving(plain(handler), linger_seconds=NEVER) as server:
        client = await server.connect()
        with trio.move_on_after(QUICK):  # until nothing more fits
            await client.send(post(b"x" * 10_000_000))
        uploaded.set()
        status, headers, body = await client.response()
        assert (status, headers[b"connection"], body) == (200, b"close", b"fine")
        with trio.fail_after(PATIENCE):
            assert await client.rest() == b""


async def test_an_error_of_the_handler_is_logged_and_answered_500_or_cuts_off_its_response() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/half":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if scope["path"] != "/silent":
            raise BaseExceptionGroup("group", [ValueError("a bug")])

    with structlog.testing.capture_logs() as logs:
        async with serving(plain(handler)) as server:
            assert (await server.ask(GET))[0] == 500
            assert (await server.ask(GET.replace(b" / ", b" /silent ")))[0] == 500
            client = await server.connect()
            await client.send(GET.replace(b" / ", b" /half "))
            answer = await client.rest()
    assert answer.endswith(b"4\r\nhalf\r\n")
    assert [entry["event"] for entry in logs] == ["request handler failed"] * 2


# Clients that break the rules


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        pytest.param(UPGRADE + b"\r\nx", 400, id="upgrade and one byte (#225)"),
        pytest.param(UPGRADE + b"\r\n\x81\x80abcd", 400, id="upgrade and an early frame"),
        pytest.param(UPGRADE + b"Content-Length: 5\r\n\r\nhello", 400, id="upgrade with a body"),
        pytest.param(UPGRADE.replace(b"13", b"12") + b"\r\n", 426, id="upgrade of another version"),
        pytest.param(UPGRADE + b"Sec-WebSocket-Extensions: \xff\r\n\r\n", 400, id="upgrade that is not ASCII"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64, 505, id="h2 with prior knowledge (#329)"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: !!!\r\n\r\n\x00\x00garbage",
            405,
            id="h2c",
        ),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500 + b"\r\n\r\n", 400, id="TLS"),
        pytest.param(b"\r\n\r\nnonsense\r\n\r\n", 400, id="no HTTP"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000, 431, id="long head"),
        pytest.param(post(b"", headers=b"Transfer-Encoding: chunked\r\n"), 400, id="two lengths"),
        pytest.param(post(b"").replace(b"Length: 0", b"Length: -1"), 400, id="negative length"),
        pytest.param(
            b"POST /hello HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, id="bad chunk"
        ),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, id="unknown coding"),
    ],
)
async def test_no_client_can_end_the_server(raw: bytes, status: int) -> None:
    app = quart_app()

    @app.post("/")
    async def root() -> str:
        return "fine"

    async with serving(app) as server:
        other = await server.connect()
        await other.send(post(b""))
        assert (await other.response())[0] == 200

        client = await server.connect()
        await client.send(raw)
        answer, headers, body = await client.response()
        await client.send(b"more of it") if status == 405 else client.reset()

        assert answer == status
        if status != 405:
            assert headers[b"content-type"] == b"application/problem+json"
            assert json.loads(body)["status"] == status
        await other.send(post(b""))
        assert (await other.response())[0] == 200
        assert not server.ended.is_set()


@pytest.mark.parametrize(
    "frames",
    [
        b"\xff" * 100,
        b"\x81\x7f" + b"\xff" * 8,
        b"\x81\x05hello",
        b"\x81\x82\x00\x00\x00\x00\xff\xfe",
        b"\x88\x80abcd" * 3,
    ],
)
async def test_bad_frames_end_only_their_websocket(frames: bytes) -> None:
    async with serving(quart_app()) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"\r\n")
        assert (await client.response())[0] == 101
        await client.send(frames)
        await client.rest()
        assert (await server.ask(post(b"{}", "/nowhere")))[0] == 404


# Time limits


async def test_an_idle_connection_is_closed_silently() -> None:
    async with serving(plain(echo), first_byte_seconds=QUICK) as server:
        client = await server.connect()
        assert await client.rest() == b""

    async with serving(plain(echo), keep_alive_seconds=QUICK) as server:
        client = await server.connect()
        await client.send(post(b"1"))
        await client.response()
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("raw", "limit"),
    [
        (b"GET / HT", "header_seconds"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-", "header_seconds"),
        (post(b"1234")[:-1], "body_seconds"),
    ],
)
async def test_an_incomplete_request_is_answered_408(raw: bytes, limit: str) -> None:
    handler = Held()
    async with serving(plain(handler), **{limit: QUICK}) as server:
        client = await server.connect()
        await client.send(raw)
        assert (await client.response())[0] == 408
        assert await client.rest() == b""
        if limit == "body_seconds":
            await handler.cancelled.wait()


async def test_a_slow_head_is_not_kept_alive_by_single_bytes() -> None:
    async with serving(plain(echo), header_seconds=QUICK) as server:
        client = await server.connect()
        dripped = 0
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                nonlocal dripped
                await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
                while True:
                    await client.send(b"y")
                    dripped += 1
                    await trio.sleep(QUICK / 10)

            nursery.start_soon(drip)
            assert (await client.response())[0] == 408
            nursery.cancel_scope.cancel()
        assert dripped < 100


@pytest.mark.parametrize("end", ["shutdown", "cancel", "send_seconds"])
async def test_a_client_that_does_not_read_blocks_nothing(end: str) -> None:
    """Stock hypercorn sends in a shielded scope without a limit: shutdown waits for ever."""
    ended = trio.Event()
    started = trio.Event()

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        started.set()
        try:
            await respond(send, 200, HUGE)
            await trio.lowlevel.checkpoint()
        finally:
            ended.set()

    limits = {"send_seconds": QUICK} if end == "send_seconds" else {}
    async with serving(plain(handler), **limits) as server:
        client = await server.connect()
        await client.send(GET)
        await started.wait()
        if end == "shutdown":
            server.shutdown.set()
        elif end == "cancel":
            server.scope.cancel()
        await ended.wait()
        if end != "send_seconds":
            await server.ended.wait()
        assert len(await client.rest()) < len(HUGE)


async def test_a_slow_reader_that_makes_progress_is_served_to_the_end() -> None:
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, 200, HUGE)

    async with serving(plain(handler), send_seconds=1) as server:
        client = await server.connect()
        await client.send(GET)
        await client.until(b"\r\n\r\n")
        assert len(client.buffer) < len(HUGE)
        got = len(client.buffer)
        begun = trio.current_time()
        while got < len(HUGE):
            got += len(await client.stream.receive_some(1 << 20))
            if trio.current_time() - begun < 1.5:  # longer than a send may make no progress
                await trio.sleep(0.05)


# The client disconnects


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("what", ["plain", "with a body", "with a pipelined request", "sse", "websocket"])
async def test_a_disconnect_cancels_the_handler_at_once(how: str, what: str) -> None:
    held = Held()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        if what == "with a body":
            await read_body(scope, receive, 10)
        elif what == "sse":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        elif what == "websocket":
            await send({"type": "websocket.accept"})
        await held()

    raw = {"with a body": post(b"body"), "with a pipelined request": GET + post(b"x"), "websocket": UPGRADE + b"\r\n"}
    async with serving(app) as server:
        client = await server.connect()
        await client.send(raw.get(what, GET))
        await held.started.wait()
        if what in {"sse", "websocket"}:
            await client.more()
        if how == "reset":
            client.reset()
        elif how == "close":
            await client.stream.aclose()
        else:
            await client.stream.send_eof()
        with trio.fail_after(5):
            await held.cancelled.wait()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_disconnect_behind_a_full_buffer_is_noticed(how: str) -> None:
    held = Held()
    async with serving(plain(held)) as server:
        client = await server.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
        await held.started.wait()
        if how == "close":
            await client.send(b"x" * (UNREAD_BYTES + 50_000))  # the end of file must fit behind it
        else:
            with trio.move_on_after(QUICK):  # until nothing more fits
                await client.send(b"x" * 10_000_000)
        if how == "close":
            await client.stream.aclose()
        else:
            client.reset()
        await held.cancelled.wait()


async def test_work_after_the_last_message_is_not_cancelled() -> None:
    gone, done = trio.Event(), trio.Event()

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, 200)
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        assert await receive() == {"type": "http.disconnect"}
        await gone.wait()
        await trio.lowlevel.checkpoint()
        done.set()

    async with serving(plain(handler)) as server:
        await server.ask(GET)
        await trio.testing.wait_all_tasks_blocked(0.05)
        gone.set()
        await done.wait()


async def test_a_loop_of_sends_lets_other_tasks_run_and_ends_with_its_client() -> None:
    """Stock hypercorn: sending on a closed websocket neither raises nor checkpoints, so the whole program hangs."""
    ended = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        if scope["type"] == "http":
            return await echo(scope, receive, send)
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": ""})
        finally:
            ended.set()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"\r\n")
        await client.response()
        await client.more()
        assert (await server.ask(post(b"1")))[2] == b"1"
        client.reset()
        await ended.wait()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_push_only_websocket_of_quart_ends_with_its_client_without_reading(how: str) -> None:
    """Stock hypercorn with quart-trio 0.12: after twenty unread messages, a disconnect is not noticed."""
    held = Held()
    app = QuartTrio(__name__)

    @app.websocket("/ws")
    async def push() -> None:
        await websocket.accept()
        await held()

    async with serving(app) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"\r\n")
        await client.response()
        await held.started.wait()
        await client.send(b"\x81\x81\x00\x00\x00\x00x" * 200)
        if how == "close":
            await client.stream.aclose()
        else:
            client.reset()
        await held.cancelled.wait()


@pytest.mark.parametrize("end", ["shutdown", "cancel"])
async def test_the_end_comes_also_while_the_socket_is_not_read(end: str) -> None:
    held = Held()
    with structlog.testing.capture_logs() as logs:
        async with serving(plain(held)) as server:
            client = await server.connect()
            await client.send(post(b"x" * 10)[:-10].replace(b"Length: 10", b"Length: 10000000"))
            await held.started.wait()
            with trio.move_on_after(QUICK):  # until nothing more fits
                await client.send(b"x" * 9_000_000)
            if end == "shutdown":
                server.shutdown.set()
            else:
                server.scope.cancel()
            await server.ended.wait()
            assert held.cancelled.is_set()
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == []


# Websockets


async def test_websocket_echo_ping_and_close_codes() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            if event["text"] == "bye":
                await send({"type": "websocket.close", "code": 4321, "reason": "you said bye"})
                return
            if event["text"] == "bug":
                raise ValueError("a bug")
            await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})
        codes.append(event["code"])

    codes: list[int] = []
    async with serving(app, max_body_bytes=1_000_000) as server, trio.open_nursery() as nursery:
        ws = await server.websocket(nursery)
        for message in ("text", b"bytes", b"", "x" * 500_000):
            await ws.send_message(message)
            assert await ws.get_message() == message
        await ws.ping(b"there?")
        await ws.aclose(1000)
        assert ws.closed.code == 1000

        for word, code in (("bye", 4321), ("bug", 1011), ("x" * 1_000_001, 1009)):
            ws = await server.websocket(nursery)
            await ws.send_message(word)
            with pytest.raises(ConnectionClosed) as closed:
                await ws.get_message()
            assert closed.value.reason.code == code
            await ws.aclose()
    assert 1000 in codes or 1006 in codes


async def test_quart_serves_websockets_and_refuses_them_before_the_handshake() -> None:
    app = quart_app()

    @app.websocket("/closed")
    async def closed() -> None:
        assert "Host" in websocket.headers
        await websocket.close(1008)

    async with serving(app) as server, trio.open_nursery() as nursery:
        ws = await server.websocket(nursery)
        await ws.send_message("hello")
        assert await ws.get_message() == "hello"
        await ws.aclose()

        for path, status in ((b"/nowhere", 404), (b"/closed", 403)):
            client = await server.connect()
            await client.send(UPGRADE.replace(b"/ws", path) + b"\r\n")
            assert (await client.response())[0] == status
            assert await client.rest() == b""


async def test_many_messages_go_through_a_slow_websocket_without_loss() -> None:
    async with serving(quart_app()) as server, trio.open_nursery() as nursery:
        ws = await server.websocket(nursery)

        async def send_all() -> None:
            for n in range(500):
                await ws.send_message(str(n))

        nursery.start_soon(send_all)
        assert [str(n) for n in range(500)] == [await ws.get_message() for _ in range(500)]
        await ws.aclose()


async def test_shutdown_closes_open_websockets_as_going_away() -> None:
    async with serving(quart_app()) as server, trio.open_nursery() as nursery:
        ws = await server.websocket(nursery)
        await ws.send_message("hello")
        await ws.get_message()
        server.shutdown.set()
        with pytest.raises(ConnectionClosed):
            await ws.get_message()
        assert ws.closed.code == 1001
        await server.ended.wait()


# Start and end


async def test_shutdown_closes_idle_connections_and_lets_requests_finish() -> None:
    started, go_on = trio.Event(), trio.Event()

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        started.set()
        if scope["path"] == "/slow":
            await go_on.wait()
        await respond(send, 200, b"whole")

    async with serving(plain(handler), graceful_seconds=NEVER) as server:
        idle, busy = await server.connect(), await server.connect()
        await idle.send(GET)
        await idle.response()
        started = trio.Event()
        await busy.send(GET.replace(b" / ", b" /slow "))
        await started.wait()

        server.shutdown.set()
        assert await idle.rest() == b""
        with pytest.raises(OSError, match="connect"):
            await server.connect()
        go_on.set()
        status, headers, body = await busy.response()
        assert (status, headers[b"connection"], body) == (200, b"close", b"whole")
        assert await busy.rest() == b""
        await busy.stream.aclose()
        await server.ended.wait()


@pytest.mark.parametrize("behind", ["plain", "quart"])
async def test_a_request_that_does_not_finish_in_time_is_cancelled_and_answered_503(behind: str) -> None:
    held = Held()
    app = QuartTrio(__name__)
    app.get("/")(held.__call__)
    async with serving(plain(held) if behind == "plain" else app) as server:
        client = await server.connect()
        await client.send(GET)
        await held.started.wait()
        server.shutdown.set()
        assert (await client.response())[0] == 503
        await held.cancelled.wait()
        await server.ended.wait()


async def test_quart_with_its_lifespan() -> None:
    steps: list[str] = []
    app = quart_app()

    @app.before_serving
    async def before() -> None:
        steps.append("before")

    @app.after_serving
    async def after() -> None:
        steps.append("after")

    json_type = b"Content-Type: application/json\r\n"
    async with serving(app) as server:
        assert steps == ["before"]
        client = await server.connect()
        await client.send(post(b'{"name": "you"}', "/hello", json_type))
        assert json.loads((await client.response())[2]) == {"message": "Hello, you"}
    assert steps == ["before", "after"]


async def test_a_start_that_fails_is_raised() -> None:
    app = QuartTrio(__name__)

    @app.before_serving
    async def before() -> None:
        raise ValueError("no disk")

    with pytest.raises(BaseExceptionGroup, match="nursery") as raised:
        async with serving(app):
            pytest.fail("it started")
    assert "no disk" in repr(raised.value)


async def test_an_address_in_use_is_an_os_error() -> None:
    async with serving(plain(echo)) as server:
        with pytest.raises(OSError, match="in use"):
            await serve(
                echo, host="127.0.0.1", port=server.port, limits=limits(), budget=Budget(1), shutdown=trio.Event()
            )


def test_limits_must_make_sense() -> None:
    with pytest.raises(ValueError, match="send_seconds"):
        limits(send_seconds=0)
