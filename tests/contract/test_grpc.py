"""Contract: the promises of the gRPC server to clients and handlers, over real sockets.

Each known trap of HTTP/2 servers, grpclib's among them, has a test, which names it. Handlers are plain functions here;
the verbs are tested in `tests/acceptance/test_grpc.py`.
"""

from __future__ import annotations

import gc
import re
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpclib.reflection.v1.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from hpack.hpack import encode_integer
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame

from config.settings import ServerSettings
from protocol.errors import ErrorKind, error
from protocol.rpc.operato.runner import v1
from runner.grpc import GrpcLimits, serve, standard
from runner.grpc import connection as grpc_connection
from runner.grpc.call import Call, Method
from runner.grpc.connection import MAX_FRESH, MAX_HEADER_BYTES, STREAM_WINDOW
from runner.grpc.door import RESERVE
from runner.serve.tls import server_context
from runner.wire import Budget
from runner.wire.floods import MAX_RESETS
from tests.certificates import Authority, Signed
from tests.grpc_client import LIMITS, PATIENCE, Answer, Client, GrpcStatus, OpenDoor, framed, open_door
from tests.support import open_fds, wait_until

QUICK = 0.2
"""Seconds for a time limit that a test waits for."""
REQUEST = v1.ExecuteRequest(module_name="m", input_json="1")
ECHO, HANG, STREAM = "/test.Test/Echo", "/test.Test/Hang", "/test.Test/Stream"
MALFORMED = -1
"""Metadata that RFC 9113, 8.2, tells a server to treat as malformed: the stream is reset with PROTOCOL_ERROR."""
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


@pytest.fixture
async def door() -> AsyncIterator[OpenDoor]:
    async with open_door(METHODS) as opened:
        yield opened


