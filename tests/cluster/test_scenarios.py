"""Cluster: three runners and three servers, of which some are killed, stopped and cut off, in turn and under load.

In the end every accepted execution has ended once, with the same end at every door, and no attempt has begun twice.
"""

from __future__ import annotations

import signal
import time

import pytest

from tests.cluster.fleet import REDELIVERY, Fleet, Load, fleet
from tests.server_process import wait_for

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def three_runners(three_servers, tmp_path_factory):
    three_servers.heal()
    with fleet(three_servers, tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.fixture
def runners(three_runners: Fleet):
    """Three runners, which are whole before and after a test."""
    three_runners.heal()
    three_runners.accepted.clear()
    three_runners.cancelled.clear()
    yield three_runners
    three_runners.heal()


def long_ones(runners, runner):
    """Submit executions that run until their file is there; return them when they have begun, and their file."""
    until = runners.folder / f"until-{time.monotonic_ns()}"
    names = [runners.submit(runner, module, until=str(until)) for module in ("once", "again", "few")]
    wait_for(lambda: all(runners.begun(name) for name in names))
    return names, until


def owner(runners, name):
    """Return the runner that runs an execution."""
    for runner in runners.runners:
        found = runner.get(f"/executions/{name}")
        if found and found["status"] == "running":
            return next(each for each in runners.runners if each.node == found["node"])
    raise AssertionError(f"{name} does not run")


def refuses(runner):
    """Return whether a runner accepts no more; calls go on."""
    answer = runner.client.post("/modules/execute/once", json={}, headers={"prefer": "respond-async"})
    return answer.status_code == 503 and answer.json()["field"] == "cluster"


def test_whole(runners):
    with Load(runners) as load:
        load.wait(30)

    assert set(runners.check()) <= {"succeeded", "cancelled"}


def test_a_runner_is_killed_and_comes_back(runners):
    names, until = long_ones(runners, runners.runners[0])
    with Load(runners) as load:
        load.wait(10)
        killed = owner(runners, names[0])
        killed.kill()
        load.wait(10)
        wait_for(
            lambda: any(r.get(f"/executions/{names[0]}")["status"] == "failed" for r in runners.runners if r.running)
        )
        until.touch()
        load.wait(5)
    runners.heal()

    ends = runners.check()
    assert ends["lost"] >= 1
    assert runners.runners[0].get(f"/executions/{names[0]}")["error"]["kind"] == "lost"


def test_a_runner_is_stopped_and_continues_late(runners):
    names, until = long_ones(runners, runners.runners[0])
    stopped = owner(runners, names[1])
    with Load(runners) as load:
        stopped.signal(signal.SIGSTOP)
        others = [runner for runner in runners.runners if runner is not stopped]
        wait_for(lambda: others[0].get(f"/executions/{names[1]}")["attempts"] == 2)
        load.wait(5)
        until.touch()
        stopped.signal(signal.SIGCONT)
        load.wait(5)

    runners.check()
    assert runners.begun(names[1]) == [1, 2]


def test_the_leaders_of_log_and_queue_are_killed(runners):
    name = runners.runners[0].options[3].upper()
    with Load(runners) as load:
        load.wait(10)
        for stream in ("LOG", "QUEUE"):
            leader = runners.servers.leader(f"{name}_{stream}")
            leader.kill()
            load.wait(10)
            leader.start()
            assert runners.servers.wait_ready()

    assert set(runners.check()) <= {"succeeded", "cancelled"}


def test_two_servers_are_lost_and_come_back(runners):
    with Load(runners) as load:
        load.wait(10)
        for server in runners.servers.all[:2]:
            server.kill()
        wait_for(lambda: all(refuses(runner) for runner in runners.runners))
        time.sleep(2 * REDELIVERY)  # long enough for redeliveries, if anything could be delivered
        runners.servers.heal()
        load.wait(10)

    runners.check()


def test_all_servers_are_killed_and_come_back(runners):
    with Load(runners) as load:
        load.wait(10)
        for server in runners.servers.all:
            server.kill()
        assert all(runners.call(runner) for runner in runners.runners), "calls need no servers"
        runners.servers.heal()
        load.wait(10)

    runners.check()


def test_a_runner_is_cut_off(runners):
    names, until = long_ones(runners, runners.runners[0])
    cut = owner(runners, names[2])
    with Load(runners) as load:
        runners.cut_off(cut)
        others = [runner for runner in runners.runners if runner is not cut]
        wait_for(lambda: others[0].get(f"/executions/{names[2]}")["attempts"] == 2)
        load.wait(5)
        until.touch()
        time.sleep(1)  # what it does now comes late
        runners.ways.heal()
        load.wait(5)

    runners.check()
