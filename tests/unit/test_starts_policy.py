"""Unit: what a schedule starts at a moment, and the timer of all schedules."""

import math

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.starts.policy import MOST_MISSED, ON_TIME_SECONDS, delay, due
from actors.starts.timer import Timer
from config.timing import read_schedule

NOW = 1_800_000_000.0 - 1_800_000_000.0 % 86400
HOUR = 3600.0


def spec(**fields):
    return read_schedule({"every": "1h", **fields})


def test_an_instant_is_on_time_for_a_minute():
    found = due(spec(), "s", NOW - 1, NOW + ON_TIME_SECONDS - 1)

    assert (found.on_time, found.late, found.missed) == ((NOW,), (), 0)
    assert (found.cursor, found.next) == (NOW, NOW + HOUR)


def test_nothing_is_due_before_its_instant():
    found = due(spec(), "s", NOW, NOW + HOUR - 0.001)

    assert (found.on_time, found.late, found.cursor, found.next) == ((), (), NOW, NOW + HOUR)


def test_missed_instants_are_left_out_by_default():
    found = due(spec(), "s", NOW - 10 * HOUR, NOW + 600)

    assert (found.on_time, found.late) == ((), ())
    assert found.missed >= 1
    assert found.next == NOW + HOUR


def test_the_last_missed_instant_starts_unless_one_is_on_time():
    last = spec(misfire="last")

    assert due(last, "s", NOW - 10 * HOUR, NOW + 600).late == (NOW,)
    on_time = due(last, "s", NOW - 10 * HOUR, NOW + 10)
    assert (on_time.on_time, on_time.late) == ((NOW,), ())


def test_all_missed_instants_start_up_to_a_hundred():
    every = spec(misfire="all")

    assert due(every, "s", NOW - 3 * HOUR, NOW + 600).late == (NOW - 2 * HOUR, NOW - HOUR, NOW)
    many = due(every, "s", NOW - 10_000 * HOUR, NOW + 10)
    assert len(many.late) == MOST_MISSED
    assert many.late[-1] == NOW - HOUR
    assert many.on_time == (NOW,)


def test_a_year_of_missed_minutes_is_no_work():
    for misfire in ("skip", "last", "all"):
        schedule = read_schedule({"cron": "* * * * *", "timezone": "Europe/Berlin", "misfire": misfire})
        found = due(schedule, "s", NOW - 366 * 86400, NOW)
        assert found.on_time == (NOW,)
        assert len(found.late) == {"skip": 0, "last": 0, "all": MOST_MISSED}[misfire]


def test_a_moment_starts_once():
    once = read_schedule({"at": "2027-01-31T09:30:00Z", "misfire": "last"})
    at = once.timing.at

    assert due(once, "s", at - 5, at).on_time == (at,)
    assert due(once, "s", at - 5, at + 86400).late == (at,)
    settled = due(once, "s", at, at + 1)
    assert (settled.on_time, settled.late, settled.next) == ((), (), None)


def test_jitter_is_fixed_for_schedule_and_instant_and_spreads():
    jittered = spec(jitter="30s")
    delays = {delay(jittered, f"s{number}", NOW) for number in range(100)}

    assert delay(jittered, "s", NOW) == delay(jittered, "s", NOW)
    assert len(delays) == 100
    assert min(delays) < 5
    assert 25 < max(delays) < 30


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.floats(0.1, 50.0), min_size=1, max_size=60),
    jitter=st.sampled_from([0, 7, 30]),
    misfire=st.sampled_from(["skip", "last", "all"]),
)
def test_looking_often_starts_every_instant_once(steps, jitter, misfire):
    schedule = read_schedule({"every": "30s", "jitter": jitter, "misfire": misfire})
    cursor = now = NOW
    started = []
    for step in steps:
        now += step
        found = due(schedule, "s", cursor, now)
        assert not found.late
        started += found.on_time
        cursor = found.cursor

    settled = [at for n in range(1, 200) if (at := NOW + n * 30.0) + delay(schedule, "s", at) <= now]
    assert started == settled[: len(started)]
    assert len(settled) - len(started) <= 1


async def test_the_timer_takes_what_is_due_in_order_and_forgets_what_moved():
    now = [100.0]
    timer = Timer(lambda: now[0])
    for name, at in (("b", 102.0), ("a", 101.0), ("c", 103.0), ("c", 500.0), ("d", 101.5)):
        timer.put(name, at)
    timer.put("d", None)

    assert timer.take(10) == []
    now[0] = 110.0
    assert timer.take(1) == ["a"]
    assert timer.take(10) == ["b"]
    assert timer.take(10) == []


async def test_the_timer_keeps_no_more_than_twice_its_schedules():
    timer = Timer(lambda: 0.0)
    for number in range(10_000):
        timer.put("a", 1000.0 + number)

    assert len(timer._heap) < 300


async def test_the_timer_sleeps_until_something_is_due_or_it_is_rung(autojump_clock):
    timer = Timer(lambda: 1000.0 + trio.current_time())
    timer.put("a", timer.clock() + 0.5)
    began = trio.current_time()
    await timer.sleep()
    assert math.isclose(trio.current_time() - began, 0.5, abs_tol=0.01)

    timer.put("a", timer.clock() + 500)
    began = trio.current_time()
    await timer.sleep()
    assert math.isclose(trio.current_time() - began, 1.0, abs_tol=0.01)

    timer.put("a", None)
    timer.ring()
    await timer.sleep()


async def test_the_timer_notices_a_clock_that_is_set(autojump_clock):
    shift = [0.0]
    timer = Timer(lambda: 1000.0 + trio.current_time() + shift[0])

    assert timer.jumped() == 0
    shift[0] = 0.5
    assert timer.jumped() == 0
    shift[0] -= 3600
    assert round(timer.jumped()) == -3600
    assert timer.jumped() == 0
