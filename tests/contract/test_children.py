"""Contract: handlers call modules in every way; none waits for ever, and nothing is left of those that end."""

from __future__ import annotations

import json

import pytest
import trio

from actors.executions.children import MAX_DEPTH
from actors.history import Query
from config.modules.policies import Backoff, GroupPolicy, RetryPolicy
from protocol import events, messages
from protocol.errors import ErrorKind
from protocol.events import ChildEvent
from protocol.model import Isolation, Status
from runner.auth.principal import Principal
from tests.support import ANYBODY, inline, open_service, wait_until
from tests.workers import chosen

ADD = inline("add", "def handler(input):\n    return input['a'] + input['b']\n")
FAIL = inline("fail", "def handler(input):\n    raise ValueError(input)\n")
SLEEP = "def handler(input):\n    import time\n    time.sleep(600)\n"
SLEEPS = inline("sleeps", SLEEP)
ISOLATIONS = pytest.mark.parametrize("isolation", ["warm", "fork", "fresh", "none"])
EVERY_WAY = """
import asyncio, threading
from operato import CallError, context

def handler(input):
    here, found = context(), {}
    found["call"] = here.call("add", {"a": 1, "b": 2})
    found["map"] = here.map("add", ({"a": n, "b": n} for n in range(20)), parallel=3)
    found["submit"] = here.submit("add", {"a": 0, "b": 0}, priority=7)
    try:
        here.call("fail", "too bad")
    except CallError as problem:
        found["failed"] = [problem.kind, problem.error_type, problem.message, problem.module]
    try:
        here.map("fail", ["x"] * 100)
    except CallError as problem:
        found["failed map"] = problem.kind
    threads = [threading.Thread(target=ask, args=(here, found, n)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found

def ask(here, found, n):
    found["thread %d" % n] = here.call("add", {"a": n, "b": 1})
"""
EVERY_WAY_ASYNC = """
import asyncio
from operato import CallError, context

async def handler(input):
    here, found = context(), {}
    found["call"] = await here.call_async("add", {"a": 1, "b": 2})
    found["map"] = await here.map_async("add", ({"a": n, "b": n} for n in range(20)), parallel=3)
    found["submit"] = await here.submit_async("add", {"a": 0, "b": 0}, priority=7)
    try:
        await here.call_async("fail", "too bad")
    except CallError as problem:
        found["failed"] = [problem.kind, problem.error_type, problem.message, problem.module]
    try:
        await here.map_async("fail", ["x"] * 100)
    except CallError as problem:
        found["failed map"] = problem.kind
    many = await asyncio.gather(*(here.call_async("add", {"a": n, "b": 1}) for n in range(100)))
    assert many == list(range(1, 101))
    many = await asyncio.gather(*(asyncio.to_thread(here.call, "add", {"a": n, "b": 1}) for n in range(10)),
                                *(here.call_async("add", {"a": n, "b": 1}) for n in range(10)))
    found.update(("thread %d" % n, many[n]) for n in range(10))
    try:
        here.call("add", {})
    except RuntimeError as problem:
        assert "await context.call_async" in str(problem)
    return found
"""


async def ended(service, name, data=None, **options):
    with trio.fail_after(60):
        return await service.execute(ANYBODY, name, json.dumps(data).encode(), **options)


async def result(service, name, data=None):
    found = await ended(service, name, data)
    assert found.failure is None, found.failure
    return json.loads(found.result)


async def listed(service, **filters):
    await service.history.catch_up()
    return (await service.list(ANYBODY, Query(limit=500, **filters))).items


@ISOLATIONS
@pytest.mark.parametrize("code", [EVERY_WAY, EVERY_WAY_ASYNC], ids=["sync", "async"])
async def test_every_way(tmp_path, code, isolation):
    caller = inline("caller", code, calls_modules=("a*", "fail"), isolation=Isolation(isolation))
    async with open_service(tmp_path, [ADD, FAIL, caller]) as service:
        found = await result(service, "caller")
        submitted = await service.get(ANYBODY, found.pop("submit"))

    assert found == {
        "call": 3,
        "map": [2 * n for n in range(20)],
        "failed": ["handler_error", "ValueError", "too bad", "fail"],
        "failed map": "handler_error",
        **{f"thread {n}": n + 1 for n in range(10)},
    }
    assert (submitted.asynchronous, submitted.priority, submitted.depth) == (True, 7, 1)


