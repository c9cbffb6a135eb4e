"""Helpers for the tests of history: executions to record, and a history on a folder."""

import re
import shutil
import sqlite3
from contextlib import asynccontextmanager, closing, contextmanager
from itertools import count
from pathlib import Path

import trio
from attrs import evolve
from msgspec.structs import replace

from actors.history import tables
from actors.history.archive import INLINE_BYTES
from actors.history.history import History
from actors.journal.records import START_BYTES
from config.settings import HistorySettings
from protocol.errors import ErrorKind, Failure
from protocol.events import OutputEvent, encode_all
from protocol.model import Approval, Attempt, Execution, Kind, ModuleRef, Recipient, Status, Stream, Telling, Timings

ROOT = Path(__file__).parents[1]
NUMBERS = count()
NOW = 1_700_000_000.0
LARGE = b'"' + b"x" * INLINE_BYTES + b'"'


def make(status=Status.SUCCEEDED, *, at=NOW, module="greet", **fields):
    """Return a small execution; ids rise with every call."""
    at += next(NUMBERS) / 1_000_000  # apart, and yet at that time
    name = f"{int(at * 1000):012x}-{next(NUMBERS):08d}"
    end = {"finished_at": at + 0.5, "exit_code": 0, "result": b"1"} if status.final else {}
    return Execution(
        **{
            "id": name,
            "module": ModuleRef(module, "1"),
            "env": Kind.INLINE,
            "status": status,
            "created_at": at,
            **end,
            **fields,
        }
    )


def printed(*texts, first=0):
    """Return the events of an execution that printed these texts, one after the other."""
    return encode_all([OutputEvent(seq, NOW, Stream.STDOUT, text) for seq, text in enumerate(texts, first)])


def full():
    """Return an execution without an empty field."""
    failure = Failure(ErrorKind.OUT_OF_MEMORY, "too much", "MemoryError", "Traceback: ...", "$.rows[3]", 1.5)
    return make(
        Status.FAILED,
        input=b'{"rows": [1, 2]}',
        subject="kim",
        result=b"null",
        failure=failure,
        events=printed("a\n", "é\x00\n"),
        events_count=2**41,
        output_dropped=2**40,
        input_bytes=16,
        result_bytes=4,
        output_bytes=2**40 + 3,
        input_hash="0a",
        exit_code=-9,
        attempts=3,
        failed_attempts=(Attempt(1, NOW, NOW + 1, failure, 1, 0.5, ("9 sh",)), Attempt(2, NOW + 2, NOW + 3, failure)),
        asynchronous=True,
        killed=("12 python", "13 sh"),
        peak_memory=2**42,
        timeout=1.5,
        idempotency_key="key",
        priority=0,
        run_at=NOW + 0.125,
        schedule="nightly",
        scheduled_for=NOW,
        rerun_of="e1",
        rerun_root="e0",
        parent="e2",
        root="e0",
        depth=2,
        reach='["a*"]',
        group='"kim"',
        via="mcp desk/1.0",
        node="a",
        approval=Approval(approved=True, by="kim", at=NOW, reason="Ä"),
        on_end=Telling((Recipient((Status.SUCCEEDED,), "http://example.org/", None, {"env": "X"}),), 2),
        timings=Timings(0.1, 0.2, 0.3, 0.4, 0.5),
        started_at=NOW + 0.25,
    )


def bare(execution):
    """Return the execution as a list has it."""
    failure = None if execution.failure is None else evolve(execution.failure, traceback=None)
    return replace(execution, input=b"null", result=None, events=b"[]", failed_attempts=(), killed=(), failure=failure)


@asynccontextmanager
async def running(folder, *, clock=lambda: NOW, node=None, left=None, **settings):
    """Run a history on `folder`, close it in the end."""
    history = History(HistorySettings(**settings), folder, clock=clock, node=node, left=left)
    async with trio.open_nursery() as nursery:
        await nursery.start(history.run)
        with trio.fail_after(20):
            yield history
            await history.aclose()


async def unfinished(history):
    """Return the executions that were queued when the history was opened."""
    return tuple([await history.get(name) for name in history.left().queued])


async def all_lost(history):
    """Return the executions that ran when the last runner ended."""
    return tuple([await history.get(name) for name in history.left().lost])


async def stored(history):
    """Wait until everything recorded is in the database."""
    while history._pending.due or len(history._pending) or len(history._pending.pieces):
        await history._committer.wait_settled()


def rows(folder, sql="select * from executions order by id"):
    with closing(sqlite3.connect(f"file:{folder}/history.db?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def make_older(folder):
    """Give a database the schema of the first release that converts it."""
    with closing(sqlite3.connect(folder / "history.db")) as link, link:
        for name in ("schedule", "rerun_of", "rerun_root", "parent", "root", "node", "due"):
            link.execute(f"drop index executions_by_{name}")
        for step in tables.STEPS.values():
            for statement in step:
                column = re.match("alter table executions add column (\\S+)", statement)[1]
                link.execute(f"alter table executions drop column {column}")
        link.execute("update meta set value = 2 where name = 'schema'")


def segments(folder):
    """Return the segments that have records."""
    return sorted(path for path in folder.glob("journal/*") if len(written(path)) > START_BYTES)


def written(path):
    """Return the bytes of a segment without the reserved space behind its records."""
    return path.read_bytes().rstrip(b"\0")


def crashed(folder, to):
    """Return a copy of the files as a crash at this moment would leave them."""
    return shutil.copytree(folder, to)


@contextmanager
def locked_out(folder):
    """Keep a history on `folder` from writing."""
    with closing(sqlite3.connect(folder / "history.db", isolation_level=None)) as other:
        other.execute("begin exclusive")
        yield
        other.execute("rollback")
