"""Unit: the log of a build: numbered, bounded, pulled by any number of readers; slow ones get a count of lost lines."""

from __future__ import annotations

import trio
import trio.testing

from actors.workers.build_log import BuildLog
from environments.base import Prepared
from protocol.errors import ErrorKind, Failure
from runner.cli.building import amount_in, follow

READY = Prepared("k", (), {})
FAILED = Failure(ErrorKind.ENVIRONMENT_FAILED, "no")


def test_a_reader_gets_new_lines():
    said = BuildLog(keep=3)
    for text in "abc":
        said.add(text)

    assert said.read(0).lines == ("a", "b", "c")
    assert said.read(2).lines == ("c",)
    assert said.read(3).lines == ()
    assert said.read(0).next == said.read(2).next == said.read(3).next == 3


def test_a_slow_reader_gets_the_number_of_missed_lines():
    said = BuildLog(keep=3)
    for text in "abcdef":
        said.add(text)
    found = said.read(1)

    assert (found.dropped, found.first, found.lines, found.next) == (2, 3, ("d", "e", "f"), 6)


def test_lines_are_bounded():
    said = BuildLog(keep=2)
    for _ in range(1000):
        said.add("x" * 10_000)

    assert len(said.last(1000)) == 2
    assert max(map(len, said.last(2))) == 2000


def test_the_first_end_counts():
    said = BuildLog()
    said.end(prepared=READY)
    said.end(failure=FAILED)

    assert said.ended
    assert (said.prepared, said.failure) == (READY, None)


async def test_readers_wait_for_lines_and_for_the_end(autojump_clock):
    said = BuildLog()
    seen = []

    async def read(name):
        number = 0
        while not said.ended or number < said.next_number:
            await said.wait(number)
            found = said.read(number)
            number = found.next
            seen.extend((name, line) for line in found.lines)

    async with trio.open_nursery() as nursery:
        for name in "xy":
            nursery.start_soon(read, name)
        nursery.start_soon(said.wait_ended)
        for line in "ab":
            await trio.testing.wait_all_tasks_blocked()
            said.add(line)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(seen) == [("x", "a"), ("x", "b"), ("y", "a"), ("y", "b")]
        said.end(failure=FAILED)


async def test_a_wait_that_is_cancelled_leaves_nothing(autojump_clock):
    said = BuildLog()
    with trio.move_on_after(1) as scope:
        await said.wait(0)

    assert scope.cancelled_caught
    said.add("a")
    await said.wait(0)


async def test_all_lines_are_shown_with_the_number_of_missed_ones():
    said = BuildLog(keep=2)
    for text in ("a", "b", " ", "d"):
        said.add(text)
    said.end(prepared=READY)
    shown = []
    await follow(said, shown.append)

    assert shown == ["(2 lines are left out)", "d"]


def test_the_progress_of_a_build_is_read_from_its_lines():
    assert amount_in("downloading numpy: 12.0 of 80.5 MB") == (12.0, 80.5)
    assert amount_in("installing zlib (3 of 9)") == (3.0, 9.0)
    assert amount_in("pulling x: 0.0 of 0.0 MB") is None
    assert amount_in("Resolved 1 package in 41ms") is None
