"""Contract: executions that are accepted now and queued at their time, over restarts, without a place in memory."""

from __future__ import annotations

import json
import time
from functools import partial

import msgspec
import pytest
import trio
import trio.testing

from actors.history.queries import Query
from actors.turns import Terms, terms_of
from protocol.errors import ErrorKind, RunnerError
from protocol.events import ResultEvent
from protocol.ids import execution_id
from protocol.model import Status
from protocol.rpc.operato.runner import v1
from tests.contract.test_runs import ECHO, ended
from tests.contract.test_streams import open_site
from tests.contract.test_turns import EXECUTE, SUBMIT, grpc_client
from tests.grpc_client import GrpcStatus
from tests.records import make
from tests.support import ANYBODY, PATIENCE, open_service, wait_until

HOUR = 3600.0


@pytest.fixture
async def service(tmp_path):
    async with open_service(tmp_path, [ECHO]) as opened:
        yield opened


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (ECHO,)) as opened:
        opened.metadata = {"authorization": f"Bearer {opened.token}"}
        yield opened


def pass_time(service, seconds):
    """Set the clock of scheduled executions forward; they notice it by themselves."""
    service.runs.later.clock = lambda: time.time() + seconds


async def later(service, seconds, data=b"1", **more):
    return await service.submit(ANYBODY, "echo", data, terms=Terms(run_at=time.time() + seconds), **more)


async def done(service, name):
    """Return an execution at its end."""
    with trio.fail_after(PATIENCE):
        while not (found := await service.get(ANYBODY, name)).status.final:
            await trio.sleep(0.01)
    return found


async def test_a_scheduled_execution_is_recorded_and_runs_at_its_time(service):
    accepted = await later(service, HOUR)
    assert (accepted.status, accepted.asynchronous, accepted.started_at) == (Status.SCHEDULED, True, None)
    assert accepted.run_at - accepted.created_at == pytest.approx(HOUR, abs=60)
    page = await service.list(ANYBODY, Query(status=Status.SCHEDULED))
    assert [item.id for item in page.items] == [accepted.id]
    statistics = service.runs.statistics()
    assert (statistics.scheduled, statistics.live, statistics.queued) == (1, 0, 0)

    pass_time(service, HOUR + 60)

    found = await done(service, accepted.id)
    assert (found.status, found.result, found.attempts) == (Status.SUCCEEDED, b"1", 1)
    assert service.runs.statistics().scheduled == 0
    assert found.timings.queue < HOUR, "the time before its time is no time in the queue"


async def test_they_run_in_the_order_of_their_times_and_an_earlier_one_is_not_missed(service):
    last, first = await later(service, 2 * HOUR), await later(service, HOUR)
    await wait_until(lambda: service.runs.later._due_at <= first.run_at, "the earlier one is not the next")

    pass_time(service, 1.5 * HOUR)
    assert (await done(service, first.id)).status is Status.SUCCEEDED
    assert (await service.get(ANYBODY, last.id)).status is Status.SCHEDULED
    pass_time(service, 3 * HOUR)
    assert (await done(service, last.id)).status is Status.SUCCEEDED


async def test_a_time_that_has_passed_is_now(service):
    accepted = await later(service, -HOUR)
    assert accepted.status is Status.QUEUED
    assert (await ended(service, accepted.id)).status is Status.SUCCEEDED


async def test_a_clock_that_is_set_back_makes_them_wait(service):
    pass_time(service, -HOUR)
    accepted = await later(service, 60)
    await trio.testing.wait_all_tasks_blocked(0.5)
    assert (await service.get(ANYBODY, accepted.id)).status is Status.SCHEDULED
    pass_time(service, 120)
    assert (await done(service, accepted.id)).status is Status.SUCCEEDED


async def test_the_next_runner_runs_those_that_became_due_meanwhile(tmp_path):
    async with open_service(tmp_path, [ECHO]) as service:
        due, coming = await later(service, 60), await later(service, HOUR)
    async with open_service(tmp_path, [ECHO]) as service:
        assert service.runs.statistics().scheduled == 2
        pass_time(service, 120)
        assert (await done(service, due.id)).result == b"1"
        assert (await service.get(ANYBODY, coming.id)).status is Status.SCHEDULED
        assert service.runs.statistics().scheduled == 1


