"""Contract: a module that a token does not allow looks like none at every door, and followers end with their token."""

from __future__ import annotations

import json
import time
from urllib.parse import unquote

import pytest
import structlog
from trio_websocket import ConnectionClosed

from config.settings import AuthSettings
from protocol.rpc.operato.runner import v1
from runner.api import following
from runner.auth.tokens import Verifier, sign
from runner.grpc.executions import make_methods
from runner.rest.openapi.operations import OPERATIONS
from tests.contract.test_bodies import BODIES
from tests.contract.test_routing import opens
from tests.contract.test_streams import ECHO, SECRET, open_site, sse_blocks
from tests.grpc_client import open_door
from tests.support import WAIT_FOR, inline, wait_until

HIDDEN, MISSING = "hidden-kept", "absent-kept"
UNKNOWN = "01a226eb-f63e-73f4-abed-a47be3219c89"
ONE = {"env": "inline", "code": "def handler(input): return 1"}
FILED = inline("hidden-filed", "def handler(input): return 1")
CHANGES = [operation for operation in OPERATIONS if "{name}" in operation.path or "{id}" in operation.path]
CONDITIONS = [{}, {"If_Match": '"1"'}, {"If_Match": "*"}, {"If_None_Match": "*"}, {"If_Match": '"0123456789abcdef"'}]


def bearer(seconds=60.0, modules=("seen-*",), scopes=("admin",)):
    return sign(SECRET, subject="lee", scopes=list(scopes), expires_seconds=seconds, modules=list(modules))


@pytest.fixture
async def site(tmp_path):
    """Open a site with two hidden modules, an execution of one, and a token that sees neither."""
    async with open_site(tmp_path, (ECHO, FILED)) as opened:
        await opened.json("PUT", f"/modules/{HIDDEN}", ONE)
        await opened.json("PUT", "/modules/seen-one", ONE)
        opened.ended = (await opened.json("POST", f"/modules/execute/{HIDDEN}", 1))["id"]
        opened.token = bearer()
        yield opened


def request_of(operation, name, identity):
    path = operation.path.replace("{name}", name).replace("{id}", identity).replace("{version}", "1")
    _, _, kind, body = BODIES.get(operation.name, (None, None, None, b""))
    return operation.method, path, body, {"Content_Type": kind} if kind else {}


@pytest.mark.parametrize("operation", CHANGES, ids=lambda operation: operation.name)
async def test_a_hidden_module_answers_as_none(site, operation):
    for name, condition in ((name, condition) for name in (HIDDEN, "hidden-filed") for condition in CONDITIONS):
        answers = []
        for shown, identity in ((name, site.ended), (MISSING, UNKNOWN)):
            method, path, body, headers = request_of(operation, shown, identity)
            if method == "WEBSOCKET":
                status, found = await opens(site, path)
                text, fields = json.dumps(found), {}
            else:
                status, fields, data = await site.ask(method, path, body, **headers, **condition)
                text = data.decode()
            fields = {key: value for key, value in fields.items() if key not in (b"date", b"content-length")}
            answers.append((status, fields, text.replace(shown, "NAME").replace(identity, "ID")))
        assert answers[0] == answers[1]
        assert answers[0][0] in (404, 403, 412), answers[0]
        assert "hidden" not in answers[0][2]


async def test_names_in_bodies_and_queries_are_hidden_too(site):
    for make in (
        lambda name: ("POST", "/executions", {"module": name}),
        lambda name: ("POST", "/modules", {"name": name, **ONE}),
        lambda name: ("GET", f"/executions?module={name}", None),
        lambda name: ("GET", f"/modules?q={name}", None),
        lambda name: ("GET", f"/audit?module={name}", None),
    ):
        hidden, missing = [await site.ask(*make(name)) for name in (HIDDEN, MISSING)]
        assert hidden[0] == missing[0]
        assert hidden[2].replace(HIDDEN.encode(), b"") == missing[2].replace(MISSING.encode(), b"")


async def test_nothing_that_a_token_reads_names_a_hidden_module(site):
    for path in ("/modules", "/executions", "/audit", "/openapi.json", "/environments", "/metrics", "/readyz", "/"):
        status, _, body = await site.ask("GET", path)
        assert status == 200
        assert b"hidden" not in body, path
        assert site.ended.encode() not in body
    status, _, body = await site.ask("GET", "/modules/hidden-kep")  # similar names are suggested
    assert (status, b"did you mean" in body) == (404, False)


# -- gRPC ------------------------------------------------------------------------------------------------------------

EXECUTOR, MODULES = "/operato.runner.v1.ExecutorService/", "/operato.runner.v1.ModuleService/"


