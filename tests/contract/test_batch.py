"""Contract: batches over HTTP: inputs read as they run, answers as they end, back-pressure, and every way to an end."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import attrs
import pytest
import structlog
import trio

from actors.history.queries import Query
from protocol.model import Status
from runner.api import batch as batches
from runner.auth.tokens import sign
from runner.wire import silence
from tests.contract.test_streams import SECRET, open_site
from tests.http_support import QUICK
from tests.support import ANYBODY, PATIENCE, WAIT_FOR, gone, inline, wait_until

LINES = "application/x-ndjson"
ECHO = inline("echo", "def handler(input): return input", concurrency=2)
PICKY = inline("picky", "def handler(input): return input + 1", input_schema={"type": "integer"})
HELD = inline("held", WAIT_FOR + "def handler(input):\n    wait_for(input)\n    return 'let go'", concurrency=3)
WIDE = inline("wide", "def handler(input): return 'x' * input", concurrency=2)
SLEEPS = inline("sleeps", "import time\ndef handler(input):\n    time.sleep(input)")
CHILD = inline(
    "child",
    """
    import subprocess, time
    def handler(input):
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        with open(input, "w") as file:
            file.write(str(child.pid))
        time.sleep(600)
    """,
)
MODULES = (ECHO, PICKY, HELD, WIDE, SLEEPS, CHILD)


class Batch:
    """The client of a batch: inputs are sent one by one, lines are read one by one."""

    def __init__(self, client):
        self.client = client
        self.status = 0
        self.head = {}
        self.pieces = 0
        self._text = b""
        self._over = False

    async def say(self, data: bytes) -> None:
        await self.client.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def inputs(self, *values) -> None:
        for value in values:
            await self.say(json.dumps(value).encode() + b"\n")

    async def done(self) -> None:
        await self.client.send(b"0\r\n\r\n")

    async def line(self) -> dict | None:
        """Return the next line, None behind the last one of a whole answer; EOFError when it is cut off."""
        if not self.status:
            first, *fields = (await self.client.until(b"\r\n\r\n")).split(b"\r\n")
            self.status = int(first.split()[1])
            self.head = dict(field.lower().split(b": ", 1) for field in fields)
            assert self.head.get(b"transfer-encoding") == b"chunked", (first, self.head, self.client.buffer)
        while b"\n" not in self._text and not self._over:
            size = int(await self.client.until(b"\r\n"), 16)
            while len(self.client.buffer) < size + 2:
                await self.client.more()
            self._text += self.client.buffer[:size]
            self.client.buffer = self.client.buffer[size + 2 :]
            self._over = not size
            self.pieces += bool(size)
        if not self._text:
            return None
        line, _, self._text = self._text.partition(b"\n")
        return json.loads(line)

    async def rest(self) -> list[dict]:
        found = []
        while (line := await self.line()) is not None:
            found.append(line)
        return found


@asynccontextmanager
async def batch(site, name, query="", *, kind=LINES, body=None, **headers):
    """Begin a batch: with a whole `body`, else in chunks."""
    client = await site.server.connect()
    async with client.stream:
        path = f"/modules/execute/{name}/batch{query}"
        head = site.head("POST", path, length=len(body or b""), Content_Type=kind, **headers)
        if body is None:
            head = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        await client.send(head + (body or b""))
        yield Batch(client)


def limited(site, **changed):
    """Change the limits of the server behind a site."""
    settings = site.service.settings
    site.service.settings = attrs.evolve(settings, server=attrs.evolve(settings.server, **changed))


def by_index(lines):
    assert len({line["index"] for line in lines}) == len(lines)
    return {line["index"]: line for line in lines}


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, MODULES) as opened:
        yield opened


# -- inputs and answers ----------------------------------------------------------------------------------------------


async def test_every_element_of_an_array_is_answered_like_a_call(site):
    single = await site.json("POST", "/modules/execute/echo", {"n": 1})
    async with batch(site, "echo", kind="application/json; charset=utf-8", body=b'[{"n": 0}, [1, "]"], null]') as it:
        lines = by_index(await it.rest())

    assert (it.status, it.head[b"content-type"]) == (200, LINES.encode())
    assert {n: line["result"] for n, line in lines.items()} == {0: {"n": 0}, 1: [1, "]"], 2: None}
    assert lines[0].keys() == single.keys() | {"index"}
    assert (await site.json("GET", f"/executions/{lines[1]['id']}"))["input"] == [1, "]"]


@pytest.mark.parametrize("kind", [LINES, "application/jsonl", "Application/X-JSONLines"])
@pytest.mark.parametrize("whole", [True, False])
async def test_every_line_but_a_blank_one_is_answered(site, kind, whole):
    text = b'{"n": 0}\r\n\n  \n[1]\n"two"'
    async with batch(site, "echo", kind=kind, body=text if whole else None) as it:
        if not whole:
            for at in range(0, len(text), 5):
                await it.say(text[at : at + 5])
            await it.done()
        lines = by_index(await it.rest())

    assert {n: line["result"] for n, line in lines.items()} == {0: {"n": 0}, 1: [1], 2: "two"}


@pytest.mark.parametrize(("kind", "body"), [(LINES, b""), (LINES, b"\n\n"), ("application/json", b" [ ] ")])
async def test_an_empty_batch_has_an_empty_answer(site, kind, body):
    async with batch(site, "echo", kind=kind, body=body) as it:
        assert (await it.rest(), it.status) == ([], 200)


async def test_an_input_that_cannot_be_run_is_one_line_and_the_batch_continues(site):
    limited(site, max_frame_bytes=1024)
    bad = ["{", "1 2", "NaN", '"text"', '"\udcff"', "1" * 1025, "1"]
    async with batch(site, "picky") as it:
        await it.say("\n".join(bad).encode(errors="surrogateescape"))
        await it.done()
        lines = by_index(await it.rest())

    kinds = [lines[n].get("problem", {}).get("kind") for n in range(7)]
    assert kinds == [*["bad_input"] * 5, "too_large", None]
    assert lines[3]["problem"]["detail"].startswith("$: 'text' is not of type 'integer'")
    assert lines[6]["result"] == 2


async def test_failures_of_the_handler_are_lines_too(site):
    async with batch(site, "sleeps", kind="application/json", body=b"[600]", X_Timeout="0.1") as it:
        (line,) = await it.rest()

    assert (line["index"], line["status"], line["error"]["kind"]) == (0, "failed", "timeout")


async def test_an_answer_arrives_before_the_next_input_is_sent(site):
    async with batch(site, "echo") as it:
        for number in range(3):
            await it.inputs(number)
            line = await it.line()
            assert (line["index"], line["result"]) == (number, number)
        await it.done()
        assert await it.line() is None
    assert it.head[b"connection"] == b"close"


async def test_answers_that_are_ready_leave_together_and_in_order(site):
    async with batch(site, "echo", "?parallel=1", body=b"not JSON\n" * 40) as it:
        lines = await it.rest()
    assert [line["index"] for line in lines] == list(range(40))
    assert it.pieces < 40


async def test_a_connection_stays_usable_after_a_whole_batch(site):
    async with batch(site, "echo", body=b"1\n2\n") as it:
        assert len(await it.rest()) == 2
        await it.client.send(site.head("GET", "/healthz"))
        assert (await it.client.response())[0] == 200


async def test_the_number_of_inputs_that_run_at_a_time_is_limited(site, tmp_path):
    flags = [tmp_path / f"flag {n}" for n in range(4)]
    async with batch(site, "held", "?parallel=2") as it:
        await it.inputs(*map(str, flags))
        await it.done()
        executor = site.service.executors[HELD.env]
        await wait_until(lambda: executor.statistics().busy == 2, "two run")
        flags[1].touch()
        assert (await it.line())["index"] == 1
        await wait_until(lambda: executor.statistics().busy == 2, "the third runs")
        assert site.service.runs.statistics().live == 2
        for flag in flags:
            flag.touch()
        assert sorted(line["index"] for line in await it.rest()) == [0, 2, 3]


async def test_a_body_may_be_larger_than_max_frame(tmp_path):
    values = [f"{n:0>100}" for n in range(100)]
    body = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    async with open_site(tmp_path, MODULES, limits={"max_body_bytes": 1024}) as site:
        limited(site, max_frame_bytes=1024)
        for whole in (True, False):
            async with batch(site, "echo", body=body if whole else None) as it:
                if not whole:
                    await it.say(body)
                    await it.done()
                lines = by_index(await it.rest())
            assert [lines[n]["result"] for n in range(100)] == values

        status, _, problem = await site.ask(
            "POST", "/modules/execute/echo/batch", b"[%b]" % (b"1," * 1000 + b"1"), Content_Type="application/json"
        )
        assert (status, json.loads(problem)["kind"]) == (413, "too_large")


async def test_a_client_that_expects_100_continue_gets_it(site):
    async with batch(site, "echo", Expect="100-continue") as it:
        assert b"100" in await it.client.until(b"\r\n\r\n")
        await it.inputs(5)
        assert (await it.line())["result"] == 5


async def test_an_input_waits_while_the_waiting_room_is_full(tmp_path):
    one = attrs.evolve(ECHO, concurrency=1)
    array = {"kind": "application/json", "body": b"[1, 2, 3]"}
    async with open_site(tmp_path, (one,), max_waiting=1) as site, batch(site, "echo", "?parallel=3", **array) as it:
        assert sorted(line["result"] for line in await it.rest()) == [1, 2, 3]


async def test_an_input_waits_for_the_queue_timeout_at_most(tmp_path):
    held, flag = attrs.evolve(HELD, concurrency=1, queue_timeout=QUICK), str(tmp_path / "flag")
    async with open_site(tmp_path, (held,), max_waiting=1) as site, batch(site, "held", "?parallel=2") as it:
        await it.inputs(flag, flag)
        line = await it.line()
        assert (line["index"], line["problem"]["kind"]) == (1, "overloaded")
        (tmp_path / "flag").touch()
        await it.done()
        assert [line["result"] for line in await it.rest()] == ["let go"]


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "query", "kind", "body", "status", "field"),
    [
        ("nothing", "", LINES, b"1", 404, "name"),
        ("echo", "?version=9", LINES, b"1", 404, "version"),
        ("echo", "?parallel=0", LINES, b"1", 400, "parallel"),
        ("echo", "?parallel=257", LINES, b"1", 400, "parallel"),
        ("echo", "?parallel=two", LINES, b"1", 400, "parallel"),
        ("echo", "?colour=red", LINES, b"1", 400, "colour"),
        ("echo", "", "text/plain", b"1", 415, "content-type"),
        ("echo", "", "application/json", b"{}", 400, "$"),
        ("echo", "", "application/json", b"[1, 2", 400, "$"),
    ],
)
async def test_a_wrong_batch_is_a_usual_problem(site, name, query, kind, body, status, field):
    answer, _, problem = await site.ask("POST", f"/modules/execute/{name}/batch{query}", body, Content_Type=kind)

    assert (answer, json.loads(problem).get("field")) == (status, field), problem


async def test_a_batch_may_have_a_time_limit_and_no_key(site):
    for headers, field in (({"X_Timeout": "soon"}, "X-Timeout"), ({"Idempotency_Key": "k"}, "Idempotency-Key")):
        status, _, problem = await site.ask("POST", "/modules/execute/echo/batch", b"1", Content_Type=LINES, **headers)
        assert (status, json.loads(problem)["field"]) == (400, field)
    async with batch(site, "echo", body=b"1", X_Timeout="-1") as it:
        assert (await it.line())["problem"]["field"] == "timeout"


async def test_a_batch_needs_the_scope_and_the_module(site):
    for claims, status in (({"scopes": ["executions:read"]}, 403), ({"scopes": ["admin"], "modules": ["p*"]}, 404)):
        token = sign(SECRET, subject="kim", expires_seconds=60, **claims)
        answer = await site.ask("POST", "/modules/execute/echo/batch", b"1", Authorization=f"Bearer {token}")
        assert answer[0] == status
    assert (await site.ask("POST", "/modules/execute/echo/batch", b"1", Authorization="Bearer x"))[0] == 401


# -- ends ------------------------------------------------------------------------------------------------------------


async def test_a_disconnect_ends_running_inputs(site, tmp_path):
    pid = tmp_path / "pid"
    async with batch(site, "child", "?parallel=1") as it:
        await it.inputs(str(pid), str(pid))
        await wait_until(lambda: pid.exists() and pid.read_text(), "the handler runs")
    with trio.fail_after(PATIENCE):
        await site.service.runs.wait_idle()

    assert gone(int(pid.read_text()))
    page = await site.service.list(ANYBODY, Query(module="child"))
    assert [execution.status for execution in page.items] == [Status.CANCELLED]


async def test_a_slow_reader_stops_the_reading_of_inputs_and_is_cut_off(tmp_path, monkeypatch):
    over, run, number = trio.Event(), batches.Batch.run, 100

    async def watched(*args):
        try:
            await run(*args)
        finally:
            over.set()

    monkeypatch.setattr(batches.Batch, "run", watched)
    async with open_site(tmp_path, MODULES, limits={"send_seconds": QUICK}) as site, batch(site, "wide") as it:
        await it.inputs(*[1_000_000] * number)  # these are so small that nothing holds them up but the batch
        await over.wait()
        ended = site.service.runs.statistics().ended
        assert 0 < ended < number
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            await it.rest()


async def test_a_slow_reader_loses_nothing_once_it_reads(site):
    size, number = 1_000_000, 40
    async with batch(site, "wide") as it, trio.open_nursery() as nursery:

        async def send():
            for _ in range(number):
                await it.inputs(size)
            await it.done()

        nursery.start_soon(send)
        await wait_until(lambda: site.service.runs.statistics().ended >= 2, "as many as run at a time have ended")
        lines = by_index(await it.rest())

    assert len(lines) == number
    assert {len(line["result"]) for line in lines.values()} == {size}


async def test_a_stopping_runner_answers_running_inputs_and_ends_the_batch(site, tmp_path):
    flag = tmp_path / "flag"
    async with batch(site, "held", "?parallel=2") as it:
        await it.inputs(str(flag))
        await wait_until(lambda: site.service.executors[HELD.env].statistics().busy == 1, "it runs")
        site.service.runs.stop(at_once=False)
        flag.touch()
        answered, last = await it.rest()

    assert (answered["index"], answered["result"]) == (0, "let go")
    assert last.keys() == {"problem"}
    assert last["problem"]["kind"] == "shutdown"


async def test_a_silent_client_is_cut_off_but_not_while_it_waits_for_an_answer(tmp_path):
    async with open_site(tmp_path, MODULES, limits={"body_seconds": QUICK}) as site:
        limited(site, body_timeout_seconds=QUICK)
        async with batch(site, "sleeps", "?parallel=2") as it:
            for index, seconds in enumerate((3 * QUICK, 0)):
                await it.inputs(seconds)
                line = await it.line()
                assert (line["index"], line["status"]) == (index, "succeeded")
            last = await it.line()
            assert await it.line() is None

    assert (last["problem"]["kind"], "body_timeout" in last["problem"]["detail"]) == ("bad_input", True)


async def test_a_bug_of_the_runner_costs_one_input(site, monkeypatch):
    async def broken(*_args, **_options):
        raise RuntimeError("a bug")

    async with batch(site, "echo") as it:
        await it.inputs(1)
        assert (await it.line())["result"] == 1
        with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
            patch.setattr(type(site.service), "execute", broken)
            await it.inputs(2)
            refused = await it.line()
        await it.inputs(3)
        await it.done()
        (last,) = await it.rest()

    assert (refused["index"], refused["problem"]["kind"]) == (1, "internal")
    assert (last["index"], last["result"]) == (2, 3)
    told = [entry["event"] for entry in logs if entry["log_level"] == "error"]
    assert told == ["an input of a batch failed inside the runner"]


async def test_a_batch_that_stays_away_gives_its_place_in_a_full_door_to_others(tmp_path, monkeypatch):
    """Not while the client may wait for an answer: then it owes nothing."""
    monkeypatch.setattr(silence, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(silence, "PAUSE_SECONDS", 0.0)
    async with open_site(tmp_path, (ECHO, HELD), limits={"max_connections": 2, "reserved_connections": 1}) as site:
        answered, waits = await site.server.connect(), await site.server.connect()
        for client, module, value in ((waits, "held", json.dumps(str(tmp_path / "flag"))), (answered, "echo", "1")):
            head = site.head("POST", f"/modules/execute/{module}/batch", Content_Type="application/x-ndjson")
            data = value.encode() + b"\n"
            head = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
            await client.send(head + b"%x\r\n%b\r\n" % (len(data), data))
        assert b'"result":1' in await answered.until(b"}\n\r\n")
        await wait_until(lambda: len(site.service.runs.live_executions("held")) == 1, "the other one runs")
        while (await site.ask("GET", "/modules"))[0] == 503:
            pass  # the batch has not noted yet that its answer has left
        await answered.rest()
        assert (await site.ask("GET", "/modules"))[0] == 200
        (tmp_path / "flag").touch()
        await waits.send(b"0\r\n\r\n")
        assert b'"status":"succeeded"' in await waits.until(b"\r\n0\r\n\r\n")