class Hanging:
    """A handler that hangs and counts its calls."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.go_on = trio.Event()

    async def __call__(self, call: Call) -> Any:
        await call.receive()
        self.begun += 1
        try:
            await self.go_on.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        return v1.ExecuteResponse(result_json="late")

    @property
    def method(self) -> Method:
        return Method(self, v1.ExecuteRequest)


async def echo(call: Call) -> Any:
    request = await call.receive()
    return v1.ExecuteResponse(result_json=request.input_json)


async def stream(call: Call) -> None:
    """Send back each message at once, twice."""
    while (request := await call.receive()) is not None:
        for _ in range(2):
            await call.send(v1.ExecuteResponse(result_json=request.input_json))


async def refusing(call: Call) -> Any:
    raise error(ErrorKind.OVERLOADED, "voll: 50 % zu tun, ä", field="$.ö", retry_after=1.2)


async def failing(call: Call) -> Any:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise ZeroDivisionError("a bug")


async def grouped(call: Call) -> Any:
    async with trio.open_nursery():
        raise error(ErrorKind.NOT_FOUND, "not here")


METHODS = {
    ECHO: Method(echo, v1.ExecuteRequest),
    STREAM: Method(stream, v1.ExecuteRequest),
    "/test.Test/Refuse": Method(refusing, v1.ExecuteRequest),
    "/test.Test/Fail": Method(failing, v1.ExecuteRequest),
    "/test.Test/Group": Method(grouped, v1.ExecuteRequest),
}


# Messages and statuses


async def test_a_unary_call_is_answered(door: OpenDoor) -> None:
    client = await door.connect()

    answer = await client.call(ECHO, REQUEST)

    assert answer.status == 0
    assert answer.message().result_json == "1"
    assert answer.head["content-type"] == "application/grpc+proto"


async def test_a_stream_goes_both_ways(door: OpenDoor) -> None:
    client = await door.connect()
    number = await client.send(STREAM, REQUEST, end=False)
    with trio.fail_after(PATIENCE):
        while len(client.answers[number].messages) < 2:
            await client.more()
    client.http.send_data(number, framed(REQUEST), end_stream=True)
    await client.flush()

    answer = await client.ended(number)

    assert (answer.status, len(answer.messages)) == (0, 4)


async def test_an_exception_of_the_handler_becomes_the_status(door: OpenDoor) -> None:
    client = await door.connect()

    refused = await client.call("/test.Test/Refuse", REQUEST)
    grouped = await client.call("/test.Test/Group", REQUEST)

    assert refused.status == GrpcStatus.RESOURCE_EXHAUSTED
    assert refused.said["grpc-message"] == "voll: 50 %25 zu tun, %C3%A4"
    assert refused.said["operato-kind"] == "overloaded"
    assert refused.said["operato-field"] == "$.%C3%B6"
    assert refused.said["retry-after"] == "2"
    assert (grouped.status, grouped.said["grpc-message"]) == (GrpcStatus.NOT_FOUND, "not here")


async def test_a_bug_is_internal_and_logged(door: OpenDoor) -> None:
    client = await door.connect()
    with structlog.testing.capture_logs() as logs:
        answer = await client.call("/test.Test/Fail", REQUEST)

    [entry] = [entry for entry in logs if entry["log_level"] == "error"]
    assert answer.status == GrpcStatus.INTERNAL
    assert "ZeroDivisionError" not in str(answer.said)
    assert entry["method"] == "/test.Test/Fail"
    assert entry["request_id"] in answer.said["grpc-message"]


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ({":path": "/test.Test/Nothing"}, GrpcStatus.UNIMPLEMENTED),
        ({":method": "GET"}, GrpcStatus.INVALID_ARGUMENT),
        ({"content-type": "application/json"}, GrpcStatus.INVALID_ARGUMENT),
        ({"grpc-timeout": "soon"}, GrpcStatus.INVALID_ARGUMENT),
        ({"grpc-timeout": "9" * 400 + "H"}, GrpcStatus.INVALID_ARGUMENT),
        ({"grpc-timeout": "0n"}, GrpcStatus.DEADLINE_EXCEEDED),
        ({"authorization": b"Bearer \xff\xfe"}, GrpcStatus.OK),
        ({"x": "", "X-Upper": "1"}, GrpcStatus.OK),
        ({"": "nameless"}, MALFORMED),
    ],
)
async def test_odd_heads_are_answered_and_the_connection_continues(door: OpenDoor, metadata: Any, status: int) -> None:
    """A header byte that is not ASCII ends a grpclib server."""
    client = await door.connect()

    odd = await client.call(ECHO, REQUEST, metadata=metadata)
    after = await client.call(ECHO, REQUEST)

    assert odd.reset == 1 if status is MALFORMED else odd.status == status
    assert after.status == 0


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"", GrpcStatus.INVALID_ARGUMENT, "no message"),
        (b"\0\0\0", GrpcStatus.INVALID_ARGUMENT, "cut off"),
        (b"\0\0\0\0\x09abc", GrpcStatus.INVALID_ARGUMENT, "cut off"),
        (b"\0\0\0\0\x03\x0a\x09a", GrpcStatus.INVALID_ARGUMENT, "malformed"),
        (b"\1\0\0\0\x01a", GrpcStatus.UNIMPLEMENTED, "compress"),
        (b"\0\x7f\xff\xff\xff", GrpcStatus.RESOURCE_EXHAUSTED, "max_frame"),
    ],
)
async def test_malformed_messages(data: bytes, status: int, word: str) -> None:
    async def needs(call: Call) -> Any:
        request = await call.receive()
        if request is None:
            raise error(ErrorKind.BAD_INPUT, "no message")
        return v1.ExecuteResponse()

    async with open_door({ECHO: Method(needs, v1.ExecuteRequest)}) as door:
        client = await door.connect()

        answer = await client.call(ECHO, data)

        assert answer.status == status
        assert word in answer.said["grpc-message"]
        assert (await client.call(ECHO, REQUEST)).status == 0


async def test_a_message_may_be_as_large_as_the_limit() -> None:
    async with open_door(METHODS, max_message_bytes=100_000) as door:
        client = await door.connect(window=1 << 20)
        fits = v1.ExecuteRequest(input_json="x" * (100_000 - 4))
        over = v1.ExecuteRequest(input_json="x" * (100_000 - 3))
        statuses = []
        for message in (fits, over):
            number = await client.send(ECHO, end=False)
            await send_all(client, number, framed(message))
            statuses.append((await client.ended(number)).status)

        assert statuses == [0, GrpcStatus.RESOURCE_EXHAUSTED]


async def send_all(client: Client, number: int, data: bytes, *, end: bool = True) -> None:
    """Send as much as the windows allow, until the server has ended the call."""
    rest = data
    with trio.fail_after(PATIENCE):
        while rest and not client.answers[number].ended:
            size = min(client.http.local_flow_control_window(number), client.http.max_outbound_frame_size, len(rest))
            if size <= 0:
                await client.more()
                continue
            client.http.send_data(number, rest[:size], end_stream=end and size == len(rest))
            rest = rest[size:]
            await client.flush()


async def test_the_wait_for_the_first_message_is_limited() -> None:
    async with open_door(METHODS, message_seconds=QUICK) as door:
        client = await door.connect()

        nothing = await client.ended(await client.send(ECHO, end=False))
        half = await client.ended(await client.send(ECHO, framed(REQUEST)[:-1], end=False))

        assert (nothing.status, half.status) == (GrpcStatus.INVALID_ARGUMENT, GrpcStatus.INVALID_ARGUMENT)
        assert "did not arrive" in half.said["grpc-message"]


# The end of a call


async def test_the_deadline_of_the_client_cancels_the_handler() -> None:
    hanging = Hanging()
    async with open_door({HANG: hanging.method}) as door:
        client = await door.connect()

        answer = await client.call(HANG, REQUEST, metadata={"grpc-timeout": "100m"})

        assert answer.status == GrpcStatus.DEADLINE_EXCEEDED
        assert hanging.cancelled == 1


@pytest.mark.parametrize("how", ["reset", "goaway", "close", "abort"])
async def test_a_disconnect_cancels_the_calls_of_the_client(how: str) -> None:
    hanging = Hanging()
    async with open_door({HANG: hanging.method, **METHODS}) as door:
        client, other = await door.connect(), await door.connect()
        numbers = [await client.send(HANG, REQUEST) for _ in range(3)]
        await wait_until(lambda: hanging.begun == 3, "the calls begin")

        match how:
            case "reset":
                for number in numbers:
                    await client.reset(number)
            case "goaway":
                client.http.close_connection()
                await client.flush()
            case "close":
                await client.aclose()
            case "abort":
                client.stream.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: a reset instead of an end of file
                await client.aclose()

        await wait_until(lambda: hanging.cancelled == 3, "the calls are cancelled")
        assert (await other.call(ECHO, REQUEST)).status == 0
        if how == "reset":
            assert (await client.call(ECHO, REQUEST)).status == 0


async def test_a_handler_that_shields_its_end_delays_no_other_call() -> None:
    ended, go_on = trio.Event(), trio.Event()

    async def slow_to_end(call: Call) -> Any:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await go_on.wait()
            ended.set()

    async with open_door({HANG: Method(slow_to_end, v1.ExecuteRequest), **METHODS}) as door:
        client = await door.connect()
        number = await client.send(HANG, REQUEST, metadata={"grpc-timeout": "50m"})
        assert (await client.call(ECHO, REQUEST)).status == 0
        assert not ended.is_set()
        go_on.set()
        assert (await client.ended(number)).status == GrpcStatus.DEADLINE_EXCEEDED
        assert ended.is_set()


async def test_calls_are_limited_and_health_is_not() -> None:
    hanging = Hanging()
    async with open_door({HANG: hanging.method}, max_calls=3) as door:
        clients = [await door.connect(), await door.connect()]
        numbers = [await clients[0].send(HANG, REQUEST) for _ in range(3)]
        await wait_until(lambda: hanging.begun == 3, "the calls begin")

        refused = await clients[1].call(HANG, REQUEST)
        healthy = await clients[1].call(CHECK, HealthCheckRequest())
        hanging.go_on.set()
        answers = [await clients[0].ended(number) for number in numbers]

        assert (refused.status, refused.said["operato-kind"]) == (GrpcStatus.RESOURCE_EXHAUSTED, "overloaded")
        assert healthy.status == 0
        assert [answer.message().result_json for answer in answers] == ["late"] * 3


async def test_one_connection_may_have_more_than_a_hundred_calls() -> None:
    """With the default of h2 the 101st call of a channel waits in the client silently."""
    hanging = Hanging()
    async with open_door({HANG: hanging.method}) as door:
        client = await door.connect()
        while not client.http.remote_settings.max_concurrent_streams > 100:
            await client.more()
        numbers = [await client.send(HANG, REQUEST) for _ in range(150)]
        await wait_until(lambda: hanging.begun == 150, "all calls begin")
        hanging.go_on.set()

        assert {(await client.ended(number)).status for number in numbers} == {0}


async def test_a_newcomer_takes_the_place_of_an_idle_connection() -> None:
    """Clients without a call go first: those that never made one, then the one that is idle longest."""
    hanging = Hanging()
    async with open_door({**METHODS, HANG: hanging.method}, max_connections=3) as door:
        idle, busy, silent = await door.connect(), await door.connect(), await door.raw()
        assert (await idle.call(ECHO, REQUEST)).status == 0
        number = await busy.send(HANG, REQUEST)
        await wait_until(lambda: hanging.begun == 1, "the call begins")

        first = await door.connect()
        assert (await first.call(ECHO, REQUEST)).status == 0
        async with silent:
            await until_end(silent)
        second = await door.connect()
        assert (await second.call(ECHO, REQUEST)).status == 0
        await idle.until_closed()
        hanging.go_on.set()

        assert idle.goaways[0].error_code == 0  # so that a call on its way is made again elsewhere
        assert (await busy.ended(number)).status == 0
        assert (await first.call(ECHO, REQUEST)).status == 0


async def test_a_door_full_of_calls_still_answers_health() -> None:
    hanging = Hanging()
    async with open_door({**METHODS, HANG: hanging.method}, max_connections=2) as door:
        busy = [await door.connect() for _ in range(2)]
        numbers = [await client.send(HANG, REQUEST) for client in busy]
        await wait_until(lambda: hanging.begun == 2, "the calls begin")
        watches = []
        for _ in range(RESERVE - 1):
            watches.append(await door.connect())
            await watches[-1].send(WATCH, HealthCheckRequest())
            with trio.fail_after(PATIENCE):
                while not watches[-1].answers[1].messages:
                    await watches[-1].more()
        late = await door.connect()
        await late.send(WATCH, HealthCheckRequest())

        refused = await late.call(ECHO, REQUEST)
        healthy = await late.call(CHECK, HealthCheckRequest())
        async with await door.raw() as over:
            await until_end(over)
        hanging.go_on.set()
        answers = [await client.ended(number) for client, number in zip(busy, numbers, strict=True)]
        for client in [*busy, *watches]:
            await client.aclose()

        assert (refused.status, refused.said["operato-kind"]) == (GrpcStatus.RESOURCE_EXHAUSTED, "overloaded")
        assert healthy.status == 0
        assert [answer.status for answer in answers] == [0, 0]
        with trio.fail_after(PATIENCE):
            while (await late.call(ECHO, REQUEST)).status:
                await trio.lowlevel.checkpoint()


async def test_a_connection_on_which_nothing_arrives_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_connection, "FIRST_SECONDS", QUICK)
    async with open_door(METHODS) as door, await door.raw() as silent:
        client = await door.connect()
        await until_end(silent)

        assert (await client.call(ECHO, REQUEST)).status == 0


async def until_end(stream: trio.SocketStream) -> None:
    """Read until the server has closed the connection."""
    with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
        while await stream.receive_some(65_536):
            pass


# Slow readers


async def test_a_client_that_stops_reading_stops_only_its_handler() -> None:
    sent = 0

    async def flood(call: Call) -> None:
        nonlocal sent
        for _ in range(1000):
            await call.send(v1.ExecuteResponse(result_json="x" * 1000))
            sent += 1

    async with open_door({**METHODS, STREAM: Method(flood, v1.ExecuteRequest)}) as door:
        client = await door.connect()
        client.reads = False
        number = await client.send(STREAM, REQUEST)
        with trio.fail_after(PATIENCE):
            while client.answers[number].received < 65_535:
                await client.more()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent == 65_535 // len(framed(v1.ExecuteResponse(result_json="x" * 1000)))
        assert (await client.call(CHECK, b"")).status == GrpcStatus.NOT_FOUND  # the head needs no window

        client.reads = True
        client.http.increment_flow_control_window(1 << 20)
        client.http.increment_flow_control_window(1 << 20, number)
        await client.flush()

        answer = await client.ended(number)
        assert (answer.status, len(answer.messages)) == (0, 1000)


async def test_a_client_that_does_not_read_is_cut_off_in_time() -> None:
    async def large(call: Call) -> Any:
        return v1.ExecuteResponse(result_json="x" * 1_000_000)

    async with open_door({ECHO: Method(large, v1.ExecuteRequest)}, send_seconds=QUICK) as door:
        client = await door.connect()
        client.reads = False

        number = await client.send(ECHO, REQUEST)
        answer = await client.ended(number)

        assert answer.reset == 11  # ENHANCE_YOUR_CALM, which clients show as RESOURCE_EXHAUSTED
        assert answer.received == 65_535


async def test_a_slow_reader_receives_everything() -> None:
    """The limit applies to progress, not to the whole message."""
    size = 20 * 16_384

    async def large(call: Call) -> Any:
        return v1.ExecuteResponse(result_json="x" * size)

    async with open_door({ECHO: Method(large, v1.ExecuteRequest)}, send_seconds=0.5) as door:
        client = await door.connect(window=16_384)
        client.reads = False
        number = await client.send(ECHO, REQUEST)
        began = trio.current_time()
        with trio.fail_after(PATIENCE):
            while not client.answers[number].ended:
                await client.more()
                if trio.current_time() - began < 1.0:  # twice the limit
                    await trio.sleep(0.1)
                if (due := client.answers[number].received) and client.http.streams:
                    client.http.increment_flow_control_window(16_384)
                    with suppress(Exception):
                        client.http.increment_flow_control_window(16_384, number)
                    await client.flush()
                assert due <= size + 100

        assert client.answers[number].message().result_json == "x" * size


# Clients that break the rules


async def test_frames_of_an_unknown_type_are_ignored(door: OpenDoor) -> None:
    """RFC 9113, 5.5. grpclib raises NotImplementedError."""
    client = await door.connect()
    await client.stream.send_all(b"\0\0\x04\xfa\0\0\0\0\0abcd" + b"\0\0\x04\xfb\xff\0\0\0\x01abcd")
    priority_update = b"\0\0\x08\x10\0\0\0\0\0" + b"\0\0\0\x01u=1,"
    await client.stream.send_all(priority_update[: 9 + 8])

    assert (await client.call(ECHO, REQUEST)).status == 0


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500),
        b"\0" * 100,
        PREFACE + b"\xff\xff\xff\0\0\0\0\0\x01",
        PREFACE + b"\0\0\x01\x01\x05\0\0\0\x01\xff",
        PREFACE + b"\0\0\x02\x01\x05\0\0\0\x02\x82\x86",
        PREFACE + b"\0\0\0\x01\x05\0\0\0\0",
        PREFACE + b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0",
        PREFACE + b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\xff\xff" * 2,
        PREFACE + b"\0\0\x05\0\0\0\0\0\x01hello",
        PREFACE + b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08",
        PREFACE + b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0" * 2,
        PREFACE + b"\0\0\x06\x04\0\0\0\0\0\0\x04\xff\xff\xff\xff",
        PREFACE + b"\0\0\x01\x09\0\0\0\0\x01\x82" * 100,
        PREFACE + b"\0\0\x04\x05\x04\0\0\0\x01\0\0\0\x02",
    ],
    ids=lambda data: data[33:50].hex() or "preface",
)
async def test_garbage_ends_only_its_connection(door: OpenDoor, data: bytes) -> None:
    good = await door.connect()
    bad = await door.raw()
    with suppress(trio.BrokenResourceError):
        await bad.send_all(data)
        await bad.send_eof()
        with trio.fail_after(PATIENCE):
            while await bad.receive_some(65_536):
                pass
    await bad.aclose()

    assert (await good.call(ECHO, REQUEST)).status == 0


@pytest.mark.parametrize("size", [MAX_HEADER_BYTES, 5 * MAX_HEADER_BYTES])
async def test_too_much_metadata_ends_only_its_call(size: int) -> None:
    """The table by which metadata is compressed belongs to all calls of the connection, so all of it is decoded."""
    hanging = Hanging()
    async with open_door({**METHODS, HANG: hanging.method}) as door:
        client = await door.connect()
        running = await client.send(HANG, REQUEST, metadata={"x-before": "1"})
        await wait_until(lambda: hanging.begun == 1, "the call begins")

        large = await client.call(ECHO, REQUEST, metadata={f"x-{n}": "v" * 1000 for n in range(size // 1000)})
        again = await client.call(ECHO, REQUEST, metadata={"x-0": "v" * 1000, "x-before": "1"})
        hanging.go_on.set()

        assert (large.status, large.said["operato-kind"]) == (GrpcStatus.RESOURCE_EXHAUSTED, "too_large")
        assert again.status == 0
        assert (await client.ended(running)).status == 0
        assert client.http.remote_settings.max_header_list_size == MAX_HEADER_BYTES


async def test_metadata_without_an_end_ends_its_connection(door: OpenDoor) -> None:
    client = await door.connect()
    with suppress(trio.BrokenResourceError):
        await client.send(ECHO, REQUEST, metadata={f"x-{n}": "v" * 1000 for n in range(400)})
    await client.until_closed()

    assert (await (await door.connect()).call(ECHO, REQUEST)).status == 0


async def test_a_small_table_entry_repeated_is_metadata_without_an_end(door: OpenDoor) -> None:
    """HPACK bomb: one byte on the wire stands for four thousand."""
    bomb = await door.raw()
    entry = b"\x40" + b"\x01x" + encode_integer(4000, 7) + b"v" * 4000
    block = b"\x83\x86\x84" + entry + b"\xbe" * 12_000
    async with bomb:
        await bomb.send_all(PREFACE + len(block).to_bytes(3, "big") + b"\x01\x05\0\0\0\x01" + block)
        await until_end(bomb)

    assert (await (await door.connect()).call(ECHO, REQUEST)).status == 0


async def test_two_tokens_are_refused(door: OpenDoor) -> None:
    client = await door.connect()
    number = client.http.get_next_available_stream_id()
    fields = [(":method", "POST"), (":scheme", "http"), (":path", ECHO), (":authority", "localhost")]
    client.answers[number] = Answer()
    tokens = [("authorization", "Bearer a"), ("authorization", "Bearer b")]
    client.http.send_headers(number, [*fields, ("content-type", "application/grpc"), *tokens])
    client.http.send_data(number, framed(REQUEST), end_stream=True)
    await client.flush()

    answer = await client.ended(number)

    assert (answer.status, answer.said["operato-kind"]) == (GrpcStatus.UNAUTHENTICATED, "unauthenticated")


async def test_a_flood_of_resets_is_cut_and_others_are_served(door: OpenDoor) -> None:
    """Rapid reset, CVE-2023-44487: 20,000 of them blocked the loop for 4.7 seconds."""
    client, other = await door.connect(), await door.connect()
    await client.call(ECHO, REQUEST)
    with structlog.testing.capture_logs() as logs, suppress(trio.BrokenResourceError):
        for _ in range(2 * MAX_RESETS):
            number = await client.send(ECHO, flush=False, end=False)
            client.http.reset_stream(number)
        await client.flush()
        await client.until_closed()

    assert (await other.call(ECHO, REQUEST)).status == 0
    assert "cancelled" in logs[-1]["why"]


async def test_a_client_may_cancel_many_calls(door: OpenDoor) -> None:
    client = await door.connect()
    for _ in range(MAX_RESETS // 2):
        await client.reset(await client.send(ECHO, end=False))

    assert (await client.call(ECHO, REQUEST)).status == 0


async def test_a_flood_of_pings_whose_answers_are_not_read_is_cut(door: OpenDoor) -> None:
    """CVE-2019-9512, and 9515 with SETTINGS: the answers would fill the memory."""
    frame = PingFrame(0, b"12345678").serialize()
    flood = await door.raw()
    flood.setsockopt(1, 8, 4096)  # SO_RCVBUF
    with structlog.testing.capture_logs() as logs, trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
        await flood.send_all(PREFACE)
        while True:
            await flood.send_all(frame * 1000)
    await flood.aclose()

    assert re.search("not read|carry no call|Flooding", logs[-1]["why"]), "which comes first depends on the kernel"
    assert (await (await door.connect()).call(ECHO, REQUEST)).status == 0


async def test_refusals_that_are_not_read_are_limited_too(door: OpenDoor) -> None:
    flood = await door.raw()
    flood.setsockopt(1, 8, 4096)  # SO_RCVBUF
    with structlog.testing.capture_logs() as logs, trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
        await flood.send_all(PREFACE)
        for first in range(1, 2**31, 200):
            await flood.send_all(b"".join(unknown_call(number) for number in range(first, first + 200, 2)))
    await flood.aclose()

    assert "not read" in logs[-1]["why"]
    assert (await (await door.connect()).call(ECHO, REQUEST)).status == 0


def unknown_call(number: int) -> bytes:
    """Return a HEADERS frame for an unknown method with a long name, which makes the answer long too."""
    path = b"/" + (b"%d" % number).rjust(900, b"x")
    size = encode_integer(len(path), 7)
    block = b"\x83\x86\x01\x01h\x14" + size + path + b"\x1f\x10" + b"\x10application/grpc"
    return len(block).to_bytes(3, "big") + b"\x01\x05" + number.to_bytes(4, "big") + block


async def test_data_in_single_bytes_is_merged() -> None:
    """Each waiting frame of one byte would cost two hundred."""
    begun, go_on = trio.Event(), trio.Event()
    held: list[Any] = []

    async def late(call: Call) -> Any:
        begun.set()
        await go_on.wait()
        held.append(call.stream.peek(100_000))
        request = await call.receive()
        return v1.ExecuteResponse(result_json=request.input_json)

    async with open_door({ECHO: Method(late, v1.ExecuteRequest)}) as door:
        client = await door.connect()
        number = await client.send(ECHO, end=False)
        await begun.wait()
        data = framed(v1.ExecuteRequest(input_json="x" * 20_000))
        for position in range(len(data)):
            client.http.send_data(number, data[position : position + 1])
        client.http.send_data(number, b"", end_stream=True)
        await client.flush()
        await client.call(CHECK, HealthCheckRequest())  # so everything sent before it has arrived
        go_on.set()

        answer = await client.ended(number)

        assert answer.message().result_json == "x" * 20_000
        assert held == [data]


async def test_an_empty_frame_does_not_end_the_stream(door: OpenDoor) -> None:
    """In grpclib it counts as the end, which raises `Received less data than expected`."""
    client = await door.connect()
    number = await client.send(ECHO, end=False)
    data = framed(REQUEST)
    for piece in (b"", data[:3], b"", data[3:7], b"", data[7:]):
        client.http.send_data(number, piece)
        await client.flush()
    client.http.end_stream(number)
    await client.flush()

    assert (await client.ended(number)).message().result_json == "1"


async def test_data_after_the_message_is_dropped_and_the_window_comes_back(door: OpenDoor) -> None:
    client = await door.connect()
    for _ in range(40):  # more than the window of the connection in all
        number = await client.send(ECHO, REQUEST, end=False)
        await send_all(client, number, b"x" * 500_000, end=False)
        assert (await client.ended(number)).status == 0
        await client.reset(number)

    assert (await client.call(ECHO, REQUEST)).status == 0


async def test_a_call_that_does_not_read_leaves_room_for_others() -> None:
    hanging = Hanging()
    async with open_door({HANG: hanging.method, **METHODS}) as door:
        client = await door.connect()
        with trio.fail_after(PATIENCE):
            for _ in range(4):
                number = await client.send(HANG, REQUEST, end=False)
                rest = STREAM_WINDOW - len(framed(REQUEST))
                while rest:
                    size = min(client.http.local_flow_control_window(number), 16_384, rest)
                    if size <= 0:
                        await client.more()
                        continue
                    client.http.send_data(number, b"x" * size)
                    rest -= size
                    await client.flush()

        assert (await client.call(ECHO, REQUEST)).status == 0


async def test_ended_calls_are_forgotten() -> None:
    """h2 remembers 65,536 of them by default, 8.5 MB for each connection."""
    links: list[Any] = []

    async def remember(call: Call) -> Any:
        links[:] = [call.stream.link]
        return await echo(call)

    async with open_door({ECHO: Method(remember, v1.ExecuteRequest)}) as door:
        client = await door.connect()
        sizes = []
        for _ in range(3):
            for _ in range(400):
                assert (await client.call(ECHO, REQUEST)).status == 0
            gc.collect()
            sizes.append(len(gc.get_objects()) - len(client.answers) * 20)
            client.answers.clear()

        assert links[0].budget.taken == 0
        assert (links[0].stalled, links[0].refused, links[0]._calls._running) == (set(), set(), {})
        assert sizes[2] - sizes[1] < 400


# Keep-alive


async def test_a_client_that_does_not_answer_pings_is_cut_off_and_its_calls_are_cancelled() -> None:
    hanging = Hanging()
    async with open_door({HANG: hanging.method, **METHODS}, ping_seconds=QUICK, pong_seconds=QUICK) as door:
        silent = await door.connect()
        await silent.send(HANG, REQUEST)
        alive = await door.connect()
        number = await alive.send(HANG, REQUEST)
        with trio.fail_after(PATIENCE):
            while not hanging.cancelled:
                await alive.more()  # answers pings
        await silent.until_closed()
        hanging.go_on.set()

        assert (await alive.ended(number)).status == 0
        assert hanging.cancelled == 1


async def test_a_client_with_a_full_buffer_that_does_not_answer_pings_is_cut_off() -> None:
    """A closed transport waits until its buffer is empty, which never happens: the call would run for ever."""
    cancelled = trio.Event()

    async def flood(call: Call) -> None:
        try:
            while True:
                await call.send(v1.ExecuteResponse(result_json="x" * 16_000))
        finally:
            cancelled.set()

    async with open_door({STREAM: Method(flood, v1.ExecuteRequest)}, ping_seconds=QUICK, pong_seconds=QUICK) as door:
        client = await door.connect(window=1 << 30)
        client.http.increment_flow_control_window(1 << 30)
        await client.send(STREAM, REQUEST)

        with trio.fail_after(PATIENCE):
            await cancelled.wait()


# The end of the door


async def test_draining_lets_calls_end_and_accepts_no_new_ones() -> None:
    hanging = Hanging()
    async with open_door({HANG: hanging.method, **METHODS}) as door:
        client = await door.connect()
        running = await client.send(HANG, REQUEST)
        batch = await client.send(STREAM, REQUEST, end=False)
        watch = await client.send(WATCH, HealthCheckRequest())
        await wait_until(lambda: hanging.begun == 1, "the call begins")
        with trio.fail_after(PATIENCE):
            while not (client.answers[watch].messages and len(client.answers[batch].messages) == 2):
                await client.more()

        door.draining.set()
        ended = await client.ended(batch)
        with trio.fail_after(PATIENCE):
            while len(client.answers[watch].messages) < 2:
                await client.more()
        assert (ended.status, ended.said["operato-kind"]) == (GrpcStatus.UNAVAILABLE, "shutdown")
        states = [HealthCheckResponse.FromString(data).status for data in client.answers[watch].messages]
        assert states == [HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING]
        assert client.goaways[0].error_code == 0
        with pytest.raises(OSError, match=r"all attempts|refused"):
            await door.raw()

        hanging.go_on.set()
        assert (await client.ended(running)).message().result_json == "late"
        door.closed.set()
        assert (await client.ended(watch)).status == GrpcStatus.UNAVAILABLE
        await client.until_closed()
        await door.ended.wait()


async def test_new_calls_on_open_connections_are_refused_while_draining(door: OpenDoor) -> None:
    client = await door.connect()
    await client.call(ECHO, REQUEST)
    number = await client.send(ECHO, end=False, flush=False)  # on its way while the server begins to drain
    client.http.send_data(number, framed(REQUEST), end_stream=True)
    door.draining.set()
    await trio.testing.wait_all_tasks_blocked()
    await client.flush()
    answer = await client.ended(number)

    assert (answer.status, answer.said["operato-kind"]) == (GrpcStatus.UNAVAILABLE, "shutdown")


async def test_a_call_that_does_not_end_is_cancelled_and_answered() -> None:
    hanging = Hanging()
    async with open_door({HANG: hanging.method}) as door:
        client = await door.connect()
        number = await client.send(HANG, REQUEST)
        await wait_until(lambda: hanging.begun == 1, "the call begins")

        door.draining.set()
        door.closed.set()
        answer = await client.ended(number)

        assert (answer.status, hanging.cancelled) == (GrpcStatus.UNAVAILABLE, 1)
        with trio.fail_after(PATIENCE):
            await door.ended.wait()


async def test_clients_that_stay_connected_do_not_delay_the_end() -> None:
    """Neither one that says nothing nor one that has made a call."""
    async with open_door(METHODS) as door:
        idle, silent = await door.connect(), await door.raw()
        await idle.call(ECHO, REQUEST)
        door.draining.set()
        door.closed.set()
        with trio.fail_after(PATIENCE):
            await door.ended.wait()
        await silent.aclose()


async def test_cancelling_the_door_cuts_all_clients_off_at_once() -> None:
    hanging = Hanging()
    async with open_door({HANG: hanging.method}) as door:
        client = await door.connect()
        await client.send(HANG, REQUEST)
        await wait_until(lambda: hanging.begun == 1, "the call begins")

        door.scope.cancel()
        await client.until_closed()
        with trio.fail_after(PATIENCE):
            await door.ended.wait()

        assert hanging.cancelled == 1


async def test_a_port_in_use_is_an_os_error(door: OpenDoor) -> None:
    never = trio.Event()
    with pytest.raises(OSError, match="in use"):
        await serve(
            {},
            host="127.0.0.1",
            port=door.port,
            limits=GrpcLimits(**LIMITS),
            budget=Budget(0),
            draining=never,
            closed=never,
            ready=lambda: True,
        )


async def test_calls_that_come_at_once_begin_a_few_at_a_time() -> None:
    hanging = Hanging()
    async with open_door({HANG: hanging.method}) as door:
        client = await door.connect()
        for _ in range(900):
            await client.send(HANG, REQUEST, flush=False)
        most = last = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.flush)
            with trio.fail_after(PATIENCE):
                while hanging.begun < 900:
                    await trio.lowlevel.checkpoint()
                    most, last = max(most, hanging.begun - last), hanging.begun
        assert most <= 2 * (MAX_FRESH + 1)  # of two turns, as the order of tasks in one is random


# Health and reflection


async def test_health(door: OpenDoor) -> None:
    client = await door.connect()

    all_of_it = await client.call(CHECK, HealthCheckRequest())
    service = await client.call(CHECK, HealthCheckRequest(service="test.Test"))
    unknown = await client.call(CHECK, HealthCheckRequest(service="nothing"))
    watch = await client.send(WATCH, HealthCheckRequest(service="nothing"))
    with trio.fail_after(PATIENCE):
        while not client.answers[watch].messages:
            await client.more()

    assert all_of_it.message(HealthCheckResponse).status == HealthCheckResponse.SERVING
    assert service.message(HealthCheckResponse).status == HealthCheckResponse.SERVING
    assert unknown.status == GrpcStatus.NOT_FOUND
    (state,) = client.answers[watch].messages
    assert HealthCheckResponse.FromString(state).status == HealthCheckResponse.SERVICE_UNKNOWN


async def test_health_follows_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard, "LOOK_SECONDS", 0.01)
    state = {"ready": True}
    async with open_door(METHODS, ready=lambda: state["ready"]) as door:
        client = await door.connect()
        watch = await client.send(WATCH, HealthCheckRequest())

        async def watched(count: int) -> None:
            with trio.fail_after(PATIENCE):
                while len(client.answers[watch].messages) < count:
                    await client.more()

        await watched(1)
        state["ready"] = False
        checked = await client.call(CHECK, HealthCheckRequest())
        await watched(2)
        state["ready"] = True
        await watched(3)

        states = [HealthCheckResponse.FromString(data).status for data in client.answers[watch].messages]
        assert states == [HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING, HealthCheckResponse.SERVING]
        assert checked.message(HealthCheckResponse).status == HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection(door: OpenDoor, version: str) -> None:
    client = await door.connect()
    wanted = [
        ServerReflectionRequest(list_services=""),
        ServerReflectionRequest(file_containing_symbol="operato.runner.v1.ExecutorService"),
        ServerReflectionRequest(file_by_filename="nothing.proto"),
    ]

    answer = await client.call(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo", *wanted)
    services, file, nothing = (ServerReflectionResponse.FromString(data) for data in answer.messages)

    assert [s.name for s in services.list_services_response.service] == ["grpc.health.v1.Health", "test.Test"]
    (described,) = (FileDescriptorProto.FromString(d) for d in file.file_descriptor_response.file_descriptor_proto)
    assert [s.name for s in described.service] == [
        *("ExecutorService", "ModuleService", "FileService", "ScheduleService", "KeyService")
    ]
    assert nothing.error_response.error_code == GrpcStatus.NOT_FOUND


# TLS


def client_context(authority: Authority, shown: Signed | None = None, protocols: tuple[str, ...] = ("h2",)) -> Any:
    context = ssl.create_default_context(cafile=authority.file)
    context.set_alpn_protocols(protocols)
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    return context


def server_tls(signed: Signed, authority: Authority | None = None) -> Any:
    ours = None if authority is None else authority.file
    settings = ServerSettings(tls_certificate_file=signed.certificate, tls_key_file=signed.key, tls_client_ca_file=ours)
    return server_context(settings, ["h2"])


async def test_calls_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = server_tls(authority.sign("server"))
    async with open_door(METHODS, tls=context, client_tls=client_context(authority)) as door:
        client = await door.connect()
        assert client.stream.selected_alpn_protocol() == "h2"
        large = v1.ExecuteRequest(input_json="x" * 2_000_000)
        number = await client.send(ECHO, end=False)
        await send_all(client, number, framed(large))

        assert (await client.ended(number)).message().result_json == large.input_json

        garbage = await door.raw()
        async with garbage:
            await garbage.send_all(PREFACE)
            with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
                while await garbage.receive_some(1000):
                    pass
        assert (await client.call(ECHO, REQUEST)).status == 0


async def test_clients_must_show_a_certificate_if_required(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    context = server_tls(authority.sign("server"), authority)
    known = client_context(authority, authority.sign("client"))
    async with open_door(METHODS, tls=context, client_tls=known) as door:
        assert (await (await door.connect()).call(ECHO, REQUEST)).status == 0
        for shown in (None, stranger.sign("other")):
            door.tls = client_context(authority, shown)
            with pytest.raises((trio.BrokenResourceError, EOFError, OSError)):
                await (await door.connect()).call(ECHO, REQUEST)


async def test_a_handshake_that_does_not_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_connection, "HANDSHAKE_SECONDS", QUICK)
    context = server_tls(Authority(tmp_path).sign("server"))
    async with open_door(METHODS, tls=context) as door, await door.raw() as silent:
        with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
            assert await silent.receive_some(100) == b""


# Nothing is left behind


@asynccontextmanager
async def unchanged(clients: int = 0) -> AsyncIterator[None]:
    """Check that the numbers of tasks and descriptors are the same afterwards as before."""
    before, fds = trio.lowlevel.current_statistics().tasks_living, len(open_fds())
    yield
    await wait_until(
        lambda: trio.lowlevel.current_statistics().tasks_living <= before and len(open_fds()) <= fds,
        lambda: f"{trio.lowlevel.current_statistics().tasks_living - before} tasks, {len(open_fds()) - fds} fds",
    )


async def test_two_thousand_calls_of_all_kinds_leave_nothing() -> None:
    hanging = Hanging()
    async with open_door({HANG: hanging.method, **METHODS}) as door:
        warm = await door.connect()
        await warm.call(ECHO, REQUEST)
        async with unchanged():
            for _ in range(20):
                client = await door.connect()
                for number in range(100):
                    match number % 4:
                        case 0:
                            assert (await client.call(ECHO, REQUEST)).status == 0
                        case 1:
                            assert (await client.call("/test.Test/Refuse", REQUEST)).status == 8
                        case 2:
                            await client.reset(await client.send(HANG, REQUEST))
                        case 3:
                            assert (await client.call(HANG, REQUEST, metadata={"grpc-timeout": "1m"})).status == 4
                await client.aclose()
        assert (await warm.call(ECHO, REQUEST)).status == 0


def test_the_frames_in_these_tests_are_valid() -> None:
    """The bytes above are written by hand; a frame that hyperframe reads differently would test nothing."""
    frame, size = Frame.parse_frame_header(memoryview(PREFACE[24:33]))
    assert (type(frame).__name__, size) == ("SettingsFrame", 0)
    assert isinstance(Frame.parse_frame_header(memoryview(b"\0\0\x05\0\0\0\0\0\x01"))[0], DataFrame)
    assert isinstance(Frame.parse_frame_header(memoryview(b"\0\0\x01\x01\x05\0\0\0\x01"))[0], HeadersFrame)
