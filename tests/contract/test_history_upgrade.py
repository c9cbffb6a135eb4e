"""Contract: files that earlier versions of the runner left are brought up to date, whole or not at all."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import msgspec
import pytest

from actors.history import journal, migrations
from actors.history.history import History
from actors.history.queries import Query
from config.settings import HistorySettings
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.events import DroppedEvent, OutputEvent, decode_all
from protocol.model import Execution, Kind, ModuleRef, Status, Stream, Timings
from tests.records import NOW, ROOT, make, rows, running, stored, unfinished

FORMER = ROOT / "tests" / "former"
"""Written by the code of schema 1: a dump of its database, and a segment of its journal with revisions 901 and 902."""


def name_of(number):
    return f"018bcfe5-6800-7000-8000-{number:012d}"


def former(number, status, **fields):
    """Return an execution as the former runner had it, without its output."""
    at = NOW + number
    end = {"finished_at": at + 2.5, "exit_code": 0, "result": b'{"n": 1}', "timings": Timings(0.1, 0, 0.2, 0.3, 1.5)}
    return Execution(
        **{
            "id": name_of(number),
            "module": ModuleRef("greet" if number % 2 else "count", f"1.{number % 3}"),
            "env": Kind.VENV,
            "status": status,
            "created_at": at,
            "started_at": at + 0.5,
            "attempts": 1,
            "input": b'{"n": %d}' % number,
            "subject": "kim",
            **(end if status.final else {}),
            **fields,
        }
    )


def output(number, *chunks, dropped=0):
    """Return the fields that the former output becomes."""
    at = NOW + number + 0.5
    events = [OutputEvent(seq, at, stream, text) for seq, (stream, text) in enumerate(chunks)]
    if dropped:
        events.append(DroppedEvent(len(events), at, 1, dropped))
    return {"events": msgspec.json.encode(events), "events_count": len(events), "output_dropped": dropped}


BOOM = Failure(ErrorKind.HANDLER_ERROR, "boom", "ValueError", "Traceback: boom")
ENDED = (
    former(1, Status.SUCCEEDED, **output(1, (Stream.STDOUT, "hello\n"), (Stream.STDERR, 'é "quoted"\n'))),
    former(2, Status.FAILED, failure=BOOM, result=None, exit_code=1, **output(2, (Stream.STDOUT, "x"), dropped=4096)),
    former(3, Status.CANCELLED, failure=Failure(ErrorKind.CANCELLED, "gone"), result=None, exit_code=130),
    former(4, Status.SUCCEEDED),
)
QUEUED = former(5, Status.QUEUED, started_at=None, attempts=0)


@pytest.fixture
def left(tmp_path):
    """Return a folder with a database of schema 1."""
    folder = tmp_path / "left"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "history.db")) as link:
        link.execute("pragma journal_mode=wal")
        link.executescript((FORMER / "history_schema_1.sql").read_text())
    return folder


async def test_a_database_of_schema_1_is_upgraded_with_all_that_is_in_it(left):
    for _ in range(2):  # upgraded, and opened as it is then
        async with running(left, clock=lambda: NOW + 100) as history:
            for execution in ENDED:
                assert await history.get(execution.id) == execution
            assert await unfinished(history) == (QUEUED,)
            lost = await history.get(name_of(6))
            assert (lost.status, lost.failure.kind, lost.events_count) == (Status.FAILED, ErrorKind.LOST, 2_000_000)
            assert [event.text for event in decode_all(lost.events)] == ["so far"]
            page = await history.list(Query(subject="kim", kind=ErrorKind.HANDLER_ERROR))
            assert [item.id for item in page.items] == [name_of(2)]
            stats = [await history.stats(module) for module in ("greet", "count")]
            assert [s.statuses for s in stats] == [
                {Status.SUCCEEDED: 1, Status.CANCELLED: 1},
                {Status.SUCCEEDED: 1, Status.FAILED: 2},
            ]
            assert stats[1].kinds == {ErrorKind.HANDLER_ERROR: 1, ErrorKind.LOST: 1}
            assert stats[0].p50 == pytest.approx(1.5, rel=0.02)
    assert rows(left, "select value from meta where name = 'rows'") == [(6,)]


async def test_what_was_upgraded_is_what_a_new_database_is(left, tmp_path):
    async with running(left):
        pass
    async with running(tmp_path / "new"):
        pass

    def schema(folder):
        tables = [row[0] for row in rows(folder, "select name from sqlite_master where type = 'table' order by name")]
        columns = {table: sorted(row[1:] for row in rows(folder, f"pragma table_info({table})")) for table in tables}
        indexes = rows(folder, "select name, lower(sql) from sqlite_master where type = 'index' order by name")
        keyless = [t for t in tables if "without rowid" in rows(folder, _SQL.format(t))[0][0].lower()]
        return columns, indexes, keyless, rows(folder, "select value from meta where name = 'schema'")

    assert schema(left) == schema(tmp_path / "new")


_SQL = "select sql from sqlite_master where name = '{}'"


async def test_an_upgrade_that_fails_changes_nothing(left, monkeypatch):
    before = rows(left, "select * from sqlite_master") + rows(left, "select * from outputs")

    def fail(_connection, _rollups):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "_count_all", fail)
        with pytest.raises(RunnerError, match="cannot be opened: No space left"):
            await History(HistorySettings(), left).run()
    assert rows(left, "select * from sqlite_master") + rows(left, "select * from outputs") == before
    async with running(left) as history:
        assert await history.get(ENDED[0].id) == ENDED[0]


async def test_an_empty_database_of_schema_1_is_upgraded(left):
    with closing(sqlite3.connect(left / "history.db")) as link, link:
        for table in ("executions", "payloads", "outputs"):
            link.execute(f"delete from {table}")
    async with running(left) as history:
        execution = make()
        await history.finish(execution)
        await stored(history)
        assert await history.get(execution.id) == execution
        assert history.statistics().rows == 1


async def test_the_former_journal_is_read(left):
    (left / "journal").mkdir()
    shutil.copy(FORMER / "history_1.journal", left / "journal" / "000000000007.journal")
    async with running(left, clock=lambda: NOW + 100) as history:
        ended = former(7, Status.SUCCEEDED, **output(7, (Stream.STDOUT, "hi\n"), (Stream.STDERR, "no\n"), dropped=7))
        assert await history.get(ended.id) == ended
        assert await unfinished(history) == (QUEUED, former(8, Status.QUEUED, started_at=None, attempts=0))
        assert list((left / "journal").iterdir()) == []
        assert (await history.stats("greet")).total == 3


def test_a_damaged_record_of_the_former_journal_costs_itself_only():
    data = bytearray((FORMER / "history_1.journal").read_bytes())
    data[40] ^= 1
    read = journal.decode(bytes(data))

    assert [entry.revision for entry in read.entries] == [902]
    assert [part.reason for part in read.damage] == ["checksum does not match"]
    assert journal.decode(b"OPJ9" + bytes(data[4:])).damage[0].reason == "not a journal segment"


def test_alembic_is_imported_for_an_upgrade_only(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom actors.history import storage\nfrom actors.history.archive import Database\n"
        f"Database(Path({str(tmp_path / 'history.db')!r})).write(storage.prepare)\nprint('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True)

    assert done.stdout.split() == ["False"]


async def test_a_schema_that_this_runner_does_not_know_is_refused_and_left_alone(left):
    with closing(sqlite3.connect(left / "history.db")) as link, link:
        link.execute("update meta set value = 3 where name = 'schema'")
    before = rows(left, "select * from sqlite_master")
    with pytest.raises(RunnerError, match="schema 3, this runner knows up to 2: use a newer runner"):
        await History(HistorySettings(), left).run()
    assert rows(left, "select * from sqlite_master") == before
