"""Unit: the table of states of an HTTP connection."""

from __future__ import annotations

import pytest

from runner.http.states import ENDING, TIME_LIMITS, TRANSITIONS, State, step
from tests.http_support import limits


def reachable(start: State) -> set[State]:
    found, waiting = {start}, [start]
    while waiting:
        following = set(TRANSITIONS[waiting.pop()]) - found
        found |= following
        waiting += following
    return found


def test_every_state_is_reachable_from_the_first() -> None:
    assert reachable(State.OPENING) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_connection_can_be_closed_and_then_stays_closed(state: State) -> None:
    assert State.CLOSED in reachable(state)
    assert TRANSITIONS[State.CLOSED] == ()


@pytest.mark.parametrize("state", ENDING)
def test_no_request_begins_while_a_connection_ends(state: State) -> None:
    assert reachable(state) <= set(ENDING)


def test_a_request_has_an_answer_before_the_next_one() -> None:
    """Otherwise the answers to pipelined requests could change places."""
    before = {state for state in State if State.IDLE in TRANSITIONS[state]}

    assert before == {State.ANSWERING}


def test_a_step_past_the_table_is_an_error() -> None:
    assert step(State.OPENING, State.SILENT) is State.SILENT
    with pytest.raises(RuntimeError, match="from CLOSED to IDLE"):
        step(State.CLOSED, State.IDLE)


def test_time_limits_are_limits() -> None:
    assert all(getattr(limits(), name) > 0 for name in TIME_LIMITS.values())
