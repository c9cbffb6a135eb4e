"""Benchmark: the record at a million executions: lists, filters, deep pages, keys, statistics; ends a second."""

from __future__ import annotations

import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio
from attrs import evolve
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from actors.history.database import Database
from actors.history.history import History
from actors.history.queries import Query
from actors.history.tables import SCHEMA_VERSION
from actors.rollups import Ended, Rollup, Span, expired, spans_of
from config.settings import HistorySettings
from protocol.errors import ErrorKind
from protocol.events import OutputEvent, StatusEvent, encode_all
from protocol.ids import execution_id
from protocol.model import Execution, Kind, ModuleRef, Status, Stream, Timings
from tests.benchmarks.report import Report

report = Report(__file__)
ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
DAYS = 20
TIMES = 25
NOW = time.time()
BEGIN = NOW - DAYS * 86400
KEPT = dict(expired(NOW, 30 * 86400))
COLUMNS = [
    "id",
    "revision",
    "module",
    "version",
    "env",
    "status",
    "subject",
    "created_at",
    "started_at",
    "finished_at",
    "failure_kind",
    "failure",
    "exit_code",
    "attempts",
    "output_dropped",
    "queue_seconds",
    "build_seconds",
    "start_seconds",
    "load_seconds",
    "run_seconds",
    "idempotency_key",
    "events_count",
    "asynchronous",
    "priority",
    "summary",
    "output_bytes",
    "depth",
]


def printed(text: str) -> bytes:
    """Return the events of an execution that printed something, as the runner records them."""
    return encode_all([StatusEvent(0, NOW, Status.RUNNING, 1), OutputEvent(1, NOW, Stream.STDOUT, text)])


