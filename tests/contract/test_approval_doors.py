"""Contract: people approve and deny executions over REST, gRPC, the command line and the dashboard."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import httpx
import pytest
import trio
from msgspec.structs import replace

from config.client import Address, ClientSettings
from config.modules import Auth, EndpointSpec, Method
from config.modules.policies import ToolPolicy
from protocol.model import Approval, Status
from protocol.rpc.operato.runner import v1
from runner.client import decide_executions
from runner.client.connection import open_client
from runner.client.local_token import Credentials
from tests.contract.test_approvals import ASKS, BOSS, CALLER, WAITS, asking, called, ended, one
from tests.contract.test_turns import grpc_client
from tests.records import make
from tests.support import inline, open_service
from tests.ui_site import open_ui, token

SERVICE = "/operato.runner.v1.ExecutorService"
HOOK = inline(
    "hook",
    "def handler(input): return 'done'",
    tool=ToolPolicy(confirm=True),
    endpoints=(EndpointSpec("/hook", (Method.POST,), Auth.NONE),),
)
APPROVER = ("executions:approve", "executions:read")


@pytest.fixture
async def site(tmp_path):
    async with open_ui(tmp_path, [ASKS, HOOK]) as opened:
        yield opened


def rest(site, *scopes, subject="ada"):
    """Return a client of REST with these scopes."""
    bearer = {"authorization": f"Bearer {token(*scopes, subject=subject)}"}
    return httpx.AsyncClient(base_url=site.address, headers=bearer, trust_env=False, timeout=30)


async def test_over_rest(site):
    async with rest(site, "executions:run") as caller, rest(site, *APPROVER, subject="boss") as boss:
        async with called(site.service, caller.post, "/modules/execute/asks", content=b"7") as answers:
            path = f"/executions/{await one(site.service)}"
            shown = (await boss.get(path)).json()
            assert (shown["status"], shown["waiting"]["reason"], shown["approval"]) == ("queued", WAITS, None)
            (listed,) = (await boss.get("/executions?status=queued")).json()["items"]
            assert (listed["id"], listed["waiting"]["reason"]) == (shown["id"], WAITS)
            for verb in ("approve", "deny"):
                refused = await caller.post(f"{path}/{verb}")
                assert (refused.status_code, "executions:approve" in refused.json()["detail"]) == (403, True)
                for body in (b"[]", b'{"why": "x"}', json.dumps({"reason": "x" * 501}).encode()):
                    wrong = await boss.post(f"{path}/{verb}", content=body)
                    assert (wrong.status_code, wrong.json()["kind"]) == (400, "bad_input")
            denied = await boss.post(f"{path}/deny", json={"reason": "no"})
            assert (denied.status_code, denied.json()["status"]) == (200, "failed")
        (answer,) = answers
        assert (answer.status_code, answer.json()["error"]["message"]) == (403, "denied by boss: no")
        assert (answer.json()["error"]["kind"], answer.json()["attempts"]) == ("forbidden", 0)
        again = await boss.post(f"{path}/approve")
        assert (again.status_code, "it was denied by boss: no" in again.json()["detail"]) == (409, True)
        assert (await boss.post("/executions/none/approve")).status_code == 404

        accepted = (await caller.post("/executions", json={"module": "asks", "input": 8})).json()
        await one(site.service)
        approved = await boss.post(f"/executions/{accepted['id']}/approve")
        assert (approved.status_code, approved.json()["approval"]["by"], "input" in approved.json()) == (
            200,
            "boss",
            False,
        )
        assert (await ended(site.service, accepted["id"])).result == b"8"


async def test_batches_endpoints_and_schedules_wait(site):
    service = site.service
    async with rest(site, "executions:run", "schedules:write") as caller:
        batch = caller.post(
            "/modules/execute/asks/batch", content=b"1\n2\n", headers={"content-type": "application/jsonl"}
        )
        async with called(service, lambda: batch) as answers:
            await service.decisions.approve(BOSS, await one(service))
            await service.decisions.deny(BOSS, await one(service))
        lines = [json.loads(line) for line in answers[0].text.splitlines()]
        assert [line["status"] for line in lines] == ["succeeded", "failed"]
        async with called(service, caller.post, "/http/hook") as answers:
            await service.decisions.approve(BOSS, await one(service))
        assert (answers[0].status_code, answers[0].text) == (200, "done")
        async with called(service, caller.post, "/http/hook") as answers:
            await service.decisions.deny(BOSS, await one(service))
        assert answers[0].status_code == 403
        made = (await caller.post("/schedules", json={"module": "asks", "every": "1h", "input": 5})).json()
        fired = (await caller.post(f"/schedules/{made['id']}/fire")).json()
        assert await one(service) == fired["id"]
        await service.decisions.approve(BOSS, fired["id"])
        assert (await ended(service, fired["id"])).result == b"5"


async def test_over_grpc(site):
    metadata = {"authorization": f"Bearer {token(subject='boss')}"}
    async with grpc_client(site) as caller, grpc_client(site) as client:
        request = v1.ExecuteRequest(module_name="asks", input_json="7")
        for verb, reason in (("ApproveExecution", "yes"), ("DenyExecution", "")):
            async with called(site.service, caller.call, f"{SERVICE}/Execute", request, metadata=metadata) as answers:
                decision = v1.DecideExecutionRequest(id=await one(site.service), reason=reason)
                answer = await client.call(f"{SERVICE}/{verb}", decision, metadata=metadata)
                assert answer.status == 0, answer.said
                shown = answer.message(v1.DecideExecutionResponse).execution.approval
                assert (shown.approved, shown.by, shown.reason, shown.at > 0) == (bool(reason), "boss", reason, True)
            done = answers[0].message(v1.ExecuteResponse)
            assert done.execution.error.message == ("" if reason else "denied by boss")
        again = await client.call(f"{SERVICE}/DenyExecution", decision, metadata=metadata)
        assert "denied by boss" in again.said["grpc-message"]


async def test_by_the_command_line(site, capsys):
    address = urlsplit(site.address)
    settings = ClientSettings(Address("http", address.hostname, address.port))
    credentials = Credentials(lambda: token(*APPROVER, subject="boss"), "")
    first, second = [await site.service.submit(CALLER, "asks", b"1") for _ in range(2)]
    await one(site.service, 1)
    async with open_client(settings, credentials) as client:
        assert await decide_executions(client, [first.id], "fine", approved=True) == 0
        assert await decide_executions(client, [second.id], "", approved=False) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith((first.id, second.id))]
    assert lines == [f"{first.id}  approved", f"{second.id}  denied"]
    assert (await ended(site.service, first.id)).approval.reason == "fine"


async def test_in_the_dashboard(site):
    boss, reader = site.browser(), site.browser()
    await boss.get("/sign-in")
    await reader.get("/sign-in")
    assert "Waits for approval" not in (await boss.sign_in(token(*APPROVER, "admin", subject="boss"))).text
    async with asking(site.service) as (name, found):
        overview = (await boss.get("/")).text
        assert "Waits for approval" in overview
        assert f'/ui/executions/{name}"' in overview
        assert "Waits for approval" not in (await reader.sign_in(token("executions:read", "executions:run"))).text
        page = (await reader.get(f"/executions/{name}")).text
        assert "/deny" not in page
        assert "waits for approval" in page
        assert (await reader.post(f"/executions/{name}/approve")).status_code == 403
        page = (await boss.get(f"/executions/{name}")).text
        assert f'action="/ui/executions/{name}/approve"' in page
        assert f'formaction="/ui/executions/{name}/deny"' in page
        done = await boss.post(f"/executions/{name}/approve", {"reason": "<b>fine</b>"})
        assert (done.status_code, done.headers["location"]) == (303, f"/ui/executions/{name}")
    assert found[0].status is Status.SUCCEEDED
    page = (await boss.get(f"/executions/{name}")).text
    assert "Approved by" in page
    assert "&lt;b&gt;fine&lt;/b&gt;" in page
    refused = await boss.post(f"/executions/{name}/deny")
    assert (refused.status_code, "approved by boss" in refused.text) == (409, True)
    assert "Execution approved" in (await boss.get("/audit")).text


async def test_what_a_killed_runner_left(tmp_path):
    """A call has no caller any more, and an approved execution is not asked for again."""
    async with open_service(tmp_path, [ASKS]) as service:
        module = service.registry.snapshot.get("asks").ref
        call = replace(make(Status.QUEUED), module=module, input=b"1")
        decision = Approval(approved=True, by="boss", at=1.0)
        approved = replace(make(Status.QUEUED), module=module, input=b"2", asynchronous=True, approval=decision)
        for execution in (call, approved):
            await service.history.submit(execution)
    async with open_service(tmp_path, [ASKS]) as service:
        with trio.fail_after(20):
            assert (await ended(service, approved.id)).result == b"2"
        left = await ended(service, call.id)
        assert (left.failure.kind, left.attempts, left.approval) == ("lost", 0, None)
        assert await service.decisions.awaiting(BOSS) == ([], 0)
