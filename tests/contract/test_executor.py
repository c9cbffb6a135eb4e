"""Contract: an executor with real workers: reuse, limits, waiting reasons, back-off, nothing left behind."""

from __future__ import annotations

import os
import signal
import sys

import attrs
import pytest
import trio
import trio.testing

from actors.events import EventLog
from actors.workers.call import Call
from actors.workers.pool import Phases, Waiter
from config.modules.policies import WorkersPolicy
from environments import proc
from environments.base import Availability, Prepared
from protocol import messages
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Isolation
from tests.support import PATIENCE, WAIT_FOR, gone, open_rig, wait_until

ECHO = "import os\ndef handler(input): return [os.getpid(), input]"
HOLD = (
    WAIT_FOR
    + """
def handler(input):
    import os
    open(input + ".begun", "w").close()
    wait_for(input)
    return os.getpid()
"""
)
"""Runs until the test makes the file."""


@attrs.define
class Held:
    """Calls that run until `let_go`."""

    rig: object
    module: object
    flag: object
    results: list = attrs.field(factory=list)

    async def start(self, nursery, count=1):
        for _ in range(count):
            nursery.start_soon(self._call)
        await self.rig.wait_until(lambda: os.path.exists(f"{self.flag}.begun"), "the handler did not begin")

    async def _call(self):
        self.results.append(await self.rig.call(self.module, str(self.flag)))

    def let_go(self):
        self.flag.touch()


@pytest.fixture
async def hold(rig, tmp_path):
    async def make(**fields):
        fields.setdefault("name", "held")
        module = await rig.publish(HOLD, **fields)
        return Held(rig, module, tmp_path / f"flag-{fields['name']}")

    return make


@attrs.define
class Breaking:
    """A wrapper of a real environment that counts, and fails on demand."""

    inner: object
    prepared: int = 0
    launched: int = 0
    trouble: object = None
    wait: object = None

    @property
    def kind(self):
        return self.inner.kind

    async def probe(self):
        return await self.inner.probe()

    async def prepare(self, spec, say):
        self.prepared += 1
        await (self.wait or trio.testing.wait_all_tasks_blocked)()
        if self.trouble is not None:
            raise self.trouble
        return await self.inner.prepare(spec, say)

    def launch(self, prepared):
        self.launched += 1
        return self.inner.launch(prepared)

    async def mend(self, prepared):
        return await self.inner.mend(prepared)

    def keep(self, keys):
        self.inner.keep(keys)


# -- reuse and retirement --------------------------------------------------------------------------------------------


async def test_recycling_by_calls(rig):
    module = await rig.publish(ECHO, workers=WorkersPolicy(max_calls=3))
    pids = [(await rig.call(module)).pid for _ in range(7)]

    assert len(set(pids[:3])) == len(set(pids[3:6])) == 1
    assert len(set(pids)) == 3
    await rig.settled()
    assert gone(pids[0])


async def test_recycling_by_age(tmp_path):
    async with open_rig(tmp_path / "rig", max_age_seconds=0.001) as rig:
        module = await rig.publish(ECHO)
        assert (await rig.call(module)).pid != (await rig.call(module)).pid


async def test_exit_handlers_run_when_a_worker_is_retired(rig, tmp_path):
    note = tmp_path / "farewell"
    code = f"import atexit\natexit.register(lambda: open({str(note)!r}, 'w').close())\ndef handler(input): pass"
    await rig.run(code, workers=WorkersPolicy(max_calls=1))

    await rig.wait_until(note.exists, "the exit handler did not run")


async def test_a_worker_that_refuses_to_retire_is_killed(rig):
    code = "import atexit, time\natexit.register(time.sleep, 600)\ndef handler(input): pass"
    ran = await rig.run(code, workers=WorkersPolicy(max_calls=1))

    await rig.settled()
    assert gone(ran.pid)


async def test_idle_workers_are_retired(rig):
    module = await rig.publish(ECHO, workers=WorkersPolicy(idle=0.05))
    ran = await rig.call(module)
    assert rig.inline.statistics().idle == 1

    await rig.wait_until(lambda: gone(ran.pid), "the idle worker is kept")
    await rig.settled()
    assert rig.inline.statistics().workers == 0


