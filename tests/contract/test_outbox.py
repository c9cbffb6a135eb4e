"""Contract: no end is without its notices: they are stored with it, replayed with it, withdrawn and deleted with it."""

from __future__ import annotations

import json
from contextlib import closing
from sqlite3 import connect

import pytest
import trio
from attrs import evolve
from msgspec.structs import replace

from actors import outbox
from actors.history import LOST, Query
from actors.outbox import SECONDS
from actors.starts import NoticeQuery, Outbox
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.model import Recipient, Status, Telling
from tests.records import NOW, all_lost, crashed, make, rows, running, segments, stored

ENDS = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)
ONE = Telling((Recipient(ENDS, "https://one.example/hook"),))
TWO = Telling((Recipient(ENDS, "https://one.example/hook"), Recipient((Status.FAILED,), module="other")))
STATES = "select execution, target, state from notices order by id"


async def test_the_notices_are_in_the_transaction_of_the_end(tmp_path):
    good, bad, quiet = make(on_end=TWO), make(Status.FAILED, on_end=TWO), make()
    async with running(tmp_path) as history:
        for execution in (good, bad, quiet):
            await history.finish(execution)
        await stored(history)
        assert rows(tmp_path, STATES) == [
            (good.id, "https://one.example", "pending"),
            (bad.id, "https://one.example", "pending"),
            (bad.id, "module other", "pending"),
        ]
        assert (await history.get(good.id)).on_end == TWO


async def test_notices_of_ends_that_only_the_journal_has_are_replayed_once(tmp_path):
    ended = make(on_end=ONE)
    async with running(tmp_path / "first") as history:
        await history.finish(ended)
        copy = crashed(tmp_path / "first", tmp_path / "second")  # before the commit
    assert segments(copy)
    for _ in range(2):
        async with running(copy) as history:
            found = (await Outbox(history).list(NoticeQuery())).items
            assert [each.execution for each in found] == [ended.id]
        again = crashed(copy, tmp_path / f"copy{_}")
        async with running(again) as history:
            assert len((await Outbox(history).list(NoticeQuery())).items) == 1


async def test_an_end_by_the_death_of_the_runner_has_notices_until_it_runs_again(tmp_path):
    lost, again = make(Status.RUNNING, on_end=ONE), make(Status.RUNNING, on_end=ONE, asynchronous=True)
    async with running(tmp_path / "a") as history:
        for execution in (lost, again):
            history.begin(execution)
        await history.list(Query())
        copy = crashed(tmp_path / "a", tmp_path / "b")
    async with running(copy) as history:
        assert [each.id for each in await all_lost(history)] == [lost.id, again.id]
        assert [row[0] for row in rows(copy, STATES)] == [lost.id, again.id]
        message = json.loads(rows(copy, "select body from notices order by id")[0][0])
        assert message["data"]["error"]["message"] == LOST.message

        await history.submit(replace(again, status=Status.QUEUED))
        await history.catch_up()
        assert [row[0] for row in rows(copy, STATES)] == [lost.id]

        await history.finish(replace(again, status=Status.SUCCEEDED, finished_at=NOW))
        await stored(history)
        assert [row[0] for row in rows(copy, STATES)] == [lost.id, again.id]


async def test_a_notice_lives_for_a_day_and_as_long_as_its_execution(tmp_path):
    now = NOW

    async with running(tmp_path, clock=lambda: now, retention_seconds=3 * SECONDS) as history:
        box = Outbox(history, clock=lambda: now)
        first, second = make(on_end=ONE), make(on_end=TWO, module="other")
        for execution in (first, second):
            await history.finish(execution)
        await stored(history)
        assert await box.due(busy=(), sending=(), limit=9) == ()
        assert await box.next_due(busy=(), sending=()) == pytest.approx(NOW + 0.5, abs=0.1)

        now = NOW + 10
        early, late = await box.due(busy=(), sending=(), limit=9)
        assert await box.due(busy=("https://one.example",), sending=(), limit=9) == ()
        assert [each.id for each in await box.due(busy=(), sending=(early.id,), limit=9)] == [late.id]
        assert not await box.miss(early, "no", 5)
        assert (await box.get(early.id)).due_at == NOW + 15
        assert [each.id for each in await box.due(busy=(), sending=(), limit=9)] == [late.id]
        await box.deliver(late)
        assert rows(tmp_path, f"select body from notices where id = '{late.id}'") == [(b"",)]

        now = NOW + SECONDS
        assert await box.miss(early, "still no", 3600)
        dead = await box.get(early.id)
        assert (dead.state, dead.reason, dead.ended_at) == ("dead", "still no", now)
        assert (box.delivered, box.failed, box.dead) == (1, 1, 1)
        assert await box.next_due(busy=(), sending=()) is None

        now = NOW + 10 * SECONDS
        with trio.fail_after(20):
            while rows(tmp_path, STATES):
                history._committer._pace.at = 0
                await history.finish(make(at=now))
                await stored(history)


async def test_too_many_notices_are_dead_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "MAX_PENDING", 3)
    async with running(tmp_path) as history:
        for _ in range(5):
            await history.finish(make(on_end=ONE))
        await stored(history)
        states = [row[2] for row in rows(tmp_path, STATES)]
        assert states == ["pending"] * 3 + ["dead"] * 2


async def test_a_damaged_database_keeps_its_notices(tmp_path):
    async with running(tmp_path) as history:
        for _ in range(50):
            await history.finish(make(on_end=ONE))
    with closing(connect(tmp_path / "history.db")) as link, link:
        (page,) = link.execute("select rootpage from sqlite_master where name = 'payloads'").fetchone()
        (size,) = link.execute("pragma page_size").fetchone()
    with (tmp_path / "history.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * 200)
    async with running(tmp_path) as history:
        assert history.statistics().damaged == ("history",)
        assert len(rows(tmp_path, STATES)) == 50


async def test_notices_of_a_long_error_are_stored(tmp_path):
    failure = Failure(ErrorKind.HANDLER_ERROR, "\ud800 bad text", traceback="x\udfff")
    ended = make(Status.FAILED, on_end=ONE, failure=failure)
    async with running(tmp_path) as history:
        await history.finish(ended)
        await stored(history)
        assert len(rows(tmp_path, STATES)) == 1
        with pytest.raises(RunnerError):
            await Outbox(history).list(NoticeQuery(cursor="none"))
        assert (await history.get(ended.id)).failure == evolve(failure, message="? bad text", traceback="x?")
