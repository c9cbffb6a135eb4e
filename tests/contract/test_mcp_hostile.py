"""Contract: the door for agents under hostile and mistaken clients: rights, origins, versions, floods, many tools."""

from __future__ import annotations

import json

import trio

from config.modules import ToolPolicy
from config.settings import ServerSettings
from runner.auth.tokens import sign
from runner.mcp.sessions import MAX_OWN_SESSIONS, MAX_SESSIONS, Sessions
from tests.contract.test_mcp import ADD, ECHO, ask, call, head_of, initialized, legacy, meta, open_tools, post
from tests.contract.test_streams import SECRET
from tests.support import inline

BODY = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta()}}


async def test_callers_without_a_right_are_refused_with_a_reason(tmp_path):
    async with open_tools(tmp_path, (ADD, ECHO)) as site:
        head = head_of(site, "tools/list", {})
        none = await post(site, BODY, {**head, "Authorization": None})
        broken = await post(site, BODY, {**head, "Authorization": "Bearer x.y.z"})
        two = await post(site, BODY, {**head, "X-API-Key": "opk_0123456789_" + "0" * 48})
        site.token = sign(SECRET, subject="lee", scopes=["modules:read"], expires_seconds=60)
        scopeless = await ask(site, "tools/list")

    for sent in (none, broken, two):
        assert (sent.status, sent.error["data"]["kind"], "id" in sent.last) == (401, "unauthenticated", False)
        assert sent.headers["www-authenticate"].startswith("Bearer")
    assert (scopeless.error["code"], "executions:run" in scopeless.error["message"]) == (403, True)


async def test_a_token_for_one_module_lists_and_calls_no_other(tmp_path):
    async with open_tools(tmp_path, (ADD, ECHO)) as site:
        done = (await call(site, "echo", {"secret": 1})).result["_meta"]["operato/execution"]
        site.token = sign(SECRET, subject="lee", scopes=["admin"], modules=["add"], expires_seconds=60)
        listed = (await ask(site, "tools/list")).result["tools"]
        other, none = await call(site, "echo", {}), await call(site, "nothing", {})
        read = await ask(site, "resources/read", {"uri": f"operato://executions/{done}/result"})
        about = {"io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}}}
        task = await ask(site, "tasks/get", {"taskId": done}, about=about)

    assert [tool["name"] for tool in listed] == ["add"]
    assert other.error["message"].replace("echo", "nothing") == none.error["message"] == "Unknown tool: nothing"
    assert (read.error["code"], task.error["code"]) == (-32602, -32602)
    assert "secret" not in json.dumps(read.last)


async def test_pages_of_other_sites_call_nothing(tmp_path):
    async with open_tools(tmp_path, (ECHO,)) as site:
        head = head_of(site, "tools/list", {})
        foreign = await post(site, BODY, {**head, "Origin": "https://evil.example"})
        null = await post(site, BODY, {**head, "Origin": "null"})
        own = await post(site, BODY, {**head, "Origin": "http://x"})

    assert (foreign.status, null.status, own.status) == (403, 403, 200)
    assert "cors_origins" in foreign.error["message"]


async def test_what_is_no_request_of_the_protocol_is_refused(tmp_path):
    async with open_tools(tmp_path, (ECHO,), server=ServerSettings(max_frame_bytes=100_000)) as site:
        head = head_of(site, "tools/list", {})
        got = await post(site, b"", head, method="GET")
        options = await post(site, b"", head, method="OPTIONS")
        plain = await post(site, BODY, {**head, "Content-Type": "text/plain"})
        coded = await post(site, BODY, {**head, "Content-Encoding": "gzip"})
        large = await post(site, b" " * 100_001, head)
        batch = await post(site, json.dumps([BODY, BODY]).encode(), head)
        unknown = await ask(site, "prompts/list")
        removed = await ask(site, "initialize")
        old = await legacy(site, "prompts/list")
        version = await legacy(site, "ping", version="1999-01-01")
        level = await call(site, "echo", {}, about={"io.modelcontextprotocol/logLevel": "loud"})
        cursors = [await ask(site, "tools/list", {"cursor": text}) for text in ("!", "//79", "é")]
        below = await site.ask("POST", "/mcp/x")

    assert (got.status, got.headers["allow"]) == (405, "POST, DELETE, OPTIONS")
    assert (options.status, plain.status, coded.status, large.status) == (204, 415, 415, 413)
    assert (batch.status, batch.error["code"]) == (400, -32600)
    assert (unknown.status, unknown.error["code"]) == (removed.status, removed.error["code"]) == (404, -32601)
    assert (old.status, old.error["code"]) == (200, -32601)
    assert (version.status, version.error["code"]) == (400, -32022)
    assert level.error["code"] == -32602
    assert {each.error["code"] for each in cursors} == {-32602}
    assert below[0] == 404


async def test_a_thousand_tools_come_in_pages(tmp_path):
    schema = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(300)}}
    modules = [
        inline(f"m{n:04}", "def handler(input): return 1", tool=ToolPolicy(offered=n % 10 > 0)) for n in range(1000)
    ]
    modules += [inline(f"n{n:04}", "def handler(input): return 1", input_schema=schema) for n in range(50)]
    async with open_tools(tmp_path, modules) as site:
        names, pages, params = [], 0, {}
        while True:
            page = (await ask(site, "tools/list", params)).result
            names += [tool["name"] for tool in page["tools"]]
            pages += 1
            assert len(json.dumps(page)) < 400_000
            if "nextCursor" not in page:
                break
            params = {"cursor": page["nextCursor"]}

    assert names == [f"m{n:04}" for n in range(1000) if n % 10] + [f"n{n:04}" for n in range(50)]
    assert pages >= 10