async def test_workers_min(rig):
    module = await rig.publish(ECHO, workers=WorkersPolicy(min=2, idle=0.01))

    await rig.wait_until(lambda: rig.inline.statistics().idle == 2, "no workers are kept ready")
    started = rig.inline.statistics().started
    await trio.sleep(1.2)  # a round of maintenance
    assert rig.inline.statistics() == attrs.evolve(rig.inline.statistics(), idle=2, workers=2, started=started)

    ran = await rig.call(module)
    assert ran.phases.start == ran.phases.load == 0
    os.kill(ran.pid, signal.SIGKILL)
    await rig.wait_until(lambda: rig.inline.statistics().started == started + 1, "the killed one is not replaced")
    await rig.wait_until(lambda: rig.inline.statistics().idle == 2, "the killed one is not replaced")


async def test_workers_min_after_a_start_for_which_the_machine_had_no_room(tmp_path):
    class Full(Breaking):
        def launch(self, prepared):
            self.launched += 1
            if self.launched == 1:
                raise OSError("no more processes")
            return self.inner.launch(prepared)

    async with open_rig(tmp_path / "rig", inline=Full) as rig:
        await rig.publish(ECHO, workers=WorkersPolicy(min=1))

        await rig.wait_until(lambda: rig.inline.statistics().idle == 1, "no worker is kept ready")


async def test_workers_min_within_the_room_of_the_kind(tmp_path):
    async with open_rig(tmp_path / "rig", max_workers=1, kept_memory_bytes=0) as rig:
        module = await rig.publish(ECHO, workers=WorkersPolicy(min=2))
        await rig.wait_until(lambda: rig.inline.statistics().idle, "no worker is kept ready")

        assert (await rig.call(module, 1)).value[1] == 1
        assert rig.inline.statistics().started == 1


async def test_spares_are_used_and_made_again(tmp_path):
    before = set(proc.children(os.getpid()))
    async with open_rig(tmp_path / "rig", spares=1) as rig:
        module = await rig.publish(ECHO)
        await rig.wait_until(lambda: rig.inline.statistics().spares == 1, "no spare is kept")
        (spare,) = set(proc.children(os.getpid())) - before

        assert (await rig.call(module)).pid == spare
        assert rig.inline.statistics().spares == 1


async def test_a_dead_spare_is_not_used(tmp_path):
    before = set(proc.children(os.getpid()))
    async with open_rig(tmp_path / "rig", spares=1) as rig:
        module = await rig.publish(ECHO)
        await rig.wait_until(lambda: rig.inline.statistics().spares == 1, "no spare is kept")
        (spare,) = set(proc.children(os.getpid())) - before
        os.kill(spare, signal.SIGKILL)
        os.waitid(os.P_PID, spare, os.WEXITED | os.WNOWAIT)

        assert (await rig.call(module, 5)).value[1] == 5


async def test_a_stopped_spare_is_not_used(tmp_path):
    before = set(proc.children(os.getpid()))
    async with open_rig(tmp_path / "rig", spares=1) as rig:
        module = await rig.publish(ECHO)
        await rig.wait_until(lambda: rig.inline.statistics().spares == 1, "no spare is kept")
        (spare,) = set(proc.children(os.getpid())) - before
        os.kill(spare, signal.SIGSTOP)
        await rig.wait_until(lambda: proc.stopped(spare), "it is not stopped")

        assert (await rig.call(module, 5)).value[1] == 5


async def test_an_idle_worker_that_was_killed(rig):
    module = await rig.publish(ECHO)
    first = await rig.call(module)
    os.kill(first.pid, signal.SIGKILL)
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # dead, and the executor had no chance to see it

    second = await rig.call(module, 5)
    assert second.value == [second.pid, 5]
    assert second.pid != first.pid


async def test_a_busy_worker_that_was_killed(rig, hold):
    held = await hold()
    async with trio.open_nursery() as nursery:
        pids = []
        nursery.start_soon(lambda: _collect(rig, held, pids))
        await rig.wait_until(lambda: os.path.exists(f"{held.flag}.begun"), "it did not begin")
        os.kill(pids[0], signal.SIGKILL)

    assert held.results[0].kind is ErrorKind.WORKER_CRASHED
    held.let_go()
    assert (await rig.call(held.module, str(held.flag))).value != pids[0]


