"""Contract: the output of an execution in parts, searched on the server; lists by text; lists that are cancelled."""

import json
import time

import pytest
import trio

from actors.history.queries import Query
from actors.turns import Terms
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Status, Stream
from runner.auth import Principal
from tests.contract.test_streams import ECHO, TALKS, open_site
from tests.support import ANYBODY, inline

SHOUTS = inline(
    "shouts",
    r"""
    import sys
    def handler(input):
        print("plain <b>\x1b[31mNeed\x1b[0mle</b>")
        print("second", file=sys.stderr)
        if input == "fail":
            raise ValueError("it went Wrong")
    """,
)


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (ECHO, TALKS, SHOUTS)) as opened:
        yield opened


async def test_windows_and_search_of_one_that_ran(site):
    service = site.service
    made = await service.execute(ANYBODY, "talks", b'{"lines": 5000}')
    outputs = service.outputs

    last = await outputs.window(ANYBODY, made.id, limit=3, last=True)
    assert [line.text for line in last.lines] == ["line 4997", "line 4998", "line 4999"]
    earlier = await outputs.window(ANYBODY, made.id, limit=2, before=last.lines[0].spot)
    assert [line.text for line in earlier.lines] == ["line 4995", "line 4996"]
    found = await outputs.search(ANYBODY, made.id, "LINE 49")
    assert (found.count, found.lines[0].text) == (111, "line 49")
    around = found.lines[5].spot
    assert (await outputs.window(ANYBODY, made.id, limit=5, after=around, before=around)).lines[2].spot == around
    assert last.next_seq == made.events_count
    assert (await outputs.text(ANYBODY, made.id)).splitlines() == [b"line %d" % n for n in range(5000)]


async def test_windows_and_search_of_one_that_runs(site, tmp_path):
    service, flag = site.service, tmp_path / "flag"
    name, follower = await service.begin(ANYBODY, "talks", json.dumps({"lines": 300, "flag": str(flag)}).encode())
    while b"half" not in b"".join(repr(event).encode() for event in (await follower.next() or ())):
        pass
    assert (await service.outputs.search(ANYBODY, name, "line 299")).count == 1
    window = await service.outputs.window(ANYBODY, name, limit=1000, stream=Stream.STDOUT)
    assert (window.total, len(window.lines), window.after) == (300, 300, False)
    flag.touch()
    while await follower.next() is not None:
        pass


async def test_who_may_not(site):
    made = await site.service.execute(ANYBODY, "shouts", b"1")
    stranger = Principal("x", frozenset({"executions:read"}), ("other",))
    runs_only = Principal("x", frozenset({"executions:run"}))
    for who, kind in ((stranger, ErrorKind.NOT_FOUND), (runs_only, ErrorKind.FORBIDDEN)):
        with pytest.raises(RunnerError) as caught:
            await site.service.outputs.search(who, made.id, "x")
        assert caught.value.failure.kind is kind
        with pytest.raises(RunnerError):
            await site.service.outputs.window(who, made.id, limit=1)
    with pytest.raises(RunnerError) as caught:
        await site.service.cancels.many(Principal("x", frozenset({"executions:read"})), Query(module="echo"))
    assert caught.value.failure.kind is ErrorKind.FORBIDDEN


async def test_search_over_http(site):
    made = await site.json("POST", "/modules/execute/shouts", 1)
    status, headers, body = await site.ask("GET", f"/executions/{made['id']}/output?search=NEEDLE")
    assert (status, headers[b"content-type"]) == (200, b"application/jsonl")
    (line,) = [json.loads(line) for line in body.splitlines()]
    assert (line["stream"], line["text"]) == ("stdout", "plain <b>\x1b[31mNeed\x1b[0mle</b>")
    assert line["line"] in (1, 2), "the two streams are read in any order"
    assert {"seq", "at", "attempt"} <= line.keys()
    status, _, body = await site.ask("GET", f"/executions/{made['id']}/output?search=second&stream=stdout")
    assert (status, body) == (200, b"")
    status, _, body = await site.ask("GET", f"/executions/{made['id']}/output?search=")
    assert (status, json.loads(body)["field"]) == (400, "search")


async def test_lists_by_text(site):
    shouted = await site.json("POST", "/modules/execute/shouts", 1)
    _, _, body = await site.ask("POST", "/modules/execute/shouts", "fail")
    failed = json.loads(body)
    await site.json("POST", "/modules/execute/echo", "needle")
    for text, names in {
        "NEEDLE%3C": [failed["id"], shouted["id"]],
        "went+wrong": [failed["id"]],
        "second": [failed["id"], shouted["id"]],
        "nowhere": [],
    }.items():
        page = await site.json("GET", f"/executions?text={text}")
        assert ([item["id"] for item in page["items"]], page["cursor"]) == (names, None)
    page = await site.json("GET", "/executions?text=second&limit=1")
    assert [item["id"] for item in page["items"]] == [failed["id"]]
    page = await site.json("GET", f"/executions?text=second&limit=1&cursor={page['cursor']}")
    assert ([item["id"] for item in page["items"]], page["cursor"]) == ([shouted["id"]], None)
    status, _, body = await site.ask("GET", "/executions?text=" + "x" * 201)
    assert (status, json.loads(body)["field"]) == (400, "text")


async def test_a_list_is_cancelled(site, tmp_path):
    service, flag = site.service, tmp_path / "flag"
    later = await service.submit(ANYBODY, "echo", b"1", terms=Terms(run_at=time.time() + 3600))
    name, follower = await service.begin(ANYBODY, "talks", json.dumps({"lines": 1, "flag": str(flag)}).encode())
    while b"half" not in b"".join(repr(event).encode() for event in (await follower.next() or ())):
        pass
    done = await service.execute(ANYBODY, "echo", b"1")

    page = await site.json("POST", "/executions/cancel?since=1&dry_run=true")
    assert [(item["id"], item["status"]) for item in page["items"]] == [(later.id, "scheduled"), (name, "running")]
    assert (page["more"], page["dry_run"]) == (False, True)
    page = await site.json("POST", "/executions/cancel?since=1&limit=1")
    assert [(item["id"], item["status"]) for item in page["items"]] == [(later.id, "cancelled")]
    assert page["more"]
    page = await site.json("POST", "/executions/cancel?status=running")
    assert [(item["id"], item["status"], item["problem"]) for item in page["items"]] == [(name, "cancelled", None)]
    assert (await service.get(ANYBODY, done.id)).status is Status.SUCCEEDED
    assert (await site.json("POST", "/executions/cancel?since=1"))["items"] == []

    for query, field in {"": "module", "?status=failed": "status", "?unresolved=true": "unresolved"}.items():
        status, _, body = await site.ask("POST", f"/executions/cancel{query}")
        assert (status, json.loads(body)["field"]) == (400, field)
    with pytest.raises(RunnerError, match="there is no next page"):
        await service.cancels.many(ANYBODY, Query(module="echo", cursor="x"))


async def test_a_long_output_does_not_hold_the_loop(site):
    made = await site.service.execute(ANYBODY, "talks", json.dumps({"lines": 40_000}).encode())
    longest, last = 0.0, trio.current_time()
    async with trio.open_nursery() as nursery:

        async def tick():
            nonlocal longest, last
            while True:
                await trio.lowlevel.checkpoint()
                now = trio.current_time()
                longest, last = max(longest, now - last), now

        nursery.start_soon(tick)
        assert (await site.service.outputs.search(ANYBODY, made.id, "line 39999")).count == 1
        nursery.cancel_scope.cancel()
    assert longest < 5, "a wide margin: it runs in a thread"
