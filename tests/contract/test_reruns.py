"""Contract: executions that have ended are repeated: one, or those of a list."""

from __future__ import annotations

import json
import time

import pytest
import trio

from actors.history.queries import Query
from actors.turns import Terms
from config.mistakes import ConfigError
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Status
from protocol.rpc.operato.runner import v1
from runner.api import ACTIVE
from runner.auth import Principal
from runner.client.executions import coming
from tests.contract.test_runs import ECHO, ended
from tests.contract.test_streams import open_site
from tests.contract.test_turns import grpc_client
from tests.grpc_client import GrpcStatus
from tests.support import ANYBODY, inline, open_service

SERVICE = "/operato.runner.v1.ExecutorService"
FLAG = inline("needs", "import os\ndef handler(input):\n    assert os.path.exists(input), 'not yet'\n    return 'done'")


@pytest.fixture
async def service(tmp_path):
    async with open_service(tmp_path, [ECHO, FLAG]) as opened:
        yield opened


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (ECHO, FLAG)) as opened:
        opened.metadata = {"authorization": f"Bearer {opened.token}"}
        yield opened


async def run(service, name, value, **more):
    """Run a module and return the recorded execution."""
    return await service.execute(ANYBODY, name, json.dumps(value).encode(), **more)


async def again(service, name, **how):
    repetition = await service.reruns.one(ANYBODY, name, **how)
    return await ended(service, repetition.id)


async def unresolved(service):
    return [item.id for item in (await service.list(ANYBODY, Query(unresolved=True))).items]


async def test_the_same_again_and_both_records_show_it(service, tmp_path):
    flag = tmp_path / "flag"
    first = await run(service, "needs", str(flag), timeout=5.0)
    assert first.failure.kind is ErrorKind.HANDLER_ERROR
    second = await again(service, first.id)
    assert (second.status, second.rerun_of, second.rerun_root) == (Status.FAILED, first.id, first.id)
    assert (second.input, second.timeout, second.asynchronous) == (first.input, 5.0, True)
    assert await unresolved(service) == [second.id, first.id]

    flag.touch()
    third = await again(service, second.id)

    assert (third.status, third.rerun_of, third.rerun_root) == (Status.SUCCEEDED, second.id, first.id)
    assert await unresolved(service) == []
    assert (await service.get(ANYBODY, first.id)).reruns == (second.id,)
    assert (await service.get(ANYBODY, second.id)).reruns == (third.id,)
    assert (await service.history.get(third.id)).reruns == ()


async def test_another_input_priority_and_time(service):
    first = await run(service, "echo", 1)
    other = await again(service, first.id, data=b"2", terms=Terms(priority=9))
    assert (other.result, other.priority) == (b"2", 9)
    assert (await again(service, other.id)).priority == 9, "it is that of the repeated one"
    later = await service.reruns.one(ANYBODY, first.id, terms=Terms(run_at=time.time() + 3600))
    assert (later.status, later.rerun_of) == (Status.SCHEDULED, first.id)


async def test_a_key_repeats_it_once(service):
    first = await run(service, "echo", 1)
    repetition = await service.reruns.one(ANYBODY, first.id, key="k")
    await ended(service, repetition.id)
    assert (await service.reruns.one(ANYBODY, first.id, key="k")).id == repetition.id
    assert (await service.get(ANYBODY, first.id)).reruns == (repetition.id,)


async def test_versions(tmp_path):
    old = inline("echo", "def handler(input): return ['old', input]", version="1")
    new = inline("echo", "def handler(input): return ['new', input]", version="2")
    async with open_service(tmp_path, [old]) as service:
        first = await run(service, "echo", 1)
        assert (await again(service, first.id)).result == b'["old",1]'
    async with open_service(tmp_path, [new]) as service:
        assert (await again(service, first.id, version=ACTIVE)).result == b'["new",1]'
        assert (await again(service, first.id, version="2")).module.version == "2"
        for version in ("same", "1"):
            with pytest.raises(RunnerError, match="has no version '1'; it has 2") as caught:
                await service.reruns.one(ANYBODY, first.id, version=version)
            assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.NOT_FOUND, "version")
            hint = f"the execution {first.id} can be repeated with the version `active`"
            assert (hint in caught.value.failure.message) == (version == "same")
    async with open_service(tmp_path, []) as service:
        with pytest.raises(RunnerError, match="echo"):
            await service.reruns.one(ANYBODY, first.id, version=ACTIVE)


