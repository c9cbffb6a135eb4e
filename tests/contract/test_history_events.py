"""Contract: stored events of a running execution survive the runner, and no event number comes twice."""

import signal
import subprocess
import sys

import msgspec
import pytest
import trio
from msgspec.structs import replace
from structlog.testing import capture_logs

from actors import sqlite
from actors.history.storage import LOST_SEQS
from protocol.errors import ErrorKind
from protocol.model import Status
from tests.records import ROOT, all_lost, crashed, locked_out, make, printed, rows, running, stored, unfinished


def texts(execution):
    return [event["text"] for event in msgspec.json.decode(execution.events)]


async def test_a_running_execution_has_the_events_that_came_so_far(tmp_path):
    execution = make(Status.RUNNING)
    async with running(tmp_path) as history:
        history.begin(execution)
        assert await history.get(execution.id) == execution
        history.append(execution.id, printed("a", "b"), 0)
        assert texts(await history.get(execution.id)) == ["a", "b"]
        await stored(history)
        history.append(execution.id, printed("c", first=2), 2)
        assert texts(await history.get(execution.id)) == ["a", "b", "c"]
        await stored(history)
        assert texts(await history.get(execution.id)) == ["a", "b", "c"]
        assert rows(tmp_path, "select first_seq, last_seq from events") == [(0, 1), (2, 2)]
        assert (await history.get(execution.id)).status is Status.RUNNING


async def test_the_end_takes_the_place_of_all_pieces(tmp_path):
    execution = make(Status.RUNNING)
    ended = replace(execution, status=Status.SUCCEEDED, result=b"1", events=printed("all"), events_count=9)
    silent = replace(execution, id="0-silent", status=Status.SUCCEEDED)
    async with running(tmp_path) as history:
        for name in (execution.id, silent.id):
            history.begin(replace(execution, id=name))
            history.append(name, printed("a"), 0)
        await stored(history)
        history.append(execution.id, printed("b", first=1), 1)
        history.append(silent.id, printed("b", first=1), 1)
        await history.finish(ended)
        await history.finish(silent)
        history.append(execution.id, printed("too late", first=2), 2)
        assert await history.get(execution.id) == ended
        await stored(history)
        history.append(execution.id, printed("later still", first=3), 3)
        await stored(history)
        assert await history.get(execution.id) == ended
        assert await history.get(silent.id) == silent
        assert rows(tmp_path, "select id, first_seq from events") == [(execution.id, 0)]
        assert history.statistics().pieces == 0


async def test_the_end_that_comes_while_a_piece_is_being_stored_wins(tmp_path):
    execution = make(Status.RUNNING)
    ended = replace(execution, status=Status.SUCCEEDED, events=printed("all"))
    async with running(tmp_path) as history:
        with locked_out(tmp_path):
            history.begin(execution)
            history.append(execution.id, printed("a"), 0)
            while not history._pending.pieces._taken:
                await trio.lowlevel.checkpoint()
            assert texts(await history.get(execution.id)) == ["a"]
            await history.finish(ended)
            assert history.statistics().pieces == 0
        await stored(history)
        assert await history.get(execution.id) == ended
        assert rows(tmp_path, "select count(*) from events") == [(1,)]


async def test_forgotten_events_are_deleted_by_whole_pieces(tmp_path):
    execution = make(Status.RUNNING)
    async with running(tmp_path) as history:
        history.begin(execution)
        for first in range(0, 8, 2):
            history.append(execution.id, printed(*"ab", first=first), first)
        await stored(history)
        history.append(execution.id, printed(*"cd", first=8), 8, (2, 7))
        await stored(history)
        assert rows(tmp_path, "select first_seq from events order by first_seq") == [(0,), (6,), (8,)]
        history.append(execution.id, printed("e", first=10), 10, (2, 8))
        await stored(history)
        assert rows(tmp_path, "select first_seq from events order by first_seq") == [(0,), (8,), (10,)]


async def test_a_submitted_execution_keeps_the_events_that_it_came_with(tmp_path):
    queued = make(Status.QUEUED, events=printed("waits"), events_count=1)
    async with running(tmp_path / "a") as history:
        await history.submit(queued)
        assert await history.get(queued.id) == queued
        await stored(history)
        assert await history.get(queued.id) == queued
        copy = crashed(tmp_path / "a", tmp_path / "b")
    async with running(copy) as history:
        assert await unfinished(history) == (queued,)
        history.begin(replace(queued, status=Status.RUNNING))
        history.append(queued.id, printed("runs", first=1), 1)
        assert texts(await history.get(queued.id)) == ["waits", "runs"]
        await stored(history)
        assert texts(await history.get(queued.id)) == ["waits", "runs"]


