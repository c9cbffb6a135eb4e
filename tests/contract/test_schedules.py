"""Contract: schedules start asynchronous executions once, over restarts, changed clocks and changed modules."""

from __future__ import annotations

import itertools
import json
import time
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import define, evolve
from msgspec.structs import replace

from actors.history import Query
from actors.starts import STARTS_FILE, Schedules, StoredSchedule
from actors.starts.firing import MAX_PENDING
from actors.starts.stored import StartsFile
from config.timing import instant_text, read_schedule, schedule_fields
from protocol.errors import ErrorKind, RunnerError
from protocol.ids import execution_id
from protocol.model import Execution, Status
from tests.support import inline, open_service, wait_until

HOUR = 3600.0
START = 1_800_000_000.0 - 1_800_000_000.0 % HOUR
ECHO = inline("echo", "def handler(input):\n    return input\n")
HOLDS = inline(
    "holds",
    "import os, time\ndef handler(input):\n    while not os.path.exists(input):\n        time.sleep(0.01)\n",
    concurrency=4,
)


@define(eq=False)
class Clock:
    """A running clock that can be set."""

    shift: float = 0.0

    def __call__(self):
        return time.time() + self.shift

    def set(self, instant):
        self.shift = instant - time.time()


@define(eq=False)
class Bench:
    """A runner whose schedules go by a clock that can be set."""

    service: object
    schedules: Schedules
    clock: Clock

    async def add(self, name, module, **fields):
        spec = read_schedule(fields)
        version = fields.pop("version", None)
        now = self.clock()
        stored = StoredSchedule(
            id=name,
            module=module,
            version=version,
            fields=schedule_fields(spec),
            created_at=now,
            created_by="tester",
            updated_at=now,
            updated_by="tester",
        )
        known = self.schedules.get(stored.id)
        return await self.schedules.put(stored, spec, None if known is None else known.stored)

    def set(self, instant):
        self.clock.set(instant)
        self.schedules.known.timer.ring()

    async def executions(self, name):
        page = await self.service.history.list(Query(schedule=name, limit=200))
        return sorted(page.items, key=lambda each: each.scheduled_for or 0)

    async def started(self, name, count):
        """Return the executions of a schedule, oldest instant first, when there are so many."""
        found = []

        async def enough():
            nonlocal found
            found = await self.executions(name)
            return len(found) >= count

        with trio.fail_after(20):
            while not await enough():
                await trio.sleep(0.01)
        return found

    async def settled(self, name, cursor):
        await wait_until(lambda: self.schedules.get(name).state.cursor >= cursor, f"{name} at {cursor}")
        await wait_until(lambda: not self.schedules.get(name).changed, "written")


@asynccontextmanager
async def bench(path, modules=(ECHO, HOLDS), *, at=START - 10, clock=None):
    clock = clock or Clock()
    clock.set(at)
    async with open_service(path, modules) as service, trio.open_nursery() as nursery:
        (path / "own").mkdir(exist_ok=True)
        schedules = Schedules(StartsFile.open(path / "own" / STARTS_FILE), service.registry, service.runs, clock)
        schedules._load()
        await nursery.start(schedules.run)
        try:
            yield Bench(service, schedules, clock)
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await schedules.aclose()


async def test_a_due_instant_starts_an_execution_that_names_it(tmp_path):
    async with bench(tmp_path) as at_work:
        await at_work.add("hourly", "echo", every="1h", input={"a": [1]})
        assert at_work.schedules.get("hourly").spec.timing.next(at_work.clock()) == START
        at_work.set(START)

        (execution,) = await at_work.started("hourly", 1)
        await at_work.settled("hourly", START)

        assert (execution.schedule, execution.scheduled_for) == ("hourly", START)
        assert execution.asynchronous
        assert execution.idempotency_key == f"hourly/{instant_text(START)}"
        assert execution.subject == "schedule:hourly"
        whole = await at_work.service.history.get(execution.id)
        assert json.loads(whole.input) == {"a": [1]}
        state = at_work.schedules.get("hourly").state
        assert (state.last_execution, state.last_for, state.started) == (execution.id, START, 1)


