"""Unit: the bytes that the unfinished requests of all callers share."""

from runner.wire import Budget


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
