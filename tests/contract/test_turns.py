"""Contract: in which order accepted executions run: priority, over REST, gRPC and between runners."""

from __future__ import annotations

import itertools
import json
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from actors.turns import Rates, Terms, group_of, terms_of
from config.modules import GroupPolicy
from config.settings import AuthSettings
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Status
from protocol.rpc.operato.runner import v1
from runner.auth import Verifier
from runner.grpc.executions import make_methods
from tests.contract.test_runs import HELD, ended, printed
from tests.contract.test_streams import ECHO, SECRET, open_site
from tests.grpc_client import GrpcStatus, open_door
from tests.support import ANYBODY, inline, open_service, wait_until

SUBMIT = "/operato.runner.v1.ExecutorService/Submit"
EXECUTE = "/operato.runner.v1.ExecutorService/Execute"
FIRST = inline("held", HELD.code, concurrency=1)


@pytest.fixture
async def service(tmp_path):
    async with open_service(tmp_path, [FIRST]) as opened:
        yield opened


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (ECHO, FIRST)) as opened:
        opened.metadata = {"authorization": f"Bearer {opened.token}"}
        yield opened


@asynccontextmanager
async def grpc_client(site):
    async with open_door(make_methods(site.service, Verifier(AuthSettings(), secret=SECRET))) as door:
        yield await door.connect()


async def held(service, flag, **given):
    """Submit an execution that runs until the flag is there; return its ID."""
    return (await service.submit(ANYBODY, "held", json.dumps(str(flag)).encode(), terms=Terms(**given))).id


async def began(service, *names):
    """Return the names in the order in which they began."""
    done = [await ended(service, name) for name in names]
    assert {execution.status for execution in done} == {Status.SUCCEEDED}
    return [execution.id for execution in sorted(done, key=lambda execution: execution.started_at)]


# -- groups and rates --------------------------------------------------------------------------------------------------

GROUPED = inline(
    "held",
    HELD.code.replace("wait_for(input)", "wait_for(input['flag'])"),
    concurrency=9,
    group=GroupPolicy("$.of.customer"),
)


async def of_group(service, flag, customer, **more):
    data = json.dumps({"flag": str(flag), "of": {"customer": customer}}).encode()
    return (await service.submit(ANYBODY, "held", data, **more)).id


async def test_of_a_group_one_runs_at_a_time_and_the_others_do_not_wait_for_it(tmp_path):
    async with open_service(tmp_path, [GROUPED]) as service:
        go, other = tmp_path / "go", tmp_path / "other"
        first, second, third = [await of_group(service, go, "kim") for _ in range(3)]
        alone = await of_group(service, other, "lee")
        urgent = await of_group(service, go, "kim", terms=Terms(priority=9))
        await printed(service, first)
        await printed(service, alone)

        reasons = [(await service.get(ANYBODY, name)).waiting.reason for name in (urgent, second, third)]
        held = 'queued: 1 executions of its group "kim" run, which is the limit'
        assert reasons == [held, f"{held}; 1 of this group are before it", f"{held}; 2 of this group are before it"]
        assert (await service.get(ANYBODY, second)).group == '"kim"'
        other.touch()
        assert (await ended(service, alone)).status is Status.SUCCEEDED
        go.touch()
        assert await began(service, first, second, third, urgent) == [first, urgent, second, third]
        done = [await service.get(ANYBODY, name) for name in (first, urgent, second, third)]
        assert all(a.finished_at <= b.started_at for a, b in itertools.pairwise(done)), "two ran at a time"