async def _collect(rig, held, pids):
    held.results.append(
        await rig.call(held.module, str(held.flag), on_worker=lambda worker: pids.append(worker.guest.pid))
    )


async def test_a_listener_that_fails_ends_the_handler(rig):
    """The error is the runner's own; the worker, which is in mid-call, must not be used again."""
    module = await rig.publish("import time\ndef handler(input):\n    yield 1\n    time.sleep(600)")

    def fail(_event):
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, allow_unwrapped=True, flatten_subgroups=True):
        await rig.call(module, on_event=fail)
    await rig.settled()
    assert rig.inline.statistics().workers == 0


# -- versions --------------------------------------------------------------------------------------------------------


async def test_a_new_version_beside_the_old_one(rig, hold):
    held = await hold()
    async with trio.open_nursery() as nursery:
        await held.start(nursery)
        new = await rig.publish("def handler(input): return 'new'", name="held")
        assert (await rig.call(new)).value == "new"
        held.let_go()

    old = held.results[0]
    assert old.value == old.pid, "the running call was cut off"
    await rig.settled()
    assert gone(old.pid)
    assert (await rig.call(new)).value == "new"
    assert rig.inline.statistics().workers == 1


async def test_idle_workers_of_an_old_version_go(rig):
    old = await rig.call(await rig.publish(ECHO))
    new = await rig.call(await rig.publish(ECHO + "  # v2"))

    assert new.pid != old.pid
    await rig.wait_until(lambda: gone(old.pid), "the old worker is kept")


async def test_the_same_version_again_keeps_its_workers(rig):
    first = await rig.call(await rig.publish(ECHO))

    assert (await rig.call(await rig.publish(ECHO))).pid == first.pid


async def test_a_late_caller_of_an_old_version_leaves_no_worker(rig):
    """Its module was replaced while it slept before a retry, for example."""
    old = await rig.publish(ECHO, workers=WorkersPolicy(min=1))
    await rig.publish(ECHO + "  # v2")
    await rig.wait_until(lambda: old.digest not in rig.inline._scheduler.pools, "the pool is kept")

    assert (await rig.call(old, 1)).value[1] == 1
    await rig.wait_until(lambda: old.digest not in rig.inline._scheduler.pools, "the pool came back for good")


async def test_a_changed_variable_is_a_new_version(rig):
    code = "import os\ndef handler(input): return os.environ['WHO']"

    assert (await rig.run(code, variables={"WHO": "a"})).value == "a"
    assert (await rig.run(code, variables={"WHO": "b"})).value == "b"


# -- capacity --------------------------------------------------------------------------------------------------------


async def test_concurrency_bounds_the_workers_of_a_module(rig):
    module = await rig.publish("import os, time\ndef handler(input):\n    time.sleep(0.01)", concurrency=2)
    pids = set()

    async def call():
        pids.add((await rig.call(module)).pid)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(call)

    assert 1 <= len(pids) <= 2
    assert rig.inline.statistics().started <= 2


async def test_one_place_for_two_modules(tmp_path):
    async with open_rig(tmp_path / "rig", max_workers=1, kept_memory_bytes=0) as rig:
        await rig.publish(ECHO, name="a")
        await rig.publish(ECHO + "  # b", name="b")
        a, b = rig.registry.snapshot.get("a"), rig.registry.snapshot.get("b")
        values = []

        async def call(module, i):
            values.append((await rig.call(module, i)).value[1])

        for i in range(3):
            await call(a, i)
            await call(b, i)
        async with trio.open_nursery() as nursery:
            for i in range(6):
                nursery.start_soon(call, b if i % 2 else a, 10 + i)

        assert sorted(values) == [0, 0, 1, 1, 2, 2, 10, 11, 12, 13, 14, 15]
        assert rig.inline.statistics().workers == 1


