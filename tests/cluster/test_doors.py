"""Cluster: whole runners in one process over one real server; each door serves the executions of all."""

from __future__ import annotations

from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from actors.history import Query
from actors.registry import Condition
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Record, Status
from runner.api import Glance, Publishing
from tests.contract.test_nodes import BUSY, ITEMS, Task, followed
from tests.support import ANYBODY, PATIENCE, inline, open_service, wait_until

ECHO = inline("echo", "def handler(input):\n    return input\n")
FREE = inline("busy", BUSY.code)
"""Runs in as many workers as runners have places."""
LIMITED = inline("limited", ITEMS.code, concurrency=1, record=Record.SUMMARY)
FULL = inline("full", ITEMS.code, concurrency=1)
"""At most one call of each at a time on all runners; results of the first are in no record."""
MODULES = [FREE, ECHO, LIMITED, FULL]


@asynccontextmanager
async def two(path, nats, modules=MODULES, labels=((), ()), **settings):
    """Run two runners of a cluster."""
    given = nats.settings()
    clusters = [attrs.evolve(given, node=node, labels=own) for node, own in zip("ab", labels, strict=True)]
    async with (
        open_service(path / "a", modules, cluster=clusters[0], **settings) as a,
        open_service(path / "b", modules, cluster=clusters[1], **settings) as b,
    ):
        with trio.fail_after(PATIENCE):
            for each in (a, b):
                await wait_until(lambda each=each: len(each.runs.owners.cluster().nodes) == 2, "they do not meet")
        yield a, b


async def projected(door, names, waits):
    """Return executions by id when this door knows that all but one of them run."""
    while True:
        found = {name: await door.get(ANYBODY, name) for name in names}
        if [name for name in names if found[name].status is Status.QUEUED] == [waits]:
            return found
        await trio.sleep(0.02)


async def test_every_door_serves_what_the_queue_gave_to_one_of_them(tmp_path, nats):
    async with two(tmp_path, nats, max_workers=1) as (a, b):
        tasks = [Task(tmp_path, f"t{number}", answer=number) for number in range(3)]
        with trio.fail_after(PATIENCE):
            names = [(await a.submit(ANYBODY, "busy", task.input)).id for task in tasks]
            await wait_until(lambda: sum(task.begins for task in tasks) == 2, "two places, two begins")
            waits = next(name for name, task in zip(names, tasks, strict=True) if not task.begins)
            for door in (a, b):
                found = await projected(door, names, waits)
                assert {each.node for name, each in found.items() if name != waits} == {"a", "b"}
                assert "queued" in found[waits].waiting.reason
                listed = (await door.list(ANYBODY, Query(status=Status.QUEUED))).items
                assert [(each.id, "queued" in each.waiting.reason) for each in listed] == [(waits, True)]
                seen = await Glance(door.runs, door.history, door.settings).lives(ANYBODY, 5)
                assert (seen.running_total, seen.waiting_total) == (2, 1)
                assert {each.id for each in (*seen.running, *seen.waiting)} == set(names)
                assert [each.waiting.reason for each in seen.waiting if "queued" not in each.waiting.reason] == []
            followers = [await door.follow(ANYBODY, name) for door in (a, b) for name in names]

            assert (await b.cancel(ANYBODY, waits)).status is Status.CANCELLED
            running = [name for name in names if name != waits]
            assert (await a.cancel(ANYBODY, running[0])).status is Status.CANCELLED
            # Both runners have one process here: the first one's sweep may have killed the worker of the other.
            assert (await b.cancel(ANYBODY, running[1])).status.final

            ends = [await followed(follower) for follower in followers]
            assert all(end[-1].status.final for end in ends)
            for door in (a, b):
                for name in names:
                    await wait_until(lambda door=door, name=name: door.runs.find(name) is None, "it lives")
                    assert (await door.get(ANYBODY, name)).status.final
        assert sum(task.begins for task in tasks) == 2


