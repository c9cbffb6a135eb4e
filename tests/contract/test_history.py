"""Contract: the promises of the history on real files: no acknowledged record is lost, nothing grows without bound."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from structlog.testing import capture_logs

from actors import sqlite
from actors.history import committer, pending
from actors.history.committer import HistoryStatistics
from actors.history.history import History
from actors.history.queries import Query
from actors.journal import Entry, Journal
from actors.journal import records as journal
from actors.journal.records import START_BYTES
from config.settings import HistorySettings
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.model import Status
from tests.records import (
    LARGE,
    NOW,
    ROOT,
    all_lost,
    bare,
    crashed,
    full,
    make,
    make_older,
    rows,
    running,
    segments,
    stored,
    unfinished,
    written,
)

# Round trips


async def test_every_field_comes_back_from_memory_and_from_the_database(tmp_path):
    execution = full()
    async with running(tmp_path) as history:
        await history.finish(execution)
        assert await history.get(execution.id) == execution
        await stored(history)
        assert await history.get(execution.id) == execution
        assert (await history.list(Query())).items == (bare(execution),)
        assert await history.get("unknown") is None

    async with running(tmp_path) as history:
        assert await history.get(execution.id) == execution


async def test_lone_surrogates_are_recorded_as_question_marks(tmp_path):
    finished = make(failure=Failure(ErrorKind.HANDLER_ERROR, "m\udfff", traceback="t\ud800"))
    begun = make(Status.RUNNING, subject="s\ud800")
    async with running(tmp_path) as history:
        await history.finish(finished)
        history.begin(begun)
        await stored(history)
        read = await history.get(finished.id)
        assert (read.failure.message, read.failure.traceback) == ("m?", "t?")
        assert (await history.get(begun.id)).subject == "s?"
        assert history.statistics().rejected == 0


async def test_a_row_that_the_database_refuses_does_not_delay_the_others(tmp_path):
    good, bad = make(), make(Status.RUNNING, exit_code=2**70)
    async with running(tmp_path) as history:
        with capture_logs() as logs:
            history.begin(bad)
            await history.finish(good)
            await history.list(Query())
            assert len(history._pending) == 0
        assert [entry["execution"] for entry in logs if entry["log_level"] == "error"] == [bad.id]
        assert history.statistics().rejected == 1
        assert await history.get(good.id) == good


# Recording


async def test_a_quick_execution_is_inserted_once(tmp_path):
    async with running(tmp_path) as history:
        execution = make()
        history.begin(replace(execution, status=Status.RUNNING))
        await history.finish(execution)
        await stored(history)

        assert history.statistics().committed == 1


async def test_a_running_execution_is_in_the_database_soon(tmp_path):
    execution = make(Status.RUNNING)
    async with running(tmp_path) as history:
        history.begin(execution)
        assert history.statistics().running == 1
        assert await history.get(execution.id) == execution
        with trio.fail_after(5):
            await stored(history)
        assert [row[0] for row in rows(tmp_path)] == [execution.id]
        assert history.statistics().running == 0


async def test_many_finishers_share_commits(tmp_path):
    made = [make() for _ in range(1000)]
    async with running(tmp_path) as history:

        async def finish(some):
            for execution in some:
                history.begin(replace(execution, status=Status.RUNNING))
                await trio.lowlevel.checkpoint()
                await history.finish(execution)

        async with trio.open_nursery() as nursery:
            for start in range(0, 1000, 10):
                nursery.start_soon(finish, made[start : start + 10])
        await stored(history)

        assert history.statistics().commits < 100
        assert history.statistics().journal_bytes == 0
    assert [row[0] for row in rows(tmp_path)] == sorted(execution.id for execution in made)


async def test_a_clean_stop_leaves_an_empty_journal(tmp_path):
    async with running(tmp_path) as history:
        await history.finish(make())
        await history.finish(make(input=LARGE))
        await history.submit(make(Status.QUEUED))
        assert history.statistics().pending == 3
        assert segments(tmp_path)
        sizes = [len(written(path)) for path in segments(tmp_path)]
        assert sum(sizes) - 8 * len(sizes) <= history.statistics().journal_bytes <= sum(sizes)
    assert list(tmp_path.glob("journal/*")) == []
    assert len(rows(tmp_path)) == 3
    assert history.statistics().pending == 0
    with pytest.raises(RunnerError, match="not open"):
        await history.finish(make())


async def test_cancelling_the_actor_stores_all_that_is_pending(tmp_path):
    history = History(HistorySettings(), tmp_path, clock=lambda: NOW)
    async with trio.open_nursery() as nursery:
        await nursery.start(history.run)
        await history.finish(make())
        history.begin(make(Status.RUNNING))
        nursery.cancel_scope.cancel()

    assert len(rows(tmp_path)) == 2
    assert segments(tmp_path) == []


async def test_durability_disk_returns_after_the_commit(tmp_path):
    async with running(tmp_path, durability="disk") as history:
        for execution in (make(), make(input=LARGE)):
            await history.finish(execution)
            assert execution.id in [row[0] for row in rows(tmp_path)]
        await history.submit(make(Status.QUEUED))
        assert len(rows(tmp_path)) == 3


@pytest.mark.parametrize("durability", ["process", "disk"])
async def test_a_cancelled_finish_is_recorded_all_the_same(tmp_path, durability):
    made = [make(), make(input=LARGE), make()]
    async with running(tmp_path, durability=durability) as history:
        for execution in made:
            with trio.CancelScope() as scope:
                scope.cancel()
                await history.finish(execution)
        await stored(history)
        assert history.statistics().pending == 0
        assert history.statistics().journal_bytes == 0
    assert len(rows(tmp_path)) == 3


async def test_cancelling_each_call_while_it_waits_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.02)
    async with running(tmp_path, durability="disk", max_pending=3) as history:
        await history.finish(make())
        with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as other:
            other.execute("begin exclusive")
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(history.finish, make())
                    nursery.start_soon(history.submit, make(Status.QUEUED))
                    nursery.start_soon(history.list, Query())
                while history.statistics().last_error is None:
                    await history._committer.wait_settled()
                nursery.cancel_scope.cancel()
            other.execute("rollback")
        await stored(history)
        assert (
            evolve(history.statistics(), last_commit_seconds=0, committed=0, commits=0, rows=0, database_bytes=0)
            == HistoryStatistics()
        )
        assert len((await history.list(Query(status=Status.SUCCEEDED))).items) == 7


# The death of the process

CHILD = """
import os, sys, trio
from pathlib import Path
sys.path.insert(0, {root!r})
from msgspec.structs import replace
from actors.history import History
from config.settings import HistorySettings
from protocol.model import Status
from tests.records import LARGE, NOW, make

