"""Contract: handlers in the runner's own process: loaded once, stopped as far as possible, limited."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from environments.local import inprocess
from environments.local.inprocess import InProcess
from protocol.errors import ErrorKind, RunnerError
from tests.support import PATIENCE, WAIT_FOR, wait_until

ROOT = Path(__file__).parents[2]


class Inside:
    """Modules of this test in this process."""

    def __init__(self, path):
        self.path = path
        self.inside = InProcess()

    async def __call__(self, code, value=None, *, name="m", concurrency=4, seconds=PATIENCE, **more):
        entry = self.path / f"{name}.py"
        aside = self.path / f"{name}.aside"
        aside.write_text(dedent(code))
        aside.replace(entry)  # another call of the test may be reading it
        data = json.dumps(value).encode()
        return json.loads(await self.inside.call(name, entry, "handler", concurrency, data, seconds=seconds, **more))

    async def refused(self, *args, **fields):
        with pytest.raises(RunnerError) as caught:
            await self(*args, **fields)
        return caught.value.failure

    async def expired(self, clock, begun, *args, **fields):
        """Return the failure of a call whose time is up as soon as its handler has begun."""
        failures = []

        async def call():
            failures.append(await self.refused(*args, **fields))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await wait_until(begun.exists, "the handler did not begin")
            clock.jump(PATIENCE)
        return failures[0]


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loop inprocess_")]


@pytest.fixture
async def inside(tmp_path):
    """Return the calls of this test; in the end its loops are closed and their threads gone."""
    opened = Inside(tmp_path)
    yield opened
    running = threads()
    opened.inside.close()
    for thread in running:
        await trio.to_thread.run_sync(thread.join, PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def clock():
    """Return the event loop's clock, which runs as usual and can be set forward."""
    return trio.testing.MockClock(rate=1.0)


COUNTS = """
import pathlib, time
with open(pathlib.Path(__file__).with_suffix(".loads"), "a") as file: file.write("x")
time.sleep(0.05)
"""


async def test_many_first_calls_load_once(inside):
    code = COUNTS + "def handler(input): return input\n"
    got = []

    async def call(number):
        got.append(await inside(code, number, concurrency=20))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(call, number)

    assert sorted(got) == list(range(20))
    assert (inside.path / "m.loads").read_text() == "x"


async def test_a_load_that_fails_is_told_to_all_who_waited_for_it_and_tried_again_for_the_next(inside):
    code = COUNTS + "1 / 0\n"
    failures = []

    async def call():
        failures.append(await inside.refused(code, concurrency=8))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(call)

    assert {failure.kind for failure in failures} == {ErrorKind.LOAD_FAILED}
    assert (inside.path / "m.loads").read_text() == "x"
    assert await inside(COUNTS + "def handler(input): return 'mended'") == "mended"
    assert (inside.path / "m.loads").read_text() == "xx"


async def test_forks_of_a_handler_begin_with_the_signals_of_a_program(inside):
    code = """
    import multiprocessing, time
    def handler(input):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.2)
        child.terminate()
        child.join(9)
        return child.exitcode
    """
    with trio.open_signal_receiver(signal.SIGTERM):
        assert await inside(code) == -signal.SIGTERM


async def test_a_typed_handler_and_operato(inside):
    code = """
import operato, threading
def handler(count: int, context, when: "datetime.date" = None):
    found = []
    thread = threading.Thread(target=lambda: found.append(operato.context()))
    thread.start()
    thread.join()
    return operato.Response([count + 1, found == [context], operato.context() is context])
import datetime
"""
    answer = await inside(code, {"count": 1})

    assert answer == {"$response": {"status": 200, "headers": [], "json": [2, True, True]}}
    failure = await inside.refused(code, {"count": "1"}, name="other")
    assert (failure.kind, failure.field, failure.message) == (
        ErrorKind.BAD_INPUT,
        "$.count",
        '$.count: expected an integer, not "1"',
    )


async def test_calls_beside_each_other_have_a_context_each(inside):
    code = """
import asyncio, operato
async def handler(input):
    await asyncio.sleep(0)
    yield operato.context().execution_id
    await asyncio.sleep(0)
    yield operato.context().execution_id
"""
    found = {}

    async def call(number):
        found[number] = await inside(code, execution_id=f"e{number}")

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(call, number)

    assert found == {number: [f"e{number}"] * 2 for number in range(4)}


