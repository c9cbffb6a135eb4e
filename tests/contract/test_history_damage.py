"""Contract: a damaged history is found at the start and at use, set aside, and what can be read of it is served."""

import random
import shutil
import sqlite3
from contextlib import closing

import pytest
import trio
from msgspec.structs import replace
from structlog.testing import capture_logs

from actors.history import archive
from actors.history.queries import Query
from config.settings import HistorySettings
from protocol.model import Status
from tests.records import all_lost, crashed, make, make_older, printed, rows, running, segments, stored, unfinished

PAGE = 4096


async def filled(folder, count=400):
    """Record executions of some size, and close the history."""
    made = [make(input=b'"' + random.Random(n).randbytes(300).hex().encode() + b'"') for n in range(count)]
    async with running(folder) as history:
        for execution in made:
            await history.finish(replace(execution, events=printed("said\n"), events_count=1))
    return [replace(execution, events=printed("said\n"), events_count=1) for execution in made]


def zero(path, begin, end):
    """Overwrite a part of a file, given in shares, by zeros."""
    size = path.stat().st_size
    start, stop = (int(size * share) // PAGE * PAGE for share in (begin, end))
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(stop - start))


def errors(logs):
    return [entry["event"] for entry in logs if entry["log_level"] == "error"]


@pytest.mark.parametrize(("begin", "end"), [(0.3, 0.5), (0.64, 0.66), (0.9, 1.0), (0.0, 0.1), (0.0, 1.0)])
async def test_damage_is_found_at_the_start_and_what_can_be_read_is_kept(tmp_path, begin, end):
    made = await filled(tmp_path)
    zero(tmp_path / "history.db", begin, end)

    with capture_logs() as logs:
        async with running(tmp_path) as history:
            assert errors(logs) == ["the history database was damaged"]
            assert history.statistics().damaged == ("history",)
            found = 0
            for execution in made:  # each is there as it was, in part, or not at all
                read = await history.get(execution.id)
                found += read == execution
            listed = (await history.list(Query(limit=500))).items
            assert found <= len(listed) == history.statistics().rows
            await history.finish(after := make())
            assert await history.get(after.id) == after
            await history.stats("greet")
    if end - begin < 0.05:
        assert found > 300
    assert len(list(tmp_path.glob("history.db.damaged-*"))) == 1
    async with running(tmp_path) as history:
        assert history.statistics().damaged == ()
        assert await history.get(after.id) == after


async def test_a_damaged_database_of_the_last_schema_is_converted_as_far_as_it_can_be_read(tmp_path):
    made = await filled(tmp_path)
    make_older(tmp_path)
    zero(tmp_path / "history.db", 0.64, 0.66)

    async with running(tmp_path) as history:
        assert history.statistics().damaged == ("history",)
        read = [await history.get(execution.id) for execution in made]
        assert sum(found == execution for found, execution in zip(read, made, strict=True)) > 300


async def test_what_waits_in_a_damaged_database_still_runs(tmp_path):
    queued, begun = make(Status.QUEUED, input=b"[1]"), make(Status.RUNNING)
    await filled(tmp_path)
    async with running(tmp_path) as history:
        await history.submit(queued)
        history.begin(begun)
        await stored(history)
        copy = crashed(tmp_path, tmp_path / "copy")
    with closing(sqlite3.connect(copy / "history.db")) as link:
        link.execute("pragma wal_checkpoint(truncate)")
    zero(copy / "history.db", 0.5, 0.55)
    async with running(copy) as history:
        assert history.statistics().damaged == ("history",)
        assert {execution.id for execution in await unfinished(history)} <= {queued.id}
        assert {execution.id for execution in await all_lost(history)} <= {begun.id}


async def test_damage_that_appears_at_use_is_mended_while_it_serves(tmp_path):
    made = await filled(tmp_path)
    async with running(tmp_path) as history:
        assert history.statistics().damaged == ()
        zero(tmp_path / "history.db", 0.1, 0.9)
        with capture_logs() as logs:
            for execution in made[::10]:
                read = await history.get(execution.id)
                assert read is None or read.id == execution.id
            await history.list(Query(limit=500))
            await history.finish(after := make())
            await stored(history)
        waits = "no execution begins, as its end could not be recorded"  # a write may meet the damage first
        assert [each for each in errors(logs) if each != waits] == ["the history database was damaged"]
        assert history.statistics().damaged == ("history",)
        assert history.statistics().last_error is None
        assert await history.get(after.id) == after
    assert after.id in [row[0] for row in rows(tmp_path)]


async def test_a_large_database_is_checked_while_the_runner_serves(tmp_path, monkeypatch):
    await filled(tmp_path)
    zero(tmp_path / "history.db", 0.64, 0.66)
    monkeypatch.setattr(archive, "_CHECK_SECONDS", 0.0)
    monkeypatch.setattr("actors.damage._STEPS", 1)
    with capture_logs() as logs:
        async with running(tmp_path) as history:
            assert not history._archive.checked
            while not history.statistics().damaged:
                await trio.sleep(0.01)
            await history.finish(make())
    assert errors(logs) == ["the history database was damaged"]


@pytest.mark.parametrize(
    "sql",
    [
        "update executions set failure = 'no JSON', status = 'unknown' where id = ?",
        "update executions set env = x'ff' where id = ?",
        "update payloads set failed_attempts = '{' where id = ?",
        "update events set events = x'00' where id = ?",
    ],
)
async def test_a_row_that_cannot_be_read_costs_only_itself(tmp_path, sql):
    made = await filled(tmp_path, 20)
    bad = made[7]
    with closing(sqlite3.connect(tmp_path / "history.db")) as link, link:
        link.execute(sql, [bad.id])
    async with running(tmp_path) as history:
        with capture_logs() as logs:
            for execution in made:
                read = await history.get(execution.id)
                assert read == execution or execution is bad
            assert len((await history.list(Query(limit=500))).items) >= 19
            await history.get(bad.id)
        assert len(errors(logs)) <= 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(history.stats, "greet")


async def test_counts_that_cannot_be_read_are_left_out(tmp_path):
    await filled(tmp_path, 20)
    with closing(sqlite3.connect(tmp_path / "history.db")) as link, link:
        link.execute("update rollups set counts = x'00ff' where width = 86400")
    async with running(tmp_path) as history:
        await history.stats("greet")
        await history.finish(make())
        await stored(history)
        assert history.statistics().rejected == 0


async def test_a_damaged_journal_is_told(tmp_path):
    async with running(tmp_path / "a") as history:
        for _ in range(3):
            await history.finish(make())
        copy = crashed(tmp_path / "a", tmp_path / "b")
    (segment,) = segments(copy)
    data = bytearray(segment.read_bytes())
    data[100] ^= 0xFF
    segment.write_bytes(data)
    async with running(copy) as history:
        assert history.statistics().damaged == ("journal",)
        assert len((await history.list(Query())).items) == 2


async def test_an_executions_that_was_deleted_does_not_come_back_with_its_segment(tmp_path):
    old = [make(at=1_000_000_000.0) for _ in range(5)]
    settings = HistorySettings().retention_seconds
    assert settings < 100 * 86400
    async with running(tmp_path / "a") as history:
        for execution in old:
            await history.finish(execution)
        await stored(history)
        history._committer._pace.at = 0.0
        while history.statistics().rows:
            history._committer.wake()
            await trio.sleep(0.01)
        copy = crashed(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    async with running(copy) as history:
        for execution in old:
            assert await history.get(execution.id) is None