async def test_the_schedules_of_modules_come_and_go_with_them(tmp_path):
    daily = evolve(ECHO, schedules=(read_schedule({"name": "daily", "every": "1d"}),))
    async with bench(tmp_path, [daily]) as at_work:
        schedule = at_work.schedules.get("echo:daily")
        assert (schedule.module, schedule.stored) == ("echo", None)
        midnight = schedule.spec.timing.next(at_work.clock())

        renamed = evolve(daily, name="other")
        await at_work.service.registry.publish([renamed])
        at_work.schedules.follow()
        await wait_until(lambda: [each.id for each in at_work.schedules.all()] == ["other:daily"], "renamed")

        at_work.set(midnight)
        (execution,) = await at_work.started("other:daily", 1)
        assert execution.module.name == "other"
        assert await at_work.executions("echo:daily") == []
        await at_work.settled("other:daily", midnight)


async def test_a_changed_time_begins_anew_and_a_changed_input_does_not(tmp_path):
    async with bench(tmp_path) as at_work:
        await at_work.add("a", "echo", every="1h", misfire="last", input=1)
        begun = at_work.schedules.get("a").state.cursor
        await at_work.add("a", "echo", every="1h", misfire="last", input=2)
        assert at_work.schedules.get("a").state.cursor == begun
        at_work.clock.shift += 1
        changed = await at_work.add("a", "echo", every="2h", misfire="last", input=2)
        assert changed.state.cursor > begun


@pytest.mark.parametrize(("misfire", "expected"), [("skip", []), ("last", [3]), ("all", [1, 2, 3])])
async def test_a_runner_that_was_away(tmp_path, misfire, expected):
    async with bench(tmp_path) as at_work:
        await at_work.add("a", "echo", every="1h", misfire=misfire)
        at_work.set(START)
        await at_work.started("a", 1)
        await at_work.settled("a", START)
        await wait_until(lambda: not at_work.schedules.get("a").running(), "it ended")
    async with bench(tmp_path, at=START + 3 * HOUR + 600) as at_work:
        await at_work.settled("a", START + 3 * HOUR)
        found = await at_work.started("a", 1 + len(expected))
        await wait_until(lambda: not at_work.schedules.get("a").state.pending, "all of them began")

        assert [each.scheduled_for for each in found] == [START, *(START + n * HOUR for n in expected)]
        if not expected:
            assert at_work.schedules.get("a").state.missed >= 1


async def test_an_instant_that_was_accepted_when_the_runner_died_is_not_started_again(tmp_path):
    async with bench(tmp_path) as at_work:
        await at_work.add("a", "echo", every="1h")
        before = (tmp_path / "own" / STARTS_FILE).read_bytes()
        at_work.set(START)
        (first,) = await at_work.started("a", 1)
        await at_work.settled("a", START)
    (tmp_path / "own" / STARTS_FILE).write_bytes(before)
    async with bench(tmp_path, at=START + 5) as at_work:
        await at_work.settled("a", START)

        assert [each.id for each in await at_work.executions("a")] == [first.id]
        assert at_work.schedules.get("a").state.last_execution == first.id


async def test_an_instant_that_was_not_accepted_when_the_runner_died_starts(tmp_path):
    async with bench(tmp_path) as at_work:
        await at_work.add("a", "echo", every="1h")
    async with bench(tmp_path, at=START + 5) as at_work:
        (execution,) = await at_work.started("a", 1)
        assert execution.scheduled_for == START
        await at_work.settled("a", START)


async def test_a_clock_that_goes_back_starts_nothing_again_and_loses_nothing(tmp_path):
    async with bench(tmp_path) as at_work:
        await at_work.add("a", "echo", every="1h")
        at_work.set(START)
        await at_work.started("a", 1)
        await wait_until(lambda: not at_work.schedules.get("a").running(), "it ended")
        at_work.set(START + 2 * HOUR)  # an hour is missed
        await at_work.started("a", 2)
        await at_work.settled("a", START + 2 * HOUR)

        at_work.set(START - 600)
        await wait_until(lambda: at_work.schedules.get("a").state.cursor < START, "the change is noticed")
        for n in range(4):
            at_work.set(START + n * HOUR)
            await at_work.settled("a", START + n * HOUR)
            await wait_until(lambda: not at_work.schedules.get("a").running(), "it ended")

        found = await at_work.executions("a")
        assert [each.scheduled_for for each in found] == [START + n * HOUR for n in range(4)]


