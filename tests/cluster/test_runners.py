"""Cluster: whole runners in one process over one real server: the same record at all, with and without the server."""

from __future__ import annotations

import json
import time
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import evolve

from actors.cluster import engine
from actors.history import Query
from actors.turns import Terms
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Status
from tests.support import ANYBODY, PATIENCE, WAIT_FOR, inline, open_service, wait_until

ECHO = inline("echo", "def handler(input):\n    print('hi', flush=True)\n    return input\n")
HELD = inline("held", WAIT_FOR + "def handler(input):\n    wait_for(input)\n    return input\n", concurrency=1)


@pytest.fixture
def cluster(nats):
    yield nats.settings()
    nats.heal()


@asynccontextmanager
async def two(path, cluster, *modules):
    """Give two runners of a cluster."""
    async with runner(path, cluster, "one", *modules) as one, runner(path, cluster, "two", *modules) as other:
        yield one, other


def runner(path, cluster, node, *modules, **settings):
    return open_service(path / node, modules or (ECHO,), cluster=evolve(cluster, node=node), **settings)


async def ended(service, name):
    """Return an execution that has ended, as the record of a runner has it."""
    with trio.fail_after(PATIENCE):
        while (found := await service.history.get(name)) is None or not found.status.final:
            await trio.sleep(0.02)
    return found


async def listed(service, **filters):
    return [item.id for item in (await service.list(ANYBODY, Query(**filters))).items]


async def test_every_runner_has_the_record_of_all(tmp_path, cluster):
    async with two(tmp_path, cluster) as (one, other):
        call = await one.execute(ANYBODY, "echo", b"1")
        accepted = [(await service.submit(ANYBODY, "echo", b"2")).id for service in (one, other)]
        names = [call.id, *accepted]
        at_one = [await ended(one, name) for name in names]
        at_other = [await ended(other, name) for name in names]

        assert at_one == at_other
        assert [found.result for found in at_one] == [b"1", b"2", b"2"]
        assert call.node == "one"
        assert await listed(one) == await listed(other) == sorted(names, reverse=True)
        by_node = [await listed(one, node=node) for node in ("one", "two")]
        assert sorted(by_node[0] + by_node[1]) == sorted(names)
        counted = [(await service.history.stats("echo")).statuses for service in (one, other)]
        assert counted == [{Status.SUCCEEDED: 3}] * 2


async def test_an_execution_is_read_followed_and_cancelled_at_any_runner(tmp_path, cluster):
    async with two(tmp_path, cluster, HELD) as (one, other):
        name = (await one.submit(ANYBODY, "held", json.dumps(str(tmp_path / "never")).encode())).id
        with trio.fail_after(PATIENCE):
            while (await one.get(ANYBODY, name)).status is not Status.RUNNING:
                await trio.sleep(0.02)
        away = other if (await one.get(ANYBODY, name)).node == "one" else one
        assert (await away.get(ANYBODY, name)).status is Status.RUNNING

        assert (await away.cancel(ANYBODY, name)).status is Status.CANCELLED
        assert [(await ended(service, name)).status for service in (one, other)] == [Status.CANCELLED] * 2


async def test_a_scheduled_execution_is_queued_by_one_runner_and_a_large_result_is_whole_at_all(tmp_path, cluster):
    large = inline("large", "def handler(input):\n    print('x' * 300000, flush=True)\n    return 'y' * 300000\n")
    async with two(tmp_path, cluster, large) as (one, other):
        terms = Terms(run_at=time.time() + 0.3)
        name = (await one.submit(ANYBODY, "large", b"1", terms=terms)).id
        at_one, at_other = await ended(one, name), await ended(other, name)

        assert at_one == at_other
        assert (at_one.status, at_one.attempts, at_one.result_bytes) == (Status.SUCCEEDED, 1, 300_002)
        assert len(at_one.result) == 300_002
        assert len(at_one.events) > 300_000
        with trio.fail_after(PATIENCE):
            while (one.runs.later.count, other.runs.later.count) != (0, 0):
                await trio.sleep(0.05)