def calls(name, identity):
    return {
        EXECUTOR + "Execute": v1.ExecuteRequest(module_name=name, input_json="1"),
        EXECUTOR + "ExecuteStream": v1.ExecuteRequest(module_name=name, input_json="1"),
        EXECUTOR + "Submit": v1.ExecuteRequest(module_name=name, input_json="1"),
        EXECUTOR + "GetExecution": v1.GetExecutionRequest(id=identity),
        EXECUTOR + "CancelExecution": v1.CancelExecutionRequest(id=identity),
        EXECUTOR + "ApproveExecution": v1.DecideExecutionRequest(id=identity),
        EXECUTOR + "DenyExecution": v1.DecideExecutionRequest(id=identity),
        EXECUTOR + "WatchExecution": v1.WatchExecutionRequest(id=identity),
        MODULES + "GetModule": v1.GetModuleRequest(module_name=name),
        MODULES + "DeleteModule": v1.DeleteModuleRequest(module_name=name),
    }


async def test_a_hidden_module_answers_as_none_over_grpc(site):
    methods = make_methods(site.service, Verifier(AuthSettings(), secret=SECRET))
    metadata = {"authorization": f"Bearer {site.token}"}
    async with open_door(methods) as door:
        client = await door.connect()
        for path, hidden in calls(HIDDEN, site.ended).items():
            told = []
            for request, name, identity in (
                (hidden, HIDDEN, site.ended),
                (calls(MISSING, UNKNOWN)[path], MISSING, UNKNOWN),
            ):
                answer = await client.call(path, request, metadata=metadata)
                message = answer.said["grpc-message"].replace(name, "NAME").replace(identity, "ID")
                told.append((answer.status, message))
            assert told[0] == told[1], path
            assert told[0][0] == 5, "NOT_FOUND"


# -- followers -------------------------------------------------------------------------------------------------------

STEPS = inline(
    "steps",
    WAIT_FOR
    + """
def handler(input):
    for flag in input:
        print("waiting", flush=True)
        wait_for(flag)
""",
)


class Later:
    """A time of day that the test moves."""

    def __init__(self):
        self.seconds = 0.0

    def time(self):
        return time.time() + self.seconds


@pytest.fixture
async def endless(tmp_path, monkeypatch):
    """Open a site with a running execution that prints when the file `one` appears, and ends with `two`."""
    later = Later()
    monkeypatch.setattr(following, "time", later)
    async with open_site(tmp_path, (STEPS, ECHO)) as opened:
        flags = [tmp_path / "one", tmp_path / "two"]
        order = {"module": "steps", "input": list(map(str, flags))}
        opened.running = (await opened.json("POST", "/executions", order))["id"]
        opened.flags, opened.later = flags, later
        yield opened
        later.seconds = 0.0
        flags[1].touch()


def expire(site):
    """Let the tokens of all callers expire, and something happen in the execution."""
    site.later.seconds = 4000.0
    site.flags[0].touch()


async def still_runs(site):
    site.later.seconds = 0.0
    return (await site.json("GET", f"/executions/{site.running}"))["status"] == "running"


async def test_server_sent_events_end_with_the_token(endless):
    client = await endless.server.connect()
    blocks = []
    async with client.stream:
        await client.send(endless.head("GET", f"/executions/{endless.running}/events"))
        await client.until(b"\r\n\r\n")
        async for block in sse_blocks(client):
            if "waiting" in block:
                expire(endless)
            blocks.append(block)
    fields = dict(line.split(": ", 1) for line in blocks[-1].split("\n"))
    told = json.loads(fields["data"])
    assert set(fields) == {"event", "data"}, "it has no number"
    assert (fields["event"], told["type"], told["error"]["kind"]) == ("error", "error", "unauthenticated")
    assert "has expired" in told["error"]["message"]
    assert await still_runs(endless)


async def test_a_websocket_that_follows_ends_with_the_token(endless):
    messages = []
    async with endless.socket(f"/executions/{endless.running}/stream") as socket:
        try:
            while True:
                messages.append(json.loads(await socket.get_message()))
                if messages[-1].get("text") == "waiting\n":
                    expire(endless)
        except ConnectionClosed as closed:
            reason = closed.reason
    assert (reason.code, reason.reason) == (4401, "unauthenticated")
    assert (messages[-1]["type"], messages[-1]["error"]["kind"], "seq" in messages[-1]) == (
        "error",
        "unauthenticated",
        False,
    )
    assert await still_runs(endless)


