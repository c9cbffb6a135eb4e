"""Unit: the writes of a connection whose protocol keeps its own queue, and the counts of floods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from runner.wire import FloodError, Floods, Output
from runner.wire.floods import CHEAP_FRAMES, MAX_RESETS, MAX_UNREAD, RESETS_SECONDS


def frame(kind: int, flags: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 1]) + payload


class Kernel:
    """A wire with room for a number of bytes."""

    secure = opened = True
    ready = pending = False

    def __init__(self, room: int) -> None:
        self.room = room
        self.writes: list[bytes] = []
        self.writable = trio.Event()

    def open_now(self) -> bool:
        return True

    async def open(self) -> None:
        raise AssertionError

    async def receive(self, size: int) -> bytes:
        raise AssertionError

    def receive_now(self, size: int) -> bytes | None:
        raise AssertionError

    def send_now(self, data: bytes | memoryview) -> int:
        if self.room < 0:
            raise BrokenPipeError
        sent = bytes(data[: self.room])
        self.room -= len(sent)
        self.writes.append(sent)
        return len(sent)

    async def wait_writable(self) -> None:
        await self.writable.wait()
        self.writable = trio.Event()

    def end(self) -> None:
        raise AssertionError

    def make_room(self, size: int) -> None:
        self.room += size
        self.writable.set()


def output(kernel: Kernel, nursery: trio.Nursery, parts: list[bytes], failed: Callable[[Exception], None]) -> Output:
    return Output(kernel, nursery, 5.0, lambda: parts.pop(0) if parts else b"", failed)


def never(problem: Exception) -> None:
    raise AssertionError from problem


async def test_no_task_runs_while_the_kernel_has_room() -> None:
    kernel = Kernel(100)
    async with trio.open_nursery() as nursery:
        parts = [b"one", b"two"]
        output(kernel, nursery, parts, never).push()

        assert kernel.writes == [b"one", b"two"]
        assert not nursery.child_tasks


async def test_a_task_sends_the_rest_in_order_and_ends(autojump_clock: trio.testing.MockClock) -> None:
    kernel = Kernel(4)
    async with trio.open_nursery() as nursery:
        parts = [b"one", b"two"]
        out = output(kernel, nursery, parts, never)
        out.push()
        parts.append(b"three")
        out.push()
        assert out.blocked
        for _ in range(4):
            await trio.testing.wait_all_tasks_blocked()
            kernel.make_room(2)
        await trio.testing.wait_all_tasks_blocked()

        assert b"".join(kernel.writes) == b"onetwothree"
        assert not out.blocked
        assert not nursery.child_tasks


@pytest.mark.parametrize("room", [-1, 1], ids=["gone", "reads nothing"])
async def test_the_owner_learns_of_a_client_that_is_lost(room: int, autojump_clock: trio.testing.MockClock) -> None:
    kernel = Kernel(room)
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        def failed(problem: Exception) -> None:
            failures.append(problem)
            out.close()

        out = output(kernel, nursery, [b"one"], failed)
        out.push()

    assert [type(each) for each in failures] == [BrokenPipeError if room < 0 else TimeoutError]


async def test_many_writes_let_other_tasks_run() -> None:
    kernel = Kernel(1000)
    async with trio.open_nursery() as nursery:
        output(kernel, nursery, [b"x"] * 20, never).push()
        at_once = len(kernel.writes)
        kernel.writable.set()
        while len(kernel.writes) < 20:
            await trio.testing.wait_all_tasks_blocked()
            kernel.writable.set()

    assert at_once < 10


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING, EMPTY, PADDING = frame(6, 0, b"12345678"), frame(0, 0), frame(0, 8, b"\x01aa")
DATA, HEAD = frame(0, 0, b"aa"), frame(1, 4, b"\x83")


@pytest.mark.parametrize("cheap", [PING, EMPTY, PADDING, frame(250, 0, b"abc")])
@pytest.mark.parametrize("size", [7, 1000, 1_000_000])
def test_cheap_frames_of_one_second_are_bounded_however_they_arrive(cheap: bytes, size: int) -> None:
    floods = Floods()
    sent = PREFACE
    for second in range(3):
        sent += (HEAD + DATA + cheap) * CHEAP_FRAMES
        for start in range(0, len(sent), size):
            floods.arrived(sent[start : start + size], 2.0 * second, blocked=False)
        sent = b""
    floods.allow(1)
    floods.arrived(cheap, 4.5, blocked=False)

    with pytest.raises(FloodError, match="carry no call"):
        floods.arrived(cheap, 4.6, blocked=False)


def test_cancelled_calls_are_bounded() -> None:
    floods = Floods()
    for moment in (0.0, RESETS_SECONDS + 1):
        for _ in range(MAX_RESETS):
            floods.reset(moment)

    with pytest.raises(FloodError, match="cancelled"):
        floods.reset(RESETS_SECONDS + 2)


def test_only_calls_of_a_client_that_does_not_read_count() -> None:
    floods = Floods()
    floods.arrived(PREFACE, 0.0, blocked=False)
    for _ in range(3):
        floods.arrived(HEAD, 1.0, blocked=False)
        floods.arrived((HEAD + DATA) * MAX_UNREAD, 1.0, blocked=True)

    with pytest.raises(FloodError, match="not read"):
        floods.arrived(HEAD, 1.0, blocked=True)