async def test_one_whose_module_is_gone_ends(tmp_path):
    async with open_service(tmp_path, [ECHO]) as service:
        accepted = await later(service, HOUR)
    async with open_service(tmp_path, []) as service:
        pass_time(service, 2 * HOUR)
        found = await done(service, accepted.id)
    assert (found.status, found.failure.kind) == (Status.FAILED, ErrorKind.NOT_FOUND)
    assert "removed before this could run" in found.failure.message


async def test_a_scheduled_execution_is_cancelled_once_and_never_runs(service):
    accepted = await later(service, HOUR)
    cancelled = await service.cancel(ANYBODY, accepted.id)
    assert (cancelled.status, cancelled.exit_code, cancelled.attempts) == (Status.CANCELLED, 130, 0)
    assert await service.cancel(ANYBODY, accepted.id) == cancelled
    assert service.runs.statistics().scheduled == 0

    pass_time(service, 2 * HOUR)
    other = await later(service, HOUR)
    assert (await done(service, other.id)).status is Status.SUCCEEDED
    assert (await service.get(ANYBODY, accepted.id)).status is Status.CANCELLED


async def test_a_cancel_that_meets_its_time_ends_it_once(service):
    for _ in range(20):
        accepted = await later(service, HOUR, b'"x"')
        pass_time(service, 2 * HOUR)
        service.runs.later._due_at = 0.0
        service.runs.later._earlier.set()
        await service.cancel(ANYBODY, accepted.id)
        assert (await service.get(ANYBODY, accepted.id)).status in (Status.CANCELLED, Status.SUCCEEDED)
        pass_time(service, 0)
    await wait_until(lambda: service.runs.statistics().live == 0, "all have ended")
    assert service.runs.statistics().scheduled == 0
    assert (await service.details.stats(ANYBODY, "echo", since=None, until=None)).total == 20


async def test_too_many_are_refused_and_a_full_queue_lets_those_that_are_due_wait(tmp_path):
    async with open_service(tmp_path, [ECHO], max_scheduled=2, max_queued=0) as service:
        first = await later(service, HOUR)
        await later(service, 9 * HOUR)
        with pytest.raises(RunnerError, match="2 executions are scheduled; the limit is `max_scheduled`") as caught:
            await later(service, HOUR)
        assert (caught.value.failure.kind, caught.value.failure.retry_after) == (ErrorKind.OVERLOADED, 60)
        pass_time(service, 2 * HOUR)
        service.runs.later._earlier.set()
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert (await service.get(ANYBODY, first.id)).status is Status.SCHEDULED

        service.runs.dispatcher.max_queued = 1
        assert (await done(service, first.id)).status is Status.SUCCEEDED


async def test_a_key_finds_a_scheduled_execution(service):
    accepted = await later(service, HOUR, key="k")
    assert (await later(service, 5 * HOUR, key="k")).id == accepted.id
    with pytest.raises(RunnerError, match=f"{accepted.id} is scheduled for .*; follow it, or repeat the call"):
        await service.execute(ANYBODY, "echo", b"1", key="k")
    with pytest.raises(RunnerError, match="is scheduled for") as caught:
        await service.follow(ANYBODY, accepted.id)
    assert caught.value.failure.kind is ErrorKind.CONFLICT


async def test_a_follower_that_comes_while_an_execution_becomes_due_sees_its_end(service, monkeypatch):
    accepted = await later(service, HOUR)
    outdated = [msgspec.structs.replace(await service.history.get(accepted.id), status=Status.QUEUED)]
    pass_time(service, 2 * HOUR)
    await done(service, accepted.id)
    read = service.history.get

    async def get(_history, name):
        return outdated.pop() if outdated else await read(name)

    monkeypatch.setattr(type(service.history), "get", get)
    follower = await service.follow(ANYBODY, accepted.id)
    with trio.fail_after(PATIENCE):
        found = []
        while (events := await follower.next()) is not None:
            found += events

    assert isinstance(found[-1], ResultEvent)


async def test_many_take_no_place_in_memory_and_those_that_are_due_are_read_in_pieces(tmp_path):
    async with open_service(tmp_path, [ECHO]) as service:
        history, module = service.history, service.registry.snapshot.get("echo")
        now = time.time()
        order = partial(make, Status.SCHEDULED, at=now, module="echo", asynchronous=True)
        for number in range(2000):
            run_at = now - 1 if number % 10 == 0 else now + HOUR + number
            await history.submit(order(id=execution_id(), run_at=run_at, module=module.ref.name))
    async with open_service(tmp_path, [ECHO]) as service:
        assert service.runs.statistics().scheduled >= 1800
        await wait_until(lambda: service.runs.statistics().ended == 200, "those that are due have ended")
        statistics = service.runs.statistics()
        assert (statistics.scheduled, statistics.live) == (1800, 0)