# No caller waits for ever

NEST = """
from operato import context

def handler(input):
    name, depth = input["name"], input["depth"]
    return 1 + (context().call(name, {**input, "depth": depth - 1}) if depth else 0)
"""
FAN = """
from operato import context

def handler(input):
    depth = input["depth"]
    return 1 + (sum(context().map("fan", [{**input, "depth": depth - 1}] * 3)) if depth else 0)
"""


def limited(name, code, **fields):
    patient = {"queue_timeout": 90.0, "timeout": 90.0, "calls_modules": ("*",)}
    return inline(name, code, **{"concurrency": 1, **patient, **fields})


@pytest.mark.parametrize("callers", [8, 50, 500])
async def test_callers_of_a_module_that_calls_another_one_and_itself(tmp_path, callers):
    """Every limit is reached: one worker for each module, two of the kind."""
    modules = [limited("one", NEST), limited("two", NEST), ADD]
    async with open_service(tmp_path, modules, max_workers=2, max_waiting=1000) as service:
        results = []

        async def call(number):
            name = ("one", "two")[number % 2]
            other = ("one", "two", name)[number % 3]
            found = await ended(service, name, {"name": other, "depth": 2})
            results.append(json.loads(found.result) if found.failure is None else found.failure)

        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                for number in range(callers):
                    nursery.start_soon(call, number)
        found = service.executors[modules[0].env].statistics()

    assert results == [3] * callers
    assert found.parked == found.busy == 0
    assert found.started <= 2 * 3 * 2


@pytest.mark.parametrize("limit", ["rate", "group", "workers"])
async def test_limits_hold_no_call_of_its_own(tmp_path, limit):
    fields = {
        "rate": {"rate": "100/s"},
        "group": {"group": GroupPolicy("$.name", 1)},
        "workers": {},
    }[limit]
    async with open_service(tmp_path, [limited("fan", FAN, **fields)], max_workers=1) as service:
        results = []

        async def call():
            results.append(await result(service, "fan", {"depth": 2, "name": "x"}))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(call)
        found = service.executors[ADD.env].statistics()

    assert results == [13] * 3
    assert found.started <= 3, "a worker for each level"


async def test_submissions_that_wait_for_calls_of_their_own_module(tmp_path):
    async with open_service(tmp_path, [limited("one", NEST)], max_workers=1) as service:
        data = json.dumps({"name": "one", "depth": 2}).encode()
        accepted = [await service.submit(ANYBODY, "one", data) for _ in range(5)]
        with trio.fail_after(60):
            for each in accepted:
                live = service.runs.find(each.id)
                found = await service.runs.wait_ended(live) if live else await service.get(ANYBODY, each.id)
                assert (found.result, found.failure) == (b"3", None)


# What is allowed

ASK = """
from operato import CallError, context

def handler(input):
    try:
        return context().call(*input)
    except CallError as problem:
        return [problem.kind, problem.message, problem.field, problem.execution_id]
"""


async def test_only_modules_that_are_named_are_called(tmp_path):
    modules = [ADD, FAIL, inline("ask", ASK, calls_modules=("a*", "gone")), inline("free", ASK)]
    async with open_service(tmp_path, modules) as service:
        refused = await result(service, "ask", ["fail", 1])
        none = await result(service, "free", ["add", 1])
        gone = await result(service, "ask", ["gone", 1])
        itself = await result(service, "ask", ["ask", ["add", {"a": 1, "b": 1}]])
        version = await result(service, "ask", ["ask"])

    assert refused[0] == none[0] == "forbidden"
    assert refused[2] == none[2] == "calls_modules"
    assert "'fail' in its field `calls_modules`" in refused[1]
    assert gone[0] == "not_found"
    assert itself == 2
    assert version[:1] == ["handler_error"], "of the inner one, whose input is null"


