"""Contract: an API key is a caller at every door, can do no more than it may, and is refused once it is revoked."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from urllib.parse import unquote

import attrs
import pytest
import structlog
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected

from config.settings import AuthSettings, ServerSettings
from protocol.model import KEY
from protocol.rpc.operato.runner import v1
from runner.auth.callers import anonymous_caller
from runner.auth.tokens import Verifier
from runner.grpc.executions import make_methods
from runner.rest.app import make_app
from tests.contract.test_access import EXECUTOR, STEPS
from tests.contract.test_streams import ECHO, SECRET, open_site, sse_blocks
from tests.grpc_client import open_door
from tests.http_support import serving
from tests.support import inline, open_service, wait_until

KEYS = "/operato.runner.v1.KeyService/"
HIDDEN = inline("hidden", "def handler(input): return 1")


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (ECHO, STEPS, HIDDEN)) as opened:
        opened.flags = [tmp_path / "one", tmp_path / "two"]
        yield opened
        opened.flags[0].touch()
        opened.flags[1].touch()


async def made(site, **fields):
    """Make a key over REST; return its identifier and secret."""
    order = {"name": "ci", "scopes": "executions:run executions:read", **fields}
    answer = await site.json("POST", "/keys", order)
    return answer["id"], answer["key"]


@asynccontextmanager
async def grpc_client(site):
    verifier = Verifier(AuthSettings(), secret=SECRET)
    verifier.api_keys, verifier.anonymous = site.service.api_keys, getattr(site, "anonymous", None)
    async with open_door(make_methods(site.service, verifier)) as door:
        yield await door.connect()


async def asked(site, method, path, body=b"", **headers):
    """Make a request with these headers only."""
    client = await site.server.connect()
    async with client.stream:
        lines = [f"{method} {path} HTTP/1.1", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in {"Host": "127.0.0.1", **headers}.items()]
        await client.send(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        status, headers, answer = await client.response()
    return status, headers, json.loads(answer) if answer else None


# -- making, listing, revoking -----------------------------------------------------------------------------------------


async def test_a_key_is_shown_once(site):
    status, headers, body = await site.ask(
        "POST", "/keys", {"name": "ci", "scopes": ["executions:run"], "expires": "1h"}
    )
    answer = json.loads(body)
    page = await site.json("GET", "/keys")

    assert (status, headers[b"cache-control"]) == (201, b"no-store")
    assert KEY.fullmatch(answer.pop("key"))[1] == answer["id"]
    assert page == {"items": [answer], "cursor": None}
    assert (answer["name"], answer["scopes"], answer["modules"], answer["created_by"]) == (
        "ci",
        ["executions:run"],
        None,
        "kim",
    )
    assert answer["expires_at"] == pytest.approx(answer["created_at"] + 3600, abs=1)


@pytest.mark.parametrize(
    ("order", "status", "field"),
    [
        ({"name": "ci"}, 400, "$"),
        ({"name": "ci", "scopes": ["executions:run"], "scope": 1}, 400, "$"),
        ({"name": "ci", "scopes": []}, 400, "scopes"),
        ({"name": "ci", "scopes": "all"}, 400, "scopes"),
        ({"name": "ci/x", "scopes": "admin"}, 400, "name"),
        ({"name": "ci", "scopes": "admin", "modules": []}, 400, "modules"),
        ({"name": "ci", "scopes": "admin", "expires": "tomorrow"}, 400, "expires"),
        (b"[" * 60_000, 400, "$"),
        (b" " * 65_537, 413, "$"),
        ({"name": "x" * 60_000, "scopes": "admin"}, 400, "name"),
        ({"name": "ci", "scopes": ["admin"] * 101}, 400, "scopes"),
        ({"name": "ci", "scopes": "admin", "modules": ["m"] * 101}, 400, "modules"),
        ({"name": "ci", "scopes": "admin", "expires": "9" * 60_000}, 400, "expires"),
        (b"\xff", 400, "$"),
    ],
)
async def test_a_mistake_makes_no_key(site, order, status, field):
    found, _, body = await site.ask("POST", "/keys", order)

    assert (found, json.loads(body)["field"]) == (status, field)
    assert (await site.json("GET", "/keys"))["items"] == []


async def test_changes_of_keys_are_in_the_audit_log(site):
    name, _ = await made(site, modules=["echo"])
    assert (await site.ask("DELETE", f"/keys/{name}"))[0] == 204
    assert (await site.ask("DELETE", f"/keys/{name}"))[0] == 204
    assert (await site.ask("DELETE", "/keys/0123456789"))[0] == 404
    found = (await site.json("GET", "/audit"))["items"]

    assert [(each["action"], each["subject"], each["module"]) for each in found] == [
        ("key_revoke", "kim", ""),
        ("key_create", "kim", ""),
    ]
    assert found[1]["detail"] == {
        "key": name,
        "name": "ci",
        "scopes": ["executions:run", "executions:read"],
        "modules": ["echo"],
        "expires_at": None,
    }


async def test_keys_over_grpc(site):
    metadata = {"authorization": f"Bearer {site.token}"}
    async with grpc_client(site) as client:
        request = v1.CreateKeyRequest(name="ci", scopes=["executions:run"], modules=["echo"], expires=60)
        answer = (await client.call(KEYS + "CreateKey", request, metadata=metadata)).message(v1.CreateKeyResponse)
        again = await client.call(KEYS + "CreateKey", request, metadata=metadata)
        execute = v1.ExecuteRequest(module_name="echo", input_json="1")
        used = await client.call(EXECUTOR + "Execute", execute, metadata={"x-api-key": answer.secret})
        listed = await client.call(KEYS + "ListKeys", v1.ListKeysRequest(), metadata=metadata)
        revoke = v1.RevokeKeyRequest(id=answer.key.id)
        assert (await client.call(KEYS + "RevokeKey", revoke, metadata=metadata)).status == 0
        refused = await client.call(EXECUTOR + "Execute", execute, metadata={"x-api-key": answer.secret})

    assert (again.status, used.status, refused.status) == (6, 0, 16)
    assert used.message().result_json == "1"
    (shown,) = listed.message(v1.ListKeysResponse).keys
    assert (shown.id, shown.name, shown.scopes, shown.modules) == (answer.key.id, "ci", ["executions:run"], ["echo"])
    assert 0 < shown.created_at < shown.expires_at <= shown.created_at + 60_000
    assert shown.used_at >= shown.created_at
    assert shown.revoked_at == 0


# -- doors -------------------------------------------------------------------------------------------------------------


async def test_a_key_calls_and_is_the_subject_of_its_calls(site):
    _, secret = await made(site)
    for headers in ({"X_API_Key": secret}, {"Authorization": f"Bearer {secret}"}):
        status, _, answer = await asked(site, "POST", "/modules/execute/echo", b"[1]", **headers)
        assert (status, answer["result"]) == (200, [1])
        status, _, found = await asked(site, "GET", f"/executions/{answer['id']}", **headers)
        assert (status, found["subject"]) == (200, "key:ci")


async def test_two_credentials_are_refused(site):
    _, secret = await made(site)
    status, _, answer = await asked(site, "GET", "/executions", X_API_Key=secret, Authorization=f"Bearer {site.token}")
    assert (status, answer["kind"]) == (401, "unauthenticated")
    client = await site.server.connect()
    async with client.stream:
        head = f"GET /executions HTTP/1.1\r\nHost: x\r\nX-API-Key: {secret}\r\nX-API-Key: {secret}\r\n\r\n"
        await client.send(head.encode())
        assert (await client.response())[0] == 401
    async with grpc_client(site) as client:
        request = v1.ExecuteRequest(module_name="echo", input_json="1")
        both = {"authorization": f"Bearer {site.token}", "x-api-key": secret}
        assert (await client.call(EXECUTOR + "Execute", request, metadata=both)).status == 16


async def test_a_key_is_no_part_of_an_address(site):
    """Addresses are in the logs of proxies."""
    _, secret = await made(site)
    for name in ("key", "api_key", "token", "access_token", "x-api-key"):
        status, _, answer = await asked(site, "GET", f"/executions?{name}={secret}")
        assert status == 401
        assert secret not in json.dumps(answer)


async def test_a_key_opens_a_websocket(site):
    _, secret = await made(site)
    options = (
        {"extra_headers": [("x-api-key", secret)]},
        {"extra_headers": [("authorization", f"Bearer {secret}")]},
        {"extra_headers": [], "subprotocols": [f"operato.bearer.{secret}"]},
    )
    for each in options:
        async with site.socket("/modules/stream/echo", **each) as socket:
            await socket.send_message("5")
            while (message := json.loads(await socket.get_message()))["type"] != "result":
                pass
            assert message["result"] == 5
    with pytest.raises((ConnectionRejected, ExceptionGroup)):
        async with site.socket("/modules/stream/echo", extra_headers=[("x-api-key", "opk_x")]):
            pass


async def test_a_key_runs_a_batch(site):
    _, secret = await made(site)
    client = await site.server.connect()
    async with client.stream:
        head = f"POST /modules/execute/echo/batch HTTP/1.1\r\nHost: x\r\nX-API-Key: {secret}\r\nContent-Length: 4\r\n"
        await client.send(f"{head}Content-Type: application/x-ndjson\r\n\r\n1\n2\n".encode())
        body = await client.until(b"\r\n0\r\n\r\n")
    assert b" 200 " in body.splitlines()[0]
    assert (b'"result":1,' in body, b'"result":2,' in body) == (True, True)


async def test_a_module_outside_of_a_key_looks_like_none(site):
    _, secret = await made(site, modules=["echo", "steps"], scopes="admin")
    for method, path in (("POST", "/modules/execute/{}"), ("GET", "/modules/{}"), ("DELETE", "/modules/{}")):
        hidden, missing = [
            (await asked(site, method, path.format(name), X_API_Key=secret)) for name in ("hidden", "absent")
        ]
        assert hidden[0] == missing[0] == 404
        assert hidden[2]["detail"].replace("hidden", "absent") == missing[2]["detail"]
    _, _, answer = await asked(site, "GET", "/modules", X_API_Key=secret)
    assert [module["name"] for module in answer["items"]] == ["echo", "steps"]


async def test_a_key_without_a_scope_is_forbidden(site):
    _, secret = await made(site)
    status, _, answer = await asked(site, "POST", "/keys", b'{"name": "x", "scopes": "admin"}', X_API_Key=secret)

    assert (status, answer["detail"]) == (403, "the API key lacks the scope 'admin'")


async def test_logs_have_identifiers_and_no_keys(site):
    with structlog.testing.capture_logs() as logs:
        name, secret = await made(site)
        await asked(site, "POST", "/modules/execute/echo", b"1", X_API_Key=secret)
        await site.ask("DELETE", f"/keys/{name}")
    text = repr(logs)

    assert name in text
    assert secret not in text
    assert secret.rpartition("_")[2] not in text


# -- revoked -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def following(site):
    """Begin an execution that prints `waiting`, and make a key that may follow it."""
    order = {"module": "steps", "input": list(map(str, site.flags))}
    site.running = (await site.json("POST", "/executions", order))["id"]
    site.key, site.secret = await made(site)
    return site


async def revoke(site):
    assert (await site.ask("DELETE", f"/keys/{site.key}"))[0] == 204
    status, _, answer = await asked(site, "GET", "/executions", X_API_Key=site.secret)
    assert (status, answer["detail"]) == (401, "the API key was revoked")


async def test_server_sent_events_end_with_the_key(following):
    client = await following.server.connect()
    blocks = []
    async with client.stream:
        path = f"/executions/{following.running}/events"
        await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {following.secret}\r\n\r\n".encode())
        await client.until(b"\r\n\r\n")
        async for block in sse_blocks(client):
            if "waiting" in block:
                await revoke(following)  # nothing happens in the execution: the wait itself ends
            blocks.append(block)
    assert "the API key was revoked" in blocks[-1]
    assert (await following.json("GET", f"/executions/{following.running}"))["status"] == "running"


@pytest.mark.parametrize("path", ["/executions/{}/stream", "/modules/stream/steps"])
async def test_a_websocket_ends_with_the_key(following, path):
    messages = []
    headers = [("x-api-key", following.secret)]
    async with following.socket(path.format(following.running), extra_headers=headers) as socket:
        if "steps" in path:
            await socket.send_message(json.dumps(list(map(str, following.flags))))
        try:
            while True:
                messages.append(json.loads(await socket.get_message()))
                if messages[-1].get("text") == "waiting\n":
                    await revoke(following)
        except ConnectionClosed as closed:
            reason = closed.reason
    assert (reason.code, reason.reason) == (4401, "unauthenticated")
    assert messages[-1]["error"]["message"] == "the API key was revoked; go on with another one"


@pytest.mark.parametrize("verb", ["WatchExecution", "ExecuteStream"])
async def test_streams_over_grpc_end_with_the_key(following, verb):
    requests = {
        "WatchExecution": v1.WatchExecutionRequest(id=following.running),
        "ExecuteStream": v1.ExecuteRequest(module_name="steps", input_json=json.dumps([*map(str, following.flags)])),
    }
    async with grpc_client(following) as client:
        number = await client.send(EXECUTOR + verb, requests[verb], metadata={"x-api-key": following.secret})
        while b"waiting" not in client.answers[number].data:
            await client.more()
        await revoke(following)
        answer = await client.ended(number)
    assert (answer.status, "was revoked" in unquote(answer.said["grpc-message"])) == (16, True)


async def test_a_batch_ends_with_the_key(following):
    client = await following.server.connect()
    async with client.stream:
        head = f"POST /modules/execute/echo/batch HTTP/1.1\r\nHost: x\r\nX-API-Key: {following.secret}\r\n"
        head += "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send(head.encode() + b"2\r\n1\n\r\n")
        await client.until(b"\r\n\r\n")
        assert b'"result":1' in await client.until(b"\n\r\n")
        await revoke(following)  # it waits for an input
        assert b'"kind":"unauthenticated"' in await client.until(b"\n\r\n")


async def test_a_request_that_still_arrives_is_refused(following):
    _, secret = await made(following, name="other", scopes="admin")
    client = await following.server.connect()
    async with client.stream:
        head = f"PUT /modules/late HTTP/1.1\r\nHost: x\r\nX-API-Key: {secret}\r\nContent-Length: 60\r\n\r\n"
        await client.send(head.encode() + b'{"env": "inline", ')
        (key,) = (key for key in following.service.api_keys.all() if key.stored.name == "other")
        # Once it is used, the request has been authenticated and waits for its body.
        await wait_until(lambda: key.used_at is not None, "it does not arrive")
        assert (await following.ask("DELETE", f"/keys/{key.stored.id}"))[0] == 204
        await client.send(b'"code": "def handler(input): return 1"}'.ljust(60 - 18))
        status, _, body = await client.response()
    assert (status, json.loads(body)["detail"]) == (401, "the API key was revoked")
    assert (await following.ask("GET", "/modules/late"))[0] == 404


async def test_a_call_that_waits_for_its_result_ends_as_usual(following):
    """Its end must be recorded in any case."""
    outcome = []

    async def call():
        body = json.dumps(list(map(str, following.flags))).encode()
        outcome.append(await asked(following, "POST", "/modules/execute/steps", body, X_API_Key=following.secret))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await wait_until(lambda: following.service.runs.statistics().live == 2, "the call does not begin")
        await revoke(following)
        following.flags[0].touch()
        following.flags[1].touch()
    assert (outcome[0][0], outcome[0][2]["status"]) == (200, "succeeded")


# -- without a token ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_anonymous(path, scopes="executions:run modules:read", **server):
    async with open_service(path, (ECHO,), server=ServerSettings(**server)) as service:
        verifier = Verifier(AuthSettings(), secret=SECRET)
        verifier.api_keys, verifier.anonymous = service.api_keys, anonymous_caller(scopes.split())
        async with serving(make_app(service, verifier)) as opened:
            yield Anonymous(service, opened, verifier.anonymous)


@attrs.define
class Anonymous:
    """A site that needs no token."""

    service: object
    server: object
    anonymous: object


async def test_a_caller_without_a_token_calls(tmp_path):
    async with open_anonymous(tmp_path) as site:
        status, _, answer = await asked(site, "POST", "/modules/execute/echo", b"1")
        assert (status, answer["result"]) == (200, 1)
        refused = [
            await asked(site, "GET", "/executions"),
            await asked(site, "POST", "/keys", b'{"name": "x", "scopes": "admin"}'),
            await asked(site, "GET", "/modules", Authorization="Bearer x"),
            await asked(site, "GET", "/modules", X_API_Key="opk_x"),
        ]
        assert [status for status, _, _ in refused] == [401] * 4
        assert all(b"www-authenticate" in headers for _, headers, _ in refused)
        assert (await asked(site, "GET", "/openapi.json"))[2]["paths"].keys() >= {"/modules/execute/echo"}
        async with grpc_client(site) as client:
            request = v1.ExecuteRequest(module_name="echo", input_json="2")
            assert (await client.call(EXECUTOR + "Execute", request)).message().result_json == "2"
            wrong = {"authorization": "Bearer x"}
            assert (await client.call(EXECUTOR + "Execute", request, metadata=wrong)).status == 16
            assert (await client.call(EXECUTOR + "ListExecutions", v1.ListExecutionsRequest())).status == 16


@pytest.mark.parametrize("site_host", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
async def test_pages_of_the_runner_itself_need_no_token(tmp_path, site_host):
    async with open_anonymous(tmp_path) as site:
        for headers in ({}, {"Origin": f"http://{site_host}"}, {"Sec-Fetch-Site": "none"}):
            assert (await asked(site, "GET", "/modules", Host=site_host, **headers))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9"},
        {"Host": "evil.example:8000"},  # a name that was made to lead here
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Host": "localhost.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_foreign_pages_need_a_token(tmp_path, headers):
    async with open_anonymous(tmp_path) as site:
        status, _, answer = await asked(site, "POST", "/modules/execute/echo", b"1", **headers)
        assert (status, answer["kind"]) == (403, "forbidden")
        assert "/modules/execute/echo" not in (await asked(site, "GET", "/openapi.json", **headers))[2]["paths"]


async def test_sites_of_the_settings_need_no_token(tmp_path):
    settings = {"cors_origins": ("https://app.example",), "external_url": "https://runner.example/x"}
    async with open_anonymous(tmp_path, **settings) as site:
        for headers in ({"Origin": "https://app.example"}, {"Host": "runner.example"}):
            assert (await asked(site, "GET", "/modules", **headers))[0] == 200
        assert (await asked(site, "GET", "/modules", Host="other.example"))[0] == 403


async def test_a_runner_on_a_network_is_called_by_any_of_its_names(tmp_path):
    async with open_anonymous(tmp_path, host="0.0.0.0") as site:
        assert (await asked(site, "GET", "/modules", Host="runner.internal.example"))[0] == 200
        assert (await asked(site, "GET", "/modules", Origin="https://evil.example"))[0] == 403


async def test_refused_callers_and_keys_are_in_the_metrics(site):
    name, secret = await made(site)
    await made(site, name="other")
    await site.ask("DELETE", f"/keys/{name}")
    await asked(site, "GET", "/modules")
    await asked(site, "GET", "/modules", X_API_Key=secret)
    await asked(site, "GET", "/modules", Authorization="Bearer x")
    text = (await site.ask("GET", "/metrics"))[2].decode()

    for credential in ("none", "token", "key"):
        assert f'operato_authentication_failures_total{{credential="{credential}"}} 1.0' in text
    assert 'operato_api_keys{state="valid"} 1.0' in text
    assert 'operato_api_keys{state="ended"} 1.0' in text
