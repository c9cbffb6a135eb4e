"""Unit: how the changes of runners to the state of one schedule come together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from actors.starts.firing import Schedule
from actors.starts.known import Known, merged_state
from actors.starts.stored import State
from config.timing import read_schedule

BASE = State(id="s", identity="every 1h", cursor=10.0, started=3, pending=(5.0,))


def test_counts_of_both_are_added_and_the_later_cursor_counts():
    mine = replace(BASE, cursor=20.0, started=4, last_execution="m", last_for=20.0)
    theirs = replace(BASE, cursor=30.0, started=5, skipped=1)

    merged = merged_state(BASE, mine, theirs)

    assert merged == replace(theirs, cursor=30.0, started=6, skipped=1, last_execution="m", last_for=20.0)


def test_a_pause_stays_beside_progress():
    assert merged_state(BASE, replace(BASE, cursor=20.0), replace(BASE, paused_by="lee")).paused_by == "lee"
    assert merged_state(BASE, replace(BASE, paused_by="lee"), replace(BASE, cursor=20.0)).paused_by == "lee"


def test_without_a_common_state_theirs_counts():
    theirs = replace(BASE, cursor=1.0)

    assert merged_state(None, BASE, theirs) == theirs
    assert merged_state(BASE, replace(BASE, cursor=20.0), replace(theirs, identity="every 2h")).cursor == 1.0


counts = st.integers(0, 5)


@given(counts, counts, counts, counts)
def test_the_order_of_the_writers_does_not_matter_for_counts(one, two, skipped, failed):
    mine = replace(BASE, started=BASE.started + one, skipped=skipped)
    theirs = replace(BASE, started=BASE.started + two, failed=failed)

    merged, other = merged_state(BASE, mine, theirs), merged_state(BASE, theirs, mine)

    assert (merged.started, merged.skipped, merged.failed) == (BASE.started + one + two, skipped, failed)
    assert (other.started, other.skipped, other.failed) == (merged.started, merged.skipped, merged.failed)


@pytest.fixture
def known():
    made = Known(lambda: 15.0)
    made.enter(Schedule("s", "echo", read_schedule({"every": "1h"}), BASE), None, written=True).shared = BASE
    return made


def test_a_state_that_comes_back_counts_once(known):
    schedule = known.by_id["s"]
    schedule.set(started=4, cursor=14.0)
    schedule.sending(schedule.state)
    schedule.set(failed=1)
    known.adopt(states=[replace(BASE, started=4, cursor=14.0)])

    assert (schedule.state.started, schedule.state.failed, schedule.changed) == (4, 1, True)
    known.adopt(states=[schedule.sending(schedule.state)])
    assert (schedule.state.started, schedule.state.failed, schedule.changed) == (4, 1, False)


def test_a_state_may_come_before_its_schedule(known):
    early = replace(BASE, id="m:daily", paused_by="lee")
    known.adopt(states=[early])

    assert known.state_before("m:daily") == early
    assert known.state_before("m:daily") is None