async def test_workers_min_is_not_evicted(tmp_path):
    async with open_rig(tmp_path / "rig", max_workers=1, kept_memory_bytes=0) as rig:
        kept = await rig.publish(ECHO, name="kept", workers=WorkersPolicy(min=1))
        others = [await rig.publish(ECHO + f"  # {n}", name=f"other-{n}") for n in range(2)]
        await rig.wait_until(lambda: rig.inline.statistics().idle, "no worker is kept ready")

        for other in others:
            assert (await rig.call(other, 1)).value[1] == 1
        assert (await rig.call(kept)).phases.start == 0
        assert rig.inline.statistics().evicted == 1


async def test_workers_of_many_modules_are_kept(tmp_path):
    """More than may run at a time."""
    async with open_rig(tmp_path / "rig", max_workers=1) as rig:
        modules = [await rig.publish(ECHO + f"  # {n}", name=f"m-{n}") for n in range(4)]
        first = [(await rig.call(module)).pid for module in modules]

        assert [(await rig.call(module)).pid for module in modules] == first
        found = rig.inline.statistics()
        assert (found.idle, found.started, found.evicted) == (4, 4, 0)
        assert found.kept_memory > 4 << 20


async def test_no_more_workers_run_than_may(tmp_path):
    """Idle ones of other modules wait for their turn."""
    async with open_rig(tmp_path / "rig", max_workers=1) as rig:
        idle = await rig.publish(ECHO, name="idle", queue_timeout=0.2)
        assert (await rig.call(idle, 1)).value[1] == 1
        busy = await rig.publish("import time\ndef handler(path, /):\n    open(path, 'w'); time.sleep(60)", name="busy")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.call, busy, str(tmp_path / "runs"))
            await rig.wait_until((tmp_path / "runs").exists, "it does not run")
            refused = (await rig.call(idle)).failure
            nursery.cancel_scope.cancel()

    assert refused.kind is ErrorKind.OVERLOADED
    assert "as many workers run as `max_workers` allows" in refused.message


async def test_queue_timeout_says_what_it_waited_for(rig, hold):
    held = await hold(concurrency=1, queue_timeout=0.2)
    async with trio.open_nursery() as nursery:
        await held.start(nursery)
        failure = (await rig.call(held.module, str(held.flag))).failure
        held.let_go()

    assert failure.kind is ErrorKind.OVERLOADED
    assert "queue_timeout (0.2 s): its only worker is busy" in failure.message
    assert failure.retry_after


async def test_a_full_waiting_room_answers_at_once(tmp_path):
    async with open_rig(tmp_path / "rig", max_waiting=2) as rig:
        flag = tmp_path / "flag"
        module = await rig.publish(HOLD, concurrency=1, queue_timeout=600)
        held = Held(rig, module, flag)
        async with trio.open_nursery() as nursery:
            await held.start(nursery)
            nursery.start_soon(held._call)
            nursery.start_soon(held._call)
            await rig.wait_until(lambda: rig.inline.statistics().waiting == 2, "no caller waits")
            with trio.fail_after(PATIENCE):
                failure = (await rig.call(module, str(flag))).failure
            held.let_go()

        assert failure.kind is ErrorKind.OVERLOADED
        assert "2 callers wait already" in failure.message
        assert [ran.value for ran in held.results] == [held.results[0].pid] * 3


async def test_a_caller_gets_its_waiting_reasons_during_a_start(tmp_path):
    go = trio.Event()
    async with open_rig(tmp_path / "rig", inline=lambda real: Breaking(real, wait=go.wait)) as rig:
        module = await rig.publish(ECHO)
        told = []
        waiter = Waiter(told.append)

        async def call():
            async with rig.inline.lease(module, Phases(), ask=lambda: waiter):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await rig.wait_until(lambda: "preparing environment" in told, lambda: str(told))
            go.set()
        assert told[-2:] == ["starting worker", "importing module"]


async def test_closing_answers_waiting_callers(tmp_path):
    kinds = []
    async with open_rig(tmp_path / "rig") as rig:
        module = await rig.publish(HOLD, concurrency=1)
        held = Held(rig, module, tmp_path / "flag")
        async with trio.open_nursery() as nursery:
            await held.start(nursery)
            nursery.start_soon(held._call)
            await rig.wait_until(lambda: rig.inline.statistics().waiting, "no caller waits")
            rig.inline.close()
            kinds.append((await rig.call(module, str(held.flag))).kind)
            held.let_go()

    assert kinds == [ErrorKind.SHUTDOWN]
    assert sorted(str(ran.outcome.failure and ran.kind) for ran in held.results) == ["None", "shutdown"]


