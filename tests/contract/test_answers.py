"""Contract: large answers of all callers have one bound, over every door, and take nothing while they wait for it."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import contextmanager

import pytest
import trio

from config.settings import AuthSettings
from protocol.model import Status
from protocol.rpc.operato.runner import v1
from runner.auth.tokens import Verifier
from runner.grpc.codec import decode
from runner.grpc.executions import make_methods
from runner.wire import LARGE_BYTES
from tests.contract.test_access import EXECUTOR
from tests.contract.test_streams import SECRET, messages_of, open_site, sse_blocks
from tests.grpc_client import open_door
from tests.support import inline, wait_until

MIB = 1024 * 1024
CALLERS = 16
LARGE = inline("large", "def handler(input): return 'x' * input", concurrency=4)
INPUT = b"%d" % MIB


@pytest.fixture
async def site(tmp_path):
    """Open a site whose memory for answers is taken."""
    async with open_site(tmp_path, (LARGE,)) as opened:
        opened.memory = opened.service.answers.budget
        opened.memory.limit = 4 * MIB
        assert opened.memory.take(4 * MIB)
        yield opened


@pytest.fixture
async def door(site):
    """Open the gRPC door of the site."""
    methods = make_methods(site.service, Verifier(AuthSettings(), secret=SECRET))
    async with open_door(methods) as opened:
        yield opened


# Each form of a call returns the length of its result.


async def execute(site):
    return len((await site.json("POST", "/modules/execute/large", INPUT))["result"])


async def by_events(site):
    identity = (await site.json("POST", "/executions", {"module": "large", "input": MIB}))["id"]
    events = [event async for event in site.events(f"/executions/{identity}/events")]
    return len(events[-1]["result"])


async def by_websocket(site):
    async with site.socket("/modules/stream/large", max_message_size=4 * MIB) as socket:
        await socket.send_message(INPUT.decode())
        return len((await messages_of(socket))[-1]["result"])


async def over_grpc(site, door, method):
    request = v1.ExecuteRequest(module_name="large", input_json=INPUT.decode())
    client = await door.connect(window=8 * MIB)
    answer = await client.call(EXECUTOR + method, request, metadata={"authorization": f"Bearer {site.token}"})
    messages = answer.messages
    if method == "Execute":
        return len(json.loads(decode(v1.ExecuteResponse, messages[-1]).result_json))
    return len(json.loads(decode(v1.ExecutionEvent, messages[-1]).result.result_json))


@contextmanager
def memory_kept(most):
    """Check that the block has not allocated more than so many bytes that are still in use."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept < most, f"{kept} bytes"


async def all_stored(site, number):
    """Wait until so many executions have ended, and the database has all of them."""
    await wait_until(lambda: site.service.runs.statistics().ended == number, "they have ended")
    await wait_until(lambda: site.service.history.statistics().unwritten_bytes == 0, "they are stored")


@pytest.mark.parametrize("form", [execute, by_events, by_websocket])
async def test_results_that_wait_take_no_memory(site, form):
    lengths = []

    async def one():
        lengths.append(await form(site))

    await waits(site, one, lengths)


@pytest.mark.parametrize("method", ["Execute", "ExecuteStream"])
async def test_results_that_wait_take_no_memory_over_grpc(site, door, method):
    lengths = []

    async def one():
        lengths.append(await over_grpc(site, door, method))

    await waits(site, one, lengths)


