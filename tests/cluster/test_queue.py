"""Cluster: the queue over one real server, with two runners in one process."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from msgspec.structs import replace

from actors.cluster.letters import Author, Letter, pack
from actors.cluster.queue import lane_of
from actors.history import Query
from actors.turns import Terms
from config.modules import GroupPolicy, ModuleSpec, ToolPolicy
from environments.base import Availability
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Approval, Kind, Status
from tests.cluster.sides import Neighbourhood, open_side
from tests.support import ANYBODY, PATIENCE, WAIT_FOR, inline, wait_until

PID = inline("pid", "import os\ndef handler(input): return os.getpid()", timeout=20.0)
HELD = WAIT_FOR + "def handler(input):\n    print('begun', flush=True)\n    wait_for(input)\n    return input\n"


@asynccontextmanager
async def two(tmp_path, nats, modules, *, labels=((), ()), **settings):
    """Give two runners."""
    given, around = nats.settings(), Neighbourhood()
    async with (
        open_side(tmp_path, "one", given, modules, around, labels=labels[0], **settings) as one,
        open_side(tmp_path, "other", given, modules, around, labels=labels[1], **settings) as other,
    ):
        yield one, other


async def submitted(side, name, data=b"null", **terms):
    return (await side.service.submit(ANYBODY, name, data, terms=Terms(**terms))).id


async def ended(side, name, seconds=PATIENCE):
    """Return an execution that has ended, as this side knows it."""
    with trio.fail_after(seconds):
        while True:
            found = await side.service.history.get(name)
            if found is not None and found.status.final:
                return found
            await trio.sleep(0.02)


async def queued(side):
    """Return how many jobs are in the queue."""
    await trio.lowlevel.checkpoint()
    return (await side.queue._numbers._ask(f"$JS.API.STREAM.INFO.{side.engine.names.queue}"))["state"]["messages"]


async def emptied(side):
    with trio.fail_after(PATIENCE):
        while await queued(side):
            await trio.sleep(0.02)


async def cleared(side):
    await side.service.history.catch_up()
    await side.queue._clearing.look()


async def test_jobs_run_where_places_are_free_each_once(tmp_path, nats):
    slow = inline("slow", "import time\ndef handler(input):\n    time.sleep(0.3)\n    return input", concurrency=4)
    async with two(tmp_path, nats, [slow], max_workers=2) as (one, other):
        ids = [await submitted(one, "slow", str(number).encode()) for number in range(8)]
        found = [await ended(one, name) for name in ids]
        await emptied(one)

        assert [each.result for each in found] == [str(number).encode() for number in range(8)]
        assert sorted(one.begun + other.begun) == sorted(ids)
        assert one.begun
        assert other.begun, "both have places"
        assert {each.node for each in found} == {"one", "other"}
        assert all(each.attempts == 1 for each in found)


async def test_a_steady_stream_stays_where_the_module_is_warm(tmp_path, nats):
    async with two(tmp_path, nats, [PID]) as (one, other):
        results = [(await ended(other, await submitted(other, "pid"))).result for _ in range(12)]

        assert len(set(results)) == 1, "one worker on one runner has run all"
        assert min(len(one.begun), len(other.begun)) == 0


async def test_concurrency_that_was_written_holds_over_all_runners(tmp_path, nats):
    gate = tmp_path / "gate"
    alone = inline("alone", HELD, concurrency=1)
    async with two(tmp_path, nats, [alone]) as (one, other):
        data = f'"{gate}"'.encode()
        first = await submitted(one, "alone", data)
        await wait_until(lambda: one.begun or other.begun, "the first has not begun")
        later = [await submitted(one, "alone", data), await submitted(other, "alone", data)]
        async with trio.open_nursery() as nursery:
            found = []

            async def call():
                found.append(await other.service.execute(ANYBODY, "alone", data))

            nursery.start_soon(call)
            with trio.fail_after(PATIENCE):
                while await queued(one) < 4:
                    await trio.sleep(0.02)
            stored = await one.service.history.get(later[0])
            waiting = await one.queue.waiting(stored)
            assert "1 executions of its module run on all runners, which is the limit" in waiting.reason
            assert one.begun + other.begun == [first], "the others wait in the queue"
            gate.touch()
        for name in (first, *later):
            assert (await ended(one, name)).status is Status.SUCCEEDED
        assert found[0].status is Status.SUCCEEDED, "the call had its turn in the queue"


async def test_a_call_without_a_turn_is_overloaded(tmp_path, nats):
    gate = tmp_path / "gate"
    alone = inline("alone", HELD, concurrency=1, queue_timeout=0.5)
    async with two(tmp_path, nats, [alone]) as (one, other):
        first = await submitted(one, "alone", f'"{gate}"'.encode())
        await wait_until(lambda: one.begun or other.begun, "the first has not begun")
        with pytest.raises(RunnerError) as caught:
            await one.service.execute(ANYBODY, "alone", f'"{gate}"'.encode())
        gate.touch()

        assert caught.value.failure.kind is ErrorKind.OVERLOADED
        assert "queue_timeout" in caught.value.failure.message
        await ended(one, first)
        await emptied(one)


async def test_needs_are_met_by_labels(tmp_path, nats):
    needy = inline("needy", "def handler(input): return input", needs=("gpu",))
    async with two(tmp_path, nats, [needy], labels=((), ("gpu",))) as (one, _):
        names = [await submitted(one, "needy") for _ in range(3)]
        for name in names:
            assert (await ended(one, name)).node == "other"


async def test_a_runner_without_a_kind_of_environment_leaves_its_modules_to_others(tmp_path, nats):
    boxed = ModuleSpec(name="boxed", env=Kind.VENV, code="def handler(input): return input", timeout=20.0)
    async with two(tmp_path, nats, [boxed]) as (one, other):
        found = {side: side.runs.attempts.executors[Kind.VENV]._starter.probing for side in (one, other)}
        known = {side: probing.found for side, probing in found.items()}
        for probing in found.values():
            probing.found = Availability(available=False, reason="there is no interpreter")
        waits = await submitted(one, "boxed")
        waiting = await one.queue.waiting(await one.service.history.get(waits))
        found[other].found = known[other]
        names = [waits, *[await submitted(one, "boxed") for _ in range(3)]]

        assert waiting.reason == "no runner has all that the module needs: env: venv"
        assert {(await ended(one, name)).node for name in names} == {"other"}
        assert not one.begun


async def test_a_runner_that_lacks_a_module_leaves_its_jobs_to_others(tmp_path, nats):
    """The module is in the same lane as one for which that runner has a worker, so it is the first to get the jobs."""
    rare = beside_pid("def handler(input): return input")
    async with two(tmp_path, nats, [PID, rare]) as (one, other):
        await one.runs.registry.publish([PID])
        await one.service.execute(ANYBODY, "pid", b"null")
        names = [await submitted(other, rare.name) for _ in range(8)]

        assert {(await ended(other, name)).node for name in names} == {"other"}
        assert left(one), "else the jobs come back here as long as there is a worker"


async def test_a_runner_where_a_module_does_not_start_leaves_its_jobs_to_others(tmp_path, nats):
    """As above, it has a worker for another module of the lane."""
    rare = beside_pid("import os\nassert '/one/' not in __file__\ndef handler(input): return input")
    async with two(tmp_path, nats, [PID, rare]) as (one, _):
        failed = await one.service.execute(ANYBODY, rare.name, b"null")
        await one.service.execute(ANYBODY, "pid", b"null")
        names = [await submitted(one, rare.name) for _ in range(8)]
        found = [await ended(one, name) for name in names]

        assert failed.failure.kind is ErrorKind.LOAD_FAILED
        assert {each.node for each in found} == {"other"}
        assert left(one)


async def test_a_module_that_starts_nowhere_fails_soon(tmp_path, nats):
    broken = inline("broken", "import nothing_of_this_name")
    async with two(tmp_path, nats, [broken]) as (one, _):
        names = [await submitted(one, "broken") for _ in range(8)]

        assert {(await ended(one, name)).failure.kind for name in names} == {ErrorKind.LOAD_FAILED}


def beside_pid(code):
    """Return a module that is in the same lane as `PID`."""
    made = (inline(f"rare{number}", code) for number in range(1000))
    return next(each for each in made if lane_of(each) == lane_of(PID))


def left(side):
    """Return whether a runner has left the lane of `PID` to others."""
    return side.queue._pulls._asking[lane_of(PID).name].left_until > trio.current_time()


async def test_what_no_runner_may_run_waits_with_its_reason(tmp_path, nats):
    needy = inline("needy", "def handler(input): return input", needs=("gpu",), concurrency=1)
    async with two(tmp_path, nats, [needy]) as (one, _):
        name = await submitted(one, "needy")
        waiting = await one.queue.waiting(await one.service.history.get(name))
        with pytest.raises(RunnerError) as caught:
            await one.service.execute(ANYBODY, "needy", b"null")

        assert waiting.reason == "no runner has all that the module needs: gpu"
        assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
        assert caught.value.failure.field == "needs"


async def test_jobs_that_no_runner_pulls_leave_when_their_executions_have_ended(tmp_path, nats):
    needy = inline("needy", "def handler(input): return input", needs=("gpu",))
    async with two(tmp_path, nats, [needy]) as (one, _):
        cancelled, waits = await submitted(one, "needy"), await submitted(one, "needy")
        await one.runs.owners.cancel(one.mirrors[cancelled])
        assert (await ended(one, cancelled)).status is Status.CANCELLED
        assert await queued(one) == 2
        await cleared(one)

        assert await queued(one) == 1
        assert await one.engine.last(one.engine.names.job("*", waits), fresh=True) is not None


async def test_executions_end_whose_module_no_runner_has(tmp_path, nats):
    needy = inline("needy", "def handler(input): return input", needs=("gpu",))
    async with two(tmp_path, nats, [needy]) as (one, _):
        template = await one.service.history.get(await submitted(one, "needy"))
        gone = replace(template.module, name="gone")
        waits = replace(template, id="waits", module=gone)
        begun = replace(template, id="begun", module=gone, status=Status.RUNNING, node="away", attempts=1)
        for execution in (waits, begun):
            data = _packed(Author("away", "boot", "1"), execution)
            await one.engine.publish(one.engine.names.state(execution.id), data, expect=0)
            await one.engine.publish(one.engine.names.job("gone", execution.id), b"", expect=0)
        with trio.fail_after(PATIENCE):
            while await one.service.history.get("begun") is None or await one.service.history.get("waits") is None:
                await trio.sleep(0.01)
        around = one.queue.around.presence
        around.files = ["a", "b"]
        await cleared(one)
        assert await queued(one) == 3, "another runner may have the module"
        around.files = ["a", "a"]
        await cleared(one)
        found = [(await ended(one, name)).failure.kind for name in ("waits", "begun")]
        await cleared(one)

        assert found == [ErrorKind.NOT_FOUND, ErrorKind.LOST]
        assert await queued(one) == 1


async def test_groups_are_on_one_runner_at_a_time_with_their_priorities(tmp_path, nats):
    gate = tmp_path / "gate"
    grouped = inline("grouped", HELD.replace("wait_for(input)", "wait_for(input['gate'])"), group=GroupPolicy("$.who"))
    async with two(tmp_path, nats, [grouped]) as (one, other):
        data = [f'{{"who": "{who}", "gate": "{gate}"}}'.encode() for who in "aab"]
        names = [await submitted(side, "grouped", each) for side, each in zip((one, other, one), data, strict=True)]
        await wait_until(lambda: len(one.begun) + len(other.begun) == 3, "they are not all on a runner")
        owner = one if one.begun else other
        running = lambda: [each.execution.id for each in owner.runs.live_executions() if each.began_at]  # noqa: E731
        await wait_until(lambda: len(running()) == 2, "two groups do not run")
        assert not (one.begun and other.begun)
        assert len({names[0], names[1]} & set(running())) == 1, "one of each group"
        gate.touch()
        for name in names:
            assert (await ended(one, name)).status is Status.SUCCEEDED


async def test_an_execution_that_another_runner_has_is_dropped(tmp_path, nats):
    gate = tmp_path / "gate"
    held = inline("held", HELD)
    async with two(tmp_path, nats, [held]) as (one, other):
        name = await submitted(one, "held", f'"{gate}"'.encode())
        await wait_until(lambda: one.begun or other.begun, "it has not begun")
        owner, door = (one, other) if one.begun else (other, one)
        while (state := await owner.log.state(name)).letter.execution.status is not Status.RUNNING:
            await trio.sleep(0.01)
        thief = Author("third", "boot", "1")
        taken = replace(state.letter.execution, node="third", attempts=2)
        await door.engine.publish(door.engine.names.state(name), _packed(thief, taken), expect=state.sequence)
        await wait_until(lambda: owner.runs.find(name) is None, "it is not dropped")
        gate.touch()

        assert owner.runs.statistics().live == 0
        assert (await owner.log.state(name)).letter.author.node == "third", "its end was not published"
        page = await owner.service.history.list(Query(status=Status.SUCCEEDED))
        assert page.items == ()
        assert (await owner.service.history.get(name)).status is Status.RUNNING


async def test_an_execution_whose_runner_is_gone_is_lost(tmp_path, nats):
    held = inline("held", HELD)
    async with two(tmp_path, nats, [held]) as (one, _):
        gone = Author("gone", "boot", "1")
        module = one.service.registry.snapshot.get("held")
        template = await one.service.history.get(await submitted(one, "held", b'"/"'))
        running = replace(template, id="lost-one", status=Status.RUNNING, node="gone", attempts=1, module=module.ref)
        await one.engine.publish(one.engine.names.state("lost-one"), _packed(gone, running), expect=0)
        await one.queue.offer(running)
        found = await ended(one, "lost-one")
        await emptied(one)

        assert (found.status, found.failure.kind) == (Status.FAILED, ErrorKind.LOST)


async def test_a_question_of_a_runner_that_is_gone_is_asked_elsewhere_and_counts_in_no_limit(tmp_path, nats):
    asks = inline("asks", "def handler(input): return input", concurrency=1, tool=ToolPolicy(confirm=True))
    async with two(tmp_path, nats, [asks]) as (one, other):
        mine = await submitted(one, "asks", b"1")
        left = replace(await one.service.history.get(mine), id="left", node="gone")
        await one.engine.publish(one.engine.names.state("left"), _packed(Author("gone", "boot", "1"), left), expect=0)
        await one.queue.offer(left)
        with trio.fail_after(PATIENCE):
            await wait_until(lambda: one.runs.find("left") or other.runs.find("left"), "none asks")
            await emptied(one)
            holder = one if one.runs.find("left") else other
            assert (await one.log.state("left")).letter.author == holder.me, "so that others see when it is gone, too"
            for side, name in ((one, mine), (holder, "left")):
                await side.runs.owners.decide(side.runs.find(name), Approval(True, "kim", 1.0))
                assert (await ended(one, name)).status is Status.SUCCEEDED


async def test_a_runner_that_drains_gives_its_jobs_back(tmp_path, nats):
    gate = tmp_path / "gate"
    held = inline("held", HELD)
    given, around = nats.settings(), Neighbourhood()
    async with open_side(tmp_path, "one", given, [held], around, max_workers=1) as one:
        names = [await submitted(one, "held", f'"{gate}"'.encode()) for _ in range(6)]
        await wait_until(lambda: one.begun, "none has begun")
        async with open_side(tmp_path, "other", given, [held], around, max_workers=4) as other:
            one.runs.stop(at_once=False)
            gate.touch()
            found = [await ended(other, name) for name in names]
            with trio.fail_after(PATIENCE):
                await one.runs.wait_idle()
            await emptied(other)

            assert {each.status for each in found} == {Status.SUCCEEDED}
            assert sum(each.attempts for each in found) == 6


async def test_the_queue_has_a_bound_over_all_runners(tmp_path, nats):
    needy = inline("needy", "def handler(input): return input", needs=("gpu",))
    async with two(tmp_path, nats, [needy], max_queued=3) as (one, _):
        for _ in range(3):
            await submitted(one, "needy")
        with pytest.raises(RunnerError) as caught:
            await submitted(one, "needy")

        assert caught.value.failure.kind is ErrorKind.OVERLOADED
        assert "max_queued" in caught.value.failure.message


def _packed(author, execution):
    return pack(Letter(author, execution)).data
