"""Contract: executions over HTTP: submit, show, list, cancel, and their events over websocket and SSE."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from config.settings import AuthSettings
from runner.auth.tokens import Verifier, sign
from runner.http import websocket as http_websocket
from runner.rest import streams
from runner.rest.app import make_app
from tests.http_support import Client, Server, serving
from tests.support import PATIENCE, WAIT_FOR, gone, inline, open_service, wait_until

SECRET = "s" * 48
ECHO = inline("echo", "def handler(input): return input")
TALKS = inline(
    "talks",
    WAIT_FOR
    + """
def handler(input, context):
    for i in range(input["lines"]):
        print("line", i, *["x" * input["width"]] if "width" in input else (), flush=True)
    context.progress(1, 2, "half")
    if "flag" in input:
        wait_for(input["flag"])
    return "done"
""",
    concurrency=4,
    output=10**9,
)
COUNTS = inline("counts", "def handler(input):\n    for i in range(input):\n        yield {'i': i}")
PARENT = inline(
    "parent",
    """
    import subprocess, sys, time
    def handler(input):
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        print("pid", child.pid, flush=True)
        time.sleep(600)
    """,
)


@attrs.define(slots=False)
class Site:
    """A server with a whole runner."""

    service: object
    server: Server
    token: str

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict, bytes]:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        client = await self.server.connect()
        async with client.stream:
            await client.send(self.head(method, path, length=len(data), **headers) + data)
            return await client.response(head_only=method == "HEAD")

    async def json(self, method: str, path: str, body: object = None, **headers: str) -> dict:
        status, _, answer = await self.ask(method, path, body, **headers)
        assert status < 300, answer
        return json.loads(answer)

    def head(self, method: str, path: str, *, length: int = 0, **headers: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {length}"]
        headers = {"Authorization": f"Bearer {self.token}", **headers}
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def events(self, path: str, **headers: str) -> AsyncIterator[dict]:
        """Yield the server-sent events of a path, with their ids checked."""
        client = await self.server.connect()
        async with client.stream:
            await client.send(self.head("GET", path, **headers))
            head = await client.until(b"\r\n\r\n")
            assert b"200" in head.split(b"\r\n")[0], head
            assert b"text/event-stream" in head
            async for block in sse_blocks(client):
                fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
                if fields:
                    event = json.loads(fields["data"])
                    assert (fields["id"], fields["event"]) == (str(event["seq"]), event["type"])
                    yield event

    @asynccontextmanager
    async def socket(self, path: str, **options: object) -> AsyncIterator[WebSocketConnection]:
        client = await self.server.connect()
        options.setdefault("extra_headers", [("authorization", f"Bearer {self.token}")])
        async with trio.open_nursery() as nursery:
            opened = await wrap_client_stream(
                nursery, client.stream, "127.0.0.1", path, message_queue_size=10, **options
            )
            yield opened
            client.stream.socket.close()
            nursery.cancel_scope.cancel()


async def sse_blocks(client: Client) -> AsyncIterator[str]:
    """Yield the events of a chunked body."""
    text = b""
    while True:
        size = int(await client.until(b"\r\n"), 16)
        while len(client.buffer) < size + 2:
            await client.more()
        text += client.buffer[:size]
        client.buffer = client.buffer[size + 2 :]
        *blocks, text = text.split(b"\n\n")
        for block in blocks:
            yield block.decode()
        if size == 0:
            return


async def messages_of(socket: WebSocketConnection) -> list[dict]:
    """Return all messages up to the close."""
    found = []
    while True:
        try:
            found.append(json.loads(await socket.get_message()))
        except ConnectionClosed:
            return found


@asynccontextmanager
async def open_site(path, modules=(ECHO, TALKS, COUNTS, PARENT), *, limits=None, **settings) -> AsyncIterator[Site]:
    token = sign(SECRET, subject="kim", scopes=["admin"], expires_seconds=3600)
    async with open_service(path, modules, **settings) as service:
        verifier = Verifier(AuthSettings(), secret=SECRET)
        verifier.api_keys = service.api_keys
        async with serving(make_app(service, verifier), **(limits or {})) as server:
            yield Site(service, server, token)


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path) as opened:
        yield opened


# -- accepting, looking, cancelling ----------------------------------------------------------------------------------


async def test_an_asynchronous_call_is_accepted_and_found(site):
    status, headers, body = await site.ask("POST", "/modules/execute/echo", {"a": 1}, Prefer="respond-async; wait=10")
    accepted = json.loads(body)

    assert status == 202
    assert headers[b"location"].decode() == f"/executions/{accepted['id']}"
    assert headers[b"preference-applied"] == b"respond-async"
    last = [event async for event in site.events(headers[b"location"].decode() + "/events")][-1]
    assert (last["type"], last["result"]) == ("result", {"a": 1})
    found = await site.json("GET", f"/executions/{accepted['id']}")
    assert (found["status"], found["result"], found["input"], found["subject"]) == (
        "succeeded",
        {"a": 1},
        {"a": 1},
        "kim",
    )
    assert found["asynchronous"] is True


async def test_submit(site):
    order = {"module": "echo", "input": [1, None], "timeout": 5}
    status, headers, body = await site.ask("POST", "/executions", order, Idempotency_Key="k1")
    again, _, same = await site.ask("POST", "/executions", order, Idempotency_Key="k1")
    conflict, _, problem = await site.ask("POST", "/executions", {"module": "echo", "input": 2}, Idempotency_Key="k1")

    assert status == 202
    assert again in (200, 202)
    assert json.loads(body)["id"] == json.loads(same)["id"] == headers[b"x-execution-id"].decode()
    assert (conflict, json.loads(problem)["kind"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "/executions", {"module": "nothing"}, 404, "module"),
        ("POST", "/executions", {"modul": "echo"}, 400, "$"),
        ("POST", "/executions", {"module": "echo", "timeout": "5"}, 400, "$"),
        ("POST", "/executions", {"module": "echo", "timeout": -1}, 400, "timeout"),
        ("POST", "/executions", b'{"module": "echo", "input": NaN}', 400, "$"),
        ("POST", "/executions", b"\xff", 400, "$"),
        ("GET", "/executions?status=done", None, 400, "status"),
        ("GET", "/executions?error=oops", None, 400, "error"),
        ("GET", "/executions?since=yesterday", None, 400, "since"),
        ("GET", "/executions?since=2026-01-01T00:00:00", None, 400, "since"),
        ("GET", "/executions?limit=501", None, 400, "limit"),
        ("GET", f"/executions?limit={'1'.zfill(9)}{'0' * 5000}", None, 400, "limit"),
        ("GET", "/executions?cursor=x", None, 400, "cursor"),
        ("GET", "/executions?colour=red", None, 400, "colour"),
        ("GET", "/executions/nothing", None, 404, "id"),
        ("GET", "/executions/nothing/output", None, 404, "id"),
        ("GET", "/executions/nothing/events", None, 404, "id"),
        ("POST", "/executions/nothing/cancel", None, 404, "id"),
        ("GET", "/modules/echo/stats?window=x", None, 400, "window"),
        ("GET", "/modules/echo/stats?window=1h&since=1", None, 400, "window"),
    ],
)
async def test_bad_requests_name_the_field(site, method, path, body, status, field):
    got, headers, answer = await site.ask(method, path, body)

    assert (got, json.loads(answer)["field"]) == (status, field), answer
    assert headers[b"content-type"] == b"application/problem+json"


async def test_lists_can_be_filtered_and_paged(site):
    for n in range(5):
        await site.json("POST", "/modules/execute/echo", n)
    await site.ask("POST", "/modules/execute/counts", "x")
    first = await site.json("GET", "/executions?module=echo&limit=3")
    second = await site.json("GET", f"/executions?module=echo&limit=3&cursor={first['cursor']}")
    failed = await site.json("GET", "/executions?error=handler_error&since=2020-01-01T00:00:00Z&subject=kim")

    assert len(first["items"]) == 3
    assert len(second["items"]) == 2
    assert second["cursor"] is None
    times = [item["created_at"] for item in first["items"] + second["items"]]
    assert times == sorted(times, reverse=True)
    assert [item["module"] for item in failed["items"]] == ["counts"]
    assert "stdout" not in failed["items"][0]


async def test_output_as_text_and_as_lines(site):
    done = await site.json("POST", "/modules/execute/talks", {"lines": 3})
    _, headers, text = await site.ask("GET", f"/executions/{done['id']}/output?stream=stdout")
    _, other, lines = await site.ask("GET", f"/executions/{done['id']}/output?format=jsonl")

    assert text.decode() == "line 0\nline 1\nline 2\n" == done["stdout"]
    assert headers[b"content-type"].startswith(b"text/plain")
    assert other[b"content-type"] == b"application/jsonl"
    events = [json.loads(line) for line in lines.splitlines()]
    assert "".join(e["text"] for e in events) == text.decode()
    assert all(e["stream"] == "stdout" and e["at"] > 1e9 for e in events)


async def test_stats(site):
    for n in range(3):
        await site.json("POST", "/modules/execute/echo", n)
    stats = await site.json("GET", "/modules/echo/stats?window=1h")

    assert (stats["total"], stats["statuses"], stats["success_rate"]) == (3, {"succeeded": 3}, 1.0)
    assert 0 < stats["duration"]["p50"] <= stats["duration"]["p99"]


async def test_cancel_over_rest(site):
    accepted = await site.json("POST", "/executions", {"module": "parent"})
    live = site.service.runs.find(accepted["id"])
    await wait_until(lambda: "pid" in "".join(getattr(e, "text", "") for e in live.log.kept()), "it does not run")
    child = int("".join(getattr(e, "text", "") for e in live.log.kept()).split()[-1])
    cancelled = await site.json("POST", f"/executions/{accepted['id']}/cancel")
    again = await site.json("POST", f"/executions/{accepted['id']}/cancel")

    assert (cancelled["status"], cancelled["error"]["kind"]) == ("cancelled", "cancelled")
    assert again == cancelled
    assert gone(child)


# -- server-sent events ----------------------------------------------------------------------------------------------


async def test_events_are_followed_live_and_resumed(site, tmp_path):
    flag = tmp_path / "go"
    accepted = await site.json("POST", "/executions", {"module": "talks", "input": {"lines": 2, "flag": str(flag)}})
    path = f"/executions/{accepted['id']}/events"
    seen = []
    async for event in site.events(path):
        seen.append(event)
        if event["type"] == "progress":
            flag.touch()
    resumed = [event async for event in site.events(path, Last_Event_ID=str(seen[2]["seq"]))]
    from_two = [event async for event in site.events(f"{path}?from=2")]

    assert [e["seq"] for e in seen] == list(range(len(seen)))
    assert "".join(e["text"] for e in seen if e["type"] == "output") == "line 0\nline 1\n"
    assert seen[-1]["result"] == "done"
    assert resumed == seen[3:]
    assert from_two == seen[2:]


async def test_a_browser_that_has_read_the_end_gets_204(site):
    done = await site.json("POST", "/modules/execute/echo", 1)
    path = f"/executions/{done['id']}/events"
    last = [event async for event in site.events(path)][-1]
    status, _, _ = await site.ask("GET", path, Last_Event_ID=str(last["seq"]))

    assert status == 204
    status, _, _ = await site.ask("GET", path, Last_Event_ID="x")
    assert status == 400


# -- websockets ------------------------------------------------------------------------------------------------------


async def test_a_websocket_replays_then_follows(site, tmp_path):
    flag = tmp_path / "go"
    accepted = await site.json("POST", "/executions", {"module": "talks", "input": {"lines": 2, "flag": str(flag)}})
    path = f"/executions/{accepted['id']}/stream"
    async with site.socket(path) as socket:
        seen = []
        while not seen or seen[-1]["type"] != "progress":
            seen.append(json.loads(await socket.get_message()))
        async with site.socket(f"{path}?from=1") as second:
            flag.touch()
            late = await messages_of(second)
        seen += await messages_of(socket)
        assert (socket.closed.code, socket.closed.reason) == (1000, "the execution has ended")
    async with site.socket(path) as socket:
        replayed = await messages_of(socket)

    assert [e["seq"] for e in seen] == list(range(len(seen)))
    assert late == seen[1:]
    assert replayed == seen


async def test_a_module_is_called_over_a_websocket(site):
    async with site.socket("/modules/stream/counts?timeout=5") as socket:
        await socket.send_message("3")
        first, *events = await messages_of(socket)

    assert first["type"] == "execution"
    assert [e["value"] for e in events if e["type"] == "item"] == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert events[-1]["result"] == [{"i": 0}, {"i": 1}, {"i": 2}]
    found = await site.json("GET", f"/executions/{first['id']}")
    assert (found["timeout"], found["status"]) == (5.0, "succeeded")


@pytest.mark.parametrize("how", ["cancel", "close", "vanish"])
async def test_a_call_over_a_websocket_ends_with_its_caller(site, how):
    async with site.socket("/modules/stream/parent") as socket:
        await socket.send_message("null")
        name = json.loads(await socket.get_message())["id"]
        event = {}
        while event.get("type") != "output":
            event = json.loads(await socket.get_message())
        child = int(event["text"].split()[1])
        if how == "cancel":
            await socket.send_message("not json")  # is ignored
            await socket.send_message('{"type": "cancel"}')
            last = (await messages_of(socket))[-1]
            assert (last["type"], last["status"]) == ("error", "cancelled")
        elif how == "close":
            await socket.aclose()
    await wait_until(lambda: site.service.runs.find(name) is None, "it still runs")
    found = await site.json("GET", f"/executions/{name}")

    assert found["status"] == "cancelled"
    assert gone(child)


async def test_bad_input_over_a_websocket_is_sent_and_closes(site):
    async with site.socket("/modules/stream/echo") as socket:
        await socket.send_message("{")
        [message] = await messages_of(socket)
        assert socket.closed.code == 4400
    assert (message["type"], message["error"]["kind"], message["error"]["field"]) == ("error", "bad_input", "$")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/nothing", None, 404),
        ("/executions/x/y/stream", None, 404),
        ("/executions/nothing/stream", None, 404),
        ("/executions/nothing/stream?from=x", None, 400),
        ("/executions/nothing/stream?fro=1", None, 400),
        ("/modules/stream/nothing", None, 404),
        ("/modules/stream/echo?timeout=x", None, 400),
        ("/modules/stream/echo?version=9", None, 404),
        ("/modules/stream/echo", [("authorization", "Bearer x")], 401),
        ("/modules/stream/echo", [], 401),
    ],
)
async def test_a_refused_websocket_is_an_http_problem(site, path, headers, status):
    options = {} if headers is None else {"extra_headers": headers}
    with pytest.raises(Exception) as caught:  # noqa: PT011  (a group with the rejection in it)
        async with site.socket(path, **options):
            pass
    rejected = caught.value
    while isinstance(rejected, BaseExceptionGroup):
        [rejected] = rejected.exceptions
    assert isinstance(rejected, ConnectionRejected)
    assert rejected.status_code == status
    assert dict(rejected.headers)[b"content-type"] == b"application/problem+json"
    assert json.loads(rejected.body)["detail"]


async def test_a_browser_shows_its_token_as_a_subprotocol(site):
    options = {"extra_headers": [], "subprotocols": [f"operato.bearer.{site.token}"]}
    async with site.socket("/modules/stream/echo", **options) as socket:
        await socket.send_message("1")
        assert (await messages_of(socket))[-1]["result"] == 1
        assert socket.subprotocol == f"operato.bearer.{site.token}"


async def test_hundreds_of_readers_each_see_everything(tmp_path):
    flag = tmp_path / "go"
    readers, done = 200, []
    async with open_site(tmp_path) as site:
        order = {"module": "talks", "input": {"lines": 20, "flag": str(flag)}}
        accepted = await site.json("POST", "/executions", order)
        ready = 0

        async def read():
            nonlocal ready
            async with site.socket(f"/executions/{accepted['id']}/stream") as socket:
                seen = [json.loads(await socket.get_message())]
                ready += 1
                done.append(seen + await messages_of(socket))

        async with trio.open_nursery() as nursery:
            for _ in range(readers):
                nursery.start_soon(read)
            await wait_until(lambda: ready == readers, lambda: f"{ready} readers")
            flag.touch()

    assert len(done) == readers
    for seen in done:
        assert [e["seq"] for e in seen] == list(range(len(seen)))
        assert "".join(e["text"] for e in seen if e["type"] == "output") == "".join(f"line {i}\n" for i in range(20))
        assert seen[-1]["result"] == "done"


async def test_a_reader_that_stops_slows_nothing_and_learns_how_much_it_missed(tmp_path):
    """It learns it when it continues to read; the execution has ended long before."""
    lines = 5_000
    async with open_site(tmp_path, kept_output_bytes=100_000) as site:
        accepted = await site.json("POST", "/executions", {"module": "talks", "input": {"lines": lines, "width": 1000}})
        client = await site.server.connect()
        client.stream.setsockopt(1, 8, 4096)  # SOL_SOCKET, SO_RCVBUF: the kernel shall not read for it
        await client.send(site.head("GET", f"/executions/{accepted['id']}/events"))
        live = site.service.runs.find(accepted["id"])
        with trio.fail_after(PATIENCE):
            await live.ended.wait()
        assert live.execution.failure is None
        head = await client.until(b"\r\n\r\n")
        assert b"200" in head
        events = []
        async for block in sse_blocks(client):
            data = next((line for line in block.split("\n") if line.startswith("data: ")), None)
            if data:
                events.append(json.loads(data[6:]))

    gaps = [e for e in events if e["type"] == "dropped"]
    assert gaps
    assert sum(e["bytes"] for e in gaps) > 1_000_000
    position = 0
    for event in events:
        position += event["events"] if event["type"] == "dropped" else 1
        assert event["seq"] == position - 1, "an event is missing, or came twice"
    assert events[-1]["result"] == "done"


async def test_a_reader_that_takes_nothing_is_cut_off(tmp_path):
    async with open_site(tmp_path, limits={"send_seconds": 0.2}, kept_output_bytes=64 * 1024 * 1024) as site:
        accepted = await site.json(
            "POST", "/executions", {"module": "talks", "input": {"lines": 20_000, "width": 1000}}
        )
        client = await site.server.connect()
        client.stream.setsockopt(1, 8, 4096)
        await client.send(site.head("GET", f"/executions/{accepted['id']}/events"))
        live = site.service.runs.find(accepted["id"])
        with trio.fail_after(PATIENCE):
            await live.ended.wait()
            await wait_until(lambda: live.log._changed is None, "somebody reads")
            rest = await client.rest()
    assert b"event: result" not in rest


async def test_a_silent_peer_is_pinged_and_one_that_does_not_answer_is_cut_off(site, tmp_path, monkeypatch):
    monkeypatch.setattr(http_websocket, "PING_SECONDS", 0.05)
    flag = tmp_path / "go"
    accepted = await site.json("POST", "/executions", {"module": "talks", "input": {"lines": 0, "flag": str(flag)}})
    async with site.socket(f"/executions/{accepted['id']}/stream") as alive:
        while json.loads(await alive.get_message())["type"] != "progress":
            pass
        dead = await site.server.connect()
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
        key = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        await dead.send(site.head("GET", f"/executions/{accepted['id']}/stream", **upgrade, **key))
        assert b"\x89\x00" in await dead.rest(), "it was cut off without a ping"
        flag.touch()
        assert (await messages_of(alive))[-1]["result"] == "done", "it answers pings and was cut off"


async def test_the_first_print_arrives_at_once(site, tmp_path):
    """Measured between two events of one process on one clock, so the machine may be slow."""
    flag = tmp_path / "go"
    code = WAIT_FOR + "import time\ndef handler(input):\n    wait_for(input)\n    print(time.time(), flush=True)\n"
    await site.service.registry.publish([inline("clock", code)])
    for executor in site.service.executors.values():
        executor.publish(site.service.registry.snapshot)
    async with site.socket("/modules/stream/clock") as socket:
        await socket.send_message(json.dumps(str(flag)))
        while json.loads(await socket.get_message()).get("status") != "running":
            pass
        flag.touch()
        event = json.loads(await socket.get_message())
    assert event["type"] == "output"
    assert event["at"] - float(event["text"]) < 1.0


@pytest.mark.parametrize(
    ("text", "is_cancel"),
    [
        ('{"type": "cancel"}', True),
        ('{"type": "cancel", "x": ' + "[" * 5000 + "]" * 5000 + "}", False),
        ("nothing", False),
    ],
)
def test_no_message_on_a_websocket_raises(text, is_cancel):
    assert streams._is_cancel(text.encode()) is is_cancel