# -- starts that fail ------------------------------------------------------------------------------------------------


async def test_a_failed_start_is_answered_without_a_start_for_a_while(rig, tmp_path):
    flag = tmp_path / "mended"
    module = await rig.publish(f"import os\nif not os.path.exists({str(flag)!r}): 1 / 0\ndef handler(input): return 1")

    first = await rig.call(module)
    started = rig.inline.statistics().started
    second = await rig.call(module)
    assert first.kind is second.kind is ErrorKind.LOAD_FAILED
    assert first.failure.retry_after is None
    assert "not tried again for" in second.failure.message
    assert second.failure.traceback == first.failure.traceback
    assert 0 < second.failure.retry_after <= 0.5
    assert rig.inline.statistics().started == started == 1

    flag.touch()
    await trio.sleep(second.failure.retry_after)
    assert (await rig.call(module)).value == 1
    assert (await rig.call(module)).value == 1


async def test_the_pause_grows(rig):
    module = await rig.publish("1 / 0")
    await rig.call(module)
    first = (await rig.call(module)).failure.retry_after
    await trio.sleep(first)
    await rig.call(module)

    assert (await rig.call(module)).failure.retry_after > first


async def test_many_callers_of_a_broken_module_get_few_starts(rig):
    module = await rig.publish("1 / 0", concurrency=4)
    kinds = []

    async def call():
        kinds.append((await rig.call(module)).kind)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(call)

    assert kinds == [ErrorKind.LOAD_FAILED] * 50
    assert rig.inline.statistics().started <= 4


async def test_many_callers_of_a_broken_environment_get_one_build(tmp_path):
    async with open_rig(tmp_path / "rig", inline=Breaking) as rig:
        rig.inline.environment.trouble = error(ErrorKind.ENVIRONMENT_FAILED, "no such package")
        module = await rig.publish(ECHO)
        failures = []

        async def call():
            failures.append((await rig.call(module)).failure)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(call)

        assert {f.kind for f in failures} == {ErrorKind.ENVIRONMENT_FAILED}
        assert all("no such package" in f.message for f in failures)
        assert rig.inline.environment.prepared == 1
        assert rig.inline.statistics().started == 0


async def test_the_first_call_gets_the_failure_of_the_build_at_publication(tmp_path, monkeypatch):
    monkeypatch.setattr("actors.workers.pool._FIRST_PAUSE_SECONDS", 60.0)
    async with open_rig(tmp_path / "rig", inline=Breaking) as rig:
        rig.inline.environment.trouble = error(ErrorKind.ENVIRONMENT_FAILED, "no such package")
        module = await rig.publish(ECHO)
        pool = rig.inline._scheduler.pools[module.digest]
        await rig.wait_until(lambda: pool.last_failure, "it did not fail")

        failure = (await rig.call(module)).failure
        assert "no such package" in failure.message
        assert 0 < failure.retry_after <= 60
        assert rig.inline.environment.prepared == 1

        rig.inline.environment.trouble = None
        pool.retry_at = 0.0  # the pause is over
        assert (await rig.call(module, 1)).value[1] == 1


async def test_callers_behind_a_failed_start_are_served_by_existing_workers(rig, tmp_path):
    """A second worker cannot be started; the first one serves all callers."""
    once = tmp_path / "once"
    code = f"import os\nos.mkdir({str(once)!r})\n" + HOLD
    module = await rig.publish(code, concurrency=2)
    held = Held(rig, module, tmp_path / "flag")
    async with trio.open_nursery() as nursery:
        await held.start(nursery)
        for _ in range(3):
            nursery.start_soon(held._call)
        await rig.wait_until(lambda: len(held.results) == 1, "the failed start reached no caller")
        held.let_go()

    assert held.results[0].kind is ErrorKind.LOAD_FAILED
    assert len({ran.value for ran in held.results[1:]}) == 1