async def test_a_call_that_waits_takes_its_place_in_the_group_too(tmp_path):
    grouped = inline("held", GROUPED.code, concurrency=9, group=GroupPolicy("/of/customer"), queue_timeout=0.1)
    async with open_service(tmp_path, [grouped]) as service:
        go = tmp_path / "go"
        first = await of_group(service, go, "kim")
        await printed(service, first)
        data = json.dumps({"flag": str(go), "of": {"customer": "kim"}}).encode()
        with pytest.raises(RunnerError, match=r"1 executions of its group .*; `queue_timeout` passed") as caught:
            await service.execute(ANYBODY, "held", data)
        assert caught.value.failure.kind is ErrorKind.OVERLOADED

    patient = inline("held", GROUPED.code, concurrency=9, group=GroupPolicy("/of/customer"))
    async with open_service(tmp_path / "next", [patient]) as service, trio.open_nursery() as nursery:
        go = tmp_path / "later"
        data = json.dumps({"flag": str(go), "of": {"customer": "kim"}}).encode()
        first = await of_group(service, go, "kim")
        await printed(service, first)
        cancelled, follower = await service.begin(ANYBODY, "held", data)
        nursery.start_soon(service.execute, ANYBODY, "held", data)
        await wait_until(lambda: service.runs.statistics().live == 3, "all wait")
        queued = await of_group(service, go, "kim")
        assert (await service.get(ANYBODY, cancelled)).waiting.reason.startswith("1 executions of its group")
        assert (await service.cancel(ANYBODY, cancelled)).status is Status.CANCELLED
        go.touch()
        assert (await ended(service, queued)).status is Status.SUCCEEDED
        assert (await ended(service, first)).status is Status.SUCCEEDED
        assert await follower.next() is not None
    assert service.runs.dispatcher.places._groups._taken == {}


async def test_a_group_is_kept_by_the_next_runner(tmp_path):
    async with open_service(tmp_path, [GROUPED]) as service:
        go = tmp_path / "go"
        await printed(service, await of_group(service, go, "kim"))
        names = [await of_group(service, go, "kim") for _ in range(3)]
    go.touch()
    async with open_service(tmp_path, [GROUPED]) as service:
        assert await began(service, *names) == names
        done = [await service.get(ANYBODY, name) for name in names]
        assert all(a.finished_at <= b.started_at for a, b in itertools.pairwise(done))


@pytest.mark.parametrize("value", [{}, {"of": 1}, {"of": {}}, {"of": {"customer": {}}}, [1], None, "x"])
async def test_an_input_without_the_value_of_the_group_is_refused(tmp_path, value):
    async with open_service(tmp_path, [GROUPED]) as service:
        for call in (service.submit, service.execute):
            with pytest.raises(RunnerError, match=r"the module groups its executions by .*, where the input") as caught:
                await call(ANYBODY, "held", json.dumps(value).encode())
            assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, "$.of.customer")


def test_values_of_groups():
    assert group_of("$.a.b", b'{"a": {"b": "x"}}') == '"x"'
    assert group_of("/a~1b/1", b'{"a/b": [1, 2]}') == "2"
    assert group_of("$.a", b'{"a": null}') == "null"
    assert group_of("$.a", b'{"a": 1.50}') == "1.5"
    with pytest.raises(RunnerError, match="groups its executions by"):
        group_of("$.a", b'{"a": 1e999}')
    long = group_of("$.a", json.dumps({"a": "x" * 300}).encode())
    assert long.startswith("sha256:")
    assert long != group_of("$.a", json.dumps({"a": "x" * 301}).encode())


async def test_a_rate_holds_the_backlog_and_calls_that_wait(tmp_path):
    rated = inline("rated", "def handler(input): return input", concurrency=9, rate="2/h")
    now = 0.0
    async with open_service(tmp_path, [rated]) as service:
        service.runs.dispatcher.places.clock = lambda: now
        names = [(await service.submit(ANYBODY, "rated", b"%d" % number)).id for number in range(3)]
        for name in names[:2]:
            assert (await ended(service, name)).status is Status.SUCCEEDED
        assert (await service.get(ANYBODY, names[2])).waiting.reason == "queued: the rate of the module is 2/h"
        with pytest.raises(RunnerError, match="the rate of the module is 2/h; `queue_timeout` would pass") as caught:
            await service.execute(ANYBODY, "rated", b"1")
        assert (caught.value.failure.kind, caught.value.failure.retry_after) == (ErrorKind.OVERLOADED, 3600.0)

        now = 3600.0
        assert (await service.execute(ANYBODY, "rated", b"1")).result == b"1"
        service.runs.dispatcher._dispatch()
        assert (await ended(service, names[2])).status is Status.SUCCEEDED
        assert (await service.submit(ANYBODY, "rated", b"1")).status is Status.QUEUED
        assert service.runs.statistics().queued == 1