async def waits(site, one, lengths):
    """Let many calls end; check that their results take no memory until there is some, and that each then arrives."""
    async with trio.open_nursery() as nursery:
        with memory_kept(CALLERS * MIB // 2):
            for _ in range(CALLERS):
                nursery.start_soon(one)
            await all_stored(site, CALLERS)
            await wait_until(lambda: len(site.memory._waiting) == CALLERS, "all wait for their turn")
        assert not lengths
        site.memory.give(4 * MIB)
    assert lengths == [MIB] * CALLERS
    await wait_until(lambda: site.memory.taken == 0, "all is given back")


async def test_results_of_a_batch_that_wait_take_no_memory(site):
    body = b"[" + b",".join([INPUT] * CALLERS) + b"]"
    path = f"/modules/execute/large/batch?parallel={CALLERS}"
    connection = await site.server.connect()
    async with connection.stream:
        with memory_kept(CALLERS * MIB // 2):
            await connection.send(site.head("POST", path, length=len(body)) + body)
            await all_stored(site, CALLERS)
            await wait_until(lambda: len(site.memory._waiting) == 1, "one waits for its turn, the others for it")
        site.memory.give(4 * MIB)
        answer = await connection.until(b"\r\n0\r\n\r\n")
        assert answer.count(b'"x' + b"x" * (MIB - 1) + b'"') == CALLERS
    await wait_until(lambda: site.memory.taken == 0, "all is given back")


async def test_results_of_a_batch_that_wait_take_no_memory_over_grpc(site, door):
    client = await door.connect(window=8 * MIB)
    start = v1.ExecuteBatchRequest(start=v1.BatchStart(module_name="large", parallelism=CALLERS))
    inputs = [
        v1.ExecuteBatchRequest(input=v1.BatchInput(id=str(number), input_json=INPUT.decode()))
        for number in range(CALLERS)
    ]
    with memory_kept(CALLERS * MIB // 2):
        metadata = {"authorization": f"Bearer {site.token}"}
        number = await client.send(EXECUTOR + "ExecuteBatch", start, *inputs, metadata=metadata)
        await all_stored(site, CALLERS)
        await wait_until(lambda: len(site.memory._waiting) == 1, "one waits for its turn, the others for it")
    site.memory.give(4 * MIB)
    answers = (await client.ended(number)).messages
    assert len(answers) == CALLERS
    assert all(len(json.loads(decode(v1.ExecuteBatchResponse, each).response.result_json)) == MIB for each in answers)
    await wait_until(lambda: site.memory.taken == 0, "all is given back")


async def refused(site):
    status, _, body = await site.ask("POST", "/modules/execute/large", INPUT)
    assert status == 503
    return json.loads(body)


async def refused_events(site):
    identity = (await site.json("POST", "/executions", {"module": "large", "input": MIB}))["id"]
    connection = await site.server.connect()
    async with connection.stream:
        await connection.send(site.head("GET", f"/executions/{identity}/events"))
        await connection.until(b"\r\n\r\n")
        last = [block async for block in sse_blocks(connection)][-1]
    return json.loads(last.partition("data: ")[2])["error"]


async def refused_websocket(site):
    async with site.socket("/modules/stream/large") as socket:
        await socket.send_message(INPUT.decode())
        return (await messages_of(socket))[-1]["error"]


@pytest.mark.parametrize("form", [refused, refused_events, refused_websocket])
async def test_a_result_without_a_turn_is_refused_and_can_be_read(site, form):
    object.__setattr__(site.service.answers, "seconds", 0.01)
    problem = await form(site)
    assert (problem["kind"], "max_buffered" in json.dumps(problem)) == ("unavailable", True)
    [record] = (await site.json("GET", "/executions"))["items"]
    assert record["status"] == "succeeded"
    site.memory.give(4 * MIB)
    assert len((await site.json("GET", f"/executions/{record['id']}"))["result"]) == MIB


async def test_an_ended_execution_is_followed_within_the_bound(site):
    identity = (await site.json("POST", "/executions", {"module": "large", "input": MIB}))["id"]
    await all_stored(site, 1)
    lengths = []

    async def one():
        events = [event async for event in site.events(f"/executions/{identity}/events")]
        lengths.append(len(events[-1]["result"]))

    async with trio.open_nursery() as nursery:
        with memory_kept(CALLERS * MIB // 2):
            for _ in range(CALLERS):
                nursery.start_soon(one)
            await wait_until(lambda: len(site.memory._waiting) == CALLERS, "all wait for their turn")
        site.memory.give(4 * MIB)
    assert lengths == [MIB] * CALLERS


async def test_metrics_and_health_do_not_depend_on_other_answers(site):
    ended = site.service.runs.tally.ended
    ended.update({(f"module-{number}", Status.SUCCEEDED, None): 1 for number in range(1000)})
    for path in ("/metrics", "/healthz", "/readyz"):
        status, _, body = await site.ask("GET", path)
        assert (status, path != "/metrics" or len(body) > LARGE_BYTES) == (200, True), path