async def test_the_first_caller_limits_all_calls(tmp_path):
    """Also of an execution that was submitted, and of calls within calls."""
    modules = [ADD, inline("ask", ASK, calls_modules=("*",)), inline("other", ASK, calls_modules=("*",))]
    limited_one = Principal("kim", frozenset({"admin"}), ("ask", "other"))
    inner = ["other", ["add", {"a": 1, "b": 1}]]
    async with open_service(tmp_path, modules) as service:
        with trio.fail_after(30):
            at_once = await service.execute(limited_one, "ask", json.dumps(inner).encode())
            accepted = await service.submit(limited_one, "ask", json.dumps(inner).encode())
            later = await service.runs.wait_ended(service.runs.find(accepted.id))
        (child,) = await listed(service, parent=at_once.id)

    for found in (at_once, later):
        kind, message, *_ = json.loads(found.result)
        assert kind == "forbidden"
        assert message == "the token of 'kim', whose call led to this one, does not allow module 'add'"
    assert (child.subject, child.reach) == ("kim", '["ask","other"]')


async def test_calls_within_calls_end(tmp_path):
    async with open_service(tmp_path, [limited("one", NEST)], max_workers=1) as service:
        deepest = await ended(service, "one", {"name": "one", "depth": MAX_DEPTH})
        deeper = await ended(service, "one", {"name": "one", "depth": MAX_DEPTH + 1})
        statistics = service.executors[ADD.env].statistics()

    assert deepest.result == b"17"
    assert deeper.failure.kind is ErrorKind.HANDLER_ERROR
    assert "conflict: calls within calls go 16 deep, and this one is deeper: one > one > " in deeper.failure.message
    assert statistics.started == MAX_DEPTH + 1, "one worker for each level, and kept"


async def test_a_call_that_waits_for_its_own_caller_is_refused(tmp_path):
    code = """
    from operato import CallError, context

    def handler(input):
        try:
            return context().call("one", None, key="k")
        except CallError as problem:
            return [problem.kind, problem.message]
    """
    async with open_service(tmp_path, [limited("one", code, concurrency=3)]) as service:
        first = await ended(service, "one", key="k")

    kind, message = json.loads(first.result)
    assert kind == "conflict"
    assert message == f"the execution {first.id}, which has the key 'k', waits for this one; use another key"


# The record


async def test_the_record_of_parent_and_child(tmp_path):
    modules = [ADD, inline("ask", ASK, calls_modules=("*",))]
    async with open_service(tmp_path, modules) as service:
        root = await ended(service, "ask", ["ask", ["add", {"a": 1, "b": 1}]])
        await service.history.catch_up()
        root = await service.get(ANYBODY, root.id)
        (middle,) = await listed(service, parent=root.id)
        (leaf,) = await listed(service, parent=middle.id)
        below = await listed(service, root=root.id)
        again = await service.reruns.one(ANYBODY, leaf.id)

    assert (root.parent, root.root, root.depth, root.children) == (None, None, 0, (middle.id,))
    assert (middle.parent, middle.root, middle.depth) == (root.id, root.id, 1)
    assert (leaf.parent, leaf.root, leaf.depth) == (middle.id, root.id, 2)
    assert {each.id for each in below} == {middle.id, leaf.id}
    (child,) = [event for event in events.decode_all(root.events) if isinstance(event, ChildEvent)]
    assert (child.id, child.module) == (middle.id, "ask")
    assert (again.rerun_of, again.parent, again.root, again.depth) == (leaf.id, None, None, 0)