async def test_the_backlog_of_a_rate_goes_on_by_itself(tmp_path, monkeypatch):
    note, begun = Rates.note, []

    def noted(rates, module, now):
        begun.append(now)
        note(rates, module, now)

    monkeypatch.setattr(Rates, "note", noted)
    rated = inline("rated", "def handler(input): return input", concurrency=9, rate="3/s")
    async with open_service(tmp_path, [rated]) as service:
        names = [(await service.submit(ANYBODY, "rated", b"1")).id for _ in range(7)]
        done = [await ended(service, name) for name in names]
        assert {execution.status for execution in done} == {Status.SUCCEEDED}
        assert (await service.execute(ANYBODY, "rated", b"2")).result == b"2"
    assert len(begun) == 8
    assert all(later - sooner >= 1.0 for sooner, later in zip(begun, begun[3:], strict=False))


@given(st.lists(st.floats(0, 10), max_size=60), st.integers(1, 5))
def test_no_more_than_the_number_begins_in_any_span(steps, number):
    rates, now, begun = Rates(), 0.0, []
    for step in steps:
        now += step
        seconds = rates.wait("m", number, 7.0, now)
        assert (seconds > 0) == (sum(at > now - 7.0 for at in begun) >= number)
        if seconds == 0:
            rates.note("m", now)
            begun.append(now)


# -- priority ----------------------------------------------------------------------------------------------------------


async def test_a_higher_priority_runs_first_and_equals_in_the_order_of_acceptance(service, tmp_path):
    flag = tmp_path / "go"
    running = await held(service, flag)
    await printed(service, running)
    low, usual, first, second = [await held(service, flag, priority=number) for number in (0, 5, 9, 9)]
    reasons = [(await service.get(ANYBODY, name)).waiting.reason for name in (first, second, usual, low)]
    assert reasons == ["queued", *(f"queued; {ahead} of this module are before it" for ahead in (1, 2, 3))]

    flag.touch()

    assert await began(service, low, usual, first, second) == [first, second, usual, low]


async def test_the_next_runner_keeps_priorities(tmp_path):
    flag = tmp_path / "go"
    async with open_service(tmp_path, [FIRST]) as service:
        await printed(service, await held(service, flag))
        names = [await held(service, flag, priority=number) for number in (1, 5, 8)]
    flag.touch()
    async with open_service(tmp_path, [FIRST]) as service:
        assert await began(service, *names) == names[::-1]
        assert [(await service.get(ANYBODY, name)).priority for name in names] == [1, 5, 8]


@pytest.mark.parametrize("priority", [-1, 10])
def test_an_impossible_priority_is_refused(priority):
    with pytest.raises(RunnerError, match=f"priority must be from 0 .last. to 9 .first., not {priority}") as caught:
        terms_of(0.0, priority=priority)
    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, "priority")


async def test_rest_takes_a_priority_with_submissions_only(site):
    order = {"module": "echo", "input": 1, "priority": 7}
    assert (await site.json("POST", "/executions", order))["priority"] == 7
    assert (await site.json("POST", "/executions?priority=0", order))["priority"] == 0
    asked = await site.ask("POST", "/modules/execute/echo?priority=9", 1, Prefer="respond-async")
    assert (asked[0], json.loads(asked[2])["priority"]) == (202, 9)

    for path, body, message in (
        ("/modules/execute/echo?priority=9", 1, "`priority` is for asynchronous calls; send the header"),
        ("/modules/execute/echo?priority=x", 1, "priority must be a whole number from 0 to 9, not 'x'"),
        ("/executions", {**order, "priority": 10}, "priority must be a whole number from 0 to 9, not '10'"),
        ("/executions", {**order, "priority": "high"}, "$.priority"),
    ):
        status, _, answer = await site.ask("POST", path, body)
        assert (status, message in json.loads(answer)["detail"]) == (400, True), answer


async def test_grpc_takes_a_priority_with_submissions_only(site):
    def request(priority):
        return v1.ExecuteRequest(module_name="echo", input_json="1", priority=priority)

    async with grpc_client(site) as client:
        for given, wanted in ((0, 0), (9, 9), (None, 5)):
            answer = await client.call(SUBMIT, request(given), metadata=site.metadata)
            assert answer.message(v1.SubmitResponse).execution.priority == wanted
        for path, priority, message in ((SUBMIT, 10, "not 10"), (EXECUTE, 5, "only for Submit")):
            answer = await client.call(path, request(priority), metadata=site.metadata)
            assert answer.status == GrpcStatus.INVALID_ARGUMENT
            assert message in answer.said["grpc-message"]
            assert answer.said["operato-field"] == "priority"