async def test_overlap_skip_leaves_out_what_comes_while_the_last_one_runs(tmp_path):
    flag = tmp_path / "flag"
    async with bench(tmp_path) as at_work:
        await at_work.add("a", "holds", every="1h", input=str(flag))
        for n in range(3):
            at_work.set(START + n * HOUR)
            await at_work.settled("a", START + n * HOUR)
        flag.touch()
        await wait_until(lambda: not at_work.schedules.get("a").running(), "it ended")
        at_work.set(START + 3 * HOUR)
        await at_work.settled("a", START + 3 * HOUR)

        assert [each.scheduled_for for each in await at_work.executions("a")] == [START, START + 3 * HOUR]
        state = at_work.schedules.get("a").state
        assert (state.started, state.skipped) == (2, 2)


async def test_overlap_queue_waits_for_the_end_over_a_restart_too(tmp_path):
    flag = tmp_path / "flag"
    async with bench(tmp_path) as at_work:
        await at_work.add("a", "holds", every="1h", overlap="queue", input=str(flag))
        for n in range(3):
            at_work.set(START + n * HOUR)
            await at_work.settled("a", START + n * HOUR)
        assert at_work.schedules.get("a").state.pending == (START + HOUR, START + 2 * HOUR)
    async with bench(tmp_path, at=START + 2 * HOUR + 300) as at_work:
        flag.touch()
        found = await at_work.started("a", 3)
        await wait_until(lambda: not at_work.schedules.get("a").state.pending, "all of them began")

        assert [each.scheduled_for for each in found] == [START, START + HOUR, START + 2 * HOUR]
        await wait_until(lambda: not at_work.schedules.get("a").running(), "they ended")
        ends = await at_work.executions("a")
        assert all(one.finished_at <= next_one.started_at for one, next_one in itertools.pairwise(ends))


async def test_overlap_queue_is_bounded(tmp_path):
    flag = tmp_path / "flag"
    async with bench(tmp_path) as at_work:
        schedule = await at_work.add("a", "holds", every="1h", overlap="queue", input=str(flag))
        at_work.set(START)
        await at_work.settled("a", START)
        schedule.set(pending=tuple(START + 1000 + n for n in range(MAX_PENDING)))
        at_work.set(START + HOUR)
        await at_work.settled("a", START + HOUR)

        assert (len(schedule.state.pending), schedule.state.skipped) == (MAX_PENDING, 1)


async def test_overlap_cancel_ends_the_last_one(tmp_path):
    flag = tmp_path / "flag"
    async with bench(tmp_path) as at_work:
        await at_work.add("a", "holds", every="1h", overlap="cancel", input=str(flag))
        at_work.set(START)
        await at_work.started("a", 1)
        await at_work.settled("a", START)
        at_work.set(START + HOUR)
        await at_work.settled("a", START + HOUR)
        await wait_until(lambda: len(at_work.schedules.get("a").running()) == 1, "the first one ended")

        first, second = await at_work.executions("a")
        assert first.status is Status.CANCELLED
        assert "the schedule a started the next execution" in first.failure.message
        assert not second.status.final


async def test_overlap_parallel_runs_both(tmp_path):
    flag = tmp_path / "flag"
    async with bench(tmp_path) as at_work:
        await at_work.add("a", "holds", every="1h", overlap="parallel", input=str(flag))
        for n in range(2):
            at_work.set(START + n * HOUR)
            await at_work.settled("a", START + n * HOUR)

        assert len(at_work.schedules.get("a").running()) == 2
        flag.touch()


async def test_a_paused_schedule_starts_nothing_and_goes_on_from_its_resumption(tmp_path):
    async with bench(tmp_path) as at_work:
        schedule = await at_work.add("a", "echo", every="1h", misfire="all")
        await at_work.schedules.pause(schedule, "tester")
        at_work.set(START + 600)
    async with bench(tmp_path, at=START + 2 * HOUR + 600) as at_work:
        schedule = at_work.schedules.get("a")
        assert schedule.state.paused_by == "tester"
        await at_work.schedules.pause(schedule, None)
        at_work.set(START + 3 * HOUR)
        (execution,) = await at_work.started("a", 1)
        assert execution.scheduled_for == START + 3 * HOUR
        await at_work.settled("a", START + 3 * HOUR)


async def test_firing_now_is_an_execution_of_the_caller_without_an_instant(tmp_path):
    async with bench(tmp_path) as at_work:
        schedule = await at_work.add("a", "echo", every="1h", input=7)
        live = await at_work.schedules.fire(schedule, "tester")
        await live.ended.wait()

        assert (live.execution.schedule, live.execution.scheduled_for) == ("a", None)
        assert (live.execution.subject, live.execution.result) == ("tester", b"7")
        assert schedule.spec.timing.next(at_work.clock()) == START


