"""Cluster: schedules of two runners over one real server: each instant once, their states alike."""

from __future__ import annotations

import secrets
import time
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio
from attrs import define
from msgspec.structs import replace

from actors.cluster.engine import open_engine
from actors.cluster.feed import Feeds, SharedInstants
from actors.cluster.letters import Author
from actors.history import Page, Query
from actors.starts import STARTS_FILE, Schedules, StartsFile, StoredSchedule
from config.timing import read_schedule, schedule_fields
from protocol.errors import ErrorKind, RunnerError
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
    """The time of day, as all runners have it."""

    shift: float = 0.0

    def __call__(self):
        return time.time() + self.shift

    def set(self, instant):
        self.shift = instant - time.time()


@define(eq=False)
class All:
    """The executions of both runners, as each of them finds them."""

    services: list = attrs.field(factory=list)

    @property
    def owners(self):
        return self

    @property
    def history(self):
        return self

    async def reach(self, name):
        return next((live for each in self.services if (live := each.runs.find(name)) is not None), None)

    async def list(self, query):
        pages = [await each.history.list(query) for each in self.services]
        return Page(tuple(item for page in pages for item in page.items), None)


@define(eq=False)
class Bench:
    service: object
    schedules: Schedules
    everyone: All

    async def add(self, name, module, **fields):
        spec = read_schedule(fields)
        at = self.schedules.clock()
        about = {"created_at": at, "created_by": "kim", "updated_at": at, "updated_by": "kim"}
        stored = StoredSchedule(id=name, module=module, fields=schedule_fields(spec), **about)
        known = self.schedules.get(name)
        return await self.schedules.put(stored, spec, None if known is None else known.stored)

    def look(self):
        self.schedules.known.timer.ring()

    def state(self, name):
        found = self.schedules.get(name)
        return None if found is None else found.state


@asynccontextmanager
async def bench(settings, path, node, clock, everyone):
    async with open_service(path, (ECHO, HOLDS)) as service, open_engine(settings) as engine:
        author = Author(node, secrets.token_hex(4), "1.0")
        feeds, instants = Feeds(engine, author), SharedInstants(engine, author, everyone)
        everyone.services.append(service)
        file = StartsFile.open(path / STARTS_FILE)
        schedules = Schedules(file, service.registry, service.runs, clock, feeds.schedules, instants)
        schedules._load()
        try:
            async with feeds.following_schedules(schedules), trio.open_nursery() as nursery:
                await nursery.start(schedules.run)
                yield Bench(service, schedules, everyone)
                nursery.cancel_scope.cancel()
        finally:
            everyone.services.remove(service)
            with trio.CancelScope(shield=True):
                await schedules.aclose()


@pytest.fixture
async def both(nats, tmp_path):
    settings, clock, everyone = nats.settings(), Clock(START - 10 - time.time()), All()
    open_one = partial(bench, settings, clock=clock, everyone=everyone)
    async with open_one(tmp_path / "a", "a") as a, open_one(tmp_path / "b", "b") as b:
        yield a, b, clock


async def alike(a, b, name, cursor):
    def same():
        one, other = a.state(name), b.state(name)
        return one is not None and one == other and one.cursor >= cursor

    await wait_until(same, lambda: f"{name} at {cursor} on both: {a.state(name)} {b.state(name)}")
    return a.state(name)


def pass_to(clock, instant, *benches):
    clock.set(instant)
    for each in benches:
        each.look()


async def executions(a, name):
    return (await a.everyone.list(Query(schedule=name, limit=100))).items


async def test_an_instant_starts_once_and_all_runners_know(both):
    a, b, clock = both
    await a.add("hourly", "echo", every="1h", overlap="parallel")
    await wait_until(lambda: b.schedules.get("hourly") is not None, "known")
    for number in range(3):
        pass_to(clock, START + number * HOUR, a, b)
        state = await alike(a, b, "hourly", START + number * HOUR)

    assert (state.started, state.skipped, state.missed) == (3, 0, 0)
    found = await executions(a, "hourly")
    assert sorted(each.scheduled_for for each in found) == [START, START + HOUR, START + 2 * HOUR]


