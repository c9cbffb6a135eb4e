"""Contract: records that wait for the database have a bound in bytes, which is met before a handler runs."""

import pytest
import trio
from msgspec.structs import replace

from actors import sqlite
from actors.history import LARGE_BYTES, pending
from protocol.errors import RunnerError
from protocol.model import Status
from tests.contract.test_streams import open_site
from tests.records import locked_out, make, running, stored
from tests.support import inline, wait_until

MIB = 1024 * 1024
RESULT = b'"' + b"x" * (600 * 1024) + b'"'


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.02)
    monkeypatch.setattr(pending, "WAIT_SECONDS", 0.05)


async def test_large_records_wait_for_room_and_small_ones_have_more(tmp_path):
    async with running(tmp_path, max_unwritten_bytes=MIB) as history:
        with locked_out(tmp_path):
            for _ in range(2):
                assert not history.room.lacks(make(Status.RUNNING))
                await history.finish(make(result=RESULT))
            assert history.statistics().unwritten_bytes > 2 * len(RESULT)
            again, other = make(Status.RUNNING), make(Status.RUNNING, module="other")
            assert history.room.lacks(again), "results of its module are large"
            assert not history.room.lacks(other)
            assert history.room.lacks(replace(other, input=b"1" * (LARGE_BYTES + 1)))
            with pytest.raises(RunnerError, match=r"wait for the database|is locked") as caught:
                await history.room.take(again)
            assert caught.value.failure.retry_after
            await history.room.take(other)
            for _ in range(2):
                await history.finish(make(result=RESULT))
            assert history.room.lacks(other), "they have as much again, and no more"
            with pytest.raises(RunnerError):
                await history.submit(replace(other, status=Status.QUEUED))
        await stored(history)
        assert history.statistics().unwritten_bytes == 0
        assert not history.room.lacks(again)


async def test_the_count_follows_every_way_of_a_record(tmp_path):
    """Replaced, begun, taken, not stored, stored: nothing is counted twice or for ever."""
    async with running(tmp_path, max_unwritten_bytes=MIB) as history:
        queued = make(Status.QUEUED, input=b"1" * 1000)
        with locked_out(tmp_path):
            await history.submit(queued)
            history.begin(replace(queued, status=Status.RUNNING))
            assert history.statistics().unwritten_bytes == len(queued.input) + len(queued.events)
            while history.statistics().last_error is None:
                await history._committer.wait_settled()
            ended = replace(queued, status=Status.SUCCEEDED, result=RESULT, finished_at=1.0)
            await history.finish(ended)
            assert history.statistics().unwritten_bytes == len(ended.input) + len(RESULT) + len(ended.events)
        await stored(history)
        assert history.statistics().unwritten_bytes == 0
        begun = make(Status.RUNNING, input=b"2" * 1000)
        history.begin(begun)
        await stored(history)
        await history.finish(replace(begun, status=Status.SUCCEEDED, result=b"1", finished_at=1.0))
        await stored(history)
        assert history.statistics().unwritten_bytes == 0


LARGE = inline("large", "import sys\ndef handler(input): open(input, 'a').write('ran'); return 'x' * 600_000")
SMALL = inline("small", "def handler(input): return input")


async def test_without_room_no_handler_is_called(tmp_path):
    runs, folder = tmp_path / "runs", tmp_path / "data"
    async with open_site(tmp_path, (LARGE, SMALL)) as site:
        history = site.service.history
        object.__setattr__(history._settings, "max_unwritten_bytes", MIB)
        with locked_out(next(folder.parent.rglob("history.db")).parent):
            for _ in range(2):
                assert (await site.ask("POST", "/modules/execute/large", str(runs)))[0] == 200
            count = runs.read_text()
            status, headers, _ = await site.ask("POST", "/modules/execute/large", str(runs))
            assert (status, b"retry-after" in headers) == (503, True)
            assert runs.read_text() == count == "ranran"
            assert (await site.json("POST", "/modules/execute/small", 1))["result"] == 1
            status, headers, _ = await site.ask("POST", "/executions", {"module": "small", "input": "x" * MIB})
            assert (status, b"retry-after" in headers) == (429, True)
        await wait_until(lambda: history.statistics().unwritten_bytes == 0, "all is stored")
        assert (await site.json("POST", "/modules/execute/large", str(runs)))["status"] == "succeeded"


HELD = inline("held", "import time\ndef handler(input): time.sleep(600)", concurrency=1)


async def test_large_inputs_that_wait_for_a_worker_have_a_bound(tmp_path):
    async with open_site(tmp_path, (HELD,)) as site:
        site.service.runs.attempts.max_input_bytes = 5 * MIB // 2
        live = site.service.runs

        async def call():
            await site.ask("POST", "/modules/execute/held", b'"' + b"x" * MIB + b'"')

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await wait_until(lambda: any(each.began_at for each in live.live_executions()), "one runs")
            nursery.start_soon(call)
            nursery.start_soon(call)
            await wait_until(lambda: len(live.live_executions()) == 3, "two wait")
            status, headers, body = await site.ask("POST", "/modules/execute/held", b'"' + b"x" * MIB + b'"')
            assert (status, headers[b"retry-after"], b"max_buffered" in body) == (429, b"1", True)
            nursery.cancel_scope.cancel()


async def test_callers_that_wait_for_room_keep_no_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(pending, "WAIT_SECONDS", 20.0)
    held = inline("held", "def handler(input): return 'x' * 600_000", concurrency=1)
    async with open_site(tmp_path, (held, SMALL)) as site:
        history, runs = site.service.history, site.service.runs
        object.__setattr__(history._settings, "max_unwritten_bytes", MIB)
        ended = []

        async def call():
            ended.append((await site.json("POST", "/modules/execute/held", 1))["status"])

        async with trio.open_nursery() as nursery:
            with locked_out(next(tmp_path.rglob("history.db")).parent):
                await call()
                await call()
                for _ in range(3):
                    nursery.start_soon(call)
                (accepted,) = [(await site.json("POST", "/executions", {"module": "held", "input": 1}))["id"]]
                reason = "records wait for the database"
                await wait_until(
                    lambda: [live.waiting and live.waiting.reason for live in runs.live_executions()] == [reason] * 4,
                    "all wait for room",
                )
                assert site.service.executors["inline"].statistics().busy == 0
                assert (await site.json("POST", f"/executions/{accepted}/cancel"))["status"] == "cancelled"
        assert ended == ["succeeded"] * 5