async def test_calls_go_where_a_place_is_free_and_are_recorded_everywhere(tmp_path, nats):
    async with two(tmp_path, nats, max_workers=1) as (a, b):
        first, second, ends = Task(tmp_path, "first", answer="x" * 2_000_000), Task(tmp_path, "second"), []
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(executed_at, a, "busy", first.input, ends)
                await first.wait_begun()
                nursery.start_soon(executed_at, a, "busy", second.input, ends)
                await second.wait_begun()
                (there,) = b.runs.live_executions()
                assert (await b.get(ANYBODY, there.execution.id)).node == "b"
                second.free.touch()
                await wait_until(lambda: ends, "the call does not end")
                assert (ends[0].id, ends[0].node, ends[0].status) == (there.execution.id, "b", Status.SUCCEEDED)
                assert (await a.get(ANYBODY, there.execution.id)).result == ends[0].result
                first.free.touch()
            large = ends[1]
            while (await b.history.get(large.id)) is None:
                await trio.sleep(0.02)
            assert (await b.get(ANYBODY, large.id)).result == large.result
            rerun = await b.reruns.one(ANYBODY, there.execution.id)
            assert rerun.rerun_of == there.execution.id


async def executed_at(service, module, data, ends):
    ends.append(await service.execute(ANYBODY, module, data))


async def test_a_module_that_is_deleted_with_force_ends_its_executions_everywhere(tmp_path, nats):
    async with two(tmp_path, nats) as (a, b):
        with trio.fail_after(PATIENCE):
            task = Task(tmp_path)
            spec = {"name": "temporary", "env": "inline", "code": BUSY.code}
            await a.management.register(ANYBODY, spec, how=Publishing(), condition=Condition())
            await wait_until(lambda: "temporary" in b.registry.snapshot.modules, "b does not learn of it")
            name = (await b.submit(ANYBODY, "temporary", task.input)).id
            await task.wait_begun()
            while (await a.history.get(name)) is None or (await b.history.get(name)) is None:
                await trio.sleep(0.02)
            for door in (a, b):
                with pytest.raises(RunnerError) as refused:
                    await door.management.remove(ANYBODY, "temporary")
                assert refused.value.failure.kind is ErrorKind.CONFLICT
            other = b if a.runs.find(name) is not None else a
            await other.management.remove(ANYBODY, "temporary", force=True)
            assert (await other.get(ANYBODY, name)).status is Status.CANCELLED


def drains(service):
    return {each.node: each.draining for each in service.runs.owners.cluster().nodes}


async def test_a_runner_that_drains_takes_no_calls_and_leaves(tmp_path, nats):
    async with two(tmp_path, nats, max_workers=1) as (a, b):
        task, ends = Task(tmp_path), []
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(executed_at, a, "busy", task.input, ends)
                await task.wait_begun()
                b.runs.stop(at_once=False)
                await wait_until(lambda: drains(a) == {"a": False, "b": True}, "a does not hear of it")
                nursery.start_soon(executed_at, a, "echo", b"1", ends)
                await wait_until(lambda: a.runs.statistics().live == 2, "it does not wait")
                task.free.touch()
        assert {each.node for each in ends} <= {"a", None}
        assert [each.status for each in ends] == [Status.SUCCEEDED] * 2


async def test_calls_with_a_limit_of_all_runners_stream_and_answer_through_any_door(tmp_path, nats):
    async with two(tmp_path, nats) as (a, b):
        items, ends = [], []

        async def call(door, number, module):
            ended = await door.execute(ANYBODY, module, number, on_item=lambda _, log: items.append(log))
            ends.append((number, ended.status, ended.result))

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for number in (b"1", b"2", b"3"):
                    for module in ("limited", "full"):
                        nursery.start_soon(call, a, number, module)
                        nursery.start_soon(call, b, number, module)
        expected = {b"1": b"[0]", b"2": b"[0,1]", b"3": b"[0,1,2]"}
        assert sorted(ends) == sorted((number, Status.SUCCEEDED, expected[number]) for number in [*expected] * 4)
        assert len(items) == 12