async def test_a_key_executes_once(tmp_path):
    counts = inline("counts", "calls = []\ndef handler(input):\n    calls.append(1)\n    return len(calls)\n")
    twice = inline(
        "twice",
        "from operato import context\n"
        "def handler(input):\n    return [context().call('counts', 1, key='k') for _ in range(3)]\n",
        calls_modules=("counts",),
    )
    async with open_service(tmp_path, [counts, twice]) as service:
        assert await result(service, "twice") == [1, 1, 1]
        assert await result(service, "twice") == [1, 1, 1]
        assert len(await listed(service, module="counts")) == 1


# Ends

WAITS = """
from operato import context

def handler(input):
    name, depth = input
    if not depth:
        print("here", flush=True)
        import time
        time.sleep(600)
    return context().call(name, [name, depth - 1])
"""
WAITS_ASYNC = WAITS.replace("def handler", "async def handler").replace("context().call", "await context().call_async")


async def running(service, count):
    """Wait until so many executions run, the deepest in its handler; return their processes."""
    await wait_until(lambda: any(live.log.printed for live in service.runs.live_executions()), "the deepest one")
    lives = service.runs.live_executions()
    assert len(lives) == count
    return sorted(lives, key=lambda live: live.execution.depth)


@ISOLATIONS
@pytest.mark.parametrize("code", [WAITS, WAITS_ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("at", [0, 1])
async def test_a_cancel_at_any_depth_leaves_nothing(tmp_path, code, isolation, at):
    if isolation == "none":
        wait = "await context().call_async" if "async" in code else "context().call"
        code = code.replace("time.sleep(600)", f"{wait}('sleeps')")
    module = limited("one", code, isolation=Isolation(isolation))
    async with open_service(tmp_path, [module, SLEEPS], max_workers=3) as service:
        with trio.fail_after(30):
            accepted = await service.submit(ANYBODY, "one", json.dumps(["one", 2]).encode())
            if isolation == "none":
                await wait_until(lambda: service.executors[module.env].statistics().busy, "the deepest one")
            lives = (
                await running(service, 3)
                if isolation != "none"
                else sorted(service.runs.live_executions(), key=lambda live: live.execution.depth)
            )
            await service.cancel(ANYBODY, lives[at].execution.id)
            root = await service.runs.wait_ended(lives[0])
        below = await listed(service, root=accepted.id)
        statistics = service.executors[module.env].statistics()

        assert service.runs.live_executions() == ()
    assert statistics.busy == statistics.parked == 0
    assert [each.status for each in below] == [Status.CANCELLED] * len(below)
    assert root.status is (Status.FAILED if at else Status.CANCELLED)
    if at:
        assert "cancelled on request" in root.failure.message


async def test_the_timeout_of_a_parent_ends_its_children(tmp_path):
    async with open_service(tmp_path, [limited("one", WAITS), limited("short", WAITS, timeout=0.5)]) as service:
        root = await ended(service, "short", ["one", 2])
        below = await listed(service, root=root.id)

        assert service.runs.live_executions() == ()
    assert root.failure.kind is ErrorKind.TIMEOUT
    assert [each.status for each in below] == [Status.CANCELLED] * 2
    assert below[0].failure.message == "the execution that called it has ended"


async def test_a_killed_child_worker_fails_the_call(tmp_path):
    kills = inline("kills", "import os\ndef handler(input):\n    os.kill(os.getpid(), 9)\n")
    async with open_service(tmp_path, [kills, inline("ask", ASK, calls_modules=("kills",))]) as service:
        kind, message, _, child = await result(service, "ask", ["kills"])
        found = await service.get(ANYBODY, child)

    assert kind == "worker_crashed"
    assert found.failure.kind is ErrorKind.WORKER_CRASHED
    assert message == found.failure.message


async def test_a_killed_parent_ends_its_children_and_is_tried_again(tmp_path):
    code = """
    import os, threading
    from operato import context

    def handler(input, here):
        if here.attempt == 1:
            threading.Timer(0.3, os.kill, (os.getpid(), 9)).start()
            here.call("sleeps", key="k")
        return here.call("add", {"a": 1, "b": here.attempt})
    """
    retry = RetryPolicy(2, Backoff(initial=0.0), (ErrorKind.WORKER_CRASHED,))
    async with open_service(tmp_path, [ADD, SLEEPS, inline("m", code, calls_modules=("*",), retry=retry)]) as service:
        root = await ended(service, "m")
        below = await listed(service, root=root.id)

    assert (root.result, root.attempts) == (b"3", 2)
    assert [(each.module.name, each.status) for each in below] == [
        ("add", Status.SUCCEEDED),
        ("sleeps", Status.CANCELLED),
    ]


async def test_calls_that_a_handler_leaves_end_with_it(tmp_path):
    code = """
    import threading, time
    from operato import CallError, context

    problems = []

    def handler(input):
        if input:
            return problems
        here = context()
        threading.Thread(target=ask, args=(here,)).start()
        here.call("add", {"a": 1, "b": 1})
        return "left"

    def ask(here):
        try:
            here.call("sleeps")
        except CallError as problem:
            problems.append(problem.kind)
        try:
            here.call("add")
        except (CallError, RuntimeError) as problem:
            problems.append(str(problem))
    """
    async with open_service(tmp_path, [ADD, SLEEPS, inline("m", code, calls_modules=("*",))]) as service:
        first = await ended(service, "m")
        with trio.fail_after(20):
            while len(problems := await result(service, "m", 1)) < 2:
                pass
        below = await listed(service, root=first.id)

    assert first.result == b'"left"'
    assert sorted(each.status for each in below) == [Status.CANCELLED, Status.SUCCEEDED]
    assert problems[0] == "cancelled"
    assert "has ended" in problems[1]


async def test_a_coroutine_that_gives_up_withdraws_its_call(tmp_path):
    code = """
    import asyncio
    from operato import context

    async def handler(input):
        here = context()
        try:
            await asyncio.wait_for(here.call_async("sleeps"), 0.2)
        except asyncio.TimeoutError:
            return await here.call_async("add", {"a": 1, "b": 1})
    """
    async with open_service(tmp_path, [ADD, SLEEPS, inline("m", code, calls_modules=("*",))]) as service:
        root = await ended(service, "m")
        below = await listed(service, root=root.id)

    assert root.result == b"2"
    assert {each.module.name: each.status for each in below} == {"add": Status.SUCCEEDED, "sleeps": Status.CANCELLED}


async def test_large_values_and_many_calls_at_a_time_pass_both_ways(tmp_path):
    """A handler that sends while it is sent to, more than all buffers hold."""
    code = """
    import asyncio
    from operato import context

    async def handler(input):
        text = "x" * 1_000_000
        found = await asyncio.gather(*(context().call_async("echo", text) for _ in range(20)))
        return sum(map(len, found))
    """
    echo = inline("echo", "def handler(input):\n    return input\n")
    async with open_service(tmp_path, [echo, inline("m", code, calls_modules=("echo",))]) as service:
        assert await result(service, "m") == 20_000_000


async def test_generators_and_forks_of_a_handler(tmp_path):
    code = """
    import os
    from operato import context

    def handler(input):
        for n in range(3):
            yield context().call("add", {"a": n, "b": n})
        pid = os.fork()
        if not pid:
            try:
                context().call("add")
            except RuntimeError as problem:
                os._exit(7 if "a process that the handler started" in str(problem) else 1)
        yield os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    """
    async with open_service(tmp_path, [ADD, inline("m", code, calls_modules=("add",))]) as service:
        assert await result(service, "m") == [0, 2, 4, 7]


async def test_files_pass_both_ways(tmp_path):
    makes = inline("makes", "def handler(input):\n    return {'made': b'hello'}\n")
    reads = inline("reads", "from operato import File\ndef handler(file: File):\n    return file.read_text()\n")
    code = """
    from operato import File, context

    def handler(input):
        made = context().call("makes")["made"]
        return [context().call("reads", {"file": made}), context().call("reads", {"file": File(b"own")}), made]
    """
    async with open_service(tmp_path, [makes, reads, inline("m", code, calls_modules=("*",))]) as service:
        *texts, made = await result(service, "m")
        assert texts == ["hello", "own"]
        assert made["$file"]["size"] == 5


async def test_inputs_that_cannot_be_sent(tmp_path):
    code = """
    from operato import context

    def handler(input):
        found = []
        for value in (float("nan"), object()):
            try:
                context().call("add", {"a": value})
            except ValueError as problem:
                found.append(str(problem)[:50])
        return found
    """
    async with open_service(tmp_path, [ADD, inline("m", code, calls_modules=("*",))]) as service:
        found = await result(service, "m")

    assert all(text.startswith("the input for the other module, at $.a:") for text in found), found


async def test_a_runner_that_was_killed_or_ends_with_open_calls(tmp_path):
    """The parent is tried again by its policy; what it called has an end."""
    code = """
    from operato import context

    def handler(input, here):
        return here.call("sleeps") if here.attempt == 1 else "again"
    """
    sleeps = inline("sleeps", SLEEP.replace("import", "print('here', flush=True)\n    import"))
    retry = RetryPolicy(2, Backoff(initial=0.0), (ErrorKind.LOST,))
    modules = [sleeps, inline("m", code, calls_modules=("*",), retry=retry)]
    async with open_service(tmp_path, modules) as service:
        accepted = await service.submit(ANYBODY, "m", b"null")
        await running(service, 2)
    async with open_service(tmp_path, modules) as service:
        with trio.fail_after(30):
            if (live := service.runs.find(accepted.id)) is not None:
                await service.runs.wait_ended(live)
        found = await service.get(ANYBODY, accepted.id)
        (child,) = await listed(service, parent=accepted.id)

    assert (found.result, found.attempts) == (b'"again"', 2)
    assert child.status is not Status.RUNNING


# Every kind of worker


class Echo:
    """Answers each call with its input, at once."""

    def __init__(self, nursery):
        self.nursery, self.numbers = nursery, set()

    @property
    def open(self):
        return len(self.numbers)

    def begin(self, message, reply):
        self.numbers.add(message.number)
        self.nursery.start_soon(self.answer, message, reply)

    async def answer(self, message, reply):
        self.numbers.discard(message.number)
        await reply(messages.Called(message.id, message.number, "child", message.input))

    def withdraw(self, number):
        """Do nothing: the answer is on its way."""

    def stop(self):
        """Do nothing."""


@pytest.fixture(params=["venv-warm", "docker-warm", "docker-fork", "docker-fresh"])
def how(request):
    return chosen(request)


async def test_calls_of_workers_of_every_kind(rig, how):
    """Also more at a time than the buffers between worker, relay and host hold."""
    code = """
    import asyncio, threading
    from operato import context

    def handler(input):
        here, found = context(), []
        threads = [threading.Thread(target=lambda: found.append(here.call("x", "from a thread"))) for _ in range(3)]
        for thread in threads:
            thread.start()
        found.append(here.call("x", "from the handler"))
        for thread in threads:
            thread.join()
        return sorted(found) + [asyncio.run(large())]

    async def large():
        here, text = context(), "x" * 500_000
        return sum(map(len, await asyncio.gather(*(here.call_async("x", text) for _ in range(20)))))
    """
    async with trio.open_nursery() as nursery:
        found = await rig.run(
            code, call={"on_call": lambda call: setattr(call, "nested", Echo(nursery))}, timeout=30.0, **how
        )

    assert found.value == ["from a thread"] * 3 + ["from the handler", 10_000_000]


async def test_the_traceback_of_a_failed_call_ends_in_the_code_of_the_author(tmp_path):
    code = "from operato import context\ndef handler(input):\n    return context().call('fail', 'too bad')\n"
    async with open_service(tmp_path, [FAIL, inline("caller", code, calls_modules=("fail",))]) as service:
        failure = (await ended(service, "caller")).failure

    assert failure.kind is ErrorKind.HANDLER_ERROR
    assert "line 3, in handler" in failure.traceback
    assert "calling.py" not in failure.traceback
