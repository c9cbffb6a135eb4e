"""Unit: the instants of cron expressions in time zones, against a clock that is read minute by minute."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config.mistakes import Wrong
from config.timing import Cron

ZONES = {
    "Asia/Seoul": ["2027-03-20"],
    "Europe/Berlin": ["2027-03-28", "2027-10-31"],
    "America/New_York": ["2027-03-14", "2027-11-07"],
    "Australia/Lord_Howe": ["2027-04-03", "2027-10-02"],
    "Pacific/Chatham": ["2027-04-03", "2027-09-25"],
    "Antarctica/Troll": ["2027-03-28", "2027-10-31"],
}
CHANGES = [(zone, day) for zone, days in ZONES.items() for day in days]
DAYS = 3


def minute_by_minute(text, zone, start):
    """Return the instants of three days by the rules of cron(8), from a clock on the wall that is read each minute."""
    walk, fields = CronSim(text, datetime(2027, 1, 1, tzinfo=UTC)), text.split()
    wild = fields[0].startswith("*") or fields[1].startswith("*")

    def matches(wall):
        return (
            wall.minute in walk.minutes
            and wall.hour in walk.hours
            and wall.month in walk.months
            and walk.match_day(wall.date())
        )

    found, latest = [], shown(start, zone)
    for minute in range(1, DAYS * 24 * 60 + 1):
        instant = start + timedelta(minutes=minute)
        wall = shown(instant, zone)
        if wild:
            due = matches(wall)
        else:  # all times since the latest that the clock has shown, and none that it shows again
            passed = int((wall - latest).total_seconds()) // 60
            due = any(matches(latest + timedelta(minutes=n)) for n in range(1, passed + 1))
            latest = max(latest, wall)
        if due:
            found.append(instant.timestamp())
    return found


def shown(instant, zone):
    return instant.astimezone(zone).replace(tzinfo=None)


def computed(cron, start):
    found, at, end = [], start.timestamp(), (start + timedelta(days=DAYS)).timestamp()
    while (at := cron.next(at)) is not None and at <= end:
        found.append(at)
    return found


def field(low, high):
    number = st.integers(low, high)
    several = st.lists(number, min_size=1, max_size=3, unique=True).map(lambda each: ",".join(map(str, sorted(each))))
    span = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    step = st.integers(1, 25)
    stepped = st.tuples(st.one_of(st.just("*"), span), step).map(lambda pair: f"{pair[0]}/{pair[1]}")
    return st.one_of(st.just("*"), number.map(str), several, span, stepped)


@settings(max_examples=150, deadline=None)
@given(
    change=st.sampled_from(CHANGES),
    minute=field(0, 59),
    hour=st.one_of(field(0, 5), field(0, 23)),
    weekday=st.sampled_from(["*", "*", "sun", "mon-sat", "0,7"]),
    offset=st.integers(0, 24 * 60 - 1),
)
@example(change=("Pacific/Chatham", "2027-04-03"), minute="*/15", hour="3", weekday="*", offset=0)
@example(change=("Australia/Lord_Howe", "2027-04-03"), minute="*/10", hour="2", weekday="*", offset=0)
@example(change=("Australia/Lord_Howe", "2027-04-03"), minute="30", hour="*", weekday="*", offset=0)
@example(change=("Australia/Lord_Howe", "2027-10-02"), minute="15", hour="2", weekday="*", offset=0)
@example(change=("Europe/Berlin", "2027-03-28"), minute="1-59/2", hour="2", weekday="*", offset=0)
@example(change=("Europe/Berlin", "2027-10-31"), minute="1-59/2", hour="2", weekday="*", offset=0)
@example(change=("Antarctica/Troll", "2027-10-31"), minute="30", hour="2,3", weekday="*", offset=0)
def test_instants_are_those_of_a_clock_on_the_wall(change, minute, hour, weekday, offset):
    name, day = change
    text = f"{minute} {hour} * * {weekday}"
    start = datetime.fromisoformat(day).replace(tzinfo=UTC) - timedelta(days=1) + timedelta(minutes=offset)

    assert computed(Cron.parse(text, name), start) == minute_by_minute(text, ZoneInfo(name), start)


def test_looking_back_reaches_so_many_instants():
    cron, now = Cron.parse("*/7 1-20 * * mon", "Europe/Berlin"), datetime(2027, 10, 31, 12, tzinfo=UTC).timestamp()

    at, found = cron.back(50, now, 0.0), 0
    while (at := cron.next(at)) <= now:
        found += 1

    assert 50 <= found < 300


def test_looking_back_ends_at_the_settled_instants():
    cron, now = Cron.parse("0 0 29 2 */7"), datetime(2027, 1, 1, tzinfo=UTC).timestamp()

    assert cron.back(100, now, now - 600) == now - 600, "not the 29th of February of another century"


@given(st.lists(st.integers(0, 400), min_size=2, max_size=6))
def test_an_answer_is_the_same_after_any_other(days):
    start = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    asked = Cron.parse("30 4 1,15 * *", "Europe/Berlin")

    for each in days:
        at = start + each * 86400 - each % 3 * 0.5
        assert asked.next(at) == Cron.parse("30 4 1,15 * *", "Europe/Berlin").next(at)


def test_an_instant_years_away_is_found_and_one_after_the_calendar_is_none():
    leap = Cron.parse("0 12 29 2 *", "America/New_York")
    now = datetime(2027, 1, 1, tzinfo=UTC).timestamp()

    assert datetime.fromtimestamp(leap.next(now), UTC) == datetime(2028, 2, 29, 17, tzinfo=UTC)
    assert leap.next(datetime(9998, 1, 1, tzinfo=UTC).timestamp()) is None


@pytest.mark.parametrize(
    ("text", "same"),
    [("@daily", "0 0 * * *"), ("@hourly", "0 * * * *"), ("@Weekly", "0 0 * * sun"), ("@yearly", "0 0 1 jan *")],
)
def test_names_mean_expressions(text, same):
    now = datetime(2027, 5, 5, tzinfo=UTC).timestamp()

    assert Cron.parse(text).next(now) == Cron.parse(same).next(now)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 0 30 2 *", "never comes: month 2 has no day 30"),
        ("0 0 31 4,6,9,11 *", "never comes: month 4,6,9,11 has no day 31"),
        ("0 0 30 feb *", "never comes: month feb has no day 30"),
        ("61 0 * * *", "'61' is no minute: 0 to 59"),
        ("0 24 * * *", "'24' is no hour: 0 to 23"),
        ("0 0 * * mo", "'mo' is no day-of-week: 0 to 7, or SUN to SAT"),
        ("0 0 32 * *", "'32' is no day-of-month"),
        ("0 0 * * * *", "has 6 fields; a cron expression has five"),
        ("0 0 *", "has 3 fields"),
        ("", "has 0 fields"),
        ("@reboot", "there is no event to wait for"),
        ("@dayly", "unknown name"),
        ("*/0 * * * *", "is no minute"),
        ("0 0 * 2 1#6", "is no day-of-week"),
        ("9" * 5000 + " * * * *", "fields"),
    ],
)
def test_a_wrong_expression_is_refused_with_its_reason(text, reason):
    with pytest.raises(Wrong) as caught:
        Cron.parse(text)

    assert reason in caught.value.message


@pytest.mark.parametrize(("name", "hint"), [("Seoul", "Asia/Seoul"), ("europe/berlin", "Europe/Berlin"), ("x", "UTC")])
def test_an_unknown_zone_is_refused_with_names_alike(name, hint):
    with pytest.raises(Wrong, match=f"is not a time zone.*{hint}"):
        Cron.parse("@daily", name)


@pytest.mark.parametrize("name", ["../../etc/passwd", "Europe", "/etc/localtime", "a" * 300])
def test_a_path_is_no_zone(name):
    with pytest.raises(Wrong, match="is not a time zone"):
        Cron.parse("@daily", name)
