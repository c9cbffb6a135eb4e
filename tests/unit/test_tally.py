"""Unit: the counts of ends: bounded, in the right bucket, with the phases that the execution had."""

from __future__ import annotations

import pytest

from actors.executions.tally import BUCKETS, MAX_MODULES, OTHERS, Histogram, Tally
from protocol.errors import ErrorKind, Failure
from protocol.model import Execution, Kind, ModuleRef, Status, Timings


def ended(module="m", *, failure=None, seconds=1.0, **timings):
    status = Status.SUCCEEDED if failure is None else Status.FAILED
    return Execution(
        "e",
        ModuleRef(module, "1"),
        Kind.INLINE,
        status,
        100.0,
        finished_at=100.0 + seconds,
        failure=failure,
        timings=Timings(**timings),
    )


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (0.001, 0), (0.0011, 1), (1.0, BUCKETS.index(1.0)), (10**6, len(BUCKETS))]
)
def test_a_bound_belongs_to_its_bucket(seconds, bucket):
    histogram = Histogram()
    histogram.observe(seconds)

    assert histogram.counts.index(1) == bucket
    assert (sum(histogram.counts), histogram.seconds) == (1, seconds)


def test_ends_are_counted_by_module_status_and_kind():
    tally = Tally()
    for failure in (None, None, Failure(ErrorKind.TIMEOUT, "too long")):
        tally.count(ended(failure=failure, seconds=2.0))

    assert tally.ended == {("m", Status.SUCCEEDED, None): 2, ("m", Status.FAILED, ErrorKind.TIMEOUT): 1}
    assert tally.durations[Kind.INLINE].seconds == pytest.approx(6.0)


def test_only_phases_that_happened_are_counted():
    tally = Tally()
    tally.count(ended(queue=0.5))
    tally.count(ended(run=0.1))
    tally.count(ended(build=1.0, start=0.2, load=0.3, run=0.1))

    counts = {phase: sum(found.counts) for (_, phase), found in tally.phases.items()}
    assert counts == {"queue": 3, "run": 2, "build": 1, "start": 1, "import": 1}


def test_modules_beyond_a_number_are_counted_together():
    tally = Tally()
    for number in range(MAX_MODULES + 10):
        tally.count(ended(f"m{number}"))
    tally.count(ended("m0"))

    assert len({module for module, _, _ in tally.ended}) == MAX_MODULES + 1
    assert tally.ended[OTHERS, Status.SUCCEEDED, None] == 10
    assert tally.ended["m0", Status.SUCCEEDED, None] == 2
