"""Contract: states from the log of a cluster become rows, and never replace later ones; a join loses nothing."""

import pytest
import trio
from msgspec.structs import replace

from actors.history import LOST, Query, is_elsewhere
from actors.history.history import History
from actors.history.pending import Stage, stage_of
from config.settings import HistorySettings
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.model import Recipient, Status, Telling
from tests.records import NOW, all_lost, make, printed, rows, running, stored, unfinished
from tests.support import ANYBODY, PATIENCE, inline, open_service

NOTIFIED = Telling((Recipient((Status.SUCCEEDED,), "http://example.org/"),))


def other(status=Status.SUCCEEDED, **fields):
    """Return an accepted execution of another runner."""
    return make(status, node="b", asynchronous=True, **fields)


@pytest.mark.parametrize(
    "later",
    [
        (Stage(Status.QUEUED, 0, None), Stage(Status.SCHEDULED, 0, None)),
        (Stage(Status.RUNNING, 1, None), Stage(Status.QUEUED, 0, None)),
        (Stage(Status.QUEUED, 1, None), Stage(Status.RUNNING, 1, None)),
        (Stage(Status.RUNNING, 2, None), Stage(Status.QUEUED, 1, None)),
        (Stage(Status.CANCELLED, 0, 1.0), Stage(Status.RUNNING, 3, None)),
    ],
)
def test_one_stage_follows_another(later):
    new, old = later

    assert new.follows(old)
    assert not old.follows(new)
    assert not new.follows(new)
    assert old.follows(None)


def test_of_two_ends_the_one_of_the_log_counts():
    mine, decided = Stage(Status.SUCCEEDED, 1, 1.0), Stage(Status.FAILED, 1, 2.0)

    assert decided.follows(mine)
    assert not decided.follows(decided)


async def test_states_of_others_are_read_like_those_of_this_runner(tmp_path):
    ended = other(input=b"[1]", result=b"2", events=printed("hi\n"), events_count=1, attempts=1)
    waits = other(Status.QUEUED)
    async with running(tmp_path) as history:
        await history.adopt([ended, waits])

        assert await history.get(ended.id) == ended
        assert await history.get(waits.id) == waits
        assert {each.id for each in (await history.list(Query(node="b"))).items} == {ended.id, waits.id}
        assert (await history.list(Query(node="a"))).items == ()
        assert (await history.stats("greet")).statuses == {Status.SUCCEEDED: 1}


async def test_a_state_that_is_known_or_older_changes_nothing(tmp_path):
    ended = other(attempts=1)
    async with running(tmp_path) as history:
        await history.adopt([ended])
        await history.adopt([ended, replace(ended, status=Status.RUNNING, finished_at=None)])
        await history.adopt([replace(ended, status=Status.QUEUED, attempts=0, finished_at=None)])

        assert await history.get(ended.id) == ended
        assert (await history.stats("greet")).statuses == {Status.SUCCEEDED: 1}


async def test_it_never_replaces_a_later_state_that_is_not_in_the_database_yet(tmp_path):
    queued = other(Status.QUEUED)
    ended = replace(queued, status=Status.SUCCEEDED, attempts=1, finished_at=NOW + 1, result=b"1")
    async with running(tmp_path) as history:
        await history.finish(ended)
        await history.adopt([queued])
        await stored(history)

        assert await history.get(queued.id) == ended


async def test_the_end_that_the_cluster_decided_replaces_one_of_this_runner_and_is_counted_once(tmp_path):
    mine = other(attempts=1)
    lost = replace(mine, status=Status.FAILED, failure=LOST, result=None, exit_code=None, finished_at=NOW + 9, node="c")
    async with running(tmp_path) as history:
        await history.finish(mine)
        await history.adopt([lost])

        found = await history.stats("greet")
        assert await history.get(mine.id) == lost
        assert found.statuses == {Status.FAILED: 1}


async def test_adopted_ends_lead_to_no_notices(tmp_path):
    told, mine = other(on_end=NOTIFIED), other(on_end=NOTIFIED)
    async with running(tmp_path) as history:
        await history.adopt([told])
        await history.finish(mine)
        await stored(history)

    assert rows(tmp_path, "select execution from notices") == [(mine.id,)]