async def test_a_worker_that_cannot_be_started(tmp_path):
    class Missing(Breaking):
        async def prepare(self, spec, say):
            return Prepared("missing", ("/no/such/python",), {})

    async with open_rig(tmp_path / "rig", inline=Missing) as rig:
        failure = (await rig.run(ECHO)).failure

    assert failure.kind is ErrorKind.UNAVAILABLE
    assert "/no/such/python" in failure.message


async def test_a_start_that_is_mended_counts_among_the_workers(tmp_path):
    """A caller that comes meanwhile waits: there is one worker at most."""

    class Damaged(Breaking):
        damaged = True
        mending = trio.Event()
        go_on = trio.Event()

        def launch(self, prepared):
            self.launched += 1
            if self.damaged:
                raise OSError("damaged")
            return self.inner.launch(prepared)

        async def mend(self, prepared):
            self.mending.set()
            await self.go_on.wait()
            Damaged.damaged = False
            return await self.inner.mend(prepared)

    async with open_rig(tmp_path / "rig", inline=Damaged) as rig, trio.open_nursery() as nursery:
        module, pids = await rig.publish(ECHO, concurrency=1), []

        async def call():
            pids.append((await rig.call(module)).pid)

        nursery.start_soon(call)
        await Damaged.mending.wait()
        nursery.start_soon(call)
        await rig.wait_until(lambda: rig.inline.statistics().waiting == 2, "both wait")
        Damaged.go_on.set()
        await rig.wait_until(lambda: len(pids) == 2, "both have an answer")

        assert rig.inline.environment.launched == 2
    assert len({*pids}) == 1


async def test_a_bug_in_an_environment_is_an_internal_error(tmp_path):
    async with open_rig(tmp_path / "rig", inline=lambda real: Breaking(real, trouble=None)) as rig:
        module = await rig.publish(ECHO)
        await rig.wait_until(lambda: rig.inline._scheduler.pools[module.digest].prepared, "not prepared")
        rig.inline._scheduler.pools[module.digest].prepared = None
        rig.inline.environment.trouble = ZeroDivisionError("secret detail")

        failure = (await rig.call(module)).failure

    assert failure.kind is ErrorKind.INTERNAL
    assert "secret" not in failure.message


async def test_a_build_that_takes_too_long(tmp_path):
    async with open_rig(tmp_path / "rig", inline=lambda real: Breaking(real, wait=trio.sleep_forever)) as rig:
        failure = (await rig.run(ECHO, build_timeout=0.1)).failure

    assert (failure.kind, failure.field) == (ErrorKind.ENVIRONMENT_FAILED, "build_timeout")


# -- cancellation ----------------------------------------------------------------------------------------------------


async def test_cancel_at_every_await(rig, tmp_path):
    """A first call, a warm call and a call that leaves a process are cancelled at each of their checkpoints."""
    code = """
    import subprocess, sys
    def handler(input):
        print("x")
        subprocess.Popen(["sleep", "600"])
        return "y" * 200_000
    """
    await rig.publish(ECHO, name="n")
    for isolation in (Isolation.WARM, Isolation.FRESH):
        module = await rig.publish(code, isolation=isolation, concurrency=2)
        done = 0
        for checkpoints in range(60):
            done += await _cancelled_after(rig, module, checkpoints)
            if done == 3:
                break
        assert done == 3, "no call was left to end"
    await rig.settled()


async def _cancelled_after(rig, module, checkpoints):
    """Call, and cancel after this many steps of the task; return whether the call ended before that."""
    ended = False
    started = trio.lowlevel.current_task()

    class Counting(trio.abc.Instrument):
        left = checkpoints
        caller = None

        def after_task_step(self, task):
            if task is self.caller:
                self.left -= 1
                if self.left < 0:
                    scope.cancel()

    counting = Counting()

    async def call():
        nonlocal ended
        counting.caller = trio.lowlevel.current_task()
        with scope:
            await rig.call(module)
            ended = True

    assert started is not None
    scope = trio.CancelScope()
    trio.lowlevel.add_instrument(counting)
    try:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
    finally:
        trio.lowlevel.remove_instrument(counting)
    now = rig.inline.statistics()
    assert (now.busy, now.waiting) == (0, 0)
    await wait_until(lambda: not rig.inline.statistics().starting, "a start does not end")
    sleepers = [pid for pid in proc.descendants(os.getpid()) if proc.name(pid) == "sleep" and proc.alive(pid)]
    assert sleepers == []
    return ended