# -- terms -------------------------------------------------------------------------------------------------------------


def test_terms_are_read():
    assert terms_of(100.0) == Terms()
    assert terms_of(100.0, delay=5.0) == Terms(run_at=105.0)
    assert terms_of(100.0, priority=0, run_at=50.0) == Terms(0, 50.0)


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"run_at": 1.0, "delay": 1.0}, "delay", "give `run_at` or `delay`, not both"),
        ({"delay": -1.0}, "delay", "delay must be from 0 to 3660 days, not -1 seconds"),
        ({"delay": float("nan")}, "delay", "delay must be from 0 to 3660 days"),
        ({"delay": 1e12}, "delay", "delay must be from 0 to 3660 days"),
        ({"run_at": 1e12}, "run_at", "run_at is more than 3660 days away"),
        ({"run_at": float("inf")}, "run_at", "run_at is more than 3660 days away"),
    ],
)
def test_impossible_times_are_refused(given, field, message):
    with pytest.raises(RunnerError, match=message) as caught:
        terms_of(100.0, **given)
    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, field)


# -- doors -------------------------------------------------------------------------------------------------------------


async def test_rest_takes_times_in_the_query_and_in_the_body(site):
    order = {"module": "echo", "input": 1}
    status, headers, body = await site.ask("POST", "/executions", {**order, "run_at": "2031-01-31T09:30:00+09:00"})
    accepted = json.loads(body)
    assert (status, accepted["status"], accepted["run_at"]) == (202, "scheduled", 1_927_585_800.0)
    assert headers[b"location"].decode() == f"/executions/{accepted['id']}"
    for path, given in (
        ("/executions", {"delay": "2h"}),
        ("/executions", {"delay": 7200}),
        ("/executions?delay=2h", {"delay": 5}),
    ):
        found = await site.json("POST", path, {**order, **given})
        assert found["run_at"] - found["created_at"] == pytest.approx(7200, abs=60)
    query = "/modules/execute/echo?run_at=2031-01-31T00:30:00Z"
    assert (await site.json("POST", query, 1, Prefer="respond-async"))["run_at"] == 1_927_585_800.0
    listed = await site.json("GET", "/executions?status=scheduled")
    assert len(listed["items"]) == 5
    cancelled = await site.json("POST", f"/executions/{accepted['id']}/cancel")
    assert cancelled["status"] == "cancelled"

    for path, body, message in (
        (
            "/executions",
            {**order, "run_at": "2031-01-31T09:30:00"},
            "run_at must be seconds since 1970, or a time with",
        ),
        ("/executions", {**order, "run_at": "soon"}, "run_at must be seconds since 1970, or a time with its zone"),
        ("/executions", {**order, "delay": "soon"}, "delay must be a duration, such as 90 (seconds), 15m, 2h, 7d"),
        ("/executions", {**order, "delay": -5}, "delay must be a duration"),
        ("/executions", {**order, "delay": 1, "run_at": 1}, "give `run_at` or `delay`, not both"),
        ("/modules/execute/echo?delay=1h", 1, "`delay` is for asynchronous calls; send the header"),
    ):
        status, _, answer = await site.ask("POST", path, body)
        assert (status, message in json.loads(answer)["detail"]) == (400, True), answer


async def test_grpc_takes_times(site):
    def request(**given):
        return v1.ExecuteRequest(module_name="echo", input_json="1", **given)

    async with grpc_client(site) as client:

        async def submit(**given):
            answer = await client.call(SUBMIT, request(**given), metadata=site.metadata)
            return answer.message(v1.SubmitResponse).execution

        found = await submit(run_at=1_927_585_800_000)
        assert (found.status, found.run_at) == (v1.ExecutionStatus.SCHEDULED, 1_927_585_800_000)
        found = await submit(delay=60.0)
        assert found.run_at - found.created_at == pytest.approx(60_000, abs=1000)
        for path, given, field in (
            (SUBMIT, {"delay": -1.0}, "delay"),
            (SUBMIT, {"delay": 1.0, "run_at": 5}, "delay"),
            (EXECUTE, {"run_at": 5}, "run_at"),
        ):
            answer = await client.call(path, request(**given), metadata=site.metadata)
            assert answer.status == GrpcStatus.INVALID_ARGUMENT
            assert answer.said["operato-field"] == field