async def test_what_cannot_be_repeated(service):
    waiting = await service.submit(ANYBODY, "echo", b"1", terms=Terms(run_at=time.time() + 3600))
    with pytest.raises(RunnerError, match="is scheduled; only one that has ended can be repeated") as caught:
        await service.reruns.one(ANYBODY, waiting.id)
    assert caught.value.failure.kind is ErrorKind.CONFLICT
    with pytest.raises(RunnerError, match="there is no execution 'x'"):
        await service.reruns.one(ANYBODY, "x")
    dropped = await run(service, "echo", {"$dropped": {"bytes": 5000, "reason": "the disk was full"}})
    dropped = await service.get(ANYBODY, dropped.id)
    reduced = await again(service, dropped.id, data=b"1")
    assert reduced.result == b"1"
    with pytest.raises(RunnerError, match="was not kept, as the disk was full; give `input`"):
        await service.reruns.one(ANYBODY, dropped.id)


# -- a list ------------------------------------------------------------------------------------------------------------


async def test_the_unresolved_ones_are_repeated_once_each(service, tmp_path):
    flags = [tmp_path / "a", tmp_path / "b"]
    failed = [(await run(service, "needs", str(flag))).id for flag in flags]
    await run(service, "echo", 1)
    query = Query(unresolved=True)

    dry, cursor = await service.reruns.many(ANYBODY, query, dry_run=True)
    assert ([each.execution.id for each in dry], cursor) == (failed, None), "the oldest is first"
    assert {(each.repetition, each.problem) for each in dry} == {(None, None)}
    assert await unresolved(service) == failed[::-1]

    flags[0].touch()
    first, _ = await service.reruns.many(ANYBODY, query)
    done = [await ended(service, each.repetition.id) for each in first]
    assert [each.status for each in done] == [Status.SUCCEEDED, Status.FAILED]
    assert [each.rerun_of for each in done] == failed

    # Of the chain that still fails only the last one is repeated.
    flags[1].touch()
    second, _ = await service.reruns.many(ANYBODY, query)
    assert [each.execution.id for each in second] == [failed[1], done[1].id]
    assert second[0].problem.kind is ErrorKind.CONFLICT
    assert second[0].problem.message == f"it was repeated later, by the execution {done[1].id}"
    assert (await ended(service, second[1].repetition.id)).status is Status.SUCCEEDED
    assert await unresolved(service) == []
    assert await service.reruns.many(ANYBODY, query) == ([], None)


async def test_a_list_that_is_repeated_twice_at_once_repeats_nothing_twice(service):
    made = [(await run(service, "echo", number)).id for number in range(3)]
    query = Query(module="echo")
    first, _ = await service.reruns.many(ANYBODY, query)
    second, _ = await service.reruns.many(ANYBODY, query)

    assert [each.repetition is not None for each in first] == [True] * 3
    repeated = [each.execution.id for each in second if each.repetition is not None]
    assert not set(repeated) & set(made)


async def test_a_full_queue_ends_the_repetition_and_the_rest_says_so(tmp_path):
    async with open_service(tmp_path, [ECHO], max_queued=0) as service:
        for number in range(3):
            await run(service, "echo", number)
        found, _ = await service.reruns.many(ANYBODY, Query(module="echo"))
        assert [each.problem.kind for each in found] == [ErrorKind.OVERLOADED] * 3


async def test_a_filter_is_needed(service):
    with pytest.raises(RunnerError, match="give a filter, such as `unresolved=true`") as caught:
        await service.reruns.many(ANYBODY, Query(limit=3))
    assert caught.value.failure.kind is ErrorKind.BAD_INPUT


# -- doors -------------------------------------------------------------------------------------------------------------