async def test_context_as_it_was_called(inside):
    code = "def handler(input, context): return [context.execution_id, context.attempt, context.remaining]"

    identity, attempt, remaining = await inside(code, execution_id="e7", attempt=3, seconds=1000)

    assert (identity, attempt) == ("e7", 3)
    assert 500 < remaining <= 1000


async def test_calls_without_listener_and_identity_work(inside):
    code = "def handler(input, context):\n    context.progress(1, 2, 'x')\n    yield context.execution_id\n"

    assert await inside(code) == [""]


async def test_a_listener_that_fails_does_not_fail_the_handler(inside):
    def broken(_event):
        raise KeyError("listener")

    assert await inside("def handler(input):\n    yield 1\n    yield 2", on_event=broken) == [1, 2]


async def test_an_async_handler_is_cancelled_at_its_timeout_and_gives_its_place_back(inside, clock):
    code = """
    import asyncio, pathlib
    async def handler(input):
        if input is None: return "free"
        try:
            pathlib.Path(input + ".begun").touch()
            await asyncio.sleep(1000)
        finally:
            pathlib.Path(input).touch()
    """
    flag = inside.path / "cleaned up"

    failure = await inside.expired(clock, inside.path / "cleaned up.begun", code, str(flag), concurrency=1)

    assert (failure.kind, failure.field) == (ErrorKind.TIMEOUT, "timeout")
    assert "its task was cancelled" in failure.message
    await wait_until(flag.exists, "the handler's `finally` did not run")
    assert await inside(code, concurrency=1) == "free"


async def test_a_generator_ends_at_its_next_item(inside, clock):
    code = WAIT_FOR + dedent("""
    import pathlib
    def handler(input):
        if input is None:
            yield "free"
            return
        try:
            yield 1
            pathlib.Path(input + ".begun").touch()
            wait_for(input)
            yield 2
            while True: yield 3
        finally:
            pathlib.Path(input + ".closed").touch()
    """)
    flag = inside.path / "go"

    failure = await inside.expired(clock, inside.path / "go.begun", code, str(flag), concurrency=1)

    assert "its thread continues" in failure.message
    flag.touch()
    await wait_until((inside.path / "go.closed").exists, "the generator was not closed")
    assert await inside(code, concurrency=1) == ["free"]


async def test_a_thread_that_goes_on_keeps_its_place(inside, clock):
    code = WAIT_FOR + dedent("""
    def handler(input):
        if input:
            open(input + ".begun", "w").close()
            wait_for(input)
        return "done"
    """)
    flag = inside.path / "go"
    await inside.expired(clock, inside.path / "go.begun", code, str(flag), concurrency=1)

    failure = await inside.refused(code, concurrency=1, seconds=0.2)
    assert failure.kind is ErrorKind.TIMEOUT

    flag.touch()
    assert await inside(code, concurrency=1) == "done"


async def test_a_caller_that_goes_away_cancels_what_is_awaited(inside):
    code = """
    import asyncio, pathlib
    async def handler(input):
        pathlib.Path(input + ".begun").touch()
        try:
            await asyncio.sleep(1000)
        finally:
            pathlib.Path(input).touch()
    """
    flag = inside.path / "cleaned up"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inside, code, str(flag))
        await wait_until((inside.path / "cleaned up.begun").exists, "it did not begin")
        nursery.cancel_scope.cancel()

    await wait_until(flag.exists, "the handler's `finally` did not run")


