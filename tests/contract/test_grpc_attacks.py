"""Contract: clients that want to hold the gRPC door shut are cut off, and other callers are served meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, PingFrame, PriorityFrame, SettingsFrame, WindowUpdateFrame

from protocol.rpc.operato.runner import v1
from runner.grpc import connection as grpc_connection
from runner.grpc.call import Call, Method
from runner.wire import Budget, silence
from tests.grpc_client import PATIENCE, Client, GrpcStatus, OpenDoor, framed, open_door
from tests.support import wait_until

ROOT = Path(__file__).resolve().parents[2]
ECHO, HANG = "/test.Test/Echo", "/test.Test/Hang"
REQUEST = v1.ExecuteRequest(module_name="m", input_json="1")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
CALL = b"\x83\x86\x01\x01h\x04\x0f/test.Test/Hang\x1f\x10\x10application/grpc"
"""The metadata of a call, without a table."""
CALM, MEGABYTE = 11, 1 << 20


async def echo(call: Call) -> Any:
    request = await call.receive()
    return v1.ExecuteResponse(result_json=request.input_json)


async def hang(call: Call) -> Any:
    await trio.sleep_forever()


METHODS = {ECHO: Method(echo, v1.ExecuteRequest), HANG: Method(hang, v1.ExecuteRequest)}


@pytest.fixture
async def door() -> AsyncIterator[OpenDoor]:
    async with open_door(METHODS) as opened:
        yield opened


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class Resets:
    """Calls that are cancelled at once."""

    def __init__(self) -> None:
        self.number = 1

    def __call__(self) -> bytes:
        self.number += 2
        return frame(1, 4, self.number, CALL) + frame(3, 0, self.number, b"\0\0\0\x08")


FLOODS: dict[str, Callable[[], Callable[[], bytes]]] = {
    "pings": lambda: PingFrame(0, b"12345678").serialize,
    "pongs": lambda: PingFrame(0, b"12345678", flags=["ACK"]).serialize,
    "settings": lambda: SettingsFrame(0).serialize,
    "priorities": lambda: PriorityFrame(1, depends_on=0, stream_weight=1).serialize,
    "windows": lambda: WindowUpdateFrame(0, window_increment=1).serialize,
    "windows of a call": lambda: WindowUpdateFrame(1, window_increment=1).serialize,
    "empty data": lambda: DataFrame(1).serialize,
    "padding": lambda: DataFrame(1, b"", pad_length=255, flags=["PADDED"]).serialize,
    "unknown frames": lambda: lambda: frame(0xFA, 0xFF, 0),
    "continuations": lambda: lambda: frame(9, 0, 3),
    "resets": Resets,
}


async def flood(door: OpenDoor, make: Callable[[], bytes]) -> list[Frame]:
    """Send frames of one kind as fast as the server reads them, until it closes the connection; return its frames."""
    received = bytearray()
    async with await door.raw() as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(PREFACE + frame(1, 4, 1, CALL))
                while True:
                    await stream.send_all(b"".join(make() for _ in range(100)))

        nursery.start_soon(send)
        with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(65_536):
                received += data
        nursery.cancel_scope.cancel()
    frames = []
    while len(received) >= 9:
        parsed, size = Frame.parse_frame_header(memoryview(received)[:9])
        parsed.parse_body(memoryview(received)[9 : 9 + size])
        frames.append(parsed)
        received = received[9 + size :]
    return frames


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_cheap_frames_is_cut_and_told(door: OpenDoor, kind: str) -> None:
    other = await door.connect()
    make = FLOODS[kind]()
    begin = frame(1, 0, 3, b"") if kind == "continuations" else b""
    once = [begin]

    frames = await flood(door, lambda: (once.pop() if once else b"") + make())

    last = frames[-1]
    assert isinstance(last, GoAwayFrame)
    assert last.error_code == CALM
    assert last.last_stream_id >= 1, "a client may repeat calls above this one"
    assert (await other.call(ECHO, REQUEST)).status == 0


async def test_others_are_served_while_floods_arrive(door: OpenDoor) -> None:
    """No flood is longer than a few reads, so that another call never waits for more than some milliseconds of work."""
    other = await door.connect()
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        async with trio.open_nursery() as nursery:
            for kind in ("pings", "settings", "unknown frames", "resets", "windows"):
                nursery.start_soon(flood, door, FLOODS[kind]())
            for _ in range(20):
                assert (await other.call(ECHO, REQUEST)).status == 0
    finally:
        trio.lowlevel.remove_instrument(steps)
    assert 0 < steps.longest < 0.25


class Steps(trio.abc.Instrument):
    """The longest step of the server's tasks, in seconds of work of this thread, to which no other process adds."""

    longest = 0.0
    _began = float("inf")

    def before_task_step(self, task: Any) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: Any) -> None:
        if task.name.startswith(("runner.", "/")):
            self.longest = max(self.longest, time.thread_time() - self._began)