async def test_a_flood_of_messages_leaves_the_door_open(tmp_path):
    async with open_tools(tmp_path, (ECHO,)) as site:
        answers = []

        async def flood(number):
            for turn in range(10):
                kind = (number + turn) % 3
                if kind == 0:
                    answers.append((await call(site, "echo", {"n": number}, identity=f"{number}-{turn}")).status)
                elif kind == 1:
                    answers.append(
                        (await legacy(site, "notifications/cancelled", {"requestId": 7}, identity=None)).status
                    )
                else:
                    answers.append((await post(site, b"[" * 10_000, head_of(site, "x", {}))).status)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(flood, number)
        last = await call(site, "echo", {"n": 1})
        taken = site.service.answers.budget.taken

    assert {*answers} == {200, 202, 400}
    assert (last.result["structuredContent"], taken) == ({"n": 1}, 0)


def test_sessions_are_bounded():
    sessions = Sessions()
    first = sessions.open("kim", None)
    kept = sessions.open("lee", None)
    for _ in range(MAX_OWN_SESSIONS):
        sessions.open("kim", None)

    assert sessions.find(first, "kim") is None
    assert sessions.find(kept, "lee") is not None
    for number in range(MAX_SESSIONS):
        sessions.open(f"s{number}", None)
    assert len(sessions._known) == MAX_SESSIONS
    assert sessions.find(kept, "lee") is None


async def test_a_client_that_reads_nothing_holds_no_memory_of_others(tmp_path):
    large = inline("large", "def handler(input): return {'x': 'y' * input['size']}")
    async with open_tools(tmp_path, (large, ECHO)) as site:
        clients = []
        for _ in range(8):
            body = {"name": "large", "arguments": {"size": 3_000_000}, "_meta": meta()}
            data = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": body}).encode()
            lines = [f"{name}: {value}" for name, value in head_of(site, "tools/call", body).items()]
            lines += ["Host: x", f"Content-Length: {len(data)}", f"Authorization: Bearer {site.token}"]
            client = await site.server.connect()
            await client.send(("POST /mcp HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode() + data)
            clients.append(client)
        statuses = [(await client.response())[0] for client in clients]
        assert (await call(site, "echo", {"a": 1})).result["structuredContent"] == {"a": 1}

    assert statuses == [200] * 8


async def test_an_older_client_without_a_session_is_served(tmp_path):
    async with open_tools(tmp_path, (ECHO,)) as site:
        without = await legacy(site, "tools/call", {"name": "echo", "arguments": {"a": 1}}, version=None)
        level = await legacy(site, "logging/setLevel", {"level": "info"})
        _, session = await initialized(site)
        missing = await legacy(site, "resources/read", {"uri": "operato://executions/x/result"}, session=session)
        templates = await legacy(site, "resources/templates/list", session=session)
        resources = await legacy(site, "resources/list", session=session)

    assert without.result["structuredContent"] == {"a": 1}
    assert level.error["code"] == -32600
    assert missing.error["code"] == -32002
    assert len(templates.result["resourceTemplates"]) == 2
    assert resources.result == {"resources": []}


async def test_large_arguments_pass_or_are_refused(tmp_path):
    upper = inline("upper", "def handler(input): return len(input)", input_schema={"type": "string"})
    async with open_tools(tmp_path, (upper, ECHO)) as site:
        passed = await call(site, "upper", {"input": "x" * 1_000_000})
        wrong = await call(site, "upper", {"other": "x" * 1_000_000})
        nested = json.dumps({"name": "echo", "arguments": {"a": "NEST"}, "_meta": meta()})
        deep = nested.replace('"NEST"', "[" * 100_000 + "]" * 100_000)
        body = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{deep}}}'.encode()
        refused = await post(site, body, head_of(site, "tools/call", {"name": "echo"}))

    assert passed.result["content"][0]["text"] == "1000000"
    assert wrong.error["code"] == -32602
    assert refused.status == 400