async def test_a_running_execution_of_another_runner_is_not_overlapped(both, tmp_path):
    a, b, clock = both
    gate = tmp_path / "gate"
    await a.add("hourly", "holds", every="1h", overlap="skip", input=str(gate))
    await wait_until(lambda: b.schedules.get("hourly") is not None, "known")
    for number in range(4):
        pass_to(clock, START + number * HOUR, a, b)
        state = await alike(a, b, "hourly", START + number * HOUR)
    assert (state.started, state.skipped) == (1, 3)

    gate.touch()
    (execution,) = await executions(a, "hourly")
    live = await a.everyone.reach(execution.id)
    if live is not None:
        await live.ended.wait()
    pass_to(clock, START + 4 * HOUR, b, a)
    state = await alike(a, b, "hourly", START + 4 * HOUR)
    assert (state.started, state.skipped) == (2, 3)


async def test_a_runner_that_drains_takes_no_instant_that_it_cannot_start(both):
    a, b, clock = both
    await a.add("hourly", "echo", every="1h")
    await wait_until(lambda: b.schedules.get("hourly") is not None, "known")
    a.service.runs.stop(at_once=False)
    clock.set(START)
    a.look()
    await wait_until(lambda: (a.schedules.get("hourly").due or 0) > START, "looked at")
    b.look()
    started = (await alike(a, b, "hourly", START)).started
    in_the_way = len(b.schedules.instants._seen)

    assert (started, in_the_way) == (1, 0), "the other one has claimed nothing"


async def test_pause_change_and_deletion_hold_everywhere(both):
    a, b, clock = both
    await a.add("hourly", "echo", every="1h")
    await wait_until(lambda: b.schedules.get("hourly") is not None, "known")
    await b.schedules.pause(b.schedules.get("hourly"), "lee")
    await wait_until(lambda: a.state("hourly").paused_by == "lee", "paused")
    pass_to(clock, START, a, b)
    await a.schedules.pause(a.schedules.get("hourly"), None)
    await wait_until(lambda: b.state("hourly").paused_by is None, "resumed")
    assert not await executions(a, "hourly")

    stale = b.schedules.get("hourly").stored
    await a.add("hourly", "echo", every="2h")
    with pytest.raises(RunnerError) as problem:
        await b.schedules.put(replace(stale, updated_by="lee"), read_schedule({"every": "3h"}), stale)
    assert problem.value.failure.kind is ErrorKind.CONFLICT
    await wait_until(lambda: b.schedules.get("hourly").spec.every == 2 * HOUR, "changed")
    await b.schedules.remove(b.schedules.get("hourly"))
    await wait_until(lambda: a.schedules.get("hourly") is None, "deleted")


async def test_instants_missed_while_all_were_down_are_made_up_once(nats, tmp_path):
    settings, clock, everyone = nats.settings(), Clock(START - 10 - time.time()), All()
    open_one = partial(bench, settings, clock=clock, everyone=everyone)
    async with open_one(tmp_path / "a", "a") as a, open_one(tmp_path / "b", "b") as b:
        await a.add("hourly", "echo", every="1h", misfire="last")
        await wait_until(lambda: b.schedules.get("hourly") is not None, "known")
    clock.set(START + 3 * HOUR + 600)
    async with open_one(tmp_path / "a", "a") as a, open_one(tmp_path / "b", "b") as b:
        state = await alike(a, b, "hourly", START + 3 * HOUR)
        found = await executions(a, "hourly")

    assert [each.scheduled_for for each in found] == [START + 3 * HOUR]
    assert state.started == 1


async def test_schedules_are_brought_once_when_a_runner_joins(nats, tmp_path):
    settings, clock, everyone = nats.settings(), Clock(START - 10 - time.time()), All()
    open_one = partial(bench, settings, clock=clock, everyone=everyone)
    async with open_service(tmp_path / "b", (ECHO,)) as service:
        schedules = Schedules(StartsFile.open(tmp_path / "b" / STARTS_FILE), service.registry, service.runs, clock)
        schedules._load()
        alone = Bench(service, schedules, everyone)
        await alone.add("mine", "echo", every="1h")
        await alone.add("both", "echo", every="5h")
        await schedules.pause(schedules.get("mine"), "lee")
        await schedules.aclose()
    async with open_one(tmp_path / "a", "a") as a:
        await a.add("both", "echo", every="2h")
        async with open_one(tmp_path / "b", "b") as b:
            await alike(a, b, "mine", 0)
            assert a.state("mine").paused_by == "lee"
            assert b.schedules.get("both").spec.every == 2 * HOUR
            assert len(list((tmp_path / "b").glob("starts.db.before-cluster-*"))) == 1