async def test_without_servers_calls_go_on_and_are_in_all_records_later(tmp_path, nats, cluster):
    async with two(tmp_path, cluster) as (one, other):
        await one.execute(ANYBODY, "echo", b"0")
        nats.all[0].kill()
        with trio.fail_after(PATIENCE):
            while one.runs.owners.cluster().connected:
                await trio.sleep(0.02)

        call = await one.execute(ANYBODY, "echo", b"1")
        with pytest.raises(RunnerError) as caught:
            await one.submit(ANYBODY, "echo", b"2")
        assert (call.status, caught.value.failure.kind) == (Status.SUCCEEDED, ErrorKind.UNAVAILABLE)
        assert caught.value.failure.retry_after

        await trio.to_thread.run_sync(nats.heal)
        assert (await ended(other, call.id)).result == b"1"
        accepted = await one.submit(ANYBODY, "echo", b"3")
        assert (await ended(other, accepted.id)).result == b"3"


async def test_a_runner_starts_without_servers_and_joins_when_they_come(tmp_path, nats, cluster, monkeypatch):
    monkeypatch.setattr(engine.engine, "OPEN_SECONDS", 0.5)
    nats.all[0].kill()
    async with runner(tmp_path, cluster, "one") as one:
        call = await one.execute(ANYBODY, "echo", b"1")
        assert call.status is Status.SUCCEEDED
        await trio.to_thread.run_sync(nats.heal)
        with trio.fail_after(PATIENCE):
            while not one.runs.owners.cluster().connected:
                await trio.sleep(0.02)
        async with runner(tmp_path, cluster, "two") as other:
            assert (await ended(other, call.id)).result == b"1"
            with trio.fail_after(PATIENCE):
                accepted = await accept(one)
            assert (await ended(other, accepted.id)).result == b"2"


async def accept(service):
    """Submit as soon as that is possible."""
    while True:
        try:
            return await service.submit(ANYBODY, "echo", b"2")
        except RunnerError:
            await trio.sleep(0.05)


async def test_a_runner_that_joins_brings_its_history_and_what_waits(tmp_path, cluster):
    gate = tmp_path / "gate"
    waits = json.dumps(str(gate)).encode()
    async with open_service(tmp_path / "one", [ECHO, HELD]) as alone:
        calls = [(await alone.execute(ANYBODY, "echo", b"1")).id for _ in range(3)]
        queued = [(await alone.submit(ANYBODY, "held", waits)).id for _ in range(2)]
        await wait_until(lambda: alone.runs.find(queued[0]).began_at, "it runs")
    gate.touch()

    async with two(tmp_path, cluster, ECHO, HELD) as (one, other):
        for name in calls:
            assert await ended(other, name) == await ended(one, name)
        assert (await ended(other, queued[1])).status is Status.SUCCEEDED
        assert (await ended(one, queued[1])).node in ("one", "two")
        assert set(await listed(one)) == set(await listed(other))
        assert (await other.history.stats("echo")).statuses == {Status.SUCCEEDED: 3}


async def test_a_runner_that_was_away_has_all_after_its_start_and_counts_it_once(tmp_path, cluster):
    async with runner(tmp_path, cluster, "one") as one:
        calls = [(await one.execute(ANYBODY, "echo", b"1")).id]
        async with runner(tmp_path, cluster, "two") as other:
            await ended(other, calls[0])
        calls += [(await one.submit(ANYBODY, "echo", b"1")).id for _ in range(3)]
        for name in calls:
            await ended(one, name)
        async with runner(tmp_path, cluster, "two") as other:
            for name in calls:
                assert await other.history.get(name) == await one.history.get(name)
            assert (await other.history.stats("echo")).statuses == {Status.SUCCEEDED: 4}
        reader = one.runs.owners.cluster()
        assert (reader.lag, reader.unreadable) == (0, 0)
