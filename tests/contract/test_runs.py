"""Contract: executions as a resource: asynchronous runs, cancel in every state, retries, keys, the next runner."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
from contextlib import asynccontextmanager

import pytest
import structlog
import trio

from actors.events import Follower
from actors.history.queries import Query
from config.modules.policies import Backoff, RetryPolicy, WorkersPolicy
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.events import (
    ErrorEvent,
    ItemEvent,
    OutputEvent,
    ProgressEvent,
    ResultEvent,
    StatusEvent,
    decode_all,
    text_of,
)
from protocol.model import Isolation, Kind, Status
from tests.support import ANYBODY, PATIENCE, WAIT_FOR, gone, inline, open_service, wait_until

ECHO = inline("echo", "def handler(input): return input")
HELD = inline(
    "held",
    WAIT_FOR
    + "import os\ndef handler(input):\n    print('begun', flush=True)\n    wait_for(input)\n    return os.getpid()\n",
    concurrency=1,
)
QUICK = RetryPolicy(attempts=3, backoff=Backoff(initial=0.01, max=0.01, jitter=0.0), on=(ErrorKind.HANDLER_ERROR,))


@pytest.fixture
async def service(tmp_path):
    async with open_service(tmp_path, [ECHO, HELD]) as opened:
        yield opened


async def ended(service, name):
    with trio.fail_after(PATIENCE):
        follower = await service.follow(ANYBODY, name)
        while await follower.next() is not None:
            pass
        return await service.get(ANYBODY, name)


async def every(follower):
    while (events := await follower.next()) is not None:
        for event in events:
            yield event


async def printed(service, name, text="begun"):
    """Wait until an execution has printed."""
    await wait_until(lambda: text in "".join(_texts(service, name)), f"{name} has not printed {text!r}")


def _texts(service, name):
    live = service.runs.find(name)
    return [e.text for e in live.log.kept() if isinstance(e, OutputEvent)] if live else []


def calm(service):
    now = service.runs.statistics()
    return (now.live, now.queued) == (0, 0)


# -- asynchronous ----------------------------------------------------------------------------------------------------


async def test_an_accepted_execution_runs_and_is_recorded(service):
    accepted = await service.submit(ANYBODY, "echo", b'{"a": [1]}')
    assert (accepted.status, accepted.asynchronous, accepted.subject) == (Status.QUEUED, True, "tester")
    assert accepted.waiting.reason == "queued"

    done = await ended(service, accepted.id)

    assert (done.status, done.result, done.input, done.exit_code) == (Status.SUCCEEDED, b'{"a":[1]}', b'{"a": [1]}', 0)
    assert [type(e) for e in decode_all(done.events)].count(StatusEvent) >= 2
    assert calm(service)


async def test_it_is_recorded_before_it_is_accepted(service):
    accepted = await service.submit(ANYBODY, "held", json.dumps("/nowhere").encode())
    page = await service.list(ANYBODY, Query(status=None))

    assert [item.id for item in page.items] == [accepted.id]
    await service.cancel(ANYBODY, accepted.id)


async def test_executions_of_a_module_run_in_order_and_say_what_they_wait_for(service, tmp_path):
    flag = tmp_path / "go"
    names = [(await service.submit(ANYBODY, "held", json.dumps(str(flag)).encode())).id for _ in range(4)]
    await printed(service, names[0])
    waiting = [(await service.get(ANYBODY, name)).waiting for name in names]

    assert waiting[0] is None
    assert [each.reason for each in waiting[1:]] == [
        "queued",
        "queued; 1 of this module are before it",
        "queued; 2 of this module are before it",
    ]
    assert all(each.since > 1e9 for each in waiting[1:])
    flag.touch()
    done = [await ended(service, name) for name in names]
    assert [each.started_at for each in done] == sorted(each.started_at for each in done)


async def test_an_accepted_execution_waits_while_the_disk_is_full(service, monkeypatch):
    journal = type(service.history._archive.journal)
    real, refused = journal.append, []

    def full(*arguments, **named):
        refused.append(arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    accepted = await service.submit(ANYBODY, "held", b'"/"')
    monkeypatch.setattr(journal, "append", full)
    await wait_until(lambda: refused, "the begin was not recorded")
    monkeypatch.setattr(journal, "append", real)

    done = await ended(service, accepted.id)

    assert (done.status, done.attempts) == (Status.SUCCEEDED, 1)


async def test_others_of_its_module_run_while_one_waits_for_its_next_attempt(tmp_path):
    slow = RetryPolicy(attempts=2, backoff=Backoff(initial=3600, max=3600, jitter=0.0), on=(ErrorKind.HANDLER_ERROR,))
    picky = inline("picky", "def handler(input): return 1 / input", concurrency=1, retry=slow)
    async with open_service(tmp_path, [picky]) as service:
        failing = await service.submit(ANYBODY, "picky", b"0")
        working = await service.submit(ANYBODY, "picky", b"1")

        done = await ended(service, working.id)

        assert done.status is Status.SUCCEEDED
        assert (await service.get(ANYBODY, failing.id)).waiting.reason.startswith("attempt 2 of 2 in 3600")
        assert (await service.cancel(ANYBODY, failing.id)).status is Status.CANCELLED
        assert calm(service)


async def test_a_full_queue_refuses(tmp_path):
    async with open_service(tmp_path, [HELD], max_queued=2) as service:
        first = await service.submit(ANYBODY, "held", b'"/nowhere"')
        await printed(service, first.id)
        names = [first.id, *[(await service.submit(ANYBODY, "held", b'"/nowhere"')).id for _ in range(2)]]
        with pytest.raises(RunnerError) as caught:
            await service.submit(ANYBODY, "held", b'"/nowhere"')
        assert caught.value.failure.kind is ErrorKind.OVERLOADED
        assert caught.value.failure.retry_after
        assert "max_queued" in caught.value.failure.message
        for name in names:
            await service.cancel(ANYBODY, name)
        assert calm(service)


async def test_an_invalid_call_is_not_accepted(service):
    for name, data, kind in (
        ("nothing", b"1", ErrorKind.NOT_FOUND),
        ("echo", b"{", ErrorKind.BAD_INPUT),
    ):
        with pytest.raises(RunnerError) as caught:
            await service.submit(ANYBODY, name, data)
        assert caught.value.failure.kind is kind
    assert (await service.list(ANYBODY, Query())).items == ()


async def test_a_flood_of_one_module_does_not_starve_another(tmp_path):
    flood = inline("flood", "import time\ndef handler(input): time.sleep(0.02)", concurrency=8)
    async with open_service(tmp_path, [flood, ECHO], max_workers=2) as service:
        for _ in range(200):
            await service.submit(ANYBODY, "flood", b"null")
        assert (await service.execute(ANYBODY, "echo", b"1")).result == b"1"
        left = service.runs.statistics().live
        assert left > 100, "the other module had to wait for the flood"


async def test_many_at_once_each_end_once(service):
    names = [(await service.submit(ANYBODY, "echo", b"%d" % n)).id for n in range(60)]
    results = [int((await ended(service, name)).result) for name in names]

    assert results == list(range(60))
    assert (await service.details.stats(ANYBODY, "echo", since=None, until=None)).total == 60


# -- cancel ----------------------------------------------------------------------------------------------------------


async def test_cancel_while_it_waits_for_its_turn(service):
    first = await service.submit(ANYBODY, "held", b'"/nowhere"')
    await printed(service, first.id)
    second = await service.submit(ANYBODY, "held", b'"/nowhere"')
    cancelled = await service.cancel(ANYBODY, second.id)

    assert (cancelled.status, cancelled.failure.kind, cancelled.attempts) == (Status.CANCELLED, ErrorKind.CANCELLED, 0)
    assert cancelled.exit_code == 130
    assert await service.cancel(ANYBODY, second.id) == await service.get(ANYBODY, second.id), "again is no change"
    await service.cancel(ANYBODY, first.id)
    assert calm(service)


async def test_cancel_while_it_runs_ends_its_processes(tmp_path):
    code = """
    import subprocess, sys, time
    def handler(input):
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
        print("pid", child.pid, flush=True)
        time.sleep(600)
    """
    async with open_service(tmp_path, [inline("parent", code)]) as service:
        name = (await service.submit(ANYBODY, "parent", b"null")).id
        await printed(service, name, "\n")
        child = int("".join(_texts(service, name)).split()[1])
        cancelled = await service.cancel(ANYBODY, name)

        assert cancelled.status is Status.CANCELLED
        assert gone(child)
        assert [line.split()[0] for line in cancelled.killed] == [str(child)]
        assert (await service.get(ANYBODY, name)).killed == cancelled.killed
        assert 0 < cancelled.timings.run <= cancelled.duration, "the handler ran until it was ended"


async def test_several_cancels_wait_for_the_same_end(service):
    name = (await service.submit(ANYBODY, "held", b'"/nowhere"')).id
    await printed(service, name)
    ends = []

    async def cancel():
        ends.append(await service.cancel(ANYBODY, name))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(cancel)
    assert len({e.finished_at for e in ends}) == 1


@pytest.mark.parametrize("state", ["starting", "waiting for a worker", "between attempts"])
async def test_cancel_in_every_other_state(tmp_path, state):
    endless = RetryPolicy(attempts=9, backoff=Backoff(initial=600.0, max=600.0), on=(ErrorKind.HANDLER_ERROR,))
    modules = {
        "starting": [inline("m", "import time\nprint('x', flush=True)\ntime.sleep(600)\ndef handler(input): pass")],
        "waiting for a worker": [HELD, inline("m", "def handler(input): pass")],
        "between attempts": [inline("m", "def handler(input): raise ValueError", retry=endless)],
    }[state]
    async with open_service(tmp_path, modules, max_workers=1) as service:
        if state == "waiting for a worker":
            first = (await service.submit(ANYBODY, "held", b'"/nowhere"')).id
            await printed(service, first)
        name = (await service.submit(ANYBODY, "m", b"null")).id
        reasons = {"starting": "importing", "waiting for a worker": "`max_workers`", "between attempts": "attempt 2"}
        live = service.runs.find(name)
        await wait_until(lambda: live.waiting and reasons[state] in live.waiting.reason, lambda: str(live.waiting))
        cancelled = await service.cancel(ANYBODY, name)

        assert cancelled.status is Status.CANCELLED
        assert len(cancelled.failed_attempts) == (state == "between attempts")
        if state == "waiting for a worker":
            await service.cancel(ANYBODY, first)
        await wait_until(
            lambda: service.executors["inline"].statistics().starting == 0 or state == "starting", "starts"
        )
        assert calm(service)


async def test_a_caller_that_goes_away_ends_its_execution(service):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.execute, ANYBODY, "held", b'"/nowhere"')
        await wait_until(lambda: service.runs.statistics().live == 1, "it does not run")
        name = service.runs.live_executions()[0].execution.id
        await printed(service, name)
        nursery.cancel_scope.cancel()
    found = await service.get(ANYBODY, name)

    assert (found.status, found.failure.kind) == (Status.CANCELLED, ErrorKind.CANCELLED)
    assert text_of(decode_all(found.events), None) == "begun\n"
    assert calm(service)


async def test_an_execution_is_cancelled_by_another_caller(service):
    results = []

    async def call():
        results.append(await service.execute(ANYBODY, "held", b'"/nowhere"'))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await wait_until(lambda: service.runs.statistics().live == 1, "it does not run")
        name = service.runs.live_executions()[0].execution.id
        await printed(service, name)
        await service.cancel(ANYBODY, name)
    assert results[0].failure.kind is ErrorKind.CANCELLED
    assert "on request" in results[0].failure.message


async def test_the_caller_can_only_shorten(service):
    done = await service.execute(ANYBODY, "held", b'"/nowhere"', timeout=0.2)
    assert (done.failure.kind, done.timeout) == (ErrorKind.TIMEOUT, 0.2)
    with pytest.raises(RunnerError, match="above 0"):
        await service.execute(ANYBODY, "echo", b"1", timeout=0)


# -- attempts --------------------------------------------------------------------------------------------------------


async def test_attempts_are_recorded_and_the_output_is_of_the_last(tmp_path):
    code = """
    def handler(input, context):
        print("attempt", context.attempt)
        if context.attempt < 3: raise ValueError("no %d" % context.attempt)
        return "yes"
    """
    async with open_service(tmp_path, [inline("m", code, retry=QUICK)]) as service:
        done = await service.execute(ANYBODY, "m", b"null")
        again = await service.get(ANYBODY, done.id)

    assert (done.result, done.attempts) == (b'"yes"', 3)
    assert [(a.number, a.failure.message, a.exit_code) for a in done.failed_attempts] == [
        (1, "no 1", 1),
        (2, "no 2", 1),
    ]
    assert again.failed_attempts == done.failed_attempts
    assert text_of(decode_all(again.events), None) == "attempt 3\n"
    kept = decode_all(again.events)
    assert [e.text for e in kept if isinstance(e, OutputEvent)] == [f"attempt {n}\n" for n in (1, 2, 3)]
    assert [e.attempt for e in kept if isinstance(e, StatusEvent) and e.status is Status.RUNNING] == [1, 2, 3]
    assert any("attempt 2 of 3 in 0.0 s, after handler_error" in e.reason for e in kept if isinstance(e, StatusEvent))


async def test_attempts_have_an_end(tmp_path):
    async with open_service(tmp_path, [inline("m", "def handler(input): raise KeyError(1)", retry=QUICK)]) as service:
        done = await service.execute(ANYBODY, "m", b"null")
    assert (done.failure.kind, done.attempts, len(done.failed_attempts)) == (ErrorKind.HANDLER_ERROR, 3, 2)


async def test_a_worker_that_is_gone_before_the_call_reached_it_is_no_attempt(service):
    """It died idle and unnoticed: the call runs on another worker, although the policy allows one attempt."""
    first = await service.execute(ANYBODY, "echo", b"1")
    executor = service.executors["inline"]
    pool = next(pool for pool in executor._scheduler.pools.values() if pool.idle)
    worker = pool.idle[0]
    os.kill(worker.guest.pid, signal.SIGSTOP)  # it looks alive, but reads nothing
    done = []

    async def call():
        done.append(await service.execute(ANYBODY, "echo", b"2"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await wait_until(lambda: pool.busy, "the call has no worker")
        os.kill(worker.guest.pid, signal.SIGKILL)

    assert first.result == b"1"
    assert (done[0].result, done[0].attempts, done[0].failure) == (b"2", 1, None)


async def test_a_start_that_failed_is_tried_again(tmp_path):
    """The first import kills its interpreter without a report of the module, so the caller does not see it."""
    flag = tmp_path / "flag"
    code = f"""
    import os
    if not os.path.exists({str(flag)!r}):
        open({str(flag)!r}, "w").close()
        os.kill(os.getpid(), 9)
    def handler(input): return 1
    """
    async with open_service(tmp_path, [inline("m", code)]) as service:
        done = await service.execute(ANYBODY, "m", b"null")
    assert (done.result, done.attempts) == (b"1", 1)


async def test_processes_killed_after_a_success_are_recorded(tmp_path):
    code = "import subprocess\ndef handler(input): return subprocess.Popen(['sleep', '600']).pid"
    async with open_service(tmp_path, [inline("m", code)]) as service:
        done = await service.execute(ANYBODY, "m", b"null")
        assert done.killed == (f"{done.result.decode()} sleep",)
        assert (await service.get(ANYBODY, done.id)).killed == done.killed


async def test_peak_memory_is_measured_for_each_call(tmp_path):
    code = "def handler(input):\n    x = b'x' * input\n    return len(x)"
    size = 200 * 1024 * 1024
    for isolation in (Isolation.WARM, Isolation.FORK):
        async with open_service(tmp_path / isolation, [inline("m", code, isolation=isolation)]) as service:
            small, large, after = [await service.execute(ANYBODY, "m", b"%d" % n) for n in (1, size, 1)]
        assert small.peak_memory < size < large.peak_memory < size * 1.5
        assert after.peak_memory < size, "the peak of the call before"


async def test_cancelled_while_a_worker_is_handed_over_it_does_not_run(tmp_path):
    """Between the handover of a worker and the begin of the call, a cancel finds neither a wait nor a call."""
    path = tmp_path / "calls"
    code = "def handler(input):\n    open(input, 'a').close()"
    async with open_service(tmp_path, [inline("m", code)]) as service:
        executor = service.executors[Kind.INLINE]
        cancelled = []

        class Late:
            @asynccontextmanager
            async def lease(self, *args, **options):
                async with executor.lease(*args, **options) as worker:
                    (live,) = service.runs.live_executions()
                    live.cancel(Failure(ErrorKind.CANCELLED, "cancelled on request"))
                    cancelled.append(live.execution.id)
                    yield worker

        service.runs.attempts.executors = {Kind.INLINE: Late()}
        name = (await service.submit(ANYBODY, "m", json.dumps(str(path)).encode())).id
        done = await ended(service, name)

    assert cancelled == [name]
    assert (done.status, done.failure.kind, done.attempts) == (Status.CANCELLED, ErrorKind.CANCELLED, 0)
    assert not path.exists()


# -- idempotency keys ------------------------------------------------------------------------------------------------

COUNT = inline(
    "count",
    "import os\ndef handler(input):\n    path = input['path']\n    with open(path, 'a') as f: f.write('x')\n"
    "    while not os.path.exists(path + '.go'): pass\n    return os.path.getsize(path)",
)


async def test_duplicates_at_once_run_once(tmp_path):
    path = tmp_path / "calls"
    data = json.dumps({"path": str(path)}).encode()
    results = []
    async with open_service(tmp_path, [COUNT]) as service:

        async def call(body):
            results.append(await service.execute(ANYBODY, "count", body, key="k"))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(call, data)
            nursery.start_soon(call, json.dumps({"path": str(path)}, indent=3).encode())
            await wait_until(path.exists, "it does not run")
            (tmp_path / "calls.go").touch()
        later = await service.execute(ANYBODY, "count", data, key="k")
        submitted = await service.submit(ANYBODY, "count", data, key="k")

    assert {e.id for e in results} == {later.id} == {submitted.id}
    assert path.read_text() == "x"
    assert len(results) == 21


async def test_another_input_under_a_key_is_a_conflict(service):
    first = await service.execute(ANYBODY, "echo", b"1", key="k")
    for call in (service.execute, service.submit):
        with pytest.raises(RunnerError) as caught:
            await call(ANYBODY, "echo", b"2", key="k")
        assert caught.value.failure.kind is ErrorKind.CONFLICT
        assert first.id in caught.value.failure.message
    assert (await service.execute(ANYBODY, "echo", b"2", key="other")).result == b"2"


async def test_a_key_belongs_to_a_caller_and_a_module(service, tmp_path):
    from runner.auth.principal import Principal  # noqa: PLC0415

    first = await service.execute(ANYBODY, "echo", b"1", key="k")
    other = await service.execute(Principal("kim", frozenset({"admin"})), "echo", b"2", key="k")
    assert (first.result, other.result) == (b"1", b"2")


async def test_a_keyed_call_continues_when_its_caller_goes_away(tmp_path):
    path = tmp_path / "calls"
    data = json.dumps({"path": str(path)}).encode()
    async with open_service(tmp_path, [COUNT]) as service:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(service.execute, ANYBODY, "count", data, key="k"))
            await wait_until(path.exists, "it does not run")
            nursery.cancel_scope.cancel()
        (tmp_path / "calls.go").touch()
        again = await service.execute(ANYBODY, "count", data, key="k")
    assert again.result == b"1"


async def test_a_key_expires(tmp_path):
    async with open_service(tmp_path, [ECHO], idempotency_seconds=1e-6) as service:
        first = await service.execute(ANYBODY, "echo", b"1", key="k")
        second = await service.execute(ANYBODY, "echo", b"2", key="k")
    assert (first.result, second.result) == (b"1", b"2")


async def test_a_keyed_call_that_never_began_frees_its_key(tmp_path):
    busy = inline("m", HELD.code, concurrency=1, queue_timeout=0.05)
    async with open_service(tmp_path, [busy]) as service:
        first = (await service.submit(ANYBODY, "m", b'"/nowhere"')).id
        await printed(service, first)
        with pytest.raises(RunnerError) as caught, structlog.testing.capture_logs() as logs:
            await service.execute(ANYBODY, "m", b'"/"', key="k")
        assert caught.value.failure.kind is ErrorKind.OVERLOADED
        assert [line["log_level"] for line in logs if line["event"] == "a call was refused"] == ["info"]
        assert [line for line in logs if line["log_level"] == "warning"] == []
        await service.cancel(ANYBODY, first)
        assert (await service.execute(ANYBODY, "m", b'"/"', key="k")).failure is None


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb"])
async def test_an_invalid_key(service, key):
    with pytest.raises(RunnerError) as caught:
        await service.execute(ANYBODY, "echo", b"1", key=key)
    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, "Idempotency-Key")


# -- permissions ------------------------------------------------------------------------------------------------------


async def test_scopes_and_modules_of_the_token(service):
    from runner.auth.principal import Principal  # noqa: PLC0415

    done = await service.execute(ANYBODY, "echo", b"1")
    other = await service.execute(ANYBODY, "held", b'"/"')
    runs, reads = Principal("a", frozenset({"executions:run"})), Principal("b", frozenset({"executions:read"}), ("e*",))

    async def refused(call, *arguments):
        with pytest.raises(RunnerError) as caught:
            await call(*arguments)
        return caught.value.failure.kind

    assert await refused(service.get, runs, done.id) is ErrorKind.FORBIDDEN
    assert await refused(service.list, runs, Query()) is ErrorKind.FORBIDDEN
    assert await refused(service.follow, runs, done.id) is ErrorKind.FORBIDDEN
    assert await refused(service.cancel, reads, done.id) is ErrorKind.FORBIDDEN
    assert await refused(service.get, reads, other.id) is ErrorKind.NOT_FOUND
    assert await refused(service.follow, reads, other.id) is ErrorKind.NOT_FOUND
    assert await refused(service.get, ANYBODY, "no-such-id") is ErrorKind.NOT_FOUND
    assert await refused(service.cancel, ANYBODY, "no-such-id") is ErrorKind.NOT_FOUND
    assert (await service.get(reads, done.id)).result == b"1"
    assert [item.id for item in (await service.list(reads, Query())).items] == [done.id]


# -- events ----------------------------------------------------------------------------------------------------------


async def test_live_and_replayed_events_are_the_same(tmp_path):
    code = """
    def handler(input, context):
        for i in range(3):
            print("line", i)
            context.progress(i, 3)
            yield i
    """
    async with open_service(tmp_path, [inline("m", code)]) as service:
        name, follower = await service.begin(ANYBODY, "m", b"null")
        live = []
        with trio.fail_after(PATIENCE):
            while (events := await follower.next()) is not None:
                live.extend(events)
        replayed = []
        follower = await service.follow(ANYBODY, name, 0)
        while (events := await follower.next()) is not None:
            replayed.extend(events)
        tail = await (await service.follow(ANYBODY, name, 5)).next()

    assert [e.seq for e in live] == list(range(len(live)))
    assert replayed == live
    assert list(tail) == live[5:]
    assert isinstance(live[-1], ResultEvent)
    for number in range(3):
        line = next(e.seq for e in live if isinstance(e, OutputEvent) and f"line {number}\n" in e.text)
        told = next(e.seq for e in live if isinstance(e, ProgressEvent) and e.done == number)
        item = next(e.seq for e in live if isinstance(e, ItemEvent) and bytes(e.value) == b"%d" % number)
        assert line < told < item, "events come in the order in which the handler made them"


async def test_items_larger_than_the_bound_reach_a_reader_that_keeps_up(tmp_path):
    code = "def handler(input):\n    for i in range(5):\n        yield 'x' * 300_000"
    async with open_service(tmp_path, [inline("m", code)], kept_output_bytes=1000) as service:
        _, follower = await service.begin(ANYBODY, "m", b"null")
        items = []
        while (events := await follower.next()) is not None:
            items += [e for e in events if hasattr(e, "value")]
    assert len(items) == 5


# -- the next runner -------------------------------------------------------------------------------------------------


async def test_queued_executions_run_in_the_next_runner(tmp_path):
    flag = tmp_path / "go"
    async with open_service(tmp_path, [HELD, ECHO]) as service:
        first = (await service.submit(ANYBODY, "held", json.dumps(str(flag)).encode())).id
        await printed(service, first)
        names = [
            (await service.submit(ANYBODY, "held", json.dumps(str(flag)).encode(), key=f"k{n}")).id for n in (1, 2)
        ]
    flag.touch()
    async with open_service(tmp_path, [HELD, ECHO]) as service:
        done = [await ended(service, name) for name in names]
        cut = await service.get(ANYBODY, first)
        again = await service.submit(ANYBODY, "held", json.dumps(str(flag)).encode(), key="k1")

    assert [e.status for e in done] == [Status.SUCCEEDED] * 2
    assert (cut.status, cut.failure.kind) == (Status.FAILED, ErrorKind.SHUTDOWN)
    assert text_of(decode_all(cut.events), None) == "begun\n"
    assert again.id == names[0]


async def test_running_executions_are_recorded_when_everything_is_cancelled(tmp_path):
    """A second signal does this: without a drain, the history is still closed after the executions."""
    code = """
    import time
    def handler(input):
        print("begun", flush=True)
        while True:
            try: time.sleep(600)
            except BaseException: pass
    """
    with trio.CancelScope() as second_signal:
        async with open_service(tmp_path, [inline("stubborn", code)]) as service:
            name = (await service.submit(ANYBODY, "stubborn", b"null")).id
            await printed(service, name)
            follower = await service.follow(ANYBODY, name)
            second_signal.cancel()
            await trio.sleep_forever()
    last = [event async for event in every(follower)][-1]
    async with open_service(tmp_path, [HELD]) as service:
        found = await service.get(ANYBODY, name)

    assert isinstance(last, ErrorEvent)
    assert (found.status, found.failure.kind) == (Status.FAILED, ErrorKind.SHUTDOWN)
    assert text_of(decode_all(found.events), None) == "begun\n"


async def test_an_execution_that_was_cut_off_runs_again_if_its_policy_retries_it(tmp_path):
    flag = tmp_path / "go"
    policy = RetryPolicy(attempts=2, on=(ErrorKind.LOST,))
    held = inline("held", HELD.code, concurrency=1, retry=policy)
    async with open_service(tmp_path, [held]) as service:
        name = (await service.submit(ANYBODY, "held", json.dumps(str(flag)).encode())).id
        await printed(service, name)
    flag.touch()
    async with open_service(tmp_path, [held]) as service:
        done = await ended(service, name)

    assert (done.status, done.attempts) == (Status.SUCCEEDED, 2)
    assert [a.failure.kind for a in done.failed_attempts] == [ErrorKind.LOST]
    numbers = [e.seq for e in decode_all(done.events)]
    assert numbers == sorted(set(numbers))


async def test_an_execution_put_off_between_attempts_records_each_attempt_once(tmp_path):
    code = """
    import os
    def handler(input, context):
        if context.attempt == 1: raise ValueError("once")
        return context.attempt
    """
    slow = RetryPolicy(attempts=3, backoff=Backoff(initial=600.0, max=600.0), on=(ErrorKind.HANDLER_ERROR,))
    async with open_service(tmp_path, [inline("m", code, retry=slow)]) as service:
        name = (await service.submit(ANYBODY, "m", b"null")).id
        live = service.runs.find(name)
        await wait_until(lambda: live.waiting and "attempt 2" in live.waiting.reason, "it does not wait")
        follower = await service.follow(ANYBODY, name)
    seen = []
    while (events := await follower.next()) is not None:
        seen.extend(events)
    async with open_service(tmp_path, [inline("m", code, retry=slow)]) as service:
        done = await ended(service, name)

    assert (done.result, done.attempts) == (b"2", 2)
    assert [(a.number, a.failure.kind) for a in done.failed_attempts] == [(1, ErrorKind.HANDLER_ERROR)]
    assert isinstance(seen[-1], StatusEvent), "an execution that was handed over has no end yet"
    assert "next one" in seen[-1].reason
    assert not follower.ended


async def test_without_permission_to_read_a_cancel_shows_neither_input_nor_result(service):
    from runner.auth.principal import Principal  # noqa: PLC0415

    done = await service.execute(ANYBODY, "echo", b'"secret"')
    shown = await service.cancel(Principal("a", frozenset({"executions:run"})), done.id)

    assert (shown.id, shown.input, shown.result, shown.events) == (done.id, b"null", None, b"[]")


async def test_a_wait_for_a_turn_is_time_in_the_queue(service, tmp_path):
    flag = tmp_path / "go"
    first = (await service.submit(ANYBODY, "held", json.dumps(str(flag)).encode())).id
    await printed(service, first)
    second = (await service.submit(ANYBODY, "held", json.dumps(str(flag)).encode())).id
    await trio.sleep(0.3)
    flag.touch()

    assert (await ended(service, second)).timings.queue >= 0.3


async def test_a_record_that_does_not_reach_the_disk_is_not_accepted_later(tmp_path, monkeypatch):
    """With `durability: disk` the record is in the journal when the wait for the disk fails."""
    from actors.history import committer  # noqa: PLC0415

    async with open_service(tmp_path, [ECHO], durability="disk") as service:
        with monkeypatch.context() as patched:
            patched.setattr(committer.Committer, "wait_for_disk", _never_reaches)
            with pytest.raises(RunnerError) as caught:
                await service.submit(ANYBODY, "echo", b"1")
        assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
    async with open_service(tmp_path, [ECHO]) as service:
        [item] = (await service.list(ANYBODY, Query())).items
    assert (item.status, item.attempts) == (Status.CANCELLED, 0)


async def _never_reaches(_committer):
    raise RunnerError(Failure(ErrorKind.UNAVAILABLE, "the database took more than 30 seconds"))


async def test_the_next_attempt_is_made_in_the_next_runner(tmp_path):
    """Its policy does not retry `lost`, and need not: nothing was running that could be lost."""
    flag = tmp_path / "go"
    policy = RetryPolicy(attempts=3, backoff=Backoff(initial=600.0, max=600.0), on=(ErrorKind.HANDLER_ERROR,))
    code = "def handler(input):\n    print('begun')\n    return open(input).read()"
    module = inline("m", code, retry=policy)
    async with open_service(tmp_path, [module]) as service:
        name = (await service.submit(ANYBODY, "m", json.dumps(str(flag)).encode())).id
        live = service.runs.find(name)
        await wait_until(lambda: live.pause is not None, lambda: str(live.waiting))
        waiting = await service.get(ANYBODY, name)
        service.runs.stop(at_once=False)
        with trio.fail_after(PATIENCE):  # a drain does not wait for the back-off
            await service.runs.wait_idle()
    flag.write_text("there")
    async with open_service(tmp_path, [module]) as service:
        done = await ended(service, name)

    assert (waiting.status, waiting.attempts) == (Status.QUEUED, 1)
    assert waiting.waiting.reason.startswith("attempt 2 of 3 in ")
    assert (done.status, done.result, done.attempts) == (Status.SUCCEEDED, b'"there"', 2)
    assert [a.failure.kind for a in done.failed_attempts] == [ErrorKind.HANDLER_ERROR]


async def test_queued_executions_of_a_removed_module_end(tmp_path):
    async with open_service(tmp_path, [HELD]) as service:
        first = (await service.submit(ANYBODY, "held", b'"/nowhere"')).id
        await printed(service, first)
        second = (await service.submit(ANYBODY, "held", b'"/nowhere"')).id
        follower = await service.follow(ANYBODY, second)
        await follower.next()
    async with open_service(tmp_path, [ECHO]) as service:
        found = await service.get(ANYBODY, second)
        told = [e async for e in every(await service.follow(ANYBODY, second, follower.position))]

    assert (found.status, found.failure.kind) == (Status.FAILED, ErrorKind.NOT_FOUND)
    assert "removed" in found.failure.message
    assert isinstance(told[-1], ErrorEvent), "a reader of the last runner's events gets the end"


async def test_a_new_version_runs_executions_queued_for_the_old_one(tmp_path):
    async with open_service(tmp_path, [HELD]) as service:
        first = (await service.submit(ANYBODY, "held", b'"/nowhere"')).id
        await printed(service, first)
        second = (await service.submit(ANYBODY, "held", b'"/nowhere"')).id
    changed = inline("held", "def handler(input): return 'second'")
    async with open_service(tmp_path, [changed]) as service:
        found = await ended(service, second)
        active = service.registry.snapshot.get("held").ref

    assert (found.result, found.module) == (b'"second"', active)


async def test_cancelled_at_every_await_nothing_is_left(tmp_path):
    """A caller that goes away at any moment leaves no execution, no busy worker and no waiting caller."""
    module = inline("m", "def handler(input): print('x'); return input", workers=WorkersPolicy(max_calls=1))
    async with open_service(tmp_path, [module]) as service:
        for step in range(40):
            with trio.move_on_after(step * 0.001):
                await service.execute(ANYBODY, "m", b"1")
            assert calm(service)
        executor = service.executors["inline"]
        await wait_until(
            lambda: not (executor.statistics().busy or executor.statistics().waiting),
            "a worker or a place is still taken",
        )
        assert (await service.execute(ANYBODY, "m", b"2")).result == b"2"


async def test_a_failed_run_ends_with_an_error_event(service):
    _, follower = await service.begin(ANYBODY, "held", b"{}")  # not a path: the handler raises
    last = None
    while (events := await follower.next()) is not None:
        last = events[-1]
    assert isinstance(last, ErrorEvent)
    assert json.loads(bytes(last.error))["kind"] == "handler_error"
    assert isinstance(follower, Follower)