async def test_a_client_that_opens_windows_for_what_it_reads_is_no_flood() -> None:
    """Two windows for each message and each frame is the most that a client needs."""

    async def many(call: Call) -> None:
        for _ in range(20_000):
            await call.send(v1.ExecuteResponse(result_json="x"))

    async with open_door({ECHO: Method(many, v1.ExecuteRequest)}) as door:
        client = await door.connect()
        number = await client.send(ECHO, REQUEST)
        with trio.fail_after(PATIENCE):
            while not client.answers[number].ended:
                before = client.answers[number].received
                await client.more()
                for _ in range((client.answers[number].received - before) // len(framed(REQUEST))):
                    client.http.increment_flow_control_window(1)
                    with suppress(Exception):
                        client.http.increment_flow_control_window(1, number)
                await client.flush()

        assert client.answers[number].status == 0


async def test_data_of_a_refused_call_that_is_on_its_way_does_not_end_the_connection() -> None:
    async with open_door(METHODS, max_message_bytes=1000) as door:
        client = await door.connect()
        running = await client.send(HANG, REQUEST)
        for _ in range(20):
            number = await client.send(ECHO, b"\0\0\1\0\0", end=False, flush=False)
            for _ in range(40):
                if client.http.local_flow_control_window(number) >= 16_384:
                    client.http.send_data(number, bytes(16_384))
            await client.flush()
            assert (await client.ended(number)).status == GrpcStatus.RESOURCE_EXHAUSTED

        assert (await client.call(ECHO, REQUEST)).status == 0
        assert not client.answers[running].ended


# Memory


async def test_unfinished_messages_of_all_callers_have_one_bound() -> None:
    budget = Budget(2 * MEGABYTE)
    half = b"\0" + MEGABYTE.to_bytes(4, "big") + b"x" * (MEGABYTE - 100)
    async with open_door(METHODS, budget=budget) as door:
        clients = [await door.connect() for _ in range(3)]
        numbers = [await client.send(ECHO, end=False) for client in clients]
        for client, number in zip(clients[:2], numbers, strict=False):
            await send_data(client, number, half)
        await wait_until(lambda: budget.taken == 2 * len(half), "the messages wait for their ends")

        await send_data(clients[2], numbers[2], half)
        refused = await clients[2].ended(numbers[2])
        await clients[0].reset(numbers[0])
        await clients[1].aclose()
        await wait_until(lambda: budget.taken == 0, "their bytes are given back")
        served = await clients[2].call(ECHO, v1.ExecuteRequest(input_json="x" * 10_000))

    assert (refused.status, refused.said["operato-kind"]) == (GrpcStatus.RESOURCE_EXHAUSTED, "overloaded")
    assert refused.said["retry-after"] == "1"
    assert "max_buffered" in refused.said["grpc-message"]
    assert served.status == 0
    assert budget.taken == 0


async def send_data(client: Client, number: int, data: bytes) -> None:
    """Send as the windows allow, until all is sent or the call has ended."""
    with trio.fail_after(PATIENCE):
        while data and not client.answers[number].ended:
            size = min(client.http.local_flow_control_window(number), 16_384, len(data))
            if size <= 0:
                await client.more()
                continue
            client.http.send_data(number, data[:size])
            data = data[size:]
            await client.flush()


@pytest.mark.parametrize("text", ["x" * 16_000_000, "ä" * 8_000_000], ids=["ascii", "two bytes"])
async def test_large_messages_do_not_hold_the_loop(text: str) -> None:
    async with open_door(METHODS) as door:
        steps = Steps()

        def call() -> bytes:
            message = bytes(v1.ExecuteRequest(input_json=text))
            options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            with grpc.insecure_channel(f"127.0.0.1:{door.port}", options=options) as channel:
                answer: bytes = channel.unary_unary(ECHO)(message, timeout=PATIENCE)
                return answer

        trio.lowlevel.add_instrument(steps)
        try:
            answer = await trio.to_thread.run_sync(call)
        finally:
            trio.lowlevel.remove_instrument(steps)

    assert len(answer) == len(bytes(v1.ExecuteResponse(result_json=text)))
    assert 0 < steps.longest < 0.25


async def test_a_stream_of_tiny_messages_does_not_hold_the_loop() -> None:
    others = 0

    async def count(call: Call) -> Any:
        nonlocal others
        received = 0
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                nonlocal others
                while True:
                    await trio.lowlevel.checkpoint()
                    others += 1

            nursery.start_soon(other)
            async for _ in call:
                received += 1
            nursery.cancel_scope.cancel()
        return v1.ExecuteResponse(result_json=str(received))

    async with open_door({ECHO: Method(count, v1.ExecuteRequest)}) as door:
        client = await door.connect()
        number = await client.send(ECHO, end=False)
        await send_data(client, number, b"\0\0\0\0\0" * 100_000)
        client.http.end_stream(number)
        await client.flush()
        answer = await client.ended(number)

    assert answer.message().result_json == "100000"
    assert others > 1000


# Connections


async def test_silent_connections_do_not_close_the_door() -> None:
    async with open_door(METHODS, max_connections=20) as door:
        silent = [await door.raw() for _ in range(100)]
        client = await door.connect()

        assert (await client.call(ECHO, REQUEST)).status == 0

        for stream in silent:
            await stream.aclose()


async def test_a_client_that_says_nothing_after_the_handshake_of_http2_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels connect early; they are closed only when the door is full."""
    monkeypatch.setattr(grpc_connection, "FIRST_SECONDS", 0.2)
    async with open_door(METHODS) as door:
        client, silent = await door.connect(), await door.raw()
        async with silent:
            with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
                while await silent.receive_some(65_536):
                    pass

        assert (await client.call(ECHO, REQUEST)).status == 0


async def test_half_calls_give_their_places_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of connections and of calls; a call at work keeps its own."""
    monkeypatch.setattr(silence, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(silence, "PAUSE_SECONDS", 0.0)
    budget = Budget(MEGABYTE)
    async with open_door(METHODS, budget=budget, max_connections=3, max_calls=4) as door:
        works, silent, many = await door.connect(), await door.connect(), await door.connect()
        await works.send(HANG, end=False)
        await silent.send(ECHO, framed(REQUEST)[:7], end=False)
        await wait_until(lambda: budget.taken == 7, "the half has arrived")
        for _ in range(2):
            first = await many.send(ECHO, framed(REQUEST)[:7], end=False)
        await wait_until(lambda: budget.taken == 21, "the halves have arrived")

        client = await door.connect()
        assert (await client.call(ECHO, REQUEST)).status == 0
        await silent.until_closed()
        for _ in range(2):
            await many.send(ECHO, framed(REQUEST)[:7], end=False)
        assert (await many.ended(first - 2)).status == 8  # before the next, as a client may have four streams only
        assert (await many.call(ECHO, REQUEST)).status == 0
        assert not works.closed


# The loop


def test_no_asyncio_loop_exists_beside_the_door() -> None:
    """Libraries import asyncio; nothing runs it."""
    program = """
import asyncio, gc, sys
import trio
from tests.contract.test_grpc_attacks import ECHO, METHODS, REQUEST
from tests.grpc_client import open_door
async def main():
    async with open_door(METHODS) as door:
        client = await door.connect()
        assert (await client.call(ECHO, REQUEST)).status == 0
        loops = [each for each in gc.get_objects() if isinstance(each, asyncio.AbstractEventLoop)]
        print(len(loops), "trio_asyncio" in sys.modules)
trio.run(main)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.stdout == "0 False\n", ended.stderr
