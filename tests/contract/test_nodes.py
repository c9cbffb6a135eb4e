"""Contract: executions through the door of a runner that does not have them. Real workers, a bus in memory."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest
import trio
from msgspec.structs import replace

from actors.cluster import Author
from actors.cluster.nodes import Facts, Nodes, forwarding, wording
from config.modules import ToolPolicy
from config.settings import ClusterSettings
from protocol.errors import ErrorKind, RunnerError
from protocol.events import ItemEvent
from protocol.model import Record, Status
from runner.auth import Principal
from tests.bus import Bus
from tests.support import ANYBODY, inline, open_service, wait_until

PATIENT = 20
BUSY = inline(
    "busy",
    """
    import time, os
    def handler(input):
        print("begin", flush=True)
        open(input["begun"], "a").write("x")
        while not os.path.exists(input["free"]):
            time.sleep(0.01)
        print("end")
        return input.get("answer", os.getpid())
    """,
    concurrency=1,
)
ECHO = inline("echo", "def handler(input):\n    return input\n", concurrency=1)
ITEMS = inline("items", "def handler(input):\n    for n in range(input):\n        yield n\n", concurrency=1)
MODULES = [BUSY, ECHO, ITEMS]


class Runner:
    """One runner of the bus."""

    def __init__(self, service, nodes, cut) -> None:
        self.service, self.nodes = service, nodes
        self.cut = cut
        """Takes it from the bus, while it keeps running."""


class Queue:
    """The queue of this runner, which leaves calls that it cannot run to other runners, as that of a cluster does."""

    def __init__(self, dispatcher) -> None:
        self.dispatcher = dispatcher

    def __getattr__(self, name):
        return getattr(self.dispatcher, name)

    def takes_calls(self, _module) -> bool:
        return False


@asynccontextmanager
async def runner(bus, path, name, modules=MODULES, labels=(), **settings):
    """Run a runner without doors, and connect it with the others."""
    async with open_service(path / name, modules, cluster=ClusterSettings(labels=labels), **settings) as service:
        wire = bus.wire()
        service.history.node = name
        service.runs.dispatcher.queue = Queue(service.runs.dispatcher)
        adopt = service.history.adopt
        nodes = Nodes(
            wire,
            Author(name, f"boot of {name}", "1"),
            service.settings,
            service.runs,
            service.registry,
            service.history,
            lambda execution: adopt([execution]),
            service.runs.dispatcher.live.records.finish,
            Facts,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(nodes.run)
            yield Runner(service, nodes, nursery.cancel_scope.cancel)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def two(path, modules=MODULES, **settings):
    """Run two runners that know each other."""
    bus = Bus()
    async with runner(bus, path, "a", modules, **settings) as a, runner(bus, path, "b", modules, **settings) as b:
        with trio.fail_after(PATIENT):
            for each in (a, b):
                await wait_until(lambda each=each: len(each.nodes.state().nodes) == 2, "they do not meet")
        yield bus, a, b


class Task:
    """Input of `busy`, which runs until it is freed."""

    def __init__(self, path, name="task", **more) -> None:
        self.begun, self.free = path / f"{name}.begun", path / f"{name}.free"
        self.input = json.dumps({"begun": str(self.begun), "free": str(self.free), **more}).encode()

    @property
    def begins(self):
        return len(self.begun.read_text()) if self.begun.exists() else 0

    async def wait_begun(self):
        await wait_until(lambda: self.begins > 0, "it does not begin")


async def running(where, task):
    """Return the id of the task, which runs at this runner."""
    accepted = await where.service.submit(ANYBODY, "busy", task.input)
    await task.wait_begun()
    return accepted.id


async def followed(follower):
    """Return all events until the end."""
    found = []
    while (events := await follower.next()) is not None and not follower.ended:
        found += events
    return [*found, *(events or ())]


async def test_another_door_shows_follows_and_cancels_what_one_runner_has(tmp_path):
    async with two(tmp_path) as (_, a, b):
        task = Task(tmp_path)
        name = await running(a, task)

        with trio.fail_after(PATIENT):
            shown = await b.service.get(ANYBODY, name)
            assert (shown.status, shown.attempts) == (Status.RUNNING, 1)
            assert await b.service.outputs.text(ANYBODY, name) == b"begin\n"
            follower = await b.service.follow(ANYBODY, name)
            begin = await follower.next()
            assert [event.seq for event in begin] == list(range(len(begin)))
            own = await a.service.follow(ANYBODY, name)
            assert await own.next() == begin

            ended = await b.service.cancel(ANYBODY, name)

            assert (ended.status, ended.failure.kind) == (Status.CANCELLED, ErrorKind.CANCELLED)
            assert await b.service.history.get(name) == await a.service.history.get(name)
            assert (await followed(follower))[-1].status is Status.CANCELLED
            with pytest.raises(RunnerError, match="there is no execution"):
                await b.service.cancel(ANYBODY, "nothing")


async def test_what_another_runner_has_recorded_is_waited_for(tmp_path):
    """It was accepted there, no runner has it in hand, and the record is on its way to the door that is asked."""
    async with two(tmp_path, max_workers=1) as (bus, a, b):
        name = (await a.service.submit(ANYBODY, "echo", b"1")).id
        with trio.fail_after(PATIENT):
            await wait_until(lambda: a.service.runs.find(name) is None, "it does not end")
            record = await a.service.history.get(name)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_adopt_when_asked, bus, b, record)
                assert (await b.service.get(ANYBODY, name)).result == b"1"

            later = (await a.service.submit(ANYBODY, "echo", b"2")).id
            await wait_until(lambda: a.service.runs.find(later) is None, "it does not end")
            with pytest.raises(RunnerError, match="the runner a has recorded") as caught:
                await b.service.cancel(ANYBODY, later)
            assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
            with pytest.raises(RunnerError, match="there is no execution"):
                await b.service.get(ANYBODY, "01a22a9c-4a85-7a8b-9c5e-e8655feb3816")


async def _adopt_when_asked(bus, where, record):
    """Store a record in the history of a runner, as the projection does, when the other one has answered it."""
    answered = trio.Event()
    bus.lose = lambda where, _: where == "answer" and answered.set()
    await answered.wait()
    await where.service.history.adopt([record])
    where.nodes.project(record)


async def test_a_follower_at_another_door_gets_every_event_once_and_the_end(tmp_path):
    async with two(tmp_path) as (_, a, b):
        task = Task(tmp_path, answer="x" * 200_000)
        name = await running(a, task)
        with trio.fail_after(PATIENT):
            follower = await b.service.follow(ANYBODY, name)
            found = list(await follower.next())
            task.free.touch()
            found += await followed(follower)
            own = await followed(await a.service.follow(ANYBODY, name))

            assert found == own
            assert (await b.service.get(ANYBODY, name)).result == (await a.service.get(ANYBODY, name)).result
            late = await followed(await b.service.follow(ANYBODY, name, 2))
            assert late == own[2:]


@asynccontextmanager
async def occupied(where, path):
    """Keep the one place of `busy` at this runner taken."""
    task = Task(path, f"occupied-{where.nodes.author.node}")
    name = await running(where, task)
    yield task
    task.free.touch()
    with trio.fail_after(PATIENT):
        await wait_until(lambda: where.service.runs.find(name) is None, "it does not end")


async def executed(where, module, data, ends):
    """Call a module, and keep its end."""
    ends.append(await where.service.execute(ANYBODY, module, data))


async def test_a_call_runs_on_the_runner_with_a_free_place(tmp_path):
    async with two(tmp_path) as (_, a, b), occupied(a, tmp_path):
        task, ends = Task(tmp_path), []
        with trio.fail_after(PATIENT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(executed, a, "busy", task.input, ends)
                await task.wait_begun()
                assert b.service.runs.statistics().live == 1
                task.free.touch()
        ended = ends[0]
        assert (ended.status, ended.node, task.begins) == (Status.SUCCEEDED, "b", 1)
        assert await a.service.history.get(ended.id) == await b.service.history.get(ended.id) == ended
        assert a.nodes.state().forwarded == 1
        assert a.service.runs.tally.ended == {}


async def test_a_call_elsewhere_ends_with_its_caller_and_by_its_id(tmp_path):
    async with two(tmp_path) as (_, a, b), occupied(a, tmp_path):
        gone, stopped = Task(tmp_path, "gone"), Task(tmp_path, "stopped")
        with trio.fail_after(PATIENT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.service.execute, ANYBODY, "busy", gone.input)
                await gone.wait_begun()
                name = next(iter(b.service.runs.live_executions())).execution.id
                nursery.cancel_scope.cancel()
            for each in (a, b):
                assert (await each.service.history.get(name)).status is Status.CANCELLED
                assert each.service.runs.find(name) is None

            name, events = await a.service.begin(ANYBODY, "busy", stopped.input)
            await stopped.wait_begun()
            await wait_until(lambda: a.service.runs.find(name).log.next_seq > 1, "no events come")
            assert (await a.service.cancel(ANYBODY, name)).status is Status.CANCELLED
            assert (await followed(events))[-1].status is Status.CANCELLED


async def test_items_of_a_call_elsewhere_are_streamed(tmp_path):
    """A summary of its record is no summary of the answer."""
    summary = inline("items", ITEMS.code, concurrency=1, record=Record.SUMMARY)
    blocker = inline("blocker", BUSY.code, concurrency=1)
    async with two(tmp_path, [summary, blocker, BUSY], max_workers=1) as (_, a, _), occupied(a, tmp_path):
        items = []
        with trio.fail_after(PATIENT):
            ended = await a.service.execute(ANYBODY, "items", b"3", on_item=lambda _, log: items.append(log))
        assert (ended.node, json.loads(ended.result)) == ("b", [0, 1, 2])
        assert len(items) == 1
        assert [bytes(e.value) for e in items[0].kept() if isinstance(e, ItemEvent)] == [b"0", b"1", b"2"]


async def test_large_inputs_and_results_travel_in_pieces(tmp_path):
    async with two(tmp_path, max_workers=1) as (bus, a, _), occupied(a, tmp_path):
        text = json.dumps("y" * 300_000).encode()
        assert len(text) > 4 * bus.max_payload
        with trio.fail_after(PATIENT):
            ended = await a.service.execute(ANYBODY, "echo", text)
        assert (ended.node, ended.result) == ("b", text)


@pytest.mark.parametrize("way", ["question", "answer"])
async def test_a_call_whose_offer_is_not_answered_begins_once(tmp_path, way):
    async with two(tmp_path) as (bus, a, _), occupied(a, tmp_path) as blocker:
        task, ends, lost = Task(tmp_path), [], []

        def lose(where, data):
            if where != way or lost or not isinstance(wording.read_question(data)[1], wording.Run):
                return False
            lost.append(where)
            return True

        bus.lose = lose
        with trio.fail_after(PATIENT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(executed, a, "busy", task.input, ends)
                await wait_until(lambda: lost, "nothing is lost")
                blocker.free.touch()
                task.free.touch()
        assert (ends[0].status, ends[0].node, task.begins) == (Status.SUCCEEDED, "b" if way == "answer" else "a", 1)


async def test_a_call_does_not_wait_forever_for_servers_that_are_away(tmp_path, monkeypatch):
    monkeypatch.setattr(forwarding, "_WITHHOLD_SECONDS", 0.3)
    monkeypatch.setattr(forwarding, "_SILENCE_SECONDS", 0.3)
    async with two(tmp_path) as (bus, a, _), occupied(a, tmp_path):
        bus.lose = lambda where, _: where == "question"
        with trio.fail_after(PATIENT):
            ended = await a.service.execute(ANYBODY, "busy", Task(tmp_path).input)
        assert (ended.status, ended.failure.kind) == (Status.FAILED, ErrorKind.LOST)


async def test_a_call_is_lost_with_its_runner_and_never_begins_again(tmp_path):
    async with two(tmp_path) as (_, a, b), occupied(a, tmp_path):
        task, ends = Task(tmp_path), []
        with trio.fail_after(PATIENT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(executed, a, "busy", task.input, ends)
                await task.wait_begun()
                b.cut()
        task.free.touch()
        assert (ends[0].failure.kind, ends[0].status) == (ErrorKind.LOST, Status.FAILED)
        assert "the runner b" in ends[0].failure.message
        assert task.begins == 1
        assert (await a.service.history.get(ends[0].id)).failure.kind is ErrorKind.LOST


async def test_what_a_module_needs_decides_where_it_runs(tmp_path):
    gpu, bus = inline("gpu", "def handler(input):\n    return input\n", needs=("gpu",)), Bus()
    async with runner(bus, tmp_path, "a", [gpu]) as a:
        with pytest.raises(RunnerError) as refused:
            await a.service.execute(ANYBODY, "gpu", b"1")
        assert (refused.value.failure.kind, refused.value.failure.field) == (ErrorKind.UNAVAILABLE, "needs")
        assert "has gpu" in refused.value.failure.message
        assert a.service.runs.statistics().live == 0
        async with runner(bus, tmp_path, "b", [gpu], labels=("gpu", "zone=eu")) as b:
            with trio.fail_after(PATIENT):
                await wait_until(lambda: len(a.nodes.state().nodes) == 2, "they do not meet")
                ended = await a.service.execute(ANYBODY, "gpu", b"1")
            assert (ended.node, ended.result) == ("b", b"1")
            assert [each.labels for each in b.nodes.state().nodes] == [(), ("gpu", "zone=eu")]


async def test_decisions_count_through_any_door(tmp_path):
    asks = inline("asks", "def handler(input):\n    return input\n", tool=ToolPolicy(confirm=True))
    boss = Principal("boss", frozenset({"executions:approve", "executions:read"}))
    async with two(tmp_path, [asks]) as (_, a, b):
        with trio.fail_after(PATIENT):
            names = [(await a.service.submit(ANYBODY, "asks", b"5")).id for _ in range(2)]
            await wait_until(lambda: a.service.runs.statistics().awaiting == 2, "nothing asks")
            a.nodes.present.tell_soon()
            await wait_until(lambda: b.nodes.neighbours.get("a", trio.current_time()).awaiting == 2, "b does not hear")
            found, number = await b.service.decisions.awaiting(boss)
            assert ([each.id for each in found], number) == (names, 2)
            assert found[0].waiting.reason == "waits for approval"

            await b.service.decisions.approve(boss, names[0], "fine")
            denied = await b.service.decisions.deny(boss, names[1])

            assert (denied.status, denied.failure.kind) == (Status.FAILED, ErrorKind.FORBIDDEN)
            await wait_until(lambda: a.service.runs.find(names[0]) is None, "it does not run")
            assert (await a.service.get(ANYBODY, names[0])).result == b"5"
            with pytest.raises(RunnerError) as late:
                await b.service.decisions.approve(boss, names[1])
            assert late.value.failure.kind is ErrorKind.CONFLICT


@pytest.mark.parametrize("recorded", ["gone", "b"])
async def test_a_question_is_found_on_the_runner_that_took_it_over(tmp_path, recorded):
    asks = inline("asks", "def handler(input):\n    return input\n", tool=ToolPolicy(confirm=True))
    boss = Principal("boss", frozenset({"executions:approve", "executions:read"}))
    async with two(tmp_path, [asks]) as (_, a, b):
        with trio.fail_after(PATIENT):
            name = (await a.service.submit(ANYBODY, "asks", b"5")).id
            await wait_until(lambda: a.service.runs.statistics().awaiting == 1, "nothing asks")
            record = await a.service.history.get(name)
            await b.service.history.adopt([replace(record, node=recorded)])
            assert (await b.service.get(ANYBODY, name)).waiting.reason == "waits for approval"

            await b.service.decisions.approve(boss, name)
            await wait_until(lambda: a.service.runs.find(name) is None, "it does not run")
            assert (await a.service.get(ANYBODY, name)).result == b"5"