def some_rows(rollups: dict[Span, Rollup]) -> Iterator[tuple[Any, ...]]:
    """Make the rows of 200 modules and 1000 callers, a few of which make most: 5 % fail, 10 % have a key."""
    chance = random.Random(7)
    modules = [f"team-{n % 10}.module-{n}" for n in range(200)]
    callers = [f"caller-{n}" for n in range(1000)]
    kinds = [ErrorKind.HANDLER_ERROR] * 15 + [ErrorKind.TIMEOUT] * 4 + [ErrorKind.OUT_OF_MEMORY]
    for number in range(ROWS):
        at = BEGIN + number * (DAYS * 86400 / ROWS)
        module = modules[int(200 * chance.random() ** 3)]
        kind = kinds[number // 20 % 20] if number % 20 == 0 else None
        status = Status.SUCCEEDED if kind is None else Status.FAILED
        seconds = chance.lognormvariate(-3, 1.5)
        ended = Ended(module, at + seconds, status, kind, seconds)
        for span in (span for span in spans_of(ended) if span.start >= KEPT[span.width]):
            rollups.setdefault(span, Rollup()).count(ended, 1)
        failure = None if kind is None else f'{{"kind": "{kind}", "message": "it did not work"}}'
        name = f"{int(at * 1000) << 16:016x}-{number:08x}"
        caller = callers[int(1000 * chance.random() ** 3)]
        yield (
            *(name, number, module, f"1.{number % 3}", "venv", status.value, caller, at, at, at + seconds),
            *(kind and kind.value, failure, 0 if kind is None else 1, 1, 0, 0.001, 0.0, 0.0, 0.0, seconds),
            *(f"key-{number}" if number % 10 == 0 else None, 2, 0, 5, 0, 80, 0),
        )


def fill(path: Path) -> None:
    """Write the rows with their payloads, events and rollups."""
    database = Database(path)
    database.prepare()
    database.close()
    rollups: dict[Span, Rollup] = {}
    payload, events = b'{"name": "' + b"x" * 80 + b'"}', printed("x" * 80)
    with closing(sqlite3.connect(path)) as link:
        link.execute("pragma synchronous=off")
        link.execute("pragma cache_size=-400000")
        marks = ", ".join("?" * len(COLUMNS))
        link.executemany(f"insert into executions ({', '.join(COLUMNS)}) values ({marks})", some_rows(rollups))
        link.execute("insert into payloads (id, input, result) select id, ?, ? from executions", (payload, payload))
        link.execute("insert into events select id, 0, 2, ? from executions", (events,))
        link.executemany(
            "insert into rollups values (?, ?, ?, ?)",
            ((span.module, span.width, span.start, msgspec.msgpack.encode(r)) for span, r in rollups.items()),
        )
        link.execute("update meta set value = ? where name in ('rows', 'revision')", (ROWS,))
        link.commit()
        assert link.execute("select value from meta where name = 'schema'").fetchone() == (SCHEMA_VERSION,)


@asynccontextmanager
async def opened(folder: Path, **settings: Any) -> Any:
    """Run a history on a folder."""
    history = History(HistorySettings(**settings), folder)
    async with trio.open_nursery() as nursery:
        await nursery.start(history.run)
        yield history
        await history.aclose()


async def measure(what: str, work: Callable[[], Awaitable[Any]], say: Callable[[Any], str] = lambda _: "") -> None:
    """Print the median and the worst time of `work`."""
    taken, result = [], None
    for _ in range(TIMES):
        began = time.perf_counter()
        result = await work()
        taken.append((time.perf_counter() - began) * 1000)
    text = f"{statistics.median(taken):.2f} ms, worst {max(taken):.2f} ms{say(result)}"
    report.line(what, text, ms=statistics.median(taken), worst_ms=max(taken))


async def lists(history: History) -> None:
    """Print the times of lists, for each filter and for hard combinations."""
    common, rare = "team-0.module-0", "team-9.module-199"
    globs = ("team-3.*", "team-4.*")
    failed, timeout = Status.FAILED, ErrorKind.TIMEOUT
    middle = BEGIN + DAYS * 43200
    for what, query in {
        "newest 50": Query(),
        "newest 500": Query(limit=500),
        "module": Query(module=common),
        "module, rare": Query(module=rare),
        "module, unknown": Query(module="unknown"),
        "status": Query(status=failed),
        "status, none": Query(status=Status.QUEUED),
        "kind": Query(kind=ErrorKind.OUT_OF_MEMORY),
        "kind, none": Query(kind=ErrorKind.LOST),
        "subject": Query(subject="caller-0"),
        "subject, unknown": Query(subject="unknown"),
        "version": Query(version="1.1"),
        "version, none": Query(version="9"),
        "module + status": Query(module=common, status=failed),
        "module + kind": Query(module=common, kind=timeout),
        "module + version, none": Query(module=common, version="9"),
        "module + subject": Query(module=rare, subject="caller-0"),
        "module + subject, both common": Query(module=common, subject="caller-0"),
        "module + subject + kind, none": Query(module=common, subject="caller-0", kind=ErrorKind.LOST),
        "status + version, none": Query(status=Status.SUCCEEDED, version="9"),
        "globs": Query(modules=globs),
        "globs, none": Query(modules=("unknown-*", "x[a-z]*")),
        "globs + status + subject": Query(modules=globs, status=failed, subject="caller-5"),
        "text": Query(text="XXX"),
        "text, none": Query(text="unknown"),
        "text, in errors": Query(text="did not WORK", status=failed),
        "text + module, none": Query(text="unknown", module=common),
        "text + globs + version, none": Query(text="unknown", modules=globs, version="9"),
        "a day in the middle": Query(since=middle, until=middle + 86400),
        "a day in the middle, version, none": Query(since=middle, until=middle + 86400, version="9"),
    }.items():
        await measure(f"list, {what}", lambda query=query: history.list(query), lambda page: f" ({len(page.items)})")
    for what, query in {"all": Query(), "module + status": Query(module=common, status=failed)}.items():
        cursor = (await history.list(evolve(query, until=BEGIN + DAYS * 8640))).next_cursor
        assert cursor is not None
        deep = evolve(query, cursor=cursor)
        await measure(f"deep page, {what}", lambda deep=deep: history.list(deep))


async def look_ups(history: History) -> None:
    """Print the times of finding one execution, and of statistics."""
    keyed = (await history.list(Query(until=BEGIN + DAYS * 43200, limit=500))).items
    found = next(item for item in keyed if item.idempotency_key)
    await measure("get", lambda: history.get(found.id))
    since = BEGIN
    key = found.idempotency_key or ""
    await measure("find_keyed", lambda: history.find_keyed(found.subject, found.module.name, key, since))
    await measure("find_keyed, none", lambda: history.find_keyed(found.subject, found.module.name, "unknown", since))
    module = "team-0.module-0"
    total = lambda stats: f" ({stats.total} ends)"  # noqa: E731
    await measure("stats, everything", lambda: history.stats(module), total)
    await measure("stats, the last hour", lambda: history.stats(module, since=NOW - 3600), total)
    await measure("stats, 10 days", lambda: history.stats(module, since=NOW - 13 * 86400, until=NOW - 3 * 86400), total)


def begun(caller: int = 0) -> Execution:
    """Return a small execution that runs, as the runner makes it."""
    at = time.time()
    return Execution(
        id=execution_id(),
        module=ModuleRef(f"team-0.module-{caller}", "1"),
        env=Kind.INLINE,
        status=Status.RUNNING,
        created_at=at,
        input=b'{"name": "' + b"x" * 80 + b'"}',
        subject=f"caller-{caller % 50}",
        attempts=1,
        started_at=at,
    )


def ended(execution: Execution, events: bytes = b"[]") -> Execution:
    """Return it ended."""
    return replace(
        execution,
        status=Status.SUCCEEDED,
        result=b'{"message": "Hello"}',
        events=events,
        events_count=1,
        exit_code=0,
        peak_memory=13_000_000,
        finished_at=time.time(),
        timings=Timings(run=0.001),
    )


async def calls(history: History | None, times: int, seconds: float, events: bytes, *, waits: bool) -> float:
    """Return the CPU seconds of 16 callers, all threads together, that make executions; None records nothing."""

    async def call() -> None:
        for _ in range(times // 16):
            execution = begun()
            if not waits:
                execution = replace(execution, status=Status.QUEUED, asynchronous=True)
                if history is not None:
                    await history.submit(execution)
                await trio.sleep(seconds / 2)
                execution = replace(execution, status=Status.RUNNING)
                if history is not None:
                    await history.submit(execution)
            elif history is not None:
                history.begin(execution)
            await trio.sleep(seconds)
            done = ended(execution, events)
            if history is not None:
                await history.finish(done)

    began = time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(call)
    while history is not None and history.statistics().pending:
        await trio.sleep(0.02)
    return time.process_time() - began


async def costs() -> None:
    """Print the CPU time of the record of one execution: journal, rows, counts and events, in all threads.

    The time of the same callers without a record is subtracted. With a handler of 20 ms, 16 callers make at most 800
    executions a second, so commits are as small as a busy runner's.
    """
    times = 8000
    for what, waits in (("waits", True), ("asynchronous", False)):
        for handler, seconds in (("at once", 0.0), ("after 20 ms", 0.02)):
            for said, events in (("silent", b"[]"), ("prints", printed("hello"))):
                bare, recorded = [], []
                for _ in range(3):
                    bare.append(await calls(None, times, seconds, events, waits=waits))
                    with tempfile.TemporaryDirectory() as name:
                        async with opened(Path(name)) as history:
                            recorded.append(await calls(history, times, seconds, events, waits=waits))
                micros = (statistics.median(recorded) - statistics.median(bare)) / times * 1e6
                report.line(f"record, {what}, {said}, ends {handler}", f"{micros:.0f} us of CPU", us=micros)


async def ends(history: History, callers: int, times: int) -> float:
    """Return the executions per second that so many callers begin and record as ended."""

    async def call(caller: int) -> None:
        for number in range(times // callers):
            execution = begun(caller + number % 50)
            history.begin(execution)
            await trio.lowlevel.checkpoint()
            await history.finish(ended(execution))

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for caller in range(callers):
            nursery.start_soon(call, caller)
    await history.list(Query(limit=1))
    return times / (time.perf_counter() - began)


async def main() -> None:
    """Print one line for each measure."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    await costs()
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        fill(folder / "history.db")
        size = (folder / "history.db").stat().st_size
        print(f"{ROWS} executions made in {time.perf_counter() - began:.0f} s, {size / ROWS:.0f} bytes each")
        async with opened(folder, max_rows=2 * ROWS, max_bytes=1 << 40) as history:
            await lists(history)
            await look_ups(history)
            for durability_callers in (1, 64):
                rate = await ends(history, durability_callers, 20_000)
                what = f"ends a second in a full record, {durability_callers} callers"
                report.line(what, f"{rate:.0f}", per_second=rate)
        async with opened(folder, max_rows=2 * ROWS, max_bytes=1 << 40, durability="disk") as history:
            rate = await ends(history, 64, 10_000)
            report.line("ends a second on disk, 64 callers", f"{rate:.0f}", per_second=rate)
        async with opened(folder, max_rows=ROWS, max_bytes=1 << 40) as history:
            began = time.perf_counter()
            rate = await ends(history, 64, 20_000)
            while history.statistics().pending or history.statistics().rows > ROWS:
                await trio.sleep(0.05)
            deleted, seconds = history.statistics().deleted, time.perf_counter() - began
            text = f"{rate:.0f}; {deleted / seconds:.0f} deleted a second"
            report.line("ends a second while old ones are deleted", text, per_second=rate, deleted=deleted / seconds)


if __name__ == "__main__":
    trio.run(main)