async def main():
    history = History(HistorySettings(), Path(sys.argv[1]), clock=lambda: NOW)
    async with trio.open_nursery() as nursery:
        await nursery.start(history.run)
        for number in range(100_000):
            execution = make(input=LARGE if number % 50 == 49 else b"{{}}")
            history.begin(replace(execution, status=Status.RUNNING))
            await trio.lowlevel.checkpoint()
            await history.finish(execution)
            os.write(1, f"finished {{execution.id}}\\n".encode())
            if number % 10 == 0:
                queued = make(Status.QUEUED)
                await history.submit(queued)
                os.write(1, f"queued {{queued.id}}\\n".encode())
                begun = make(Status.RUNNING)
                history.begin(begun)
                os.write(1, f"running {{begun.id}}\\n".encode())

trio.run(main)
"""


@pytest.mark.parametrize("lines", [5, 300, 1500])
async def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path, lines):
    code = CHILD.format(root=str(ROOT))
    said = {"finished": set(), "queued": set(), "running": set()}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as child:
        for number, line in enumerate(child.stdout):
            if number == lines:
                child.send_signal(signal.SIGKILL)
            if line.endswith(b"\n"):
                word, name = line.decode().split()[-2:]
                if word in said:
                    said[word].add(name)
    async with running(tmp_path) as history:
        for name in said["finished"]:
            assert (await history.get(name)).status is Status.SUCCEEDED
        assert said["queued"] <= {execution.id for execution in await unfinished(history)}
        # An execution begun just before the kill may be unknown; known ones do not run any more.
        assert (await history.list(Query(status=Status.RUNNING))).items == ()
        lost = await all_lost(history)
        assert {execution.id for execution in lost} & said["finished"] == set()
        assert all(execution.failure.kind is ErrorKind.LOST and execution.finished_at for execution in lost)
        assert segments(tmp_path) == []
    assert len(said["finished"]) >= lines / 2


async def test_the_next_runner_finds_unfinished_executions(tmp_path):
    done, large, queued, begun = make(), make(input=LARGE), make(Status.QUEUED, input=b"[1]"), make(Status.RUNNING)
    async with running(tmp_path / "a") as history:
        history.begin(begun)
        await stored(history)
        await history.finish(large)
        await history.submit(queued)
        await history.finish(done)
        copy = crashed(tmp_path / "a", tmp_path / "b")
    async with running(copy, clock=lambda: 1_800_000_000.0) as history:
        assert await history.get(done.id) == done
        assert await history.get(large.id) == large
        assert await unfinished(history) == (queued,)
        (lost,) = await all_lost(history)
        assert (lost.id, lost.status, lost.failure.kind) == (begun.id, Status.FAILED, ErrorKind.LOST)
        assert lost.finished_at == 1_800_000_000.0
        # A lost execution may be retried under its id.
        history.begin(begun)
        again = replace(begun, status=Status.SUCCEEDED, result=b"2", attempts=2)
        await history.finish(again)
    async with running(copy) as history:
        assert await history.get(begun.id) == again
        assert await all_lost(history) == ()


async def test_a_queued_execution_that_begins_at_once_is_not_lost_with_its_segment(tmp_path):
    queued = make(Status.QUEUED)
    async with running(tmp_path / "a") as history:
        await history.submit(queued)
        history.begin(replace(queued, status=Status.RUNNING))
        while history.statistics().committed == 0:
            await history._committer.wait_settled()
        copy = crashed(tmp_path / "a", tmp_path / "b")
    async with running(copy) as history:
        assert [execution.id for execution in await all_lost(history)] == [queued.id]


async def test_replaying_an_old_segment_again_changes_nothing(tmp_path):
    queued = make(Status.QUEUED)
    ended = replace(queued, status=Status.SUCCEEDED, result=b"1")
    async with running(tmp_path / "a") as history:
        await history.submit(queued)
        copy = crashed(tmp_path / "a", tmp_path / "b")
        await history.finish(ended)
    shutil.copytree(copy / "journal", tmp_path / "a" / "journal", dirs_exist_ok=True)
    async with running(tmp_path / "a") as history:
        assert await history.get(ended.id) == ended
        assert await unfinished(history) == ()


async def test_a_restart_in_the_same_process_keeps_what_runs_running(tmp_path):
    history, begun = History(HistorySettings(), tmp_path, clock=lambda: NOW), make(Status.RUNNING)
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            await nursery.start(history.run)
            history.begin(begun)
            await stored(history)
            nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await nursery.start(history.run)
        assert await history.get(begun.id) == begun
        await history.aclose()


async def test_a_damaged_segment_is_reported_and_kept(tmp_path):
    made = [make() for _ in range(3)]
    async with running(tmp_path / "a") as history:
        for execution in made:
            await history.finish(execution)
        copy = crashed(tmp_path / "a", tmp_path / "b")
    (segment,) = segments(copy)
    data = bytearray(segment.read_bytes())
    data[len(written(segment)) // 2] ^= 0xFF
    segment.write_bytes(data)
    with capture_logs() as logs:
        async with running(copy) as history:
            assert len((await history.list(Query())).items) == 2
    assert [path.suffix for path in segments(copy)] == [".damaged"]
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == [
        "journal damaged: what cannot be read or stored is skipped"
    ]


# The journal's format

SALT = b"\x01salt"[:4]


def record(execution, revision=1):
    return journal.encode(Entry(revision, execution), SALT)


def test_the_last_record_may_be_torn_at_every_byte():
    first, last = record(full()), record(make(), 2)
    whole = journal.start_segment(SALT) + first + last
    assert len(journal.decode(whole).entries) == 2
    for length in range(len(whole) - len(last), len(whole)):
        read = journal.decode(whole[:length])
        assert len(read.entries) == 1
        assert read.damage == ()
        assert read.torn_bytes == length - (len(whole) - len(last))
    for length in range(len(journal.start_segment(SALT))):
        assert journal.decode(whole[:length]) == journal.Segment((), (), length)


SAMPLES = [full(), make(), make(Status.QUEUED)]


@given(st.data())
def test_one_bad_byte_costs_one_record(data):
    records = [record(execution, revision) for revision, execution in enumerate(SAMPLES)]
    head = journal.start_segment(SALT)
    whole = bytearray(head + b"".join(records))
    at = data.draw(st.integers(len(head), len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    read = journal.decode(bytes(whole))

    assert len(read.entries) == 2
    assert len(read.damage) + bool(read.torn_bytes) == 1
    assert all(entry.execution == SAMPLES[entry.revision] for entry in read.entries)


@pytest.mark.parametrize("execution", SAMPLES)
def test_a_damaged_length_of_the_last_record_is_damage_and_no_torn_record(execution):
    head = journal.start_segment(SALT) + record(SAMPLES[1])
    whole = bytearray(head + record(execution) + bytes(4096))
    whole[len(head) + len(SALT)] ^= 0x40
    read = journal.decode(bytes(whole))
    assert (len(read.entries), len(read.damage), read.torn_bytes) == (1, 1, 0)


def test_damage_in_records_that_the_database_has_is_reported():
    head, last = journal.start_segment(SALT) + record(SAMPLES[0]) + record(SAMPLES[1]), record(SAMPLES[2], 2)
    for at in range(journal.START_BYTES, len(head), 7):
        whole = bytearray(head + last + bytes(64))
        whole[at] ^= 1
        read = journal.decode(bytes(whole), SALT, len(head))
        assert [entry.revision for entry in read.entries] == [2]
        [found] = read.damage
        assert found.start <= at < found.end <= len(head)
    assert journal.decode(head + last, SALT, len(head)).damage == ()
    assert journal.decode(head + last[:-1], SALT, len(head)).damage == ()
    assert journal.decode(head[:-3], SALT, len(head)).damage, "the file was cut off"


async def test_damage_of_bytes_without_a_record_to_lose_is_reported(tmp_path):
    """Records that the database has, and the space behind the last one."""
    async with running(tmp_path / "a") as history:
        await history.finish(make())
        await stored(history)
        await history.finish(make())
        copies = {name: crashed(tmp_path / "a", tmp_path / name) for name in ("stored", "space", "none")}
    for name, copy in copies.items():
        (segment,) = segments(copy)
        data = bytearray(segment.read_bytes())
        if name != "none":
            data[START_BYTES + 20 if name == "stored" else -100] ^= 0xFF
        segment.write_bytes(data)
        with capture_logs() as logs:
            async with running(copy) as history:
                assert len((await history.list(Query())).items) == 2
                assert history.statistics().damaged == (() if name == "none" else ("journal",))
        errors = [entry["event"] for entry in logs if entry["log_level"] == "error"]
        assert errors == ([] if name == "none" else ["journal damaged: what cannot be read or stored is skipped"])


@given(st.binary(), st.booleans())
def test_any_bytes_can_be_read(data, salted):
    read = journal.decode(journal.MAGIC + SALT + (SALT + data if salted else data))

    assert read.entries == ()
    assert not data.strip(b"\0") or read.torn_bytes or read.damage  # zeros are space that waits for records


def test_a_file_without_the_first_bytes_of_a_segment_is_damaged_as_a_whole():
    assert journal.decode(b"OPJ9" + SALT + record(make())).damage[0].reason == "not a journal segment"


def test_inputs_of_callers_cannot_look_like_records(tmp_path):
    forged = make(result=journal.start_segment(SALT) + record(make()) * 3)
    log = Journal(tmp_path)
    log.append(Entry(1, make()))
    log.append(Entry(2, forged))
    log.append(Entry(3, make()))
    log.close()
    (path,) = log.left_behind()
    data = bytearray(path.read_bytes())
    data[data.index(forged.id.encode())] ^= 1
    read = journal.decode(bytes(data))

    assert [entry.revision for entry in read.entries] == [1, 3]


def test_segments_rotate_by_size(tmp_path):
    log = Journal(tmp_path, segment_bytes=500)
    for revision in range(10):
        log.append(Entry(revision, make()))
    assert len(log.left_behind()) > 2
    assert log.mark().closed == log.left_behind()[:-1]
    log.append(Entry(11, make()))
    log.close()
    read = [entry.revision for path in log.left_behind() for entry in journal.decode(path.read_bytes()).entries]
    assert read == [*range(10), 11]
    assert Journal(tmp_path).next_path() > log.left_behind()[-1]


# A full or broken disk


async def test_an_end_that_cannot_be_recorded_is_refused(tmp_path):
    async with running(tmp_path) as history:
        await history.finish(make())
        # The file descriptor of the segment is closed behind its back.
        os.close(history._archive.journal._space.current.fd)
        refused = make()
        with pytest.raises(RunnerError, match="the history cannot be written") as caught:
            await history.finish(refused)
        assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
        assert await history.get(refused.id) == refused
        await history.finish(make())


async def test_nothing_begins_while_the_files_are_gone(tmp_path):
    before, after = make(), make(Status.RUNNING)
    async with running(tmp_path / "data") as history:
        await history.finish(before)
        await stored(history)
        shutil.move(tmp_path / "data", tmp_path / "elsewhere")
        await history._archive.look()
        assert history.statistics().refusing
        with pytest.raises(RunnerError, match="nothing can be recorded"):
            history.begin(make(Status.RUNNING))
        with pytest.raises(RunnerError, match="nothing can be recorded"):
            await history.submit(make(Status.QUEUED))
        shutil.move(tmp_path / "elsewhere", tmp_path / "data")
        await history._archive.look()
        assert history.statistics().refusing is None
        history.begin(after)
        await history.finish(replace(after, status=Status.SUCCEEDED))
    async with running(tmp_path / "data") as history:
        assert (await history.get(before.id), (await history.get(after.id)).status) == (before, Status.SUCCEEDED)


async def test_a_deleted_database_is_noticed_and_made_again(tmp_path):
    before, after = make(), make()
    async with running(tmp_path) as history:
        await history.finish(before)
        await stored(history)
        for path in tmp_path.glob("history.db*"):
            path.unlink()
        await history._archive.look()
        assert "was deleted or replaced" in history.statistics().refusing
        await history.finish(after)
        await stored(history)
        await history._archive.look()
        assert history.statistics().refusing is None
        assert [item.id for item in (await history.list(Query())).items] == [after.id]
    assert [row[0] for row in rows(tmp_path)] == [after.id]


async def test_a_locked_database_delays_rows_and_is_logged_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.02)
    first, second = make(), make()
    with capture_logs() as logs:
        async with running(tmp_path) as history:
            with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as other:
                other.execute("begin exclusive")
                await history.finish(first)
                for _ in range(3):
                    await history._committer.wait_settled()
                    await history.finish(second)
                assert "locked" in history.statistics().last_error
                assert history.statistics().pending == 2
                assert await history.get(first.id) == first
                other.execute("rollback")
            await stored(history)
            assert history.statistics().last_error is None
            assert {item.id for item in (await history.list(Query())).items} == {first.id, second.id}
    assert [entry["event"] for entry in logs] == [
        "the history cannot be stored: journal and memory keep it",
        "the history is stored again",
    ]


async def test_a_stop_with_a_locked_database_is_bounded_and_the_journal_keeps_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.02)
    monkeypatch.setattr(committer, "FLUSH_SECONDS", 0.1)
    execution = make()
    async with running(tmp_path) as history:
        with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as other:
            other.execute("begin exclusive")
            await history.finish(execution)
            await history.aclose()
            other.execute("rollback")
    assert len(segments(tmp_path)) == 1
    async with running(tmp_path) as history:
        assert await history.get(execution.id) == execution


async def test_finish_waits_for_room_when_the_database_is_slow(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.02)
    over = trio.Event()
    async with running(tmp_path, max_pending=2) as history, trio.open_nursery() as nursery:
        with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as other:
            other.execute("begin exclusive")
            await history.finish(make())
            await history.finish(make())

            async def third():
                await history.finish(make())
                over.set()

            nursery.start_soon(third)
            while history.statistics().last_error is None:
                await history._committer.wait_settled()
            assert not over.is_set()
            assert history.statistics().pending == 3
            monkeypatch.setattr(pending, "WAIT_SECONDS", 0.01)
            with pytest.raises(RunnerError, match="the history cannot be written: database is locked"):
                await history.submit(make(Status.QUEUED))
            assert history.statistics().pending == 3
            other.execute("rollback")
        await over.wait()


# One runner at a time, and one schema


async def test_a_second_runner_on_the_same_data_is_refused_by_name(tmp_path):
    async with running(tmp_path):
        with pytest.raises(RunnerError, match=f"in use by the runner with pid {os.getpid()}") as caught:
            await History(HistorySettings(), tmp_path, clock=lambda: NOW).run()
        assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
        assert caught.value.failure.message.endswith("; stop it, or use another --data-dir")
    async with running(tmp_path):
        pass


@pytest.mark.parametrize("schema", [1, 99])
async def test_a_database_of_another_schema_is_refused_and_left_alone(tmp_path, schema):
    async with running(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "history.db")) as connection, connection:
        connection.execute("update meta set value = ? where name = 'schema'", [schema])
        connection.execute("drop table rollups")
    before = rows(tmp_path, "select * from sqlite_master")

    with pytest.raises(RunnerError) as caught:
        await History(HistorySettings(), tmp_path, clock=lambda: NOW).run()

    message = f"{tmp_path / 'history.db'} has schema {schema}, and this runner reads schema 7 only; start the version"
    assert message in caught.value.failure.message
    assert "or move the file away" in caught.value.failure.message
    assert rows(tmp_path, "select * from sqlite_master") == before


async def test_a_database_of_the_last_schema_is_converted(tmp_path):
    indexes = "select name, sql from sqlite_master where type = 'index' and sql is not null order by name"
    before, after = make(), make(input_bytes=3, output_bytes=5, priority=9, group='"kim"')
    async with running(tmp_path) as history:
        await history.finish(before)
    wanted = rows(tmp_path, indexes)
    make_older(tmp_path)

    for _ in range(2):
        async with running(tmp_path) as history:
            await history.finish(after)
            assert await history.get(before.id) == before
            assert await history.get(after.id) == after
            assert len((await history.list(Query())).items) == 2
    assert rows(tmp_path, "select value from meta where name = 'schema'") == [(7,)]
    assert rows(tmp_path, indexes) == wanted


@pytest.mark.parametrize("url", ["postgresql://host/db", "sqlite://", "nonsense"])
async def test_only_sqlite_files_are_taken(tmp_path, url):
    with pytest.raises(RunnerError) as caught:
        await History(HistorySettings(database=url), tmp_path).run()
    assert caught.value.failure.kind is ErrorKind.UNAVAILABLE


async def test_the_database_can_be_elsewhere_and_nothing_is_readable_for_others(tmp_path):
    tmp_path.joinpath("db").mkdir()
    async with running(tmp_path / "data", database=f"sqlite:///{tmp_path}/db/other file.db") as history:
        await history.finish(make())
        await history.list(Query())
        await history.finish(make())
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) >= 4
        assert [oct(path.stat().st_mode & 0o77) for path in files] == ["0o0"] * len(files)


async def test_an_unusable_data_directory_is_reported(tmp_path):
    tmp_path.joinpath("file").write_text("")
    history = History(HistorySettings(), tmp_path / "file" / "data")
    with pytest.raises(RunnerError, match="cannot be opened: Not a directory"):
        await history.run()
    await history.aclose()


# Lists


@pytest.fixture
async def filled(tmp_path):
    async with running(tmp_path) as history:
        made = []
        for number in range(40):
            status = (Status.SUCCEEDED, Status.FAILED, Status.RUNNING)[number % 3]
            execution = make(status, module=f"m{number % 2}", at=NOW + number)
            made.append(execution)
            if status is Status.RUNNING:
                history.begin(execution)
            else:
                await history.finish(execution)
        yield history, made


@pytest.mark.parametrize("module", [None, "m0", "unknown"])
@pytest.mark.parametrize("status", [None, Status.FAILED, Status.RUNNING])
@pytest.mark.parametrize("times", [(None, None), (10.0, 30.0)])
async def test_pages_hold_the_matching_executions_newest_first(filled, module, status, times):
    history, made = filled
    since, until = (None if at is None else NOW + at for at in times)
    wanted = [
        bare(execution)
        for execution in reversed(made)
        if module in (None, execution.module.name)
        and status in (None, execution.status)
        and (since is None or since <= execution.created_at < until)
    ]
    got, cursor = [], None
    for _ in range(50):
        page = await history.list(Query(module, None, status, since=since, until=until, limit=7, cursor=cursor))
        got += page.items
        cursor = page.next_cursor
        if cursor is None:
            break

    assert got == wanted


async def test_paging_continues_at_its_place_while_new_executions_arrive(filled):
    history, made = filled
    first = await history.list(Query(limit=10))
    await history.finish(make(at=1_800_000_000.0))
    second = await history.list(Query(limit=10, cursor=first.next_cursor))

    assert [item.id for item in first.items + second.items] == [item.id for item in made[:19:-1]]


@pytest.mark.parametrize("limit", [0, -1, 501])
async def test_a_limit_out_of_range_is_refused(filled, limit):
    with pytest.raises(RunnerError) as caught:
        await filled[0].list(Query(limit=limit))
    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, "limit")


@pytest.mark.parametrize("cursor", ["", "x", "é", "bnVsbA", "W10", "WyJhIiwxXQ", "\x00" * 9])
async def test_a_foreign_cursor_is_refused(filled, cursor):
    with pytest.raises(RunnerError) as caught:
        await filled[0].list(Query(cursor=cursor))
    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, "cursor")
