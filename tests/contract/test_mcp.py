"""Contract: tools for agents over HTTP, with the official client in both kinds of revisions."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import asynccontextmanager

import attrs
import httpx2
import mcp
import pytest
import trio
from mcp.client.streamable_http import streamable_http_client

from config.modules import ToolPolicy
from config.settings import AuthSettings
from runner.auth.tokens import Verifier, sign
from runner.mcp import make_mcp
from runner.rest.app import make_app
from tests.contract.test_streams import SECRET
from tests.contract.test_streams import Site as Plain
from tests.http_support import serving
from tests.support import PATIENCE, WAIT_FOR, gone, inline, open_service, wait_until

ADD = inline(
    "add",
    """
    def handler(a: int, b: int = 1) -> int:
        return a + b
    """,
    description="Adds two numbers.",
    tool=ToolPolicy(title="Adder", read_only=True, idempotent=True),
)
ECHO = inline("echo", "def handler(input): return input", description="Returns its input.")
UPPER = inline("upper", "def handler(input): return input.upper()", input_schema={"type": "string"})
FAILS = inline("fails", "def handler(input): raise ValueError('no ' + input['what'])")
HIDDEN = inline("hidden", "def handler(input): return 1", tool=ToolPolicy(offered=False))
TALKS = inline(
    "talks",
    WAIT_FOR
    + """
import sys
def handler(input, context):
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    for i in range(3):
        context.progress(i + 1, 3, f"step {i + 1}")
    context.progress(None, None, "nearly")
    if "flag" in input:
        wait_for(input["flag"])
    return {"said": True}