async def test_watching_over_grpc_ends_with_the_token(endless):
    methods = make_methods(endless.service, Verifier(AuthSettings(), secret=SECRET))
    metadata = {"authorization": f"Bearer {endless.token}"}
    async with open_door(methods) as door:
        client = await door.connect()
        request = v1.WatchExecutionRequest(id=endless.running)
        number = await client.send(EXECUTOR + "WatchExecution", request, metadata=metadata)
        while b"waiting" not in client.answers[number].data:
            await client.more()
        expire(endless)
        answer = await client.ended(number)
    assert (answer.status, "has expired" in unquote(answer.said["grpc-message"])) == (16, True)
    assert await still_runs(endless)


async def test_many_watchers_end_with_their_token_over_grpc(endless):
    methods = make_methods(endless.service, Verifier(AuthSettings(), secret=SECRET))
    metadata = {"authorization": f"Bearer {endless.token}"}
    async with open_door(methods) as door:
        client = await door.connect()
        request = v1.WatchExecutionRequest(id=endless.running)
        path = EXECUTOR + "WatchExecution"
        numbers = [await client.send(path, request, metadata=metadata) for _ in range(50)]
        while any(b"waiting" not in client.answers[number].data for number in numbers):
            await client.more()
        expire(endless)
        assert {(await client.ended(number)).status for number in numbers} == {16}
        late = await client.call(EXECUTOR + "WatchExecution", request, metadata=metadata)
        assert late.status == 16
    assert await still_runs(endless)


NOISY = inline("noisy", WAIT_FOR + "def handler(input):\n    print('x' * 600_000, flush=True)\n    wait_for(input)\n")


async def test_a_watcher_that_does_not_read_gets_nothing_more_after_its_token(tmp_path, monkeypatch):
    """Its token expires while the server waits for it to read; it gets the bytes on their way, and no more."""
    later = Later()
    monkeypatch.setattr(following, "time", later)
    async with open_site(tmp_path, (NOISY,)) as site:
        methods = make_methods(site.service, Verifier(AuthSettings(), secret=SECRET))
        order = {"module": "noisy", "input": str(tmp_path / "flag")}
        running = (await site.json("POST", "/executions", order))["id"]
        live = site.service.runs.find(running)
        await wait_until(lambda: live.log.printed > 600_000, "it has printed")
        async with open_door(methods) as door:
            client = await door.connect()
            client.reads = False
            metadata = {"authorization": f"Bearer {site.token}"}
            request = v1.WatchExecutionRequest(id=running)
            number = await client.send(EXECUTOR + "WatchExecution", request, metadata=metadata)
            while client.answers[number].received < 60_000:
                await client.more()
            later.seconds = 4000.0
            client.reads = True
            client.http.acknowledge_received_data(client.answers[number].received, number)
            await client.flush()
            answer = await client.ended(number)
        assert answer.status == 16
        assert answer.received < 400_000
        (tmp_path / "flag").touch()


async def test_a_batch_begins_nothing_after_its_token(endless):
    client = await endless.server.connect()
    async with client.stream:
        head = endless.head("POST", "/modules/execute/echo/batch", Content_Type="application/x-ndjson")
        await client.send(head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"2\r\n1\n\r\n")
        await client.until(b"\r\n\r\n")
        assert b'"result":1' in await client.until(b"\n\r\n")
        endless.later.seconds = 4000.0
        await client.send(b"2\r\n2\n\r\n0\r\n\r\n")
        assert b'"kind":"unauthenticated"' in await client.until(b"\n\r\n")


async def test_a_call_that_has_begun_outlives_its_token(endless):
    async with endless.socket("/modules/stream/steps") as socket:
        await socket.send_message(json.dumps([str(endless.flags[0])]))
        while json.loads(await socket.get_message()).get("text") != "waiting\n":
            pass
        expire(endless)
        while (message := json.loads(await socket.get_message()))["type"] != "result":
            pass
    assert message["status"] == "succeeded"


# -- streams that fail -----------------------------------------------------------------------------------------------


async def test_a_stream_that_fails_after_its_head_has_the_request_id(endless, monkeypatch):
    async def broken(_self):
        raise RuntimeError("a bug")

    monkeypatch.setattr(following.Following, "next", broken)
    client = await endless.server.connect()
    with structlog.testing.capture_logs() as logs:
        async with client.stream:
            await client.send(endless.head("GET", f"/executions/{endless.running}/events"))
            await client.until(b"\r\n\r\n")
            [block] = [block async for block in sse_blocks(client)]
    [entry] = [entry for entry in logs if entry["log_level"] == "error"]
    told = json.loads(block.partition("data: ")[2])["error"]
    assert (told["kind"], told["request_id"]) == ("internal", entry["request_id"])
    assert entry["request_id"] in told["message"]
