"""Unit: the fields of schedules, their rules, and their instants."""

from datetime import datetime

import pytest

from config.mistakes import ConfigError, Wrong, dotted, unfold
from config.modules import spec_from_mapping, spec_to_mapping
from config.timing import MAX_SCHEDULES, Misfire, Overlap, instant_text, read_schedule, read_schedules, schedule_fields

CODE = "def handler(input: dict[str, int]):\n    return input\n"


def module(*schedules, **fields):
    data = {"name": "a", "env": "inline", "code": CODE, "schedules": list(schedules), **fields}
    return spec_from_mapping(data, base=None, allow_path=False)


def wrongs(value):
    with pytest.raises((Wrong, ExceptionGroup)) as caught:
        read_schedules(value)
    return {dotted(wrong.where): wrong.message for wrong in unfold(caught.value)}


def test_every_field_is_read_and_written_as_the_same():
    written = {
        "name": "nightly",
        "cron": " 30  3 * * * ",
        "timezone": "Asia/Seoul",
        "input": {"full": [1, None]},
        "overlap": "queue",
        "misfire": "all",
        "jitter": "30s",
    }

    read = read_schedule(written)

    assert (read.cron, read.overlap, read.misfire, read.jitter) == ("30 3 * * *", Overlap.QUEUE, Misfire.ALL, 30.0)
    assert read_schedule(schedule_fields(read)) == read


def test_a_module_with_schedules_is_written_as_the_same():
    spec = module({"every": "15m", "input": {}}, {"at": "2027-01-31T09:30:00Z", "input": {"a": 1}})

    assert spec_from_mapping(spec_to_mapping(spec), base=None, allow_path=False) == spec


def test_a_schedule_without_a_name_keeps_its_name_when_others_come():
    one, other = {"cron": "@daily", "input": 1}, {"every": 60}

    assert read_schedules([one])[0].name == read_schedules([other, one])[1].name


@pytest.mark.parametrize(
    ("fields", "after", "expected"),
    [
        ({"every": "15m"}, "2027-01-01T00:00:00Z", "2027-01-01T00:15:00Z"),
        ({"every": "15m"}, "2027-01-01T00:14:59Z", "2027-01-01T00:15:00Z"),
        ({"at": "2027-01-31T18:30:00+09:00"}, "2027-01-31T09:29:59Z", "2027-01-31T09:30:00Z"),
        ({"at": "2027-01-31 18:30", "timezone": "Asia/Seoul"}, "2027-01-01T00:00:00Z", "2027-01-31T09:30:00Z"),
        ({"cron": "30 3 * * *", "timezone": "Asia/Seoul"}, "2027-01-01T00:00:00Z", "2027-01-01T18:30:00Z"),
    ],
)
def test_the_next_instant(fields, after, expected):
    timing = read_schedule(fields).timing

    assert instant_text(timing.next(datetime.fromisoformat(after).timestamp())) == expected


def test_a_moment_that_has_passed_has_no_next_instant():
    timing = read_schedule({"at": "2020-01-01T00:00:00Z"}).timing

    assert timing.next(datetime.fromisoformat("2027-01-01T00:00:00Z").timestamp()) is None


def test_all_mistakes_are_found_with_their_places():
    found = wrongs(
        [
            {"every": "1m", "cron": "@daily"},
            {"input": 3},
            {"every": "0.5s", "overlap": "que", "zone": "UTC"},
            {"cron": "0 0 30 2 *", "timezone": "Asia/Seoul", "jitter": "2d"},
            {"at": "tomorrow", "timezone": "Berlin"},
            {"cron": "0 0 30 2 *"},
            "@daily",
        ]
    )

    assert {place: text.partition(";")[0] for place, text in found.items()} == {
        "[0].every": "gives cron and every",
        "[1]": "does not say when",
        "[2].every": "500ms is out of range",
        "[2].overlap": "'que' is not one of skip, queue, cancel, parallel",
        "[2].zone": "unknown field",
        "[3].jitter": "2d is out of range",
        "[4].timezone": "'Berlin' is not a time zone",
        "[5].cron": "'0 0 30 2 *' never comes: month 2 has no day 30",
        "[6]": "'@daily' is not a schedule",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"every": 60}, {"every": 60}], "give it another name"),
        ([{"every": 60, "name": "a"}, {"every": 90, "name": "a"}], "give it another name"),
        ([{"every": 60}] * (MAX_SCHEDULES + 1), f"the limit is {MAX_SCHEDULES}"),
        ({"every": 60}, "write `- ` before"),
        ([{"every": 60, "input": "x" * 70_000}], "the limit is 65,536"),
        ([{"every": 60, "input": float("nan")}], "is not JSON"),
        ([{"every": 60, "jitter": "61s"}], "more than the time between two runs; write at most 1m"),
        ([{"cron": "* * * * *", "jitter": "1h"}], "more than the time between two runs; write at most 1m"),
        ([{"every": "1500ms"}], "whole number of seconds"),
        ([{"every": 60, "name": "a/b"}], "a name"),
    ],
)
def test_a_wrong_list_is_refused(value, text):
    assert text in "".join(wrongs(value).values())


@pytest.mark.parametrize("fields", [{}, {"input_schema": {"type": "object", "required": ["full"]}}])
def test_an_input_that_the_module_refuses_is_a_mistake_when_it_is_read(fields):
    with pytest.raises(ConfigError, match=r"schedules\[1\]\.input: the module refuses this input"):
        module({"every": 60, "input": {"full": 1}}, {"every": 90, "input": [1]}, **fields)
