"""Contract: many calls of one worker at a time (`calls`): their speed, output, files, ends, and the ends of others."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from actors.events import EventLog
from config.modules.policies import Backoff, RetryPolicy, WorkersPolicy
from config.secrets import Secret
from environments import proc
from protocol.errors import ErrorKind, Failure
from protocol.events import OutputEvent, decode_all, text_of
from tests.support import ANYBODY, inline, open_rig, open_service
from tests.workers import Flag, chosen

WAITS = """
    import asyncio, os, sys, threading, time
    from operato import File, context

    async def flag(path):
        print("begun")
        while not os.path.exists(path):
            await asyncio.sleep(0.002)
"""


@pytest.fixture
async def rig(tmp_path):
    async with open_rig(tmp_path / "rig") as rig:
        yield rig


@pytest.fixture(params=["inline-warm", "docker-warm"])
def how(request):
    return chosen(request)


async def all_of(rig, module, values, **options):
    """Return the outcomes of calls at the same time, in order."""
    found = {}

    async def one(place, value):
        found[place] = await rig.call(module, value, **options)

    async with trio.open_nursery() as nursery:
        for place, value in enumerate(values):
            nursery.start_soon(one, place, value)
    return [found[place] for place in range(len(values))]


@asynccontextmanager
async def beside(rig, module, value, **options):
    """Give a call that has printed and runs while the block does, and then its outcome as `ran`."""
    log = EventLog(limit=module.spec.output, keep=1 << 20)
    running = SimpleNamespace(call=None, ran=None, log=log)

    async def run():
        on_call = partial(setattr, running, "call")
        running.ran = await rig.call(module, value, on_call=on_call, log=log, **options)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await rig.wait_until(lambda: log.printed, "it does not begin")
        yield running


async def test_a_hundred_calls_take_one_worker_and_the_time_of_one(rig):
    code = """
        import asyncio

        async def handler(input):
            await asyncio.sleep(input)
            return input
    """
    module = await rig.publish(code, calls=100)
    first = await rig.call(module, 0)
    before = proc.resident_bytes(first.pid)
    spent = []
    while not spent or (min(spent) >= 1.5 and len(spent) < 3):  # a busy machine may lengthen one
        began = trio.current_time()
        ran = await all_of(rig, module, [1] * 100)
        spent.append(trio.current_time() - began)

    assert min(spent) < 1.5
    assert {(each.value, each.pid) for each in ran} == {(1, first.pid)}
    assert proc.resident_bytes(first.pid) < before + (8 << 20)
    assert rig.inline.statistics().started == 1


async def test_each_call_has_its_own_output_files_and_context(rig, how, tmp_path):
    code = (
        WAITS
        + """
    async def never():
        await asyncio.sleep(1000)

    async def handler(n, file: File, go):
        print("begin", n, end="")
        late = asyncio.create_task(never())
        while not os.path.exists(go):
            await asyncio.sleep(0.002)
        print(" end", n)
        await asyncio.to_thread(print, "thread", n, file=sys.stderr)
        context().progress(n, 2, "half")
        assert context().execution_id, context()
        yield File(file.read_bytes() * 2, name=f"{n}.txt")
        yield n
    """
    )
    stored = {}
    module = await rig.publish(code, calls=2, timeout=60, **how)
    flags, sources = Flag(rig, how, tmp_path), [tmp_path / str(n) for n in range(2)]
    for n, source in enumerate(sources):
        source.write_text(f"content {n} " * 300_000)
    files = [{f"sha256:{n}": (source, "a.txt")} for n, source in enumerate(sources)]
    found = [None, None]

    async def one(n):
        value = {"n": n, "file": {"$file": {"id": f"sha256:{n}"}}, "go": flags.path}
        found[n] = await rig.call(module, value, files=files[n], store=storing(stored))

    async with trio.open_nursery() as nursery:
        for n in range(2):
            nursery.start_soon(one, n)
        executor = rig.executors[module.spec.env]
        await rig.wait_until(lambda: executor.statistics().calls == 2, "they do not run")
        assert executor.statistics().busy == 1
        flags.touch()

    for n, ran in enumerate(found):
        name = f"{n}.txt"
        assert ran.value == [{"$file": {"id": name}}, n]
        assert stored[name] == sources[n].read_bytes() * 2
        assert ran.stdout == f"begin {n} end {n}\n"
        assert ran.stderr == f"thread {n}\n"
        assert (ran.events[0].done, len(ran.events)) == (n, 3)
    await rig.settled(executor)


def storing(stored):
    """Return a store that keeps contents by their names."""

    @asynccontextmanager
    async def store(name, media_type):
        parts = []

        class Writing:
            async def write(self, data):
                await trio.lowlevel.checkpoint()
                parts.append(bytes(data))

            async def finish(self):
                stored[name] = b"".join(parts)
                return SimpleNamespace(described={"id": name})

        yield Writing()

    return store


async def test_output_of_no_single_call_goes_to_all_and_is_marked(rig, how, tmp_path):
    code = (
        WAITS
        + """
    async def handler(input):
        if input.get("prints"):
            os.write(1, b"by C\\n")
        await flag(input["go"])
    """
    )
    flag = Flag(rig, how, tmp_path)
    module = await rig.publish(code, calls=2, timeout=60, **how)
    both = []
    prints = {"go": flag.path, "prints": True}
    async with beside(rig, module, {"go": flag.path}) as first, beside(rig, module, prints) as second:
        both += [first, second]
        await rig.wait_until(lambda: all(each.log.printed == 11 for each in both), "it is not printed")
        flag.touch()

    for each in both:
        assert each.ran.value is None
        shown = [(event.text, event.shared) for event in each.log.kept() if isinstance(event, OutputEvent)]
        assert sorted(shown) == [("begun\n", False), ("by C\n", True)]


@pytest.mark.parametrize("end", ["cancel", "timeout", "output"])
async def test_one_call_ends_softly_and_the_others_go_on(rig, how, tmp_path, end):
    code = (
        WAITS
        + """
    async def handler(input):
        if input.get("ends"):
            print("begun" if input["ends"] != "output" else "x" * 2000)
            try:
                await asyncio.sleep(100)
            finally:
                print("soft")
        await flag(input["go"])
        return os.getpid()
    """
    )
    flag = Flag(rig, how, tmp_path)
    module = await rig.publish(code, calls=2, timeout=60, output=1000, **how)
    why = Failure(ErrorKind.CANCELLED, "it is cancelled")
    kinds = {"cancel": ErrorKind.CANCELLED, "timeout": ErrorKind.TIMEOUT, "output": ErrorKind.OUTPUT_LIMIT}
    executor = rig.executors[module.spec.env]
    async with beside(rig, module, {"go": flag.path}) as other:
        async with beside(rig, module, {"ends": end}, timeout=0.2 if end == "timeout" else None) as ending:
            if end == "cancel":
                ending.call.cancel(why)
        assert ending.ran.kind is kinds[end]
        flag.touch()

    assert other.ran.pid == ending.ran.pid
    assert isinstance(other.ran.value, int)
    again = await rig.call(module, {"go": flag.path})
    assert again.pid == other.ran.pid
    assert executor.statistics().started == 1


async def test_a_caller_that_goes_away_ends_its_call_only(rig, tmp_path):
    code = (
        WAITS
        + """
    async def handler(input):
        try:
            await flag(input["go"])
        finally:
            if input.get("ended"):
                open(input["ended"], "w").close()
    """
    )
    module = await rig.publish(code, calls=2)
    async with beside(rig, module, {"go": str(tmp_path / "go")}) as other:
        with trio.CancelScope() as scope:
            async with beside(rig, module, {"go": "/never", "ended": str(tmp_path / "ended")}):
                scope.cancel()
        assert (tmp_path / "ended").exists()
        (tmp_path / "go").touch()

    assert other.ran.value is None


@pytest.mark.parametrize("blocks", ["time.sleep(100)", "await stubborn()"])
async def test_a_call_that_does_not_stop_ends_the_worker_and_others_are_lost(rig, how, tmp_path, blocks):
    code = (
        WAITS
        + f"""
    async def stubborn():
        while True:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                pass

    async def handler(input):
        print("begun")
        if input:
            {blocks}
        await asyncio.sleep(100)
    """
    )
    module = await rig.publish(code, calls=3, timeout=60, **how)
    executor = rig.executors[module.spec.env]
    async with beside(rig, module, None) as other:
        blocking = await rig.call(module, 1, timeout=0.3)

    assert blocking.kind is ErrorKind.TIMEOUT
    assert other.ran.kind is ErrorKind.LOST
    assert "`calls`" in other.ran.failure.message
    await rig.settled(executor)
    assert executor.statistics().idle == 0


async def test_a_killed_worker_ends_all_its_calls_and_the_next_ones_get_another(rig):
    code = (
        WAITS
        + """
    async def handler(input):
        await asyncio.sleep(input)
        return os.getpid()
    """
    )
    module = await rig.publish(code, calls=10)
    pid = (await rig.call(module, 0)).value
    found = []

    async def one():
        found.append(await rig.call(module, 100))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one)
        await rig.wait_until(lambda: rig.inline.statistics().calls == 10, "they do not run")
        os.kill(pid, signal.SIGKILL)

    assert {each.kind for each in found} <= {ErrorKind.WORKER_CRASHED, ErrorKind.LOST}
    assert (await rig.call(module, 0)).value != pid
    await rig.settled()


async def test_workers_are_filled_before_more_are_started(rig, tmp_path):
    code = (
        WAITS
        + """
    async def handler(input):
        await flag(input)
        return os.getpid()
    """
    )
    module = await rig.publish(code, calls=3, concurrency=7)
    go, found, reasons = str(tmp_path / "go"), [], []
    async with trio.open_nursery() as nursery:

        async def one():
            found.append((await rig.call(module, go)).value)

        for _ in range(9):
            nursery.start_soon(one)
        await rig.wait_until(lambda: rig.inline.statistics().calls == 7, "they do not run")
        now = rig.inline.statistics()
        assert (now.workers, now.busy, now.waiting) == (3, 3, 2)
        pool = rig.inline._scheduler.pool(module)
        reasons.append(pool.reason(trio.current_time()))
        Path(go).touch()

    assert len(set(found)) <= 3
    assert reasons == ["its 7 calls run in 3 of its workers, as many as `concurrency` allows; callers that wait: 2"]
    assert rig.inline.statistics().started == 3


async def test_a_worker_is_replaced_after_its_calls(rig):
    code = (
        WAITS
        + """
    async def handler(input):
        await asyncio.sleep(0.01)
        return os.getpid()
    """
    )
    module = await rig.publish(code, calls=4, workers=WorkersPolicy(max_calls=5))
    pids = [each.value for each in await all_of(rig, module, [None] * 20)]

    assert max(pids.count(pid) for pid in pids) <= 5


async def test_processes_that_a_call_leaves_end_when_no_call_runs(rig, tmp_path):
    code = (
        WAITS
        + """
    import subprocess

    async def handler(input):
        if input:
            await flag(input)
            return None
        return subprocess.Popen(["sleep", "1000"]).pid
    """
    )
    module = await rig.publish(code, calls=2)
    async with beside(rig, module, str(tmp_path / "go")) as other:
        leaves = await rig.call(module, None)
        assert proc.alive(leaves.value)
        (tmp_path / "go").touch()

    assert other.ran.value is None
    assert not proc.alive(leaves.value)
    assert any("sleep" in each for each in other.ran.killed)


async def test_a_handler_that_is_not_async_is_refused_by_its_worker(rig):
    code = """
    def wrapped(function):
        return function

    @wrapped
    def handler(input):
        return input
    """
    ran = await rig.run(code, calls=2)

    assert ran.kind is ErrorKind.LOAD_FAILED
    assert "write `async def`" in ran.failure.message


async def test_secrets_are_masked_in_each_call(tmp_path):
    code = (
        WAITS
        + """
    async def handler(input):
        print(os.environ["KEY"], input)
        os.write(1, os.environ["KEY"].encode() + b"\\n")
        await asyncio.sleep(0.01)
        raise ValueError(os.environ["KEY"])
    """
    )
    secret = Secret("OPERATO_SECRET_KEY")
    async with open_rig(tmp_path / "rig", secrets=lambda wanted: dict.fromkeys(wanted, "hidden-value")) as rig:
        module = await rig.publish(code, calls=5, secrets={"KEY": secret})
        for n, ran in enumerate(await all_of(rig, module, range(5))):
            assert "hidden" not in ran.stdout + str(ran.failure)
            assert f"*** {n}\n" in ran.stdout


async def test_memory_is_a_limit_of_the_worker(rig):
    code = (
        WAITS
        + """
    kept = []

    async def handler(input):
        print("begun")
        if input:
            kept.append(b"x" * input)
        await asyncio.sleep(100)
    """
    )
    module = await rig.publish(code, calls=2, memory=64 << 20)
    async with beside(rig, module, 0) as other:
        much = await rig.call(module, 200 << 20)

    assert much.kind is ErrorKind.OUT_OF_MEMORY
    assert other.ran.kind is ErrorKind.OUT_OF_MEMORY


async def test_lost_calls_are_tried_again_by_the_policy_of_their_module(tmp_path):
    code = (
        WAITS
        + """
    async def handler(input, context):
        if input == "blocks" and context.attempt == 1:
            while not os.path.exists(PATH):
                await asyncio.sleep(0.002)
            time.sleep(100)
        elif context.attempt == 1:
            open(PATH, "w").close()
            await asyncio.sleep(100)
        return context.attempt
    """.replace("PATH", repr(str(tmp_path / "begun")))
    )
    retry = RetryPolicy(attempts=2, backoff=Backoff(initial=0.01, max=0.01, jitter=0.0), on=(ErrorKind.LOST,))
    module = inline("m", code, calls=2, timeout=30.0, retry=retry)
    found = {}
    async with open_service(tmp_path / "runner", [module]) as service:

        async def one(value, timeout):
            found[value] = await service.execute(ANYBODY, "m", b'"%s"' % value.encode(), timeout=timeout)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "blocks", 1.0)
            nursery.start_soon(one, "waits", None)

    assert found["blocks"].failure.kind is ErrorKind.TIMEOUT
    assert found["waits"].result == b"2"
    (first,) = found["waits"].failed_attempts
    assert first.failure.kind is ErrorKind.LOST


@pytest.mark.parametrize("max_workers", [1, 3])
async def test_handlers_that_share_a_worker_call_modules_and_themselves(tmp_path, max_workers):
    """All pools are at their limits, and no caller waits for ever."""
    code = """
    import asyncio
    from operato import context

    async def handler(input):
        if input == 0:
            return 1
        print("depth", input)
        own = await context().call_async("m", input - 1)
        others = await asyncio.gather(*(context().call_async("leaf", n) for n in range(3)))
        one = await asyncio.to_thread(context().call, "leaf", 3)
        return own + sum(others) + one
    """
    module = inline("m", code, calls=3, concurrency=5, calls_modules=("m", "leaf"), timeout=60.0)
    leaf = inline("leaf", "def handler(input): return input", concurrency=1, timeout=60.0)
    found = []
    async with open_service(tmp_path, [module, leaf], max_workers=max_workers, max_waiting=1000) as service:

        async def one():
            found.append(await service.execute(ANYBODY, "m", b"3"))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(one)
        executor = service.executors["inline"]
        now = executor.statistics()
        assert (now.busy, now.calls, now.parked, now.waiting) == (0, 0, 0, 0)
        assert executor._scheduler.working == 0

    assert [each.result for each in found] == [b"19"] * 12
    texts = {text_of(decode_all(each.events), None) for each in found}
    assert texts == {"depth 3\n"}


async def test_a_cancelled_handler_that_shares_a_worker_leaves_no_calls(tmp_path):
    code = """
    import asyncio
    from operato import context

    async def handler(input):
        print("begun", flush=True)
        if input == "waits":
            return await context().call_async("held", None)
        await asyncio.sleep(0.3)
        return await context().call_async("leaf", 1)
    """
    module = inline("m", code, calls=2, calls_modules=("*",))
    held = inline("held", "import time\ndef handler(input): time.sleep(100)")
    leaf = inline("leaf", "def handler(input): return input")
    async with open_service(tmp_path, [module, held, leaf]) as service:
        waits = await service.submit(ANYBODY, "m", b'"waits"')
        with trio.fail_after(30):
            while service.executors["inline"].statistics().parked == 0:
                await trio.sleep(0.01)
            other = {}

            async def one():
                other["done"] = await service.execute(ANYBODY, "m", b'"goes"')

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one)
                await service.cancel(ANYBODY, waits.id)
            statistics = service.executors["inline"].statistics
            while statistics().busy or service.runs.statistics().live:
                await trio.sleep(0.01)
        now = statistics()
        assert (now.calls, now.parked, now.waiting) == (0, 0, 0)
        assert service.executors["inline"]._scheduler.working == 0

    assert other["done"].result == b"1"
