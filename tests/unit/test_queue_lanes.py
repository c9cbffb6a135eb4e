"""Unit: lanes of the queue of a cluster: which module is in which, and how much a runner wants its jobs."""

from __future__ import annotations

import textwrap
from types import SimpleNamespace

import pytest
from attrs import evolve

from actors.cluster.queue.lanes import GENERAL, Lane, lane_of, limits_concurrency, offered, priority_of, unmet
from actors.workers.pool import Pool, openings
from config.modules import GroupPolicy, ModuleSpec
from protocol.model import Kind


def spec(name="m", env=Kind.INLINE, **fields):
    return ModuleSpec(name=name, env=env, code=textwrap.dedent("def handler(input): ..."), **fields)


def test_modules_without_limits_share_the_general_lanes():
    lanes = {lane_of(spec(f"m{number}")).name for number in range(1000)}

    assert lanes == {f"g{number:02d}inline" for number in range(GENERAL)}
    assert lane_of(spec("m", version="2")) == lane_of(spec("m")), "all versions of a module are in one"
    assert not lane_of(spec()).shared


@pytest.mark.parametrize("number", [1, 3, 100])
def test_a_concurrency_that_was_written_holds_over_all_runners(number):
    lane = lane_of(spec(concurrency=number))

    assert (lane.limit, lane.pinned, lane.shared) == (number, False, True)
    assert lane != lane_of(spec("other", concurrency=number))


def test_the_default_concurrency_is_of_each_runner():
    assert not limits_concurrency(spec())
    assert not limits_concurrency(spec(calls=50)), "the default follows `calls`"
    assert limits_concurrency(spec(calls=50, concurrency=50))


@pytest.mark.parametrize("fields", [{"rate": "10/s"}, {"group": GroupPolicy("$.customer")}])
def test_modules_with_rates_or_groups_are_on_one_runner_at_a_time(fields):
    lane = lane_of(spec(**fields, concurrency=2))

    assert (lane.limit, lane.pinned, lane.shared) == (None, True, True)


def test_equal_needs_have_one_lane():
    one, other = lane_of(spec("a", needs=("gpu", "zone=eu"))), lane_of(spec("b", needs=("gpu", "zone=eu")))

    assert one == other
    assert one != lane_of(spec("a", needs=("gpu",)))
    assert one.fits(("zone=eu", "gpu"))
    assert not one.fits(("gpu", "zone=us"))
    assert lane_of(spec(concurrency=1, needs=("gpu",))).needs == ("gpu",)
    assert "gpu, zone=eu" in unmet(one.needs)


@pytest.mark.parametrize("fields", [{}, {"needs": ("gpu",)}, {"rate": "1/s"}, {"concurrency": 1}])
def test_a_kind_of_environment_is_needed_like_a_label(fields):
    lane = lane_of(spec(**fields, env=Kind.DOCKER))

    assert (lane.name == lane_of(spec(**fields)).name) is lane.shared, "such a lane is of one module anyway"
    assert lane.fits(offered(("gpu",), ("inline", "docker")))
    assert not lane.fits(offered(("gpu",), ("inline", "venv")))
    assert not lane.fits(offered(("gpu", "docker"), ("inline",))), "a label of this name is another thing"
    assert "env: docker" in unmet(lane.needs)


def test_names_of_lanes_are_parts_of_subjects():
    for fields in ({}, {"env": Kind.CONDA}, {"needs": ("a/b=c.d",)}, {"rate": "1/s"}, {"concurrency": 1}):
        assert lane_of(spec("m.x_-1", **fields)).name.isalnum()


def test_a_runner_with_a_worker_is_asked_first():
    warm = priority_of(warm=True, prepared=True, failing=False)
    prepared = priority_of(warm=False, prepared=True, failing=False)
    must_build = priority_of(warm=False, prepared=False, failing=False)
    failing = priority_of(warm=False, prepared=True, failing=True)

    assert warm < prepared < must_build < failing < 10


# -- places ----------------------------------------------------------------------------------------------------------


def a_pool(**fields):
    return Pool(SimpleNamespace(spec=spec(**fields)))


def test_openings_are_bounded_by_the_module_and_by_the_kind():
    pool = a_pool(concurrency=3)

    assert openings(pool, 10, 0, 0.0).calls == 3
    assert openings(pool, 2, 0, 0.0).calls == 2
    assert openings(pool, 2, 2, 0.0).calls == 0, "callers that wait take the places"
    assert openings(pool, 0, 0, 0.0).calls == 0
    pool.starting = 1
    found = openings(pool, 10, 0, 0.0)
    assert (found.calls, found.starting, found.warm, found.prepared) == (2, True, True, False)
    assert not openings(a_pool(), 10, 0, 0.0).warm


def test_a_worker_with_many_calls_has_many_openings():
    pool = a_pool(calls=10, concurrency=15)

    assert openings(pool, 1, 0, 0.0).calls == 10
    assert openings(pool, 9, 0, 0.0).calls == 15


def test_a_failed_start_makes_a_module_unwanted_for_a_while():
    pool = a_pool()
    pool.failed(SimpleNamespace(kind="load_failed"), 0.0)

    assert openings(pool, 4, 0, 0.1).failing
    assert not openings(pool, 4, 0, 60.0).failing


def test_lanes_are_values():
    assert Lane("g01") == Lane("g01")
    assert evolve(Lane("c1", limit=1), limit=2) != Lane("c1", limit=1), "another limit makes another consumer"