async def test_a_caller_that_goes_away_during_the_build(tmp_path):
    """The build is shared: it continues, once, and the next caller gets a worker."""
    go = trio.Event()
    async with open_rig(tmp_path / "rig", inline=lambda real: Breaking(real, wait=go.wait)) as rig:
        module = await rig.publish(ECHO)
        with trio.move_on_after(0.1):
            await rig.call(module)
        now = rig.inline.statistics()
        assert (now.busy, now.waiting, now.started) == (0, 0, 0)
        go.set()
        assert (await rig.call(module, 1)).value[1] == 1
        assert rig.inline.environment.prepared == 1
        await rig.settled()


async def test_closing_during_a_start_leaves_nothing(tmp_path):
    """The rig itself checks that nothing is left."""
    async with open_rig(tmp_path / "rig") as rig:
        module = await rig.publish("while True: pass")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_expect_failure, rig, module)
            await rig.wait_until(lambda: rig.table.statistics() == 1, "no worker was started")
            rig.inline.close()


async def _expect_failure(rig, module):
    assert (await rig.call(module)).kind is ErrorKind.SHUTDOWN


async def test_a_lease_without_a_call_gives_the_worker_back(rig):
    module = await rig.publish(ECHO)
    with pytest.raises(ZeroDivisionError):
        async with rig.inline.lease(module, Phases()) as worker:
            raise ZeroDivisionError
    now = rig.inline.statistics()
    assert (now.busy, now.idle) == (0, 1)
    assert (await rig.call(module)).pid == worker.guest.pid


async def test_each_call_of_a_worker_gets_its_attempt(rig):
    module = await rig.publish("def handler(input, context): return context.attempt")
    async with rig.inline.lease(module, Phases()) as worker:
        for attempt in (1, 2):
            log = EventLog(limit=10, keep=10)
            outcome = await worker.execute(Call("e", messages.check_json(b"null"), attempt, 5.0, log))
            assert outcome.result == b"%d" % attempt


async def test_phases_have_the_times_of_the_start_and_the_queue(rig, hold):
    code = "import time\ntime.sleep(0.1)\ndef handler(input): pass"
    ran = await rig.run(code)
    assert ran.phases.load >= 0.1
    assert ran.phases.queue < 0.1
    assert ran.phases.start > 0

    held = await hold(concurrency=1)
    async with trio.open_nursery() as nursery:
        await held.start(nursery)
        nursery.start_soon(held._call)
        await rig.wait_until(lambda: rig.inline.statistics().waiting, "no caller waits")
        await trio.sleep(0.1)
        held.let_go()
    assert held.results[1].phases.queue >= 0.1
    assert held.results[1].phases.load == 0


async def test_cpus(rig):
    """A control group or the affinity enforces it."""
    if rig.limits.enforcement.cpus == "affinity":
        code = "import os\ndef handler(input): return len(os.sched_getaffinity(0))"
        assert (await rig.run(code, cpus=1.0)).value == 1
    else:
        code = "import time\ndef handler(input):\n    b = time.time()\n    while time.time() < b + 0.5: pass\n    return time.process_time()"  # noqa: E501
        assert (await rig.run(code, cpus=0.2)).value < 0.45


async def test_a_kind_that_is_absent(rig):
    rig.inline._starter.probing.found = Availability(available=False, reason="no such thing; install it")
    failure = (await rig.run(ECHO)).failure

    assert failure.kind is ErrorKind.UNAVAILABLE
    assert "install it" in failure.message


async def test_nothing_is_lent_before_the_executor_runs(rig):
    executor = attrs.evolve(rig.inline)
    executor._starter.probing.found = rig.inline.availability
    with pytest.raises(RunnerError) as caught:
        async with executor.lease(await rig.publish(ECHO), Phases()):
            pass
    assert caught.value.failure.kind is ErrorKind.SHUTDOWN
    assert sys.executable
