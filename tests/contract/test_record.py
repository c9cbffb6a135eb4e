"""Contract: what the history keeps of an execution by the module's field `record`."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing

import pytest
import trio
from msgspec.structs import replace

from actors.history.history import summary_of
from config.modules.policies import RetryPolicy
from protocol import views
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.events import ItemEvent, OutputEvent, ResultEvent
from protocol.model import Execution, Kind, ModuleRef, Record, Status
from tests.support import ANYBODY, PATIENCE, WAIT_FOR, inline, open_service, wait_until

SECRET = "confidential"
TELL = inline(
    "tell",
    "def handler(input):\n    print('printed', input)\n    yield input\n    yield 2\n",
    record=Record.SUMMARY,
)
HELD = inline(
    "held",
    WAIT_FOR + "def handler(input):\n    print(input)\n    wait_for(input['path'])\n    return input\n",
    record=Record.SUMMARY,
    concurrency=1,
    retry=RetryPolicy(attempts=3, on=(ErrorKind.LOST,)),
)


@pytest.fixture
async def service(tmp_path):
    async with open_service(tmp_path, [TELL, HELD]) as opened:
        yield opened


async def stored(service, name):
    """Return the record of an execution that is not live."""
    await wait_until(lambda: service.runs.find(name) is None, "the execution has not ended")
    return await service.get(ANYBODY, name)


async def followed(service, name):
    events = []
    with trio.fail_after(PATIENCE):
        follower = await service.follow(ANYBODY, name)
        while (some := await follower.next()) is not None:
            events += some
    return events


def payload_free(execution):
    return (execution.input, execution.result, execution.events) == (b"null", None, b"[]")


def bytes_in(database, name):
    with closing(sqlite3.connect(database)) as link:
        rows = link.execute("select input, result from payloads where id = ?", [name]).fetchall()
        rows += link.execute("select events, null from events where id = ?", [name]).fetchall()
    return [part for row in rows for part in row if part is not None]


async def test_a_waiting_caller_gets_all_and_the_history_sizes(service):
    answer = await service.execute(ANYBODY, "tell", b'"confidential"')

    assert answer.result == b'["confidential",2]'
    assert views.answered(answer)["stdout"] == "printed confidential\n"
    found = await stored(service, answer.id)
    assert payload_free(found)
    shown = views.recorded(found)
    assert (shown["record"], shown["status"], shown["result"]) == ("summary", "succeeded", None)
    output = len("printed confidential\n") + len('"confidential"') + len("2")
    sizes = (shown["input_bytes"], shown["result_bytes"], shown["output_bytes"], shown["output_dropped"])
    assert sizes == (len(b'"confidential"'), len(answer.result), output, output)


async def test_the_record_of_other_modules_has_sizes_too(tmp_path):
    async with open_service(tmp_path, [inline("echo", "def handler(input): return input")]) as service:
        done = await service.execute(ANYBODY, "echo", b"")

        shown = views.recorded(await service.get(ANYBODY, done.id))
        sizes = (shown["record"], shown["input_bytes"], shown["result_bytes"], shown["output_bytes"])
        assert sizes == ("full", 4, 4, 0)


async def test_a_live_follower_gets_all_and_a_later_one_a_gap(service, tmp_path):
    path = tmp_path / "go"
    accepted = await service.submit(ANYBODY, "held", b'{"path": "%s"}' % str(path).encode())
    events = []

    async def follow():
        events.extend(await followed(service, accepted.id))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            path.touch()

    assert [event.text for event in events if isinstance(event, OutputEvent)]
    assert isinstance(events[-1], ResultEvent)
    assert str(path).encode() in bytes(events[-1].result)
    await stored(service, accepted.id)
    later = await followed(service, accepted.id)
    assert not [event for event in later if isinstance(event, OutputEvent | ItemEvent)]
    assert (later[-1].seq, bytes(later[-1].result)) == (events[-1].seq, b"null")


async def test_a_live_follower_gets_a_large_result(service):
    """It is in the event itself, as no record has it."""
    large = b'"%s"' % (b"x" * 100_000)
    _, follower = await service.begin(ANYBODY, "tell", large)
    events = []
    with trio.fail_after(PATIENCE):
        while (some := await follower.next()) is not None:
            share = service.answers.share()
            events += await service.answers.turn_of(share, some)
            share.give()
    assert bytes(events[-1].result) == b"[%s,2]" % large
    assert service.answers.budget.taken == 0


async def test_nothing_of_a_running_call_is_in_the_database(service, tmp_path):
    path = tmp_path / "go"
    given = b'{"path": "%s", "text": "confidential"}' % str(path).encode()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.execute, ANYBODY, "held", given)
        database = tmp_path / "data" / "history.db"

        def written():
            with closing(sqlite3.connect(database)) as link:
                return link.execute("select id from executions where status = 'running'").fetchone()

        await wait_until(written, "the begin was not written")
        assert bytes_in(database, written()[0]) == [b"null"]
        path.touch()


async def test_the_input_of_an_accepted_execution_is_kept_until_its_end(tmp_path):
    path = tmp_path / "go"
    given = b'{"path": "%s", "text": "confidential"}' % str(path).encode()
    async with open_service(tmp_path, [HELD]) as service:
        first = await service.submit(ANYBODY, "held", given)
        second = await service.submit(ANYBODY, "held", given)

        assert (await service.history.get(second.id)).input == given
        await service.runs.cancel(service.runs.find(second.id))
        assert payload_free(await stored(service, second.id))
        path.touch()
        done = await stored(service, first.id)
        assert (done.status, payload_free(done), done.input_bytes) == (Status.SUCCEEDED, True, len(given))


async def test_a_call_that_was_lost_runs_again_with_its_input(tmp_path):
    """The next runner begins with the files as a crash leaves them."""
    path = tmp_path / "go"
    given = b'{"path": "%s", "text": "confidential"}' % str(path).encode()
    async with open_service(tmp_path, [HELD]) as service:
        name = (await service.submit(ANYBODY, "held", given)).id
        await wait_until(lambda: service.runs.find(name).began_at, "the call has not begun")
        crashed = tmp_path / "crashed"
        shutil.copytree(tmp_path / "data", crashed / "data", ignore=shutil.ignore_patterns("work", "*.lock"))
        path.touch()

    async with open_service(crashed, [HELD]) as service:
        done = await stored(service, name)

        assert (done.status, done.attempts) == (Status.SUCCEEDED, 2)
        assert payload_free(done)
        assert done.result_bytes == len(given.replace(b" ", b""))
        await service.history.aclose()
        assert SECRET.encode() not in b"".join(bytes_in(crashed / "data" / "history.db", name))


async def test_a_lost_call_that_does_not_run_again_leaves_no_input(tmp_path):
    path = tmp_path / "go"
    once = inline("held", HELD.code, record=Record.SUMMARY)
    async with open_service(tmp_path, [once]) as service:
        name = (await service.submit(ANYBODY, "held", b'{"path": "%s"}' % str(path).encode())).id
        await wait_until(lambda: service.runs.find(name).began_at, "the call has not begun")
        crashed = tmp_path / "crashed"
        shutil.copytree(tmp_path / "data", crashed / "data", ignore=shutil.ignore_patterns("work", "*.lock"))
        path.touch()

    async with open_service(crashed, [once]) as service:
        found = await stored(service, name)
        assert found.failure.kind is ErrorKind.LOST
        assert payload_free(found)


async def test_a_repeated_key_is_compared_by_a_hash(service):
    first = await service.execute(ANYBODY, "tell", b'{"a": 1, "b": 2}', key="k")
    again = await service.execute(ANYBODY, "tell", b'{"b":2,"a":1}', key="k")

    assert again.id == first.id
    assert (again.result, again.summary) == (None, True)
    with pytest.raises(RunnerError) as caught:
        await service.execute(ANYBODY, "tell", b'{"a": 1}', key="k")
    assert caught.value.failure.kind is ErrorKind.CONFLICT
    assert re.fullmatch("[0-9a-f]{64}", again.input_hash)


async def test_a_failure_keeps_its_error(tmp_path):
    failing = inline("failing", "def handler(input):\n    raise ValueError('no')", record=Record.SUMMARY)
    async with open_service(tmp_path, [failing]) as service:
        done = await service.execute(ANYBODY, "failing", b"1")

        found = await stored(service, done.id)
        assert (found.failure.message, found.result_bytes) == ("no", None)


async def test_a_large_answer_waits_for_its_turn_in_memory(service):
    """Its record has no result to read again."""
    answers = service.answers
    done = await service.execute(ANYBODY, "tell", b'"%s"' % (b"x" * 100_000))
    others = answers.share()
    assert others.take(answers.budget.limit)

    got = []

    async def wait():
        got.append(await answers.ended(answers.share(), done))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert answers.held.taken > 100_000
        others.give()
    assert got[0].result == done.result
    assert answers.held.taken == 0


async def test_results_that_wait_have_a_bound(service):
    answers = service.answers
    done = await service.execute(ANYBODY, "tell", b'"%s"' % (b"x" * 100_000))
    answers.share().take(answers.budget.limit)
    answers.held.take(answers.held.limit)

    with pytest.raises(RunnerError) as caught:
        await answers.ended(answers.share(), done)
    assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
    assert done.id in caught.value.failure.message


def test_a_queued_execution_loses_its_events_only():
    execution = Execution(
        "e", ModuleRef("m", "1"), Kind.INLINE, Status.QUEUED, 1.0, b"[1]", asynchronous=True, events=b"[{}]"
    )
    assert (summary_of(execution).input, summary_of(execution).events) == (b"[1]", b"[]")
    failed = replace(execution, status=Status.FAILED, failure=Failure(ErrorKind.LOST, "gone"))
    assert summary_of(failed).input == b"null"