""",
)
LARGE = inline("large", "def handler(input): return 'x' * input['size']")
TYPED = inline("typed", "def handler(size: int) -> list[str]: return ['x' * 99] * (size // 100)")
LIES = inline("lies", "def handler(x: int) -> int: return 'not a number'")
WRITES = inline(
    "writes",
    """
    from operato import File
    def handler(input):
        return {"small": File(b"a b", name="note.txt"), "large": File(b"z" * 100_000, name="z.bin"),
                "picture": File(b"PNG", name="p.png", type="image/png")}
    """,
)
SLEEPS = inline(
    "sleeps",
    """
    import subprocess, time
    def handler(input):
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        print("pid", child.pid, flush=True)
        time.sleep(600)
    """,
)
ASKS = inline("asks", "def handler(input): return 1", tool=ToolPolicy(confirm=True, title="Asks"))
MODULES = (ADD, ECHO, UPPER, FAILS, HIDDEN, TALKS, LARGE, TYPED, LIES, WRITES, SLEEPS, ASKS)
ERAS = ["2026-07-28", "legacy"]


@attrs.define(slots=False)
class Site(Plain):
    """A server with the door for agents."""

    door: object


@asynccontextmanager
async def open_tools(path, modules=MODULES, **settings):
    """Yield a server with the door for agents."""
    token = sign(SECRET, subject="kim", scopes=["admin"], expires_seconds=3600)
    async with open_service(path, modules, **settings) as service:
        verifier = Verifier(AuthSettings(), secret=SECRET)
        verifier.api_keys = service.api_keys
        door = make_mcp(service, verifier)
        async with serving(make_app(service, verifier, None, door)) as server:
            yield Site(service, server, token, door)


@pytest.fixture
async def site(tmp_path):
    async with open_tools(tmp_path) as opened:
        yield opened


async def official(site, mode, work, **options):
    """Run `work(client)` with the official client, in a thread with a loop of its own; return its result."""

    async def main():
        headers = {"authorization": f"Bearer {site.token}"}
        async with httpx2.AsyncClient(headers=headers, timeout=PATIENCE, trust_env=False) as http:
            transport = streamable_http_client(f"http://127.0.0.1:{site.server.port}/mcp", http_client=http)
            async with mcp.Client(transport, mode=mode, read_timeout_seconds=PATIENCE, **options) as client:
                return await work(client)

    return await trio.to_thread.run_sync(asyncio.run, main())


@pytest.mark.parametrize("mode", ["auto", *ERAS])
async def test_the_official_client_lists_and_calls(site, mode):
    async def work(client):
        listed = await client.list_tools()
        return (
            client.protocol_version,
            listed,
            await client.call_tool("add", {"a": 2}),
            await client.call_tool("echo", {"x": [1, "é"]}),
            await client.call_tool("upper", {"input": "abc"}),
            await client.call_tool("fails", {"what": "way"}),
            await client.call_tool("add", {"a": "two"}),
        )

    version, listed, added, echoed, upper, failed, wrong = await official(site, mode, work)

    assert version == ("2025-11-25" if mode == "legacy" else "2026-07-28")
    tools = {tool.name: tool for tool in listed.tools}
    assert set(tools) == {module.name for module in MODULES} - {"hidden"}
    assert (tools["add"].title, tools["add"].description) == ("Adder", "Adds two numbers.")
    assert tools["add"].annotations.read_only_hint is True
    assert tools["add"].input_schema["required"] == ["a"]
    assert tools["upper"].input_schema["properties"] == {"input": {"type": "string"}}
    assert (tools["add"].output_schema is None) == (mode == "legacy")
    assert (added.is_error, added.content[0].text) == (False, "3")
    assert added.structured_content == (None if mode == "legacy" else 3)
    assert echoed.structured_content == {"x": [1, "é"]}
    assert json.loads(echoed.content[0].text) == {"x": [1, "é"]}
    assert upper.content[0].text == "ABC"
    assert failed.is_error
    assert failed.content[0].text.startswith("handler_error: no way")
    assert "Traceback" in failed.content[0].text
    assert wrong.is_error
    assert "bad_input" in wrong.content[0].text


def meta(**more):
    return {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "desk\x1b[31m", "version": "1.0"},
        "io.modelcontextprotocol/clientCapabilities": {},
        **more,
    }


TASKS_META = {"io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}}}


@attrs.frozen
class Sent:
    """An answer with its JSON messages."""

    status: int
    headers: dict
    messages: list

    @property
    def last(self):
        return self.messages[-1]

    @property
    def result(self):
        assert "result" in self.last, self.last
        return self.last["result"]

    @property
    def error(self):
        return self.last["error"]


NAMED = {"tools/call": "name", "resources/read": "uri", "tasks/get": "taskId", "tasks/cancel": "taskId"}


def head_of(site, method, params, *, accept="application/json, text/event-stream", **headers):
    given = {"Accept": accept, "Content-Type": "application/json", "MCP-Protocol-Version": "2026-07-28"}
    given |= {"Mcp-Method": method, **({"Mcp-Name": params[NAMED[method]]} if NAMED.get(method) in params else {})}
    return given | {name.replace("_", "-"): value for name, value in headers.items()}


async def post(site, body, headers, *, method="POST"):
    """Send one body; return the answer with all messages of a stream."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Authorization": f"Bearer {site.token}", **headers}
    lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
    head = "\r\n".join(
        [f"{method} /mcp HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", "Connection: close", *lines]
    )
    client = await site.server.connect()
    async with client.stream:
        await client.send(f"{head}\r\n\r\n".encode() + data)
        raw = await client.rest()
    first, _, rest = raw.partition(b"\r\n\r\n")
    status, *fields = first.decode("latin-1").split("\r\n")
    found = {name.lower(): value for name, value in (line.split(": ", 1) for line in fields)}
    if "event-stream" in found.get("content-type", ""):
        messages = [json.loads(line[6:]) for line in rest.split(b"\n") if line.startswith(b"data: ")]
    else:
        messages = [json.loads(rest)] if rest.strip() else []
    return Sent(int(status.split()[1]), found, messages)


async def ask(site, method, params=None, *, about=None, identity=1, **headers):
    """Send a request of 2026-07-28."""
    given = {**(params or {}), "_meta": meta(**(about or {}))}
    body = {"jsonrpc": "2.0", "id": identity, "method": method, "params": given}
    return await post(site, body, head_of(site, method, given, **headers))


