"""Unit: the bytes that the unfinished requests of all callers share."""

import trio
from trio.testing import wait_all_tasks_blocked

from runner.wire import Budget, Share


def test_no_more_than_the_limit_is_taken_until_some_is_given_back() -> None:
    budget = Budget(10)
    assert budget.take(6)
    assert not budget.take(5)
    assert budget.taken == 6
    assert budget.take(4)
    budget.give(6)
    assert budget.take(5)
    assert budget.taken == 9


def test_a_request_over_the_limit_takes_nothing() -> None:
    budget = Budget(10)
    assert not budget.take(11)
    assert budget.taken == 0


async def test_those_that_wait_have_their_turns_in_order() -> None:
    budget, served = Budget(10), []

    async def wait(name: str, size: int) -> None:
        assert await budget.wait(size, 60)
        served.append(name)

    assert budget.take(8)
    async with trio.open_nursery() as nursery:
        for name, size in (("first", 9), ("second", 2)):
            nursery.start_soon(wait, name, size)
            await wait_all_tasks_blocked()
        assert not budget.take(1), "those that wait come first"
        budget.give(8)
        await wait_all_tasks_blocked()
        assert served == ["first"]
        budget.give(9)
    assert served == ["first", "second"]
    assert budget.taken == 2


async def test_a_wait_in_vain_takes_nothing_and_lets_the_next_have_its_turn(autojump_clock: object) -> None:
    budget = Budget(10)
    assert budget.take(8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(budget.wait, 9, 1)
        await wait_all_tasks_blocked()
        assert await budget.wait(2, 60)
    assert budget.taken == 10


async def test_a_share_counts_large_answers_only_and_the_largest_as_the_whole() -> None:
    budget = Budget(100_000)
    first, second = Share(budget), Share(budget)
    assert first.take(200_000)
    assert budget.taken == 100_000
    assert second.take(65_536)
    assert not second.take(65_537)
    first.give()
    first.give()
    assert budget.taken == 0