async def test_over_rest(site):
    first = await site.json("POST", "/modules/execute/echo", {"a": 1})
    status, headers, body = await site.ask("POST", f"/executions/{first['id']}/rerun")
    made = json.loads(body)
    assert (status, made["rerun_of"], made["rerun_root"]) == (202, first["id"], first["id"])
    assert headers[b"location"].decode() == f"/executions/{made['id']}"
    body = {"version": "active", "input": 5}
    other = await site.json("POST", f"/executions/{first['id']}/rerun?priority=1", body)
    assert other["priority"] == 1
    found = await site.json("GET", f"/executions/{first['id']}")
    assert found["reruns"] == [other["id"], made["id"]]
    listed = await site.json("GET", f"/executions?rerun_of={first['id']}")
    assert [item["id"] for item in listed["items"]] == found["reruns"]

    failed = await site.ask("POST", "/modules/execute/needs", "/nothing")
    identity = json.loads(failed[2])["id"]
    dry = await site.json("POST", "/executions/rerun?unresolved=true&dry_run=true")
    item = {"id": identity, "module": "needs", "version": json.loads(failed[2])["version"]}
    assert dry == {"dry_run": True, "items": [{**item, "rerun": None, "problem": None}], "cursor": None}
    real = await site.json("POST", "/executions/rerun?unresolved=true", {"version": "x"})
    assert real["items"][0]["problem"]["kind"] == "not_found"
    real = await site.json("POST", "/executions/rerun?unresolved=true&limit=5", {"version": "active"})
    assert (await site.json("GET", f"/executions/{identity}"))["reruns"] == [real["items"][0]["rerun"]]

    for path, given, message in (
        ("/executions/rerun", None, "give a filter, such as `unresolved=true`"),
        ("/executions/rerun?module=echo", {"input": 1}, "the body cannot be read"),
        (f"/executions/{identity}/rerun", {"versions": 1}, "the body cannot be read"),
        (f"/executions/{identity}/rerun", b"[", "the body cannot be read"),
    ):
        status, _, answer = await site.ask("POST", path, given)
        assert (status, message in json.loads(answer)["detail"]) == (400, True), answer


async def test_over_grpc(site):
    first = await site.json("POST", "/modules/execute/echo", 1)
    async with grpc_client(site) as client:

        async def call(verb, message, kind):
            answer = await client.call(f"{SERVICE}/{verb}", message, metadata=site.metadata)
            assert answer.status == 0, answer.said
            return answer.message(kind)

        request = v1.RerunExecutionRequest(id=first["id"], input_json="7", priority=0)
        made = (await call("RerunExecution", request, v1.SubmitResponse)).execution
        assert (made.rerun_of, made.priority) == (first["id"], 0)
        assert (await ended(site.service, made.id)).result == b"7"
        found = await call("GetExecution", v1.GetExecutionRequest(id=first["id"]), v1.GetExecutionResponse)
        assert found.execution.reruns == [made.id]

        listed = v1.ListExecutionsRequest(module_name="echo")
        request = v1.RerunExecutionsRequest(list=listed, dry_run=True)
        page = await call("RerunExecutions", request, v1.RerunExecutionsResponse)
        assert [(each.id, each.rerun) for each in page.executions] == [(first["id"], ""), (made.id, "")]
        assert page.executions[0].error.message == f"it was repeated later, by the execution {made.id}"
        request = v1.RerunExecutionsRequest(list=listed, version="active")
        page = await call("RerunExecutions", request, v1.RerunExecutionsResponse)
        assert bool(page.executions[1].rerun)
        answer = await client.call(f"{SERVICE}/RerunExecutions", v1.RerunExecutionsRequest(), metadata=site.metadata)
        assert answer.status == GrpcStatus.INVALID_ARGUMENT


def test_the_command_line_reads_coming_times():
    assert coming("2027-01-31T09:30:00Z", "--at") == "1801387800.0"
    assert coming(None, "--at") is None
    for wrong in ("soon", "2h", "today"):
        with pytest.raises(ConfigError, match="is not a time; write 2027-01-31"):
            coming(wrong, "--at")


async def test_two_lists_at_a_time_repeat_nothing_twice(service):
    first = await run(service, "needs", "/nowhere")
    answers: list[object] = []

    async def repeat() -> None:
        try:
            answers.append(await service.reruns.many(ANYBODY, Query(unresolved=True)))
        except RunnerError as problem:
            answers.append(problem.failure.kind)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(repeat)

    assert ErrorKind.OVERLOADED in answers
    assert len((await service.get(ANYBODY, first.id)).reruns) == 1
    await service.reruns.many(ANYBODY, Query(unresolved=True), dry_run=True)


async def test_who_may_not_read_gets_no_input_of_another(service):
    first = await run(service, "echo", "private")
    runner = Principal("r", frozenset({"executions:run"}))

    repetition = await service.reruns.one(runner, first.id)

    assert (repetition.input, repetition.rerun_of) == (b"null", first.id)
    assert (await ended(service, repetition.id)).result == b'"private"'
