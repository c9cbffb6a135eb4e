"""Unit: the writes of a connection whose protocol keeps its own queue, and the counts of floods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from runner.wire import FloodError, Floods, Output
from runner.wire.floods import CHEAP_BYTES, MAX_RESETS, MAX_UNREAD_REPLIES, RESETS_SECONDS


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


def test_cheap_bytes_of_one_second_are_bounded() -> None:
    floods = Floods()
    for second in range(5):
        floods.arrived(CHEAP_BYTES, 2.0 * second)
        floods.check(blocked=False)
    floods.arrived(1000, 8.5)
    floods.useful(1000)
    floods.check(blocked=False)
    floods.arrived(1, 8.6)

    with pytest.raises(FloodError, match="carry no call"):
        floods.check(blocked=False)
    with pytest.raises(FloodError, match="not read"):
        floods.check(blocked=True)


def test_cancelled_calls_are_bounded() -> None:
    floods = Floods()
    for moment in (0.0, RESETS_SECONDS + 1):
        for _ in range(MAX_RESETS):
            floods.reset(moment)

    with pytest.raises(FloodError, match="cancelled"):
        floods.reset(RESETS_SECONDS + 2)


def test_only_answers_that_are_not_read_count() -> None:
    floods = Floods()
    for _ in range(3):
        floods.refused(blocked=False)
        for _ in range(MAX_UNREAD_REPLIES):
            floods.refused(blocked=True)

    with pytest.raises(FloodError, match="not read"):
        floods.refused(blocked=True)