@pytest.mark.parametrize(
    ("fields", "module", "why"),
    [
        ({}, "gone", "there is no module 'gone'"),
        ({"version": "v9"}, "echo", "has no version 'v9'"),
        ({"input": "x"}, "picky", "'x' is not of type 'integer'"),
    ],
)
async def test_an_instant_that_cannot_start_is_counted_with_its_reason(tmp_path, fields, module, why):
    picky = inline("picky", "def handler(input: int):\n    return input\n")
    async with bench(tmp_path, [ECHO, picky]) as at_work:
        spec = {"every": "1h", **{k: v for k, v in fields.items() if k != "version"}}
        schedule = await at_work.add("a", module, **spec)
        if "version" in fields:
            schedule.stored = replace(schedule.stored, version=fields["version"])
        at_work.set(START)
        await at_work.settled("a", START)

        state = at_work.schedules.get("a").state
        assert (state.started, state.failed) == (0, 1)
        assert why in state.problem
        assert await at_work.executions("a") == []


async def test_a_full_queue_delays_an_instant(tmp_path):
    async with bench(tmp_path) as at_work:
        schedule = await at_work.add("a", "echo", every="1h")
        dispatcher = at_work.service.runs.dispatcher
        most = dispatcher.max_queued
        dispatcher.max_queued = 0
        at_work.set(START)
        await wait_until(lambda: schedule.due is not None and schedule.due > START, "tried once")
        assert schedule.state.cursor < START
        dispatcher.max_queued = most
        at_work.set(START + 30)

        (execution,) = await at_work.started("a", 1)
        assert execution.scheduled_for == START
        await at_work.settled("a", START)


async def test_a_key_of_a_caller_does_not_take_an_instant_away(tmp_path):
    async with bench(tmp_path) as at_work:
        await at_work.add("a", "echo", every="1h")
        module = at_work.service.registry.snapshot.get("echo")
        theirs = Execution(
            id=execution_id(),
            module=module.ref,
            env=module.spec.env,
            status=Status.QUEUED,
            created_at=time.time(),
            input=b"1",
            subject="somebody",
            asynchronous=True,
            idempotency_key=f"a/{instant_text(START)}",
        )
        await at_work.service.runs.dispatcher.submit(module, theirs)
        at_work.set(START)

        (execution,) = await at_work.started("a", 1)
        assert execution.id != theirs.id
        await at_work.settled("a", START)


async def test_a_damaged_file_is_set_aside_and_says_so(tmp_path):
    async with bench(tmp_path) as at_work:
        await at_work.add("a", "echo", every="1h")
    file = tmp_path / "own" / STARTS_FILE
    file.write_bytes(b"noise" * 5000)
    async with bench(tmp_path) as at_work:
        assert at_work.schedules.damaged
        assert at_work.schedules.all() == []
        assert list(file.parent.glob(f"{STARTS_FILE}*-*"))
        await at_work.add("a", "echo", every="1h")


async def test_a_file_that_is_gone_refuses_changes(tmp_path):
    async with bench(tmp_path) as at_work:
        (tmp_path / "own" / STARTS_FILE).unlink()
        with pytest.raises(RunnerError) as caught:
            await at_work.add("a", "echo", every="1h")
        assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
        assert at_work.schedules.get("a") is None


async def test_ten_thousand_schedules_are_taken_and_looked_at(tmp_path):
    file = tmp_path / "own" / STARTS_FILE
    file.parent.mkdir()
    opened = StartsFile.open(file)
    stored = []
    for number in range(10_000):
        fields = schedule_fields(
            read_schedule({"cron": f"{number % 60} {number % 24} * * *", "timezone": "Asia/Seoul"})
        )
        who = {"created_at": START, "created_by": "tester", "updated_at": START, "updated_by": "tester"}
        stored.append(StoredSchedule(id=f"s{number}", module="echo", fields=fields, **who))
    opened.write((), stored)
    opened.close()
    async with bench(tmp_path) as at_work:
        assert len(at_work.schedules.all()) == 10_000
        await wait_until(lambda: not any(each.changed for each in at_work.schedules.all()), "all are written")
        assert at_work.schedules.statistics()["active"] == 10_000
        assert all(each.due > at_work.clock() - 60 for each in at_work.schedules.all())