async def test_with_a_database_that_is_behind_the_oldest_pieces_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.02)
    execution = make(Status.RUNNING)
    async with running(tmp_path, max_pending=5) as history:
        with locked_out(tmp_path):
            history.begin(execution)
            for first in range(20):
                history.append(execution.id, printed(str(first), first=first), first)
            assert history.statistics().pieces == 5
            assert history.statistics().pieces_dropped == 15
            while history.statistics().last_error is None:
                await history._committer.wait_settled()
        await stored(history)
        assert texts(await history.get(execution.id)) == ["15", "16", "17", "18", "19"]
        assert history.statistics().pieces == 0


async def test_invalid_events_are_dropped_alone(tmp_path):
    execution, other = make(Status.RUNNING), make(Status.RUNNING)
    async with running(tmp_path) as history:
        with capture_logs() as logs:
            for one in (execution, other):
                history.begin(one)
            history.append(other.id, b'[{"no": "number"}]', 0)
            history.append(execution.id, printed("good"), 0)
            await stored(history)
        assert [entry["execution"] for entry in logs if entry["log_level"] == "error"] == [other.id]
        assert history.statistics().pieces_dropped == 1
        assert texts(await history.get(execution.id)) == ["good"]
        assert await history.get(other.id) == other


async def test_append_never_raises(tmp_path):
    async with running(tmp_path) as history:
        pass
    history.append("unknown", printed("a"), 0)
    assert history.statistics().pieces == 1


async def test_a_piece_of_an_unknown_execution_is_not_stored(tmp_path):
    async with running(tmp_path) as history:
        history.append("unknown", printed("a"), 0)
        await stored(history)
        assert rows(tmp_path, "select * from events") == []


# The death of the runner


@pytest.mark.parametrize(
    ("seqs", "count"),
    [
        ((), LOST_SEQS),
        ((0,), 2 * LOST_SEQS),
        ((0, LOST_SEQS - 1), 2 * LOST_SEQS),
        ((0, LOST_SEQS), 3 * LOST_SEQS),
    ],
)
async def test_a_lost_execution_keeps_its_events_and_reuses_no_number(tmp_path, seqs, count):
    execution = make(Status.RUNNING)
    async with running(tmp_path / "a") as history:
        history.begin(execution)
        for seq in seqs:
            history.append(execution.id, printed(str(seq), first=seq), seq)
        await stored(history)
        copy = crashed(tmp_path / "a", tmp_path / "b")
    async with running(copy) as history:
        (lost,) = await all_lost(history)
        assert (lost.status, lost.failure.kind) == (Status.FAILED, ErrorKind.LOST)
        assert lost.events_count == count
        assert texts(lost) == [str(seq) for seq in seqs]
        # Retried, and lost again before anything was stored.
        history.begin(replace(lost, status=Status.RUNNING, failure=None, finished_at=None))
        assert texts(await history.get(execution.id)) == texts(lost)
        await stored(history)
        assert texts(await history.get(execution.id)) == texts(lost)
        again = crashed(copy, tmp_path / "c")
        history.append(execution.id, printed("on", first=count), count)
        assert texts(await history.get(execution.id)) == [*texts(lost), "on"]
        await stored(history)
        assert texts(await history.get(execution.id)) == [*texts(lost), "on"]
    async with running(again) as history:
        (lost,) = await all_lost(history)
        assert lost.events_count == count + LOST_SEQS


CHILD = """
import os, sys, trio
from pathlib import Path
sys.path.insert(0, {root!r})
from actors.history import History
from config.settings import HistorySettings
from protocol.model import Status
from tests.records import NOW, make, printed

async def say(history, execution):
    history.begin(execution)
    os.write(1, f"{{execution.id}}\\n".encode())
    for seq in range(1_000_000):
        history.append(execution.id, printed(str(seq), first=seq), seq)
        await trio.lowlevel.checkpoint()
        if seq % 50 == 49:
            while history.statistics().pieces:
                await history._committer.wait_settled()
            os.write(1, f"{{seq}}\\n".encode())

async def main():
    history = History(HistorySettings(), Path(sys.argv[1]), clock=lambda: NOW)
    async with trio.open_nursery() as nursery:
        await nursery.start(history.run)
        with trio.fail_after(60):
            await say(history, make(Status.RUNNING))

trio.run(main)
"""


@pytest.mark.parametrize("lines", [2, 20])
async def test_events_that_were_stored_survive_kill_9(tmp_path, lines):
    code = CHILD.format(root=str(ROOT))
    said = []
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as child:
        for line in child.stdout:
            if len(said) == lines:
                child.send_signal(signal.SIGKILL)
            if line.endswith(b"\n"):
                said.append(line.decode().split()[-1])
    name, *stored_seqs = said
    async with running(tmp_path) as history:
        (lost,) = await all_lost(history)
        assert lost.id == name
        kept = [int(text) for text in texts(lost)]
        assert kept == list(range(len(kept)))
        assert kept[-1] >= int(stored_seqs[-1])
        assert lost.events_count == (kept[-1] // LOST_SEQS + 2) * LOST_SEQS