async def test_async_handlers_run_beside_each_other_on_one_loop(inside):
    code = """
    import asyncio
    async def init():
        global both, arrived
        both, arrived = asyncio.Event(), 0
    async def handler(input):
        global arrived
        arrived += 1
        if arrived == 2: both.set()
        await both.wait()
        return input
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inside, code, 1)
        assert await inside(code, 2) == 2
    assert len(threads()) == 1


@pytest.mark.parametrize("how", ["sys.exit('bye')", "raise KeyboardInterrupt"])
async def test_a_task_that_exits_does_not_end_the_loop_of_the_others(inside, how):
    code = f"""
    import asyncio, sys
    async def leave():
        {how}
    async def handler(input):
        if input:
            task = asyncio.ensure_future(leave())
            await asyncio.wait([task])
            task.exception()
        return "fine"
    """
    with capture_logs() as logs:
        assert await inside(code, 1) == "fine"
    assert await inside(code, 0) == "fine"
    assert [entry["event"] for entry in logs] == ["a task of an in-process module tried to exit"]


def test_a_loop_ends_although_a_task_exits_in_the_iteration_of_the_stop():
    """Asyncio forgets the stop when an exception leaves the loop."""

    def leave():
        raise SystemExit

    made, gate = inprocess._Loop(), threading.Event()
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    made.loop.call_soon_threadsafe(gate.wait)
    with capture_logs() as logs:
        made.close()
        made.loop.call_soon_threadsafe(leave)
        gate.set()
        thread.join(PATIENCE)

    assert not thread.is_alive()
    assert made.loop.is_closed()
    assert len(logs) == 1


async def test_a_result_has_a_limit(inside):
    code = "def handler(input): return 'x' * input"
    assert len(await inside(code, 98, max_bytes=100)) == 98

    failure = await inside.refused(code, 99, max_bytes=100)

    assert (failure.kind, failure.field) == (ErrorKind.BAD_OUTPUT, "$")
    assert "101 bytes of JSON; the limit is 100" in failure.message


async def test_deep_values_are_refused_as_by_every_worker(inside):
    code = "def handler(input):\n    x = 0\n    for _ in range(input): x = [x]\n    return x"
    await inside(code, 500)

    failure = await inside.refused(code, 501)
    assert "nested too deeply; the limit is 500 levels" in failure.message


async def test_an_input_that_python_does_not_read(inside):
    entry = inside.path / "m.py"
    entry.write_text("def handler(input): return input")
    with pytest.raises(RunnerError) as caught:
        await inside.inside.call("m", entry, "handler", 1, b"1" * 5000, seconds=PATIENCE)

    assert caught.value.failure.kind is ErrorKind.BAD_INPUT


async def test_modules_of_one_name_do_not_disturb_each_other(inside, tmp_path):
    code = """
    import dataclasses, pickle
    @dataclasses.dataclass
    class Point:
        x: int
    def handler(input): return [pickle.loads(pickle.dumps(Point(input))).x, __name__]
    """
    names = set()
    for version in ("one", "two"):
        folder = tmp_path / version
        folder.mkdir()
        (folder / "main.py").write_text(dedent(code))
    for _ in range(2):
        for version in ("one", "two"):
            arguments = version, tmp_path / version / "main.py", "handler", 1, b"5"
            value, name = json.loads(await inside.inside.call(*arguments, seconds=PATIENCE))
            assert value == 5
            names.add(name)
    assert len(names) == 2


async def test_the_number_of_modules_is_bounded_and_those_that_run_are_kept(inside, monkeypatch):
    monkeypatch.setattr(inprocess, "MAX_MODULES", 2)
    code = WAIT_FOR + COUNTS + "def handler(input):\n    if input: wait_for(input)\n    return 1\n"
    flag = inside.path / "go"
    before = set(sys.modules)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: inside(code, str(flag), name="busy"))
        await wait_until((inside.path / "busy.loads").exists, "it did not begin")
        for name in ("a", "b", "c"):
            await inside(code, name=name)
        assert list(inside.inside._modules) == ["busy", "c"]
        flag.touch()
    assert len({name for name in sys.modules if name.startswith("inprocess_")} - before) == 2


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the library does not run on Python 3.14")
def test_beside_a_library_that_runs_asyncio_on_the_trio_loop(tmp_path):
    """Importing it changes the event loop policy of asyncio for the whole process."""
    (tmp_path / "m.py").write_text(
        "import asyncio\nasync def init(): await asyncio.sleep(0)\n"
        "async def handler(input):\n    await asyncio.sleep(0)\n    yield type(asyncio.get_running_loop()).__module__\n"
    )
    code = f"""
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trio_asyncio
import trio
from pathlib import Path
from environments.local.inprocess import InProcess
async def main():
    async with trio_asyncio.open_loop():
        print(await InProcess().call("d", Path({str(tmp_path / "m.py")!r}), "handler", 2, b"1", seconds=20))
trio.run(main)
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
    assert "asyncio.unix_events" in done.stdout
