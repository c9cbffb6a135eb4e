"""Contract: in which order accepted executions run: priority, over REST, gRPC and between runners."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest

from actors.turns import Terms, terms_of
from config.settings import AuthSettings
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Status
from protocol.rpc.operato.runner import v1
from runner.auth import Verifier
from runner.grpc.executions import make_methods
from tests.contract.test_runs import HELD, ended, printed
from tests.contract.test_streams import ECHO, SECRET, open_site
from tests.grpc_client import GrpcStatus, open_door
from tests.support import ANYBODY, inline, open_service

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
