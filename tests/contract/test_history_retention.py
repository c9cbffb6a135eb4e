"""Contract: the record stays within its limits of age, rows and bytes; running executions are never deleted."""

import pytest
from attrs import evolve
from trio.testing import wait_all_tasks_blocked

from actors.history import retention
from actors.history.queries import Query
from actors.history.retention import CHUNK, PAUSE_SECONDS, SLOW_SECONDS, Kept, Pace
from config.settings import MIB, HistorySettings
from protocol.model import Status
from tests.records import NOW, make, printed, rows, running, stored


async def until(condition):
    while not condition():
        await wait_all_tasks_blocked(0.01)


async def test_old_executions_are_deleted_and_their_room_is_given_back(tmp_path):
    old = [make(at=NOW - 1000, events=printed("x" * 10_000)) for _ in range(250)]
    kept = [make(at=NOW), make(Status.QUEUED, at=NOW - 1000), make(Status.RUNNING, at=NOW - 1000)]
    async with running(tmp_path, retention_seconds=500, clock=lambda: NOW - 800) as history:
        for execution in old + kept:
            await history.finish(execution)
    before = (tmp_path / "history.db").stat().st_size
    # Running and queued executions may be older than the limit; they stay.
    async with running(tmp_path, retention_seconds=500) as history:
        await until(lambda: history.statistics().deleted == len(old))
        assert {item.id for item in (await history.list(Query())).items} == {execution.id for execution in kept}
        assert history.statistics().rows == len(kept)
    for table in ("executions", "payloads"):
        assert {row[0] for row in rows(tmp_path, f"select id from {table}")} == {execution.id for execution in kept}
    assert rows(tmp_path, "select * from events") == []
    assert (tmp_path / "history.db").stat().st_size < before / 10


async def test_of_too_many_rows_the_oldest_that_have_ended_are_deleted(tmp_path):
    waiting = [make(Status.QUEUED, at=NOW - 5000) for _ in range(3)]
    made = [make(at=NOW - 4000 + number) for number in range(1300)]
    async with running(tmp_path, max_rows=1000) as history:
        for execution in [*waiting, *made]:
            await history.finish(execution)
        await stored(history)
        await until(lambda: history.statistics().rows <= 1000)
        assert history.statistics().deleted == 303
        left = {row[0] for row in rows(tmp_path, "select id from executions")}
        assert left == {execution.id for execution in [*waiting, *made[303:]]}
        # Statistics still count all of them.
        assert (await history.stats("greet")).total == 1300
        for _ in range(50):
            await history.finish(make())
        await stored(history)
        await until(lambda: history.statistics().rows <= 1000)
        assert history.statistics().deleted == 353
    assert rows(tmp_path, "select count(*) from executions") == [(1000,)]
    assert rows(tmp_path, "select value from meta where name = 'rows'") == [(1000,)]


async def test_of_too_many_bytes_the_oldest_are_deleted(tmp_path):
    made = [make(at=NOW - 4000 + number, result=b'"' + b"x" * 20_000 + b'"') for number in range(150)]
    async with running(tmp_path, max_bytes=MIB) as history:
        for execution in made:
            await history.finish(execution)
        await stored(history)
        await until(lambda: history.statistics().database_bytes <= MIB and history.statistics().deleted)
        left = [row[0] for row in rows(tmp_path, "select id from executions order by created_at")]
        assert 30 < len(left) < 52  # of 20 kB each
        assert left == [execution.id for execution in made[-len(left) :]]
        assert history.statistics().deleted == len(made) - len(left)


async def test_a_search_without_deletions_is_not_repeated_at_every_commit(tmp_path, monkeypatch):
    looks = []
    retain = retention.retain
    monkeypatch.setattr(retention, "retain", lambda *given: looks.append(given) or retain(*given))
    async with running(tmp_path, max_rows=1000) as history:
        for _ in range(1010):
            await history.submit(make(Status.QUEUED))
        await stored(history)
        await until(lambda: history._committer._pace._in_vain)
        before = len(looks)
        for _ in range(5):
            await history.submit(make(Status.QUEUED))
            await history.list(Query())
        assert len(looks) == before
        assert history.statistics().rows == 1015


async def test_old_rollups_go_with_their_executions(tmp_path):
    day = 86400
    async with running(tmp_path, retention_seconds=10 * day, clock=lambda: NOW - 20 * day) as history:
        await history.finish(make(at=NOW - 20 * day))
    async with running(tmp_path, retention_seconds=10 * day, clock=lambda: NOW - 17 * day) as history:
        await until(lambda: history._committer._pace.at > 0 and history._committer._pace._in_vain)
        assert {row[0] for row in rows(tmp_path, "select width from rollups")} == {3600, day}
        assert (await history.stats("greet", since=NOW - 21 * day, until=NOW)).total == 1
    async with running(tmp_path, retention_seconds=10 * day) as history:
        await until(lambda: history.statistics().deleted == 1)
        assert rows(tmp_path, "select width from rollups") == []


# How much and when


def test_the_pace_follows_new_rows_and_slows_down_when_deletions_are_slow():
    pace, more = Pace(), Kept(CHUNK, more=True, rows=0, size=0)
    assert pace.chunks(0.0, 0, over=False) == 1
    assert pace.chunks(0.0, 5 * CHUNK, over=False) == 6
    pace.note(more, 0.0, SLOW_SECONDS * 2)
    assert pace.size == CHUNK // 2
    for _ in range(20):
        pace.note(more, 0.0, SLOW_SECONDS * 2)
    assert pace.size == 1
    for _ in range(20):
        pace.note(more, 0.0, 0.001)
    assert (pace.size, pace.at) == (CHUNK, 0.001)
    pace.note(evolve(more, more=False), 0.0, 1.0)
    assert pace.at == 1.0 + PAUSE_SECONDS
    assert pace.chunks(2.0, 0, over=False) == 0
    assert pace.chunks(2.0, 0, over=True) == 1
    pace.note(Kept(0, more=False, rows=0, size=0), 2.0, 3.0)
    assert pace.chunks(4.0, 1000, over=True) == 0
    assert pace.chunks(3.0 + PAUSE_SECONDS, 0, over=False) == 1


@pytest.mark.parametrize(("rows_", "size", "over"), [(1000, MIB, False), (1001, MIB, True), (1000, MIB + 1, True)])
def test_limits_of_rows_and_bytes(rows_, size, over):
    assert retention.over_limits(HistorySettings(max_rows=1000, max_bytes=MIB), rows_, size) is over
