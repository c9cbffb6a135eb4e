"""Contract: questions to the history: every filter, a bounded number of rows read, keys, statistics."""

import itertools
import re
import sqlite3
from contextlib import closing, contextmanager

import pytest
import sqlalchemy as sa
from attrs import evolve
from msgspec.structs import replace
from trio.testing import wait_all_tasks_blocked

from actors.history import committer, queries
from actors.history.queries import Page, Query
from actors.sqlite import module_matches, open_reader
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.model import Status, Timings
from tests.records import NOW, bare, crashed, full, make, printed, rows, running, stored, unfinished

FAILURES = (ErrorKind.TIMEOUT, ErrorKind.HANDLER_ERROR)


def failed(kind=ErrorKind.TIMEOUT, **fields):
    return make(Status.FAILED, failure=Failure(kind, "it did not work"), **fields)


def sample():
    """Return executions such that every filter matches some of them."""
    made = []
    for number in range(120):
        fields = {"at": NOW + number, "module": f"m{number % 3}", "subject": f"s{number % 5}"}
        if number % 4 == 0:
            made.append(failed(FAILURES[number % 8 // 4], **fields))
        else:
            made.append(make((Status.SUCCEEDED, Status.QUEUED, Status.SUCCEEDED)[number % 4 - 1], **fields))
    return [replace(e, module=replace(e.module, version=str(n % 2))) for n, e in enumerate(made)]


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """Wait longer than a second for the database, which a busy machine may take to write."""
    monkeypatch.setattr(committer, "LIST_WAIT_SECONDS", 60.0)


@pytest.fixture
async def filled(tmp_path):
    made = sample()
    async with running(tmp_path) as history:
        for execution in made:
            await history.finish(execution)
        yield history, made


async def all_pages(history, query, most=1000):
    """Return all items, and the number of items on each page."""
    items, sizes = [], []
    while len(sizes) < most:
        page = await history.list(query)
        items += page.items
        sizes.append(len(page.items))
        if page.next_cursor is None:
            return items, sizes
        query = evolve(query, cursor=page.next_cursor)
    raise AssertionError("the pages do not end")


def fits(execution, query):
    kind = None if execution.failure is None else execution.failure.kind
    return (
        query.module in (None, execution.module.name)
        and query.version in (None, execution.module.version)
        and query.status in (None, execution.status)
        and query.kind in (None, kind)
        and query.subject in (None, execution.subject)
        and (not query.unresolved or execution.status is Status.FAILED)
        and (not query.modules or module_matches(execution.module.name, query.modules))
        and (query.since is None or execution.created_at >= query.since)
        and (query.until is None or execution.created_at < query.until)
    )


FILTERS = [
    dict(given)
    for given in itertools.product(
        [("module", None), ("module", "m1"), ("module", "unknown")],
        [("version", None), ("version", "1")],
        [("status", None), ("status", Status.SUCCEEDED), ("status", Status.FAILED)],
        [("kind", None), ("kind", ErrorKind.TIMEOUT)],
        [("subject", None), ("subject", "s1")],
        [("modules", ()), ("modules", ("m[12]", "x*"))],
        [("unresolved", False)],
    )
]


FILTERS += [{"module": module, "unresolved": True, "modules": ()} for module in (None, "m1")]


@pytest.mark.parametrize("looked_at", [7, 5000])
async def test_every_combination_of_filters_lists_what_fits_newest_first(filled, looked_at, monkeypatch):
    monkeypatch.setattr(queries, "LOOKED_AT", looked_at)
    history, made = filled
    for given in FILTERS:
        for times in ((None, None), (NOW + 20.5, NOW + 90.0)):
            query = Query(**given, since=times[0], until=times[1], limit=5)
            wanted = [bare(execution) for execution in reversed(made) if fits(execution, query)]
            assert (await all_pages(history, query))[0] == wanted, query


async def test_a_search_for_what_is_not_there_goes_on_page_by_page(filled, monkeypatch):
    monkeypatch.setattr(queries, "LOOKED_AT", 10)
    history, made = filled

    assert await all_pages(history, Query(version="9")) == ([], [0] * (len(made) // 10 + 1))
    # The index of the filter is followed, so only its rows are read.
    assert await all_pages(history, Query(module="m1", version="9")) == ([], [0] * 5)
    assert await all_pages(history, Query(module="unknown", version="9")) == ([], [0])
    assert await all_pages(history, Query(module="unknown")) == ([], [0])


async def test_of_two_indexes_the_more_selective_one_is_followed(filled, monkeypatch):
    monkeypatch.setattr(queries, "LOOKED_AT", 10)
    history, _ = filled
    rare_caller, rare_module = make(subject="kim", at=NOW - 1000), make(module="rare", subject="s1", at=NOW - 1000)
    await history.finish(rare_caller)
    await history.finish(rare_module)
    for number in range(30):
        await history.finish(make(module="greet", subject="s1", at=NOW + 1000 + number))

    assert (await history.list(Query(module="greet", subject="kim"))) == Page((bare(rare_caller),))
    assert (await history.list(Query(module="rare", subject="s1"))) == Page((bare(rare_module),))


@pytest.mark.parametrize(
    ("modules", "wanted"),
    [
        (("m1",), {"m1"}),
        (("m*",), {"m0", "m1", "m2"}),
        (("m[!1]", "x"), {"m0", "m2"}),
        (("M1", "m", "1"), set()),
        (("m1", "m1*", "?2"), {"m1", "m2"}),
    ],
)
async def test_a_caller_sees_the_modules_of_its_globs_only(filled, modules, wanted):
    history, _ = filled
    items, _ = await all_pages(history, Query(modules=modules))

    assert {item.module.name for item in items} == wanted
    for name in ("m0", "m1", "m2"):
        items, _ = await all_pages(history, Query(module=name, modules=modules))
        assert {item.module.name for item in items} == wanted & {name}


async def test_pages_go_on_where_many_were_created_at_one_time(tmp_path, monkeypatch):
    monkeypatch.setattr(queries, "LOOKED_AT", 4)
    made = [replace(make(), created_at=NOW) for _ in range(20)]
    async with running(tmp_path) as history:
        for execution in made:
            await history.finish(execution)
        for query in (Query(limit=3), Query(limit=3, version="1"), Query(limit=3, version="1", until=NOW + 1)):
            items, _ = await all_pages(history, query)
            assert [item.id for item in items] == sorted((item.id for item in made), reverse=True)
        assert (await history.list(Query(until=NOW))).items == ()


# Statements

TABLE = re.compile(r"(?:FROM|INTO|UPDATE|JOIN) (executions|payloads|events|rollups)\b")


@contextmanager
def statements():
    """Collect all statements sent to a database."""
    seen = {}

    def note(_connection, _cursor, sql, parameters, _context, _many):
        seen.setdefault(sql, parameters[0] if parameters and isinstance(parameters, list) else parameters)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


async def test_no_statement_reads_a_whole_table_or_sorts(tmp_path):
    lost, keyed = make(Status.RUNNING, at=NOW - 100), make(Status.QUEUED, idempotency_key="k", subject="kim")
    old = make(at=NOW - 40 * 86400)
    async with running(tmp_path / "a") as history:
        history.begin(lost)
        history.append(lost.id, printed("so far"), 0)
        await stored(history)
        copy = crashed(tmp_path / "a", tmp_path / "b")
    async with running(copy) as history:
        with statements() as seen:
            # Opened again, so that the statements of replay and of lost executions are collected too.
            await history.finish(old)
            await history.submit(keyed)
            again = crashed(copy, tmp_path / "c")
            await stored(history)
            assert await history.find_keyed("kim", "greet", "k", NOW) is not None
            await history.finish(full())
            history.begin(lost)
            history.append(lost.id, printed("more", first=9), 9, (0, 3))
            await stored(history)
            async with running(again) as other:
                assert await unfinished(other) == (keyed,)
                while other.statistics().deleted == 0:
                    await wait_all_tasks_blocked(0.01)
            for given in FILTERS:
                for times in ((None, None), (NOW + 20.5, NOW + 90.0)):
                    for cursor in (None, queries._cursor(NOW + 50, "x")):
                        await history.list(Query(**given, since=times[0], until=times[1], cursor=cursor))
            await history.stats("greet")
    wanted = {sql: parameters for sql, parameters in seen.items() if "sqlite_master" not in sql and TABLE.search(sql)}
    assert len(wanted) > 60
    verbs = {(sql.split()[0], table) for sql in wanted for table in TABLE.findall(sql)}
    assert {
        *itertools.product(("SELECT", "INSERT", "DELETE"), ("executions", "payloads", "events", "rollups"))
    } <= verbs
    with closing(open_reader(copy / "history.db")) as link:
        for sql, parameters in wanted.items():
            plan = [line[3] for line in link.execute(f"explain query plan {sql}", parameters)]
            scans = [line for line in plan if re.match(r"SCAN (executions|payloads|events|rollups)\b", line)]
            # In the order of an index, and no further than a limit.
            assert all("USING" in line and "INDEX" in line for line in scans), (sql, plan)
            assert not scans or "LIMIT" in sql, (sql, plan)
            assert not [line for line in plan if "TEMP B-TREE" in line], (sql, plan)


async def test_a_filter_by_equality_alone_is_a_search_in_its_index(filled):
    history, _ = filled
    with statements() as seen:
        await history.list(Query(module="m1", status=Status.FAILED))
        await history.list(Query(module="m1", kind=ErrorKind.TIMEOUT))
        await history.list(Query(kind=ErrorKind.TIMEOUT))
        await history.list(Query(subject="s1", since=NOW, until=NOW + 9))
    path = history._archive._database._path.parent
    used = []
    for sql, parameters in seen.items():
        if "ORDER BY executions.created_at DESC" in sql:
            with closing(sqlite3.connect(f"file:{path}/history.db?mode=ro", uri=True)) as link:
                used += [line[3] for line in link.execute(f"explain query plan {sql}", parameters)]
    assert used == [
        "SEARCH executions USING INDEX executions_by_module_status (module=? AND status=?)",
        "SEARCH executions USING INDEX executions_by_module_kind (module=? AND failure_kind=?)",
        "SEARCH executions USING INDEX executions_by_kind (failure_kind=?)",
        "SEARCH executions USING INDEX executions_by_subject (subject=? AND created_at>? AND (created_at,id)<(?,?))",
    ]


# Idempotency keys


async def test_the_newest_call_with_a_key_is_found_in_memory_and_in_the_database(tmp_path):
    def call(status, at, **fields):
        return make(status, at=at, **{"subject": "kim", "idempotency_key": "k", "input": b"[1]"} | fields)

    older, newer = call(Status.SUCCEEDED, NOW), call(Status.QUEUED, NOW + 10)
    others = [call(Status.QUEUED, NOW + 20, **f) for f in ({"subject": "x"}, {"module": "x"}, {"idempotency_key": "x"})]
    async with running(tmp_path) as history:
        for execution in (newer, older, *others):
            await (history.finish if execution.status.final else history.submit)(execution)
        for _ in range(2):
            assert await history.find_keyed("kim", "greet", "k", NOW) == newer
            assert await history.find_keyed("kim", "greet", "k", newer.created_at) == newer
            assert await history.find_keyed("kim", "greet", "k", NOW + 15) is None
            assert await history.find_keyed("kim", "greet", "unknown", NOW) is None
            await stored(history)
        # The later execution is in the database; the earlier one is written again.
        await history.finish(replace(older, attempts=2))
        assert await history.find_keyed("kim", "greet", "k", NOW) == newer
        begun = replace(newer, status=Status.RUNNING)
        history.begin(begun)
        assert await history.find_keyed("kim", "greet", "k", NOW) == begun
        ended = replace(newer, status=Status.SUCCEEDED, result=b"7", finished_at=NOW + 11)
        await history.finish(ended)
        assert await history.find_keyed("kim", "greet", "k", NOW) == ended
    async with running(tmp_path) as history:
        assert await history.find_keyed("kim", "greet", "k", NOW) == ended


# Statistics


def ran(seconds, *, at=NOW - 600, **fields):
    return make(at=at, timings=Timings(run=seconds), **fields)


async def test_the_statistics_of_a_module(tmp_path):
    async with running(tmp_path) as history:
        for number in range(1, 101):
            await history.finish(ran(number / 10))
        await history.finish(failed(ErrorKind.TIMEOUT, at=NOW - 600, timings=Timings(run=60.0)))
        await history.finish(failed(ErrorKind.LOAD_FAILED, at=NOW - 600))
        await history.finish(make(Status.CANCELLED, at=NOW - 600, failure=Failure(ErrorKind.CANCELLED, "gone")))
        await history.finish(ran(5.0, at=NOW - 7200))
        await history.finish(ran(5.0, module="other"))
        history.begin(make(Status.RUNNING, at=NOW - 600))
        stats = await history.stats("greet", since=NOW - 3000, until=NOW)

        assert stats.statuses == {Status.SUCCEEDED: 100, Status.FAILED: 2, Status.CANCELLED: 1}
        assert stats.kinds == {ErrorKind.TIMEOUT: 1, ErrorKind.LOAD_FAILED: 1, ErrorKind.CANCELLED: 1}
        assert (stats.total, stats.runs) == (103, 101)
        assert stats.success_rate == pytest.approx(100 / 102)
        assert stats.mean == pytest.approx((505 + 60) / 101)
        assert stats.p50 == pytest.approx(5.1, rel=0.02)
        assert stats.p95 == pytest.approx(9.6, rel=0.02)
        assert stats.since <= NOW - 3000 < stats.since + 300
        assert stats.until - 300 < NOW <= stats.until
        assert (await history.stats("greet")).total == 104
        assert (await history.stats("unknown")).total == 0


async def test_statistics_over_time_have_a_step_for_each_part_of_the_span(tmp_path):
    async with running(tmp_path) as history:
        await history.finish(ran(2.0, at=NOW - 60))
        await history.finish(ran(4.0, at=NOW - 3600))
        await history.finish(failed(ErrorKind.TIMEOUT, at=NOW - 3600))
        await history.finish(ran(8.0, at=NOW - 90000))
        await history.finish(ran(5.0, module="other"))
        steps = await history.stats_over("greet", seconds=86400, step=1800)

        assert [step.until - step.since for step in steps] == [1800] * 48
        assert all(one.until == other.since for one, other in itertools.pairwise(steps))
        assert steps[-1].since <= NOW < steps[-1].until
        assert {step.total for step in steps} == {0, 1, 2}
        found = {step.total: step for step in steps}
        assert found[2].statuses == {Status.SUCCEEDED: 1, Status.FAILED: 1}
        assert found[2].since <= NOW - 3600 < found[2].until
        assert found[1].p50 == pytest.approx(2.0, rel=0.02)
        assert sum(step.total for step in await history.stats_over("greet", seconds=30 * 86400, step=86400)) == 4


async def test_statistics_since_yesterday_are_those_of_each_module(tmp_path):
    async with running(tmp_path) as history:
        await history.finish(ran(2.0))
        await history.finish(failed(ErrorKind.TIMEOUT, at=NOW - 600))
        await history.finish(ran(5.0, module="other"))
        await history.finish(ran(5.0, module="old", at=NOW - 3 * 86400))
        found = await history.stats_lately()

        assert {name: stats.statuses for name, stats in found.items()} == {
            "greet": {Status.SUCCEEDED: 1, Status.FAILED: 1},
            "other": {Status.SUCCEEDED: 1},
        }


async def test_the_ends_of_all_modules_are_counted_by_hour_and_by_module(tmp_path):
    async with running(tmp_path) as history:
        await history.finish(ran(2.0, at=NOW - 60))
        await history.finish(failed(ErrorKind.TIMEOUT, at=NOW - 7200))
        await history.finish(ran(5.0, module="other", at=NOW - 7200))
        await history.finish(ran(5.0, module="old", at=NOW - 3 * 86400))
        both = {Status.SUCCEEDED: 1, Status.FAILED: 1}

        async def ends(globs):
            found, _ = await history.ends(globs, seconds=86400, step=3600)
            assert [each.start - found[0].start for each in found] == [3600 * number for number in range(24)]
            return [each.statuses for each in found if each.statuses]

        assert await ends(()) == [both, {Status.SUCCEEDED: 1}]
        assert await ends(("gr*",)) == [{Status.FAILED: 1}, {Status.SUCCEEDED: 1}]
        assert await ends(("none",)) == []
        _, lately = await history.ends((), seconds=86400, step=3600)
        assert {name: (each.statuses, each.kinds) for name, each in lately.items()} == {
            "greet": (both, {ErrorKind.TIMEOUT: 1}),
            "other": ({Status.SUCCEEDED: 1}, {}),
        }
        assert set((await history.ends(("oth*",), seconds=86400, step=3600))[1]) == {"other"}
        with closing(sqlite3.connect(tmp_path / "history.db")) as link:  # as an earlier release left it
            link.execute("delete from rollups where module = ''")
            link.commit()
        assert await ends(()) == [both, {Status.SUCCEEDED: 1}]


async def test_each_execution_is_counted_once(tmp_path):
    queued = make(Status.QUEUED, at=NOW - 60)
    ended = replace(queued, status=Status.SUCCEEDED, result=b"1", finished_at=NOW - 50, timings=Timings(run=2.0))
    begun = make(Status.RUNNING, at=NOW - 60)
    async with running(tmp_path / "a") as history:
        await history.submit(queued)
        await stored(history)
        history.begin(begun)
        await history.list(Query())
        await history.finish(ended)
        before = crashed(tmp_path / "a", tmp_path / "b")
        await stored(history)
        await history.finish(ended)
        await stored(history)
        assert (await history.stats("greet")).statuses == {Status.SUCCEEDED: 1}
    for _ in range(2):  # the second time there is nothing to replay
        async with running(before) as history:
            stats = await history.stats("greet")
            assert (stats.statuses, stats.kinds) == (
                {Status.SUCCEEDED: 1, Status.FAILED: 1},
                {ErrorKind.LOST: 1},
            )
    async with running(before) as history:
        # After a retry it is counted by its last end.
        history.begin(begun)
        await history.list(Query())
        assert (await history.stats("greet")).statuses == {Status.SUCCEEDED: 1}
        await history.finish(replace(begun, status=Status.SUCCEEDED, finished_at=NOW, timings=Timings(run=8.0)))
        stats = await history.stats("greet")
        assert (stats.statuses, stats.kinds, stats.mean) == ({Status.SUCCEEDED: 2}, {}, 5.0)
    assert rows(before, "select value from meta where name = 'rows'") == [(2,)]


async def test_a_bound_that_is_no_number_is_refused(filled):
    with pytest.raises(RunnerError) as caught:
        await filled[0].stats("m1", since=float("nan"))
    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, "since")


# Repetitions and schedules


async def test_a_schedule_and_the_repetitions_of_an_execution_are_found_in_their_indexes(tmp_path):
    async with running(tmp_path) as history:
        first = failed(at=NOW)
        made = [first]
        for number in range(5):
            made.append(failed(at=NOW + 1 + number, rerun_of=first.id, rerun_root=first.id))
            made.append(make(at=NOW + 10 + number, schedule=f"s{number % 2}", scheduled_for=NOW))
        for execution in made:
            await history.finish(execution)
        with statements() as seen:
            assert [e.id for e in (await history.list(Query(rerun_of=first.id))).items] == [
                e.id for e in reversed(made) if e.rerun_of
            ]
            assert [e.scheduled_for for e in (await history.list(Query(schedule="s0"))).items] == [NOW] * 3
            assert (await history.list(Query(schedule="s0", rerun_of=first.id))).items == ()
        plans = []
        with closing(open_reader(tmp_path / "history.db")) as link:
            for sql, parameters in seen.items():
                if "ORDER BY executions.created_at DESC" in sql:
                    plans += [line[3] for line in link.execute(f"explain query plan {sql}", parameters)]
        assert plans[:2] == [
            "SEARCH executions USING INDEX executions_by_rerun_of (rerun_of=?)",
            "SEARCH executions USING INDEX executions_by_schedule (schedule=?)",
        ]
        assert (await history.get(first.id)).reruns == tuple(e.id for e in reversed(made) if e.rerun_of)
        assert (await history.get(made[1].id)).reruns == ()


@pytest.mark.parametrize("looked_at", [3, 5000])
async def test_a_failure_is_unresolved_until_a_later_repetition_of_its_chain_succeeds(tmp_path, looked_at, monkeypatch):
    monkeypatch.setattr(queries, "LOOKED_AT", looked_at)

    async def unresolved(history, **more):
        return [execution.id for execution in (await all_pages(history, Query(unresolved=True, **more)))[0]]

    async with running(tmp_path) as history:
        alone, root, other = failed(at=NOW), failed(at=NOW + 1), make(at=NOW + 2, module="other")
        again = failed(at=NOW + 3, rerun_of=root.id, rerun_root=root.id)
        broken = failed(at=NOW + 4, rerun_of=other.id, rerun_root=other.id, module="other")
        for execution in (alone, root, other, again, broken):
            await history.finish(execution)
        assert await unresolved(history) == [broken.id, again.id, root.id, alone.id]
        assert await unresolved(history, module="other", status=Status.FAILED) == [broken.id]

        # The repetition of a repetition resolves the chain.
        await history.finish(make(at=NOW + 5, rerun_of=again.id, rerun_root=root.id))
        assert await unresolved(history) == [broken.id, alone.id]
        later = failed(at=NOW + 6, rerun_of=root.id, rerun_root=root.id)
        await history.finish(later)
        assert await unresolved(history) == [later.id, broken.id, alone.id]

        with pytest.raises(RunnerError, match="unresolved executions have failed, so none is running"):
            await history.list(Query(unresolved=True, status=Status.RUNNING))
