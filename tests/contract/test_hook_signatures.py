"""Contract: endpoints whose senders sign: refusals, and one run for each message."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import time

import attrs
import pytest
import trio

from config.modules import Auth, EndpointSpec, Scheme, Signature
from config.secrets import Secret
from config.settings import ServerSettings
from protocol.model import Record
from tests.contract.test_streams import open_site
from tests.support import inline, wait_until

KEY = "a secret of the sender"
CODE = """
import json, os
def handler(input):
    request = input["$request"]
    body = json.loads(request["body"])
    with open(body["file"], "a") as file:
        file.write("x")
    while "wait" in body and not os.path.exists(body["wait"]):
        pass
    if os.path.exists(body["file"] + ".fail"):
        raise ValueError("not now")
    if os.path.exists(body["file"] + ".refuse"):
        return {"$response": {"status": 503}}
    return {"ran": os.path.getsize(body["file"])}
"""


def signed(name, scheme, *, wait=True, **secrets):
    endpoint = EndpointSpec(f"/{name}", auth=Auth.SIGNATURE, signature=Signature(tuple(secrets), scheme), wait=wait)
    return inline(name, CODE, endpoints=(endpoint,), secrets=secrets)


MODULES = (
    signed("github", Scheme.GITHUB, HOOK=Secret(env="OPERATO_SECRET_HOOK")),
    signed("stripe", Scheme.STRIPE, HOOK=Secret(env="OPERATO_SECRET_HOOK")),
    signed("later", Scheme.GITHUB, wait=False, HOOK=Secret(env="OPERATO_SECRET_HOOK")),
)


@pytest.fixture
async def site(tmp_path, monkeypatch):
    monkeypatch.setenv("OPERATO_SECRET_HOOK", KEY)
    async with open_site(tmp_path, MODULES) as opened:
        opened.file = tmp_path / "ran"
        yield opened


async def deliver(site, name="1", *, key=KEY, path="/http/github", **more):
    """Send a message as GitHub does; return status and answer."""
    body = json.dumps({"file": str(site.file), **more}).encode()
    digest = hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X_Hub_Signature_256": f"sha256={digest}", "X_GitHub_Delivery": name, "X_GitHub_Event": "push"}
    status, found, answer = await site.ask("POST", path, body, **headers)
    return status, found, json.loads(answer)


def runs(site):
    return site.file.stat().st_size if site.file.exists() else 0


async def count(site, reason):
    _, _, body = await site.ask("GET", "/metrics")
    line = f'operato_signatures_refused_total{{reason="{reason}"}} '
    return float(body.decode().partition(line)[2].partition("\n")[0])


async def test_a_signed_request_runs(site):
    status, headers, answer = await deliver(site)
    assert (status, answer) == (200, {"ran": 1})
    execution = await site.json("GET", f"/executions/{headers[b'x-execution-id'].decode()}")
    assert (execution["subject"], execution["idempotency_key"]) == ("endpoint /github", "1")


async def test_a_wrong_signature_leaves_nothing_but_a_count(site):
    status, headers, problem = await deliver(site, key="another")
    assert (status, problem["kind"]) == (401, "unauthenticated")
    assert problem["detail"] == "the signature of the request is wrong"
    assert b"www-authenticate" not in headers

    status, _, body = await site.ask("POST", "/http/github", b"\xff" * 100_000)
    assert status == 401
    assert "missing" in json.loads(body)["detail"]
    assert (await count(site, "wrong"), await count(site, "missing"), await count(site, "old")) == (1, 1, 0)
    assert runs(site) == 0
    assert (await site.json("GET", "/executions"))["items"] == []
    assert (await site.json("GET", "/files"))["items"] == []


async def test_an_old_signature_is_refused(site):
    body = json.dumps({"id": "evt_1", "file": str(site.file)}).encode()

    async def send(at):
        digest = hmac.new(KEY.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
        return (await site.ask("POST", "/http/stripe", body, Stripe_Signature=f"t={at},v1={digest}"))[0]

    assert await send(int(time.time()) - 400) == 401
    assert await count(site, "old") == 1
    assert await send(int(time.time())) == 200
    assert await send(int(time.time()) - 1) == 200, "sent again, with another time"
    assert runs(site) == 1


async def test_a_message_is_run_once(site):
    assert (await deliver(site))[2] == {"ran": 1}
    first = await deliver(site)
    second = await deliver(site, more="the body of another message with this id")
    assert first[2] == second[2] == {"ran": 1}
    assert first[1][b"x-execution-id"] == second[1][b"x-execution-id"]
    assert (await deliver(site, "2"))[2] == {"ran": 2}


async def test_a_message_is_run_once_while_it_runs(site, tmp_path):
    flag = tmp_path / "flag"
    answers = []

    async def send():
        answers.append(await deliver(site, wait=str(flag)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_until(lambda: runs(site) == 1, "the handler runs")
        nursery.start_soon(send)
        await wait_until(lambda: len(site.server.clients) == 2, "the second delivery is sent")
        flag.touch()
    assert [answer[2] for answer in answers] == [{"ran": 1}] * 2


async def test_a_message_outlives_a_sender_that_does_not_wait(site, tmp_path):
    flag = tmp_path / "flag"
    with trio.move_on_after(20) as scope:
        async with trio.open_nursery() as nursery:

            async def send():
                await deliver(site, wait=str(flag))

            nursery.start_soon(send)
            await wait_until(lambda: runs(site) == 1, "the handler runs")
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
    flag.touch()

    status, _, answer = await deliver(site, wait=str(flag))
    assert (status, answer) == (200, {"ran": 1})


@pytest.mark.parametrize(("how", "status"), [("fail", 500), ("refuse", 503)])
async def test_a_message_that_was_answered_with_an_error_runs_again(site, how, status):
    """A sender delivers it again for that reason."""
    mark = site.file.with_name(f"ran.{how}")
    mark.touch()
    client = await site.server.connect()
    body = json.dumps({"file": str(site.file)}).encode()
    digest = hmac.new(KEY.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X_Hub_Signature_256": f"sha256={digest}", "X_GitHub_Delivery": "1"}
    async with client.stream:
        await client.send(site.head("POST", "/http/github", length=len(body), **headers) + body)
        assert (await client.response())[0] == status
    mark.unlink()
    assert (await deliver(site))[2] == {"ran": 2}
    assert (await deliver(site))[2] == {"ran": 2}


async def test_without_waiting_a_message_is_accepted_once(site):
    first = await deliver(site, path="/http/later")
    assert first[0] == 202
    await wait_until(lambda: not site.service.runs.live_executions(), "it has run")
    second = await deliver(site, path="/http/later")
    assert (second[0], second[1][b"location"]) == (202, first[1][b"location"])
    assert runs(site) == 1


async def test_messages_of_different_endpoints_are_different(site):
    await deliver(site)
    await deliver(site, path="/http/later")
    await wait_until(lambda: runs(site) == 2, "both run")


async def test_a_compressed_body_is_signed_as_it_is_sent(site):
    body = gzip.compress(json.dumps({"file": str(site.file)}).encode())
    digest = hmac.new(KEY.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X_Hub_Signature_256": f"sha256={digest}", "Content_Encoding": "gzip"}
    assert (await site.ask("POST", "/http/github", body, **headers))[0] == 200


async def test_a_body_over_max_frame_is_refused_before_it_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("OPERATO_SECRET_HOOK", KEY)
    server = ServerSettings(max_frame_bytes=1024)
    async with open_site(tmp_path, MODULES, server=server, limits={"max_body_bytes": 1024}) as site:
        status, _, body = await site.ask("POST", "/http/github", b"x" * 2000)
        assert (status, json.loads(body)["kind"]) == (413, "too_large")


async def test_a_long_body_is_checked_too(site):
    status, _, answer = await deliver(site, pad="x" * 200_000)
    assert status == 500, "the handler reads a file as text"
    assert answer["kind"] == "handler_error"


async def test_a_secret_that_is_gone_is_unavailable(site, monkeypatch):
    monkeypatch.delenv("OPERATO_SECRET_HOOK")
    status, _, problem = await deliver(site)
    assert (status, problem["kind"]) == (503, "unavailable")
    assert "HOOK" not in json.dumps(problem)


async def test_a_secret_in_a_file_can_be_replaced(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old key\n")
    new.write_text("new key\n")
    module = signed("github", Scheme.GITHUB, OLD=Secret(file=old), NEW=Secret(file=new))
    async with open_site(tmp_path, (module,)) as site:
        site.file = tmp_path / "ran"
        assert (await deliver(site, "1", key="old key"))[0] == 200
        assert (await deliver(site, "2", key="new key"))[0] == 200
        old.write_text("older key\n")
        assert (await deliver(site, "3", key="old key"))[0] == 401
        assert (await deliver(site, "4", key="older key"))[0] == 200


async def test_an_answer_that_is_not_kept_is_empty_the_second_time(tmp_path, monkeypatch):
    monkeypatch.setenv("OPERATO_SECRET_HOOK", KEY)
    kept = signed("github", Scheme.GITHUB, HOOK=Secret(env="OPERATO_SECRET_HOOK"))
    async with open_site(tmp_path, (attrs.evolve(kept, record=Record.SUMMARY),)) as site:
        site.file = tmp_path / "ran"
        assert (await deliver(site))[2] == {"ran": 1}
        body = json.dumps({"file": str(site.file)}).encode()
        digest = hmac.new(KEY.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X_Hub_Signature_256": f"sha256={digest}", "X_GitHub_Delivery": "1"}
        status, _, answer = await site.ask("POST", "/http/github", body, **headers)
        assert (status, answer) == (200, b"")
        assert runs(site) == 1