async def call(site, name, arguments, **how):
    return await ask(site, "tools/call", {"name": name, "arguments": arguments}, **how)


async def legacy(site, method, params=None, *, session=None, identity=1, version="2025-11-25"):
    body = {"jsonrpc": "2.0", "method": method, "params": params or {}}
    body |= {} if identity is None else {"id": identity}
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    headers |= {"MCP-Protocol-Version": version} if version and method != "initialize" else {}
    return await post(site, body, headers | ({"Mcp-Session-Id": session} if session else {}))


async def initialized(site, version="2025-11-25"):
    client = {"name": "old", "version": "9"}
    sent = await legacy(site, "initialize", {"protocolVersion": version, "capabilities": {}, "clientInfo": client})
    return sent, sent.headers["mcp-session-id"]


# -- 2026-07-28 ------------------------------------------------------------------------------------------------------


async def test_discover_tells_versions_and_capabilities_by_the_caller(site):
    found = (await ask(site, "server/discover")).result

    assert found["supportedVersions"] == ["2026-07-28", "2025-11-25", "2025-06-18"]
    assert found["capabilities"]["extensions"] == {"io.modelcontextprotocol/tasks": {}}
    assert (found["resultType"], found["cacheScope"]) == ("complete", "private")
    assert found["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "operato-runner"
    site.token = sign(SECRET, subject="lee", scopes=["executions:run"], expires_seconds=60)
    assert "extensions" not in (await ask(site, "server/discover")).result["capabilities"]


async def test_a_call_is_an_execution_with_its_client(site):
    result = (await call(site, "echo", {"x": 1})).result
    found = await site.json("GET", f"/executions/{result['_meta']['operato/execution']}")

    assert (found["via"], found["subject"], found["input"]) == ("mcp desk[31m/1.0", "kim", {"x": 1})
    assert (await site.json("POST", "/modules/execute/echo", 1)).get("via") is None


async def test_an_idempotency_key_runs_a_call_once(site):
    first = (await call(site, "echo", {"x": 1}, about={"operato/idempotency-key": "k"})).result["_meta"]
    again = (await call(site, "echo", {"x": 1}, Idempotency_Key="k")).result["_meta"]
    other = await call(site, "echo", {"x": 2}, Idempotency_Key="k")

    assert first["operato/execution"] == again["operato/execution"]
    assert (other.error["code"], other.error["data"]["kind"]) == (409, "conflict")


async def test_the_trace_is_given_back(site):
    trace = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"

    assert (await call(site, "add", {"a": 1}, about={"traceparent": trace})).result["_meta"]["traceparent"] == trace


async def test_progress_and_output_come_before_the_result(site):
    about = {"progressToken": "t", "io.modelcontextprotocol/logLevel": "info"}
    sent = await call(site, "talks", {}, about=about)
    progress = [each["params"] for each in sent.messages if each.get("method") == "notifications/progress"]
    output = [each["params"] for each in sent.messages if each.get("method") == "notifications/message"]

    assert sent.headers["content-type"] == "text/event-stream"
    assert sent.result["structuredContent"] == {"said": True}
    assert {each["progressToken"] for each in progress} == {"t"}
    numbers = [each["progress"] for each in progress]
    assert numbers == sorted(set(numbers))
    assert "".join(each["data"] for each in output if each["logger"] == "stdout") == "to stdout\n"
    assert {(each["logger"], each["level"]) for each in output} == {("stdout", "info"), ("stderr", "warning")}


async def test_the_least_level_leaves_out_output_and_nothing_is_sent_unasked(site):
    warned = await call(site, "talks", {}, about={"io.modelcontextprotocol/logLevel": "warning"})
    silent = await call(site, "talks", {})
    plain = await call(site, "talks", {}, about={"progressToken": 1}, accept="application/json")

    assert {each["params"]["logger"] for each in warned.messages[:-1]} == {"stderr"}
    assert len(silent.messages) == len(plain.messages) == 1
    assert silent.headers["content-type"] == plain.headers["content-type"] == "application/json"


async def test_a_disconnect_cancels_and_its_processes_are_gone(site):
    body = {"name": "sleeps", "arguments": {}, "_meta": meta(**{"io.modelcontextprotocol/logLevel": "debug"})}
    data = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": body}).encode()
    lines = [f"{name}: {value}" for name, value in head_of(site, "tools/call", body).items()]
    lines += ["Host: x", f"Content-Length: {len(data)}", f"Authorization: Bearer {site.token}"]
    client = await site.server.connect()
    await client.send(("POST /mcp HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode() + data)
    await client.until(b"pid ")
    child = int(await client.until(b"\\n"))
    client.reset()

    await wait_until(lambda: gone(child), "the process still runs")
    (listed,) = (await site.json("GET", "/executions?module=sleeps"))["items"]
    await wait_until(lambda: site.service.runs.find(listed["id"]) is None, "it still runs")
    assert (await site.json("GET", f"/executions/{listed['id']}"))["status"] == "cancelled"


async def test_a_file_is_embedded_if_it_is_small_else_linked_and_read(site):
    blocks = (await call(site, "writes", {})).result["content"][1:]
    by_kind = {block["type"]: block for block in blocks}

    assert by_kind["resource"]["resource"]["text"] == "a b"
    assert base64.b64decode(by_kind["image"]["data"]) == b"PNG"
    assert (by_kind["resource_link"]["name"], by_kind["resource_link"]["size"]) == ("z.bin", 100_000)
    read = (await ask(site, "resources/read", {"uri": by_kind["resource_link"]["uri"]})).result
    assert base64.b64decode(read["contents"][0]["blob"]) == b"z" * 100_000
    assert read["cacheScope"] == "private"


async def test_a_large_result_is_a_resource(site):
    found = (await call(site, "large", {"size": 300_000})).result
    (words, linked) = found["content"]

    assert (found["isError"], "structuredContent" in found, len(json.dumps(found)) < 2000) == (False, False, True)
    assert linked["uri"] in words["text"]
    read = (await ask(site, "resources/read", {"uri": linked["uri"]})).result["contents"][0]
    assert json.loads(read["text"]) == "x" * 300_000
    huge = (await call(site, "large", {"size": 5_000_000})).result["content"][1]
    refused = await ask(site, "resources/read", {"uri": huge["uri"]})
    assert "/result has it over REST" in refused.error["message"]


async def test_a_result_with_a_schema_is_a_value_up_to_a_size(site):
    large = (await call(site, "typed", {"size": 200_000})).result
    huge = (await call(site, "typed", {"size": 3_000_000})).result

    assert (len(large["structuredContent"]), large["isError"]) == (2000, False)
    assert large["content"][1]["type"] == "resource_link"
    assert (huge["isError"], "structuredContent" in huge) == (True, False)
    assert "do not repeat it" in huge["content"][0]["text"]


async def test_a_result_that_breaks_its_promise_is_an_error_of_the_tool(site):
    found = (await call(site, "lies", {"x": 1})).result

    assert found["isError"]
    assert "not what the module declares" in found["content"][0]["text"]
    assert "structuredContent" not in found


async def test_tracebacks_are_for_readers_of_executions(site):
    site.token = sign(SECRET, subject="lee", scopes=["executions:run"], expires_seconds=60)
    words = (await call(site, "fails", {"what": "way"})).result["content"][0]["text"]
    large = (await call(site, "large", {"size": 300_000})).result

    assert words == "handler_error: no way"
    assert "needs the scope `executions:read`" in large["content"][0]["text"]
    assert len(large["content"]) == 1


# -- tasks -----------------------------------------------------------------------------------------------------------


async def test_a_long_call_becomes_a_task_of_clients_that_know_tasks(site, tmp_path, monkeypatch):
    monkeypatch.setattr("runner.mcp.calls.TASK_SECONDS", 0.05)
    flag = tmp_path / "flag"
    task = (await call(site, "talks", {"flag": str(flag)}, about=TASKS_META)).result

    assert (task["resultType"], task["status"], task["ttlMs"]) == ("task", "working", None)
    name = {"taskId": task["taskId"]}
    assert (await ask(site, "tasks/get", name, about=TASKS_META)).result["status"] == "working"
    flag.touch()
    await wait_until(lambda: site.service.runs.find(task["taskId"]) is None, "it still runs")
    done = (await ask(site, "tasks/get", name, about=TASKS_META)).result
    assert (done["resultType"], done["status"]) == ("complete", "completed")
    assert done["result"]["structuredContent"] == {"said": True}
    assert (
        await ask(site, "tasks/update", {**name, "inputResponses": {}}, about=TASKS_META, Mcp_Name=task["taskId"])
    ).result
    found = await site.json("GET", f"/executions/{task['taskId']}")
    assert (found["asynchronous"], found["via"]) == (True, "mcp desk[31m/1.0")


async def test_a_task_is_cancelled(site, monkeypatch):
    monkeypatch.setattr("runner.mcp.calls.TASK_SECONDS", 0.05)
    task = (await call(site, "sleeps", {}, about=TASKS_META)).result["taskId"]

    cancelled = (await ask(site, "tasks/cancel", {"taskId": task}, about=TASKS_META)).result
    assert cancelled["resultType"] == "complete"
    assert (await ask(site, "tasks/get", {"taskId": task}, about=TASKS_META)).result["status"] == "cancelled"


async def test_a_short_call_of_such_a_client_has_its_result_at_once(site):
    assert (await call(site, "add", {"a": 1}, about=TASKS_META)).result["structuredContent"] == 2
    failed = (await call(site, "fails", {"what": "x"}, about=TASKS_META)).result
    assert failed["isError"]


async def test_tasks_need_the_capability_and_the_scope(site):
    without = await ask(site, "tasks/get", {"taskId": "x"})
    unknown = await ask(site, "tasks/get", {"taskId": "x"}, about=TASKS_META)
    site.token = sign(SECRET, subject="lee", scopes=["executions:run"], expires_seconds=60)

    assert (without.status, without.error["code"]) == (400, -32021)
    assert unknown.error["code"] == -32602
    assert (await ask(site, "tasks/get", {"taskId": "x"}, about=TASKS_META)).error["code"] == 403


# -- revisions with a handshake --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "given"), [("2025-06-18", "2025-06-18"), ("2024-11-05", "2025-11-25")])
async def test_initialize_agrees_on_a_revision(site, asked, given):
    sent, session = await initialized(site, asked)

    assert sent.result["protocolVersion"] == given
    assert "extensions" not in sent.result["capabilities"]
    assert (await legacy(site, "notifications/initialized", session=session, identity=None)).status == 202
    assert (await legacy(site, "ping", session=session)).result == {}
    answer = await legacy(site, "tools/call", {"name": "add", "arguments": {"a": 1}}, session=session, version=given)
    assert answer.result["content"] == [{"type": "text", "text": "2"}]
    assert "resultType" not in answer.result
    found = await site.json("GET", f"/executions/{answer.result['_meta']['operato/execution']}")
    assert found["via"] == "mcp old/9"


async def test_a_notification_cancels_the_call_of_a_session(site, tmp_path):
    _, session = await initialized(site)
    started = trio.Event()
    answers = []

    async def run():
        started.set()
        answers.append(
            await legacy(site, "tools/call", {"name": "sleeps", "arguments": {}}, session=session, identity="c")
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await started.wait()
        await wait_until(lambda: any(each.calls for each in site.door.sessions._known.values()), "no call began")
        stranger = (await initialized(site))[1]
        cancel = {"requestId": "c"}
        assert (await legacy(site, "notifications/cancelled", cancel, session=stranger, identity=None)).status == 202
        assert len(site.service.runs.live_executions("sleeps")) == 1
        assert (await legacy(site, "notifications/cancelled", cancel, session=session, identity=None)).status == 202

    assert answers[0].result["content"][0]["text"].startswith("cancelled")
    (listed,) = (await site.json("GET", "/executions?module=sleeps"))["items"]
    assert listed["status"] == "cancelled"


async def test_a_session_is_of_its_caller_and_ends(site):
    _, session = await initialized(site)
    mine, site.token = site.token, sign(SECRET, subject="lee", scopes=["admin"], expires_seconds=60)

    assert (await legacy(site, "ping", session=session)).status == 404
    assert (await post(site, b"", {"Mcp-Session-Id": session}, method="DELETE")).status == 404
    site.token = mine
    assert (await post(site, b"", {"Mcp-Session-Id": session}, method="DELETE")).status == 204
    assert (await legacy(site, "ping", session=session)).status == 404


async def test_log_messages_of_a_session_by_its_level(site):
    _, session = await initialized(site)
    silent = await legacy(site, "tools/call", {"name": "talks", "arguments": {}}, session=session)
    assert (await legacy(site, "logging/setLevel", {"level": "loud"}, session=session)).error["code"] == -32602
    assert (await legacy(site, "logging/setLevel", {"level": "debug"}, session=session)).result == {}
    spoken = await legacy(site, "tools/call", {"name": "talks", "arguments": {}}, session=session)

    assert len(silent.messages) == 1
    assert {each["params"]["logger"] for each in spoken.messages[:-1]} == {"stdout", "stderr"}


# -- approval --------------------------------------------------------------------------------------------------------


async def decided(site, verb, answers):
    """Call a tool that people approve, decide as soon as it waits, and return what the call was answered."""

    async def run():
        answers.append(await call(site, "asks", {}, about={"progressToken": "t"}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_until(lambda: waiting_for(site, "asks"), "no call waits")
        (live,) = site.service.runs.live_executions("asks")
        await site.json("POST", f"/executions/{live.execution.id}/{verb}", {})
    return answers[-1]


def waiting_for(site, name):
    """Return whether an execution of a module waits for a person."""
    live = site.service.runs.live_executions(name)
    return bool(live and (found := site.service.runs.waiting(live[0])) and "approval" in found.reason)


async def test_a_call_waits_for_a_person_and_says_so(site):
    approved = await decided(site, "approve", [])
    denied = await decided(site, "deny", [])
    (listed,) = [tool for tool in (await ask(site, "tools/list")).result["tools"] if tool["name"] == "asks"]

    assert "A person must approve each call" in listed["description"]
    assert any("waits for approval" in each["params"]["message"] for each in approved.messages[:-1])
    assert (approved.result["isError"], approved.result["content"][0]["text"]) == (False, "1")
    assert denied.result["isError"]
    assert "denied" in denied.result["content"][0]["text"]


async def test_a_lost_connection_of_an_older_client_cancels_nothing(site):
    _, session = await initialized(site)
    body = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": "sleeps", "arguments": {}}}
    data = json.dumps(body).encode()
    lines = ["Host: x", "Content-Type: application/json", f"Content-Length: {len(data)}", f"Mcp-Session-Id: {session}"]
    client = await site.server.connect()
    head = "\r\n".join(["POST /mcp HTTP/1.1", *lines, f"Authorization: Bearer {site.token}"])
    await client.send(f"{head}\r\n\r\n".encode() + data)
    runs = site.service.runs
    await wait_until(
        lambda: any(live.execution.started_at for live in runs.live_executions("sleeps")), "it never began"
    )
    client.reset()
    assert (await legacy(site, "ping", session=session)).result == {}
    (live,) = runs.live_executions("sleeps")
    await legacy(site, "notifications/cancelled", {"requestId": 5}, session=session, identity=None)
    await live.ended.wait()

    assert (await site.json("GET", f"/executions/{live.execution.id}"))["status"] == "cancelled"
