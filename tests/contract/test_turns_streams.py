"""Contract: rates and groups hold for batches, websockets and streams too, and `waiting` names them."""

from __future__ import annotations

import itertools
import json

import pytest
import trio

from config.modules import GroupPolicy
from config.settings import AuthSettings
from protocol.model import Status
from protocol.rpc.operato.runner import v1
from runner.auth import Verifier
from runner.grpc.executions import make_methods
from tests.contract.test_batch import batch, by_index
from tests.contract.test_runs import HELD, ended, printed
from tests.contract.test_streams import SECRET, messages_of, open_site
from tests.contract.test_turns import of_group
from tests.grpc_client import open_door
from tests.support import ANYBODY, inline, wait_until

BATCH = "/operato.runner.v1.ExecutorService/ExecuteBatch"
STREAM = "/operato.runner.v1.ExecutorService/ExecuteStream"
CODE = HELD.code.replace("wait_for(input)", "wait_for(input['flag'])")
GROUPED = inline("held", CODE, concurrency=9, group=GroupPolicy("$.of.customer"))
RATED = inline("rated", "def handler(input): return input", concurrency=9, rate="2/h")
FULL = '1 executions of its group "kim" run, which is the limit'
SLOW = "the rate of the module is 2/h; `queue_timeout` would pass"


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (GROUPED, RATED)) as opened:
        yield opened


@pytest.fixture
async def grpc(site):
    async with open_door(make_methods(site.service, Verifier(AuthSettings(), secret=SECRET))) as door:
        yield await door.connect()


def of(flag, customer):
    return {"flag": str(flag), "of": {"customer": customer}}


def calls(site, first):
    """Return the executions that are live, but for the first one."""
    return [live for live in site.service.runs.live_executions() if live.execution.id != first]


async def held_up(site, first, number):
    """Wait until so many calls wait for their group; return their executions as they are shown."""

    def waiting():
        found = [live.snapshot().waiting for live in calls(site, first)]
        return sum(each is not None and each.reason == FULL for each in found) == number

    await wait_until(waiting, "they do not wait for their group")
    shown = [await site.json("GET", f"/executions/{live.execution.id}") for live in calls(site, first)]
    assert [each["waiting"]["reason"] for each in shown] == [FULL] * number
    return [each["id"] for each in shown]


async def one_by_one(site, *names):
    done = [await ended(site.service, name) for name in names]
    assert {each.status for each in done} == {Status.SUCCEEDED}
    done.sort(key=lambda each: each.started_at)
    assert all(a.finished_at <= b.started_at for a, b in itertools.pairwise(done)), "two ran at a time"


async def test_a_group_holds_the_inputs_of_a_batch_and_no_others(site, tmp_path):
    go, there = tmp_path / "go", tmp_path / "there"
    there.touch()
    first = await of_group(site.service, go, "kim")
    await printed(site.service, first)
    async with batch(site, "held", "?parallel=3") as it:
        await it.inputs(of(go, "kim"), of(go, "kim"), of(there, "lee"))
        assert (await it.line())["index"] == 2
        names = await held_up(site, first, 2)
        go.touch()
        await it.done()
        lines = by_index(await it.rest())
    assert {line["id"] for line in lines.values()} == {*names}
    await one_by_one(site, first, *names)


async def test_a_group_holds_the_inputs_of_a_batch_over_grpc(site, grpc, tmp_path):
    go = tmp_path / "go"
    first = await of_group(site.service, go, "kim")
    await printed(site.service, first)
    start = v1.ExecuteBatchRequest(start=v1.BatchStart(module_name="held", parallelism=3))
    inputs = [
        v1.ExecuteBatchRequest(input=v1.BatchInput(id=str(number), input_json=json.dumps(of(go, "kim"))))
        for number in range(2)
    ]
    number = await grpc.send(BATCH, start, *inputs, metadata={"authorization": f"Bearer {site.token}"})
    names = await held_up(site, first, 2)
    go.touch()
    assert len((await grpc.ended(number)).messages) == 2
    await one_by_one(site, first, *names)


async def test_a_group_holds_a_websocket_whose_events_can_be_followed_meanwhile(site, tmp_path):
    go = tmp_path / "go"
    first = await of_group(site.service, go, "kim")
    await printed(site.service, first)
    async with site.socket("/modules/stream/held") as socket, trio.open_nursery() as nursery:
        await socket.send_message(json.dumps(of(go, "kim")))
        [name] = await held_up(site, first, 1)
        events = []

        async def follow():
            events.extend([event async for event in site.events(f"/executions/{name}/events")])

        nursery.start_soon(follow)
        go.touch()
        told = await messages_of(socket)
    assert told[-1]["type"] == events[-1]["type"] == "result"
    await one_by_one(site, first, name)


async def test_a_group_holds_a_stream_over_grpc(site, grpc, tmp_path):
    go = tmp_path / "go"
    first = await of_group(site.service, go, "kim")
    await printed(site.service, first)
    request = v1.ExecuteRequest(module_name="held", input_json=json.dumps(of(go, "kim")))
    number = await grpc.send(STREAM, request, metadata={"authorization": f"Bearer {site.token}"})
    [name] = await held_up(site, first, 1)
    go.touch()
    assert (await grpc.ended(number)).messages
    await one_by_one(site, first, name)


async def test_a_rate_refuses_inputs_of_a_batch_that_would_wait_too_long(site):
    async with batch(site, "rated", body=b"1\n2\n3\n4\n") as it:
        lines = await it.rest()
    refused = [line["problem"] for line in lines if "problem" in line]
    assert [(each["kind"], each["detail"]) for each in refused] == [("overloaded", SLOW)] * 2
    assert sum(line.get("status") == "succeeded" for line in lines) == 2


async def test_a_rate_holds_websockets_and_what_is_submitted_meanwhile(site):
    for _ in range(2):
        await site.json("POST", "/modules/execute/rated", 1)
    async with site.socket("/modules/stream/rated") as socket:
        await socket.send_message("1")
        told = await messages_of(socket)
    assert (told[-1]["error"]["kind"], told[-1]["error"]["message"]) == ("overloaded", SLOW)

    queued = await site.json("POST", "/executions", {"module": "rated", "input": 1})
    shown = await site.service.get(ANYBODY, queued["id"])
    assert shown.waiting.reason == "queued: the rate of the module is 2/h"
