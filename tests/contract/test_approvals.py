"""Contract: executions of modules that ask wait for a person, in every way of calling, and hold nothing meanwhile."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest
import trio

from actors.history import Query
from actors.registry import Action, ChangesQuery
from config.modules.policies import GroupPolicy, RetryPolicy, ToolPolicy
from protocol.errors import ErrorKind, RunnerError, error
from protocol.events import ErrorEvent, StatusEvent
from protocol.model import Status
from runner.auth import Principal
from tests.support import inline, open_service, wait_until

WAITS = "waits for approval"
PATIENT = 20
CONFIRM = ToolPolicy(confirm=True)
ASKS = inline("asks", "def handler(input):\n    return input\n", tool=CONFIRM, concurrency=1)
FREE = inline("free", "def handler(input):\n    return input\n")
BOSS = Principal("boss", frozenset({"executions:approve", "executions:read"}))
CALLER = Principal("caller", frozenset({"executions:run", "executions:read"}))


async def one(service, position=0):
    """Return the id of an execution that waits for a person."""
    await wait_until(lambda: service.runs.statistics().awaiting > position, "nothing asks")
    return (await service.decisions.awaiting(BOSS))[0][position].id


@asynccontextmanager
async def called(service, call, *arguments, **options):
    """Make a call that waits, and give what becomes of it: [execution or error]."""
    found = []

    async def run():
        try:
            found.append(await call(*arguments, **options))
        except RunnerError as problem:
            found.append(problem.failure)

    with trio.fail_after(PATIENT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield found


@asynccontextmanager
async def asking(service, **options):
    async with called(service, service.execute, CALLER, "asks", b"7", **options) as found:
        yield await one(service), found


async def ended(service, name):
    with trio.fail_after(PATIENT):
        while not (found := await service.get(BOSS, name)).status.final:
            await trio.sleep(0.005)
    return found


@pytest.fixture
async def service(tmp_path):
    async with open_service(tmp_path, [ASKS, FREE]) as found:
        yield found


async def test_a_call_waits_until_it_is_approved_and_holds_nothing(service):
    async with asking(service) as (name, found):
        waiting = await service.get(BOSS, name)
        assert (waiting.status, waiting.waiting.reason, waiting.input) == (Status.QUEUED, WAITS, b"7")
        assert service.executors[waiting.env].statistics().workers == 0
        await service.history.catch_up()
        (listed,) = (await service.list(BOSS, Query(status=Status.QUEUED))).items
        assert (listed.id, listed.waiting.reason) == (name, WAITS)
        follower = await service.follow(BOSS, name)
        approved = await service.decisions.approve(BOSS, name, " looks good ")
        decision = approved.approval
        assert (decision.approved, decision.by, decision.reason) == (True, "boss", "looks good")
    (execution,) = found
    assert (execution.result, execution.attempts, execution.approval) == (b"7", 1, approved.approval)
    events = []
    while (some := await follower.next()) is not None:
        events += some
    reasons = [(event.status, event.reason) for event in events if isinstance(event, StatusEvent)]
    assert reasons[:2] == [(Status.QUEUED, WAITS), (Status.QUEUED, "approved by boss: looks good")]
    assert reasons[-1] == (Status.RUNNING, "")
    await service.history.catch_up()
    assert (await service.get(BOSS, name)).approval == execution.approval
    (note,) = await service.registry.audit.changes(ChangesQuery(action=Action.EXECUTION_APPROVE))
    assert (note.subject, note.module, note.detail) == ("boss", "asks", {"execution": name, "reason": "looks good"})


async def test_a_denied_call_never_runs(service):
    async with asking(service) as (name, found):
        denied = await service.decisions.deny(BOSS, name, "not on a Friday")
        assert (denied.status, denied.approval.approved) == (Status.FAILED, False)
    (execution,) = found
    failure = execution.failure
    assert (failure.kind, failure.message, failure.field) == (
        ErrorKind.FORBIDDEN,
        "denied by boss: not on a Friday",
        "approval",
    )
    assert (execution.attempts, execution.started_at, failure.retryable) == (0, None, False)
    (note,) = await service.registry.audit.changes(ChangesQuery(action=Action.EXECUTION_DENY))
    assert note.detail == {"execution": name, "reason": "not on a Friday"}
    with pytest.raises(RunnerError, match="denied by boss") as refused:
        await service.decisions.approve(BOSS, name)
    assert refused.value.failure.kind is ErrorKind.CONFLICT


async def test_a_call_that_is_not_approved_in_time_ends_and_is_not_tried_again(tmp_path):
    retry = RetryPolicy(attempts=3, on=(ErrorKind.TIMEOUT,))
    retried = inline("asks", "def handler(input):\n    return 1\n", tool=CONFIRM, retry=retry)
    async with open_service(tmp_path, [retried], approval_timeout_seconds=0.01) as service:
        with trio.fail_after(PATIENT):
            call = await service.execute(CALLER, "asks", b"7")
            accepted = await service.submit(CALLER, "asks", b"7")
        for execution in (call, await ended(service, accepted.id)):
            assert (execution.failure.kind, execution.attempts) == (ErrorKind.TIMEOUT, 0)
            assert "it was not approved within `approval_timeout` (0.01 s)" in execution.failure.message
            assert execution.input == b"7"


async def test_decisions_need_scope_and_module(service):
    other = Principal("boss", frozenset({"executions:approve"}), ("other",))
    async with asking(service) as (name, _):
        for principal, kind in ((CALLER, ErrorKind.FORBIDDEN), (other, ErrorKind.NOT_FOUND)):
            for verb in (service.decisions.approve, service.decisions.deny):
                with pytest.raises(RunnerError) as refused:
                    await verb(principal, name)
                assert refused.value.failure.kind is kind
        assert await service.decisions.awaiting(other) == ([], 0)
        with pytest.raises(RunnerError, match="500 characters"):
            await service.decisions.approve(BOSS, name, "x" * 501)
        blind = Principal("blind", frozenset({"executions:approve"}))
        assert (await service.decisions.approve(blind, name)).input == b"null"
    with pytest.raises(RunnerError) as refused:
        await service.decisions.approve(BOSS, "nothing")
    assert refused.value.failure.kind is ErrorKind.NOT_FOUND


async def test_the_first_decision_counts(service):
    accepted = await service.submit(CALLER, "asks", b"1")
    name, kinds = await one(service), []

    async def decide(verb):
        try:
            await verb(BOSS, name)
            kinds.append("decided")
        except RunnerError as problem:
            kinds.append(problem.failure.kind)

    async with trio.open_nursery() as nursery:
        for verb in (service.decisions.approve, service.decisions.deny, service.decisions.approve):
            nursery.start_soon(decide, verb)
    assert sorted(kinds) == [ErrorKind.CONFLICT, ErrorKind.CONFLICT, "decided"]
    found = await ended(service, accepted.id)
    assert (found.status is Status.SUCCEEDED) is found.approval.approved


async def test_asynchronous_ones_wait_before_their_turn(service):
    first, second = [await service.submit(CALLER, "asks", json.dumps(n).encode()) for n in (1, 2)]
    await one(service, 1)
    assert service.runs.statistics().queued == 2
    shown = await service.get(BOSS, first.id)
    assert (shown.status, shown.waiting.reason, shown.input) == (Status.QUEUED, WAITS, b"1")
    await service.decisions.approve(BOSS, second.id)
    assert (await ended(service, second.id)).result == b"2", "the first one does not take the only turn"
    await service.decisions.deny(BOSS, first.id)
    found = await ended(service, first.id)
    assert (found.failure.kind, found.input, found.attempts) == (ErrorKind.FORBIDDEN, b"1", 0)
    again = await service.reruns.one(CALLER, second.id)
    assert again.approval is None
    assert await one(service) == again.id


async def test_a_cancel_ends_the_wait(service):
    async with asking(service) as (name, found):
        assert (await service.cancel(CALLER, name)).status is Status.CANCELLED
    assert found[0].status is Status.CANCELLED
    accepted = await service.submit(CALLER, "asks", b"1")
    assert (await service.cancel(CALLER, accepted.id)).status is Status.CANCELLED
    assert (await service.get(BOSS, accepted.id)).input == b"1"
    assert await service.decisions.awaiting(BOSS) == ([], 0)
    with pytest.raises(RunnerError, match="it is cancelled"):
        await service.decisions.approve(BOSS, name)


async def test_a_caller_that_goes_away_ends_the_wait(service):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.execute, CALLER, "asks", b"7")
        name = await one(service)
        nursery.cancel_scope.cancel()
    assert (await service.get(BOSS, name)).status is Status.CANCELLED


async def test_a_call_with_a_key_and_a_stream_wait(service):
    repeated = called(service, service.execute, CALLER, "asks", b"7", key="k")
    async with asking(service, key="k") as (name, found), repeated as again:
        await service.decisions.approve(BOSS, name)
    assert found[0].id == again[0].id == name
    identity, follower = await service.begin(CALLER, "asks", b"8")
    await service.decisions.deny(BOSS, await one(service))
    events = []
    while (some := await follower.next()) is not None:
        events += some
    assert isinstance(events[-1], ErrorEvent)
    assert (await service.get(BOSS, identity)).failure.kind is ErrorKind.FORBIDDEN


async def test_calls_of_modules_wait(tmp_path):
    code = "from operato import context\ndef handler(input):\n    return context().call('asks', input)\n"
    caller = inline("caller", code, calls_modules=("asks",))
    async with open_service(tmp_path, [ASKS, caller]) as service:
        async with called(service, service.execute, CALLER, "caller", b"7") as found:
            await service.decisions.approve(BOSS, await one(service))
        assert found[0].result == b"7"
        async with called(service, service.execute, CALLER, "caller", b"7") as found:
            await service.decisions.deny(BOSS, await one(service))
        assert "denied by boss" in found[0].failure.message
        async with called(service, service.execute, CALLER, "caller", b"7") as found:
            child = await one(service)
            await service.cancel(CALLER, (await service.get(BOSS, child)).parent)
        assert (await service.get(BOSS, child)).status is Status.CANCELLED


async def test_a_group_is_free_while_one_of_it_waits(tmp_path):
    grouped = inline("asks", "def handler(input):\n    return input\n", tool=CONFIRM, group=GroupPolicy("k", 1))
    async with open_service(tmp_path, [grouped]) as service:
        one_, two = [await service.submit(CALLER, "asks", b'{"k": 1}') for _ in range(2)]
        await one(service, 1)
        await service.decisions.approve(BOSS, two.id)
        assert (await ended(service, two.id)).status is Status.SUCCEEDED
        assert not (await service.get(BOSS, one_.id)).status.final


async def test_waiting_ones_are_bounded(tmp_path):
    async with open_service(tmp_path, [ASKS], max_waiting=1, max_queued=1) as service, asking(service) as (name, _):
        with pytest.raises(RunnerError, match="max_waiting") as refused:
            await service.execute(CALLER, "asks", b"1")
        assert refused.value.failure.kind is ErrorKind.OVERLOADED
        await service.submit(CALLER, "asks", b"1")
        with pytest.raises(RunnerError, match="max_queued"):
            await service.submit(CALLER, "asks", b"1")
        await service.decisions.deny(BOSS, name)


async def test_a_shutdown_ends_calls_and_puts_off_accepted_ones(tmp_path):
    async with open_service(tmp_path, [ASKS]) as service:
        accepted = [await service.submit(CALLER, "asks", json.dumps(n).encode()) for n in range(3)]
        await one(service, 2)
        async with asking(service) as (_, found):
            await service.decisions.deny(BOSS, accepted[0].id)
            service.runs.stop(at_once=False)
        assert found[0].failure.kind is ErrorKind.SHUTDOWN
        with trio.fail_after(PATIENT):
            await service.runs.wait_idle()
    async with open_service(tmp_path, [ASKS]) as service:
        await one(service, 1)
        left, number = await service.decisions.awaiting(BOSS)
        assert ({each.id for each in left}, number) == ({each.id for each in accepted[1:]}, 2)
        await service.decisions.approve(BOSS, accepted[2].id)
        assert (await ended(service, accepted[2].id)).result == b"2"


async def test_an_approval_that_cannot_be_recorded_changes_nothing(service, monkeypatch):
    accepted = await service.submit(CALLER, "asks", b"1")
    record = service.history.submit

    async def full(execution):
        raise error(ErrorKind.UNAVAILABLE, "the disk is full")

    monkeypatch.setattr(service.history, "submit", full)
    with pytest.raises(RunnerError, match="the disk is full"):
        await service.decisions.approve(BOSS, accepted.id)
    assert (await service.get(BOSS, accepted.id)).approval is None
    monkeypatch.setattr(service.history, "submit", record)
    await service.decisions.approve(BOSS, accepted.id, "again")
    assert (await ended(service, accepted.id)).approval.reason == "again"