async def test_adopted_states_are_not_in_the_journal(tmp_path):
    async with running(tmp_path) as history:
        before = history.statistics().journal_bytes
        await history.adopt([other() for _ in range(100)])

        assert history.statistics().journal_bytes == before
        assert history.statistics().rows == 100


async def test_a_start_in_a_cluster_loses_only_what_no_other_runner_decides_about(tmp_path):
    def running_one(**fields):
        return make(Status.RUNNING, attempts=1, **fields)

    alone, waited = running_one(asynchronous=True), running_one(node="a")
    accepted, foreign = running_one(node="a", asynchronous=True), running_one(node="b")
    queued = make(Status.QUEUED, node="a", asynchronous=True)
    asked = make(Status.QUEUED, node="a")
    before = [make(Status.QUEUED, asynchronous=True), alone, waited, accepted, foreign, queued, asked]
    async with running(tmp_path) as history:
        for execution in before:
            history.begin(execution)
        await history.catch_up()

    async with running(tmp_path, node="a") as history:
        assert {each.id for each in await all_lost(history)} == {alone.id, waited.id}
        assert {each.id for each in await unfinished(history)} == {asked.id}
        assert (await history.get(accepted.id)).status is Status.RUNNING
        assert (await history.get(foreign.id)).status is Status.RUNNING


async def test_a_start_alone_leaves_to_the_cluster_what_that_decides_about(tmp_path):
    def queued(status=Status.QUEUED, **fields):
        return make(status, asynchronous=True, run_at=NOW if status is Status.SCHEDULED else None, **fields)

    called = make(Status.RUNNING, attempts=1, node="a")
    shared = [queued(status, node=node) for node in "ab" for status in (Status.QUEUED, Status.SCHEDULED)]
    shared += [make(Status.RUNNING, attempts=1, node=node, asynchronous=True) for node in "ab"]
    shared.append(make(Status.RUNNING, attempts=1, node="b"))
    mine, later = queued(), queued(Status.SCHEDULED)
    async with running(tmp_path) as history:
        for execution in (called, *shared, mine, later):
            history.begin(execution)
        await history.catch_up()

    async with running(tmp_path, left="a") as history:
        assert {each.id for each in await all_lost(history)} == {called.id}
        assert {each.id for each in await unfinished(history)} == {mine.id}
        assert (await history.due(NOW + 9, 100))[0] == (later.id,)
        assert await history.count_scheduled() == 1
        for each in shared:
            assert (await history.get(each.id)).status is each.status
        assert [is_elsewhere(each, history.node) for each in (*shared, mine)] == [True] * len(shared) + [False]

    async with running(tmp_path, node="a") as history:
        assert await history.count_scheduled() == 3


async def test_a_runner_that_has_left_runs_nothing_of_the_cluster_and_can_end_it(tmp_path):
    module = inline("greet", "def handler(input):\n    return 1\n")
    waits = [make(status, node="b", asynchronous=True, run_at=1.0) for status in (Status.QUEUED, Status.SCHEDULED)]
    runs = make(Status.RUNNING, attempts=1, node="b", asynchronous=True)
    (tmp_path / "data").mkdir()
    async with running(tmp_path / "data") as history:
        await history.adopt([*waits, runs])

    async with open_service(tmp_path, [module]) as service:
        with trio.fail_after(PATIENCE):
            assert (await service.execute(ANYBODY, "greet", b"1")).status is Status.SUCCEEDED
            for each in waits:
                found = await service.get(ANYBODY, each.id)
                assert (found.status, found.waiting.reason) == (
                    each.status,
                    "it is in the cluster that this runner has left",
                )
            with pytest.raises(RunnerError, match="no runner that can be reached has it"):
                await service.follow(ANYBODY, runs.id)
            for each in (*waits, runs):
                assert (await service.cancel(ANYBODY, each.id)).status is Status.CANCELLED
                assert (await service.get(ANYBODY, each.id)).status is Status.CANCELLED
            assert service.runs.later.count == 0


async def test_without_an_open_history_nothing_is_adopted(tmp_path):
    history = History(HistorySettings(), tmp_path, node="a")

    with pytest.raises(Exception, match="not open") as caught:
        await history.adopt([other(failure=Failure(ErrorKind.LOST, "x"))])

    assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
    assert stage_of(make()).follows(None)
