"""Unit: counts of ends: percentiles within 2 %, and windows of whole spans."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.rollups import (
    ALL,
    LEVELS,
    Changes,
    Ended,
    Part,
    Rollup,
    bin_of,
    changed,
    expired,
    middle_of,
    spans_of,
    summary,
    window,
)
from protocol.errors import ErrorKind
from protocol.model import Status

DAY = 86400
MONTH = 30 * DAY
NOW = 1_700_000_123.0

durations = st.floats(1e-6, 1e7)


def end(seconds=1.0, *, status=Status.SUCCEEDED, kind=None, at=NOW, module="m"):
    return Ended(module, at, status, kind, seconds)


def rollup_of(*ends):
    rollup = Rollup()
    for one in ends:
        rollup.count(one, 1)
    return rollup


@given(durations)
def test_a_duration_is_within_two_percent_of_the_middle_of_its_bin(seconds):
    assert abs(middle_of(bin_of(seconds)) - seconds) <= 0.02 * seconds


@given(st.lists(durations, min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_within_two_percent_of_the_true_one(seconds, share):
    true = sorted(seconds)[math.ceil(share * len(seconds)) - 1]

    assert abs(rollup_of(*map(end, seconds)).percentile(share) - true) <= 0.02 * true


def test_the_shortest_durations_share_a_bin_and_none_has_no_percentile():
    assert bin_of(1e-300) == bin_of(1e-6)
    assert Rollup().percentile(0.5) is None


@given(st.lists(durations), st.lists(durations))
def test_rollups_add_up(some, others):
    merged = rollup_of(*map(end, some))
    merged.merge(rollup_of(*map(end, others)))
    whole = rollup_of(*map(end, some + others))

    assert (merged.bins, merged.statuses) == (whole.bins, whole.statuses)
    assert math.isclose(merged.seconds, whole.seconds, rel_tol=1e-9, abs_tol=1e-9)


def test_what_is_taken_away_again_leaves_nothing_behind():
    lost = end(0.5, status=Status.FAILED, kind=ErrorKind.LOST)
    rollup = rollup_of(lost)
    rollup.count(lost, -1)
    assert rollup == Rollup()
    rollup.count(lost, -1)
    assert rollup == Rollup()


def test_changes_are_kept_for_each_span_of_each_module_and_of_all():
    changes = Changes()
    changes.add(end(module="a"))
    changes.add(end(module="b"))
    changes.remove(end(module="b", status=Status.FAILED, kind=ErrorKind.LOST))
    spans = changes.by_span()
    assert set(spans) == {*spans_of(end(module="a")), *spans_of(end(module="b"))}
    assert len(spans) == 3 * len(LEVELS)
    together = [each for span, each in spans.items() if span.module == ALL]
    assert [(len(added), len(removed)) for added, removed in together] == [(2, 1)] * len(LEVELS)
    for span, change in spans.items():
        before = rollup_of(end(status=Status.FAILED, kind=ErrorKind.LOST)) if span.module != "a" else Rollup()
        assert changed(before, *change).statuses == {Status.SUCCEEDED: 2 if span.module == ALL else 1}


@given(st.lists(st.floats(NOW - 400 * DAY, NOW + DAY), max_size=30))
def test_counting_together_is_counting_one_after_the_other(times):
    changes, single = Changes(), {}
    for at in times:
        ended = end(at=at)
        changes.add(ended)
        for span in spans_of(ended):
            single.setdefault(span, Rollup()).count(ended, 1)
    together = {span: changed(Rollup(), *change) for span, change in changes.by_span().items()}
    assert {span: (r.statuses, r.bins) for span, r in together.items()} == {
        span: (r.statuses, r.bins) for span, r in single.items()
    }


# Windows


times = st.floats(NOW - 400 * DAY, NOW + DAY)


@given(times, times, st.sampled_from([600, DAY, MONTH, 365 * DAY]))
def test_a_window_is_covered_once_by_spans_that_are_kept(since, until, retention):
    since, until = sorted([since, until])
    over = window(since, until, NOW, retention)
    limits = dict(expired(NOW, retention))
    oldest, newest = min(limits.values()), NOW + LEVELS[0].width
    at = over.since
    for part in over.parts:
        assert part.start == at
        assert part.start < part.end
        assert part.start % part.width == part.end % part.width == 0
        assert part.start >= limits[part.width]
        at = part.end
    assert at == over.until
    assert over.since <= min(max(since, oldest), newest)
    assert over.until >= min(until, NOW) or until < oldest
    assert len(over.parts) <= 2 * len(LEVELS)


@given(times)
def test_a_recent_window_is_as_fine_as_the_finest_spans(since):
    over = window(since, NOW, NOW, MONTH)
    limits = expired(NOW, MONTH)
    kept = next((width for width, limit in limits if since >= limit), None)
    if kept is not None and since < NOW:
        assert over.since == math.floor(since / kept) * kept
        assert since - over.since < kept


def test_no_bounds_are_all_that_is_kept():
    over = window(None, None, NOW, MONTH)

    assert over.since == math.floor((NOW - MONTH) / DAY) * DAY
    assert NOW < over.until <= NOW + 300
    assert over == window(-math.inf, math.inf, NOW, MONTH)


def test_a_day_in_the_middle_is_one_span():
    noon = math.floor(NOW / DAY) * DAY - 5 * DAY + DAY / 2
    over = window(noon, noon + 2 * DAY, NOW, MONTH)

    assert [(part.width, (part.end - part.start) // part.width) for part in over.parts] == [
        (3600, 12),
        (86400, 1),
        (3600, 12),
    ]


def test_a_window_that_ends_before_it_begins_is_empty():
    over = window(NOW, NOW - DAY, NOW, MONTH)

    assert (over.parts, over.since) == ((), over.until)


@given(times)
def test_an_end_is_in_the_span_of_each_level_that_a_window_round_it_has(at):
    for span in spans_of(end(at=at)):
        assert span.start <= at < span.start + span.width
    if NOW - MONTH <= at < NOW:
        (part,) = window(at, at, NOW, MONTH).parts or window(at, math.nextafter(at, NOW), NOW, MONTH).parts
        assert any(part == Part(span.width, span.start, span.start + span.width) for span in spans_of(end(at=at)))


# Statistics


def test_the_summary_says_what_was_counted():
    over = window(NOW - 600, NOW, NOW, MONTH)
    total = rollup_of(
        *(end(seconds / 100) for seconds in range(1, 101)),
        end(0, status=Status.FAILED, kind=ErrorKind.ENVIRONMENT_FAILED),
        end(200, status=Status.FAILED, kind=ErrorKind.TIMEOUT),
        end(0, status=Status.CANCELLED, kind=ErrorKind.CANCELLED),
    )
    stats = summary("m", over, total)

    assert (stats.module, stats.since, stats.until, stats.total) == ("m", over.since, over.until, 103)
    assert stats.statuses == {Status.SUCCEEDED: 100, Status.FAILED: 2, Status.CANCELLED: 1}
    assert stats.kinds == {ErrorKind.ENVIRONMENT_FAILED: 1, ErrorKind.TIMEOUT: 1, ErrorKind.CANCELLED: 1}
    assert stats.success_rate == pytest.approx(100 / 102)
    assert stats.runs == 101
    assert stats.mean == pytest.approx((50.5 + 200) / 101)
    assert stats.p50 == pytest.approx(0.51, rel=0.02)
    assert stats.p95 == pytest.approx(0.96, rel=0.02)
    assert stats.p99 == pytest.approx(1.0, rel=0.02)


def test_nothing_counted_has_no_rates():
    stats = summary("m", window(None, None, NOW, MONTH), Rollup())

    assert (stats.total, stats.runs) == (0, 0)
    assert (stats.success_rate, stats.mean, stats.p50, stats.p99) == (None, None, None, None)
