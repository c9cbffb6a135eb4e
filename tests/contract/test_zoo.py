"""Contract: handlers that leave processes, stop themselves, close descriptors. Each case is a real complaint."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys

import pytest
import trio

from actors.events import EventLog
from config.modules.policies import WorkersPolicy
from environments import proc
from protocol.errors import ErrorKind
from protocol.events import text_of
from protocol.model import Isolation, Kind, Stream
from tests import engines
from tests.support import PATIENCE, WAIT_FOR, gone, open_rig, wait_until
from tests.workers import chosen

SERVED = ("inline-warm", "inline-fork", "docker-warm", "docker-fork")
"""The two ways in which the guest program serves a call, as a process of this machine and behind a relay."""
KEPT = ("inline-warm", "docker-warm")


@pytest.fixture(params=SERVED)
def served(request):
    """Return the fields that choose the kind of worker."""
    return chosen(request)


@pytest.fixture(params=KEPT)
def kept(request):
    """Return such fields for tests in which forked calls make no difference."""
    return chosen(request)


LIVING = """
import os, subprocess, sys, time
SLEEP = [sys.executable, "-S", "-E", "-c", "import time; time.sleep(600)"]
def say(path, pid):
    with open(path + ".tmp", "w") as file:
        file.write(str(pid))
    os.rename(path + ".tmp", path)
def told(reader):
    text = b""
    while not text.endswith(b"."):
        text += os.read(reader, 20)
    return int(text[:-1])
"""
"""Handlers that start processes return their ids."""

LEAVERS = {
    "Popen": "def handler(input): return subprocess.Popen(SLEEP).pid",
    "Popen without pipes": "def handler(input): return subprocess.Popen(SLEEP, stdout=-3, stderr=-3, stdin=-3).pid",
    "new session that holds the pipes": "def handler(i, /): return subprocess.Popen(SLEEP, start_new_session=True).pid",
    "double fork": """
def handler(input):
    reader, writer = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            os.write(writer, b"%d." % os.getpid())
            time.sleep(600)
        os._exit(0)
    os.wait()
    return told(reader)
""",
    "daemon": """
def handler(input):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.chdir("/")
            os.write(writer, b"%d." % os.getpid())
            os.closerange(0, 65536)
            time.sleep(600)
        os._exit(0)
    os.wait()
    return told(reader)
""",
    "daemon that ignores signals": """
def handler(input):
    import signal
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        for number in (1, 2, 3, 15): signal.signal(number, signal.SIG_IGN)
        if os.fork() == 0:
            os.write(writer, b"%d." % os.getpid())
            time.sleep(600)
        os._exit(0)
    os.wait()
    return told(reader)
""",
    "stopped": """
def handler(input):
    import signal
    pid = subprocess.Popen(SLEEP).pid
    os.kill(pid, signal.SIGSTOP)
    return pid
""",
}


@pytest.mark.parametrize("case", LEAVERS)
async def test_processes_that_a_handler_leaves_are_gone_at_its_end(rig, case, served):
    module = await rig.publish(LIVING + LEAVERS[case], **served)

    ran = await rig.call(module)

    assert ran.gone(ran.value), f"{case} outlived its execution"
    assert [int(line.split()[0]) for line in ran.killed] == [ran.value]
    assert all(len(line.split(maxsplit=1)) == 2 for line in ran.killed), "the name is missing"
    again = await rig.call(module)
    assert again.pid == ran.pid, "the worker could not be used any more"
    assert again.gone(again.value)


@pytest.mark.parametrize("end", ["os._exit(1)", "time.sleep(600)", "os.kill(os.getpid(), 9)"], ids=["exit", "timeout", "kill"])  # fmt: skip  # noqa: E501
@pytest.mark.parametrize("case", ["Popen", "new session that holds the pipes", "double fork", "daemon"])
async def test_processes_left_by_a_handler_that_dies(rig, case, end, kept):
    """The children of a dead worker are adopted by the runner or the relay, which kills them."""
    code = LIVING + LEAVERS[case].replace("def handler", "def leave")
    code += f"\ndef handler(input):\n    print(leave(input), flush=True)\n    {end}\n"

    ran = await rig.run(code, timeout=0.8 if "sleep" in end else 15, **kept)
    left = int(ran.stdout)

    assert ran.kind is (ErrorKind.TIMEOUT if "sleep" in end else ErrorKind.WORKER_CRASHED)
    assert ran.kind is not ErrorKind.TIMEOUT or ran.failure.message.endswith(
        "did not end within its `timeout` of 0.8 s"
    )
    assert ran.gone(left), f"{case} outlived its execution"
    if ("sleep" in end) and case in (
        "Popen",
        "double fork",
    ):  # it is in the group, so the soft stop may have been enough
        assert len(ran.killed) <= 1
    else:
        assert [int(line.split()[0]) for line in ran.killed] == [left]


async def test_processes_of_a_cancelled_call_are_gone_before_cancelled_is_raised(rig, kept):
    code = LIVING + LEAVERS["daemon"].replace("def handler", "def leave")
    code += "\ndef handler(input):\n    print(leave(input), flush=True)\n    time.sleep(600)\n"
    module = await rig.publish(code, **kept)
    log = EventLog(limit=1000, keep=1000)
    names = []

    async def call():
        await rig.call(module, log=log, on_worker=lambda worker: names.append(worker.guest.name))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await rig.wait_until(lambda: log.printed, "the handler did not begin")
        nursery.cancel_scope.cancel()

    pid = int(text_of(log.kept(), Stream.STDOUT))
    assert gone(pid) if names[0].isdigit() else engines.gone(names[0], pid)


async def test_processes_left_by_a_module_that_cannot_be_loaded(rig, tmp_path):
    note = tmp_path / "pid"
    code = LIVING + f"say({str(note)!r}, subprocess.Popen(SLEEP, start_new_session=True).pid)\n1 / 0\n"

    assert (await rig.run(code)).kind is ErrorKind.LOAD_FAILED
    assert gone(int(note.read_text()))


async def test_helpers_of_init_survive_calls_and_end_with_the_worker(rig, kept):
    code = (
        LIVING
        + """
def init():
    global helper
    helper = subprocess.Popen([sys.executable, "-c", "import sys\\nfor l in sys.stdin: print(int(l) * 2, flush=True)"],
                              stdin=-1, stdout=-1, text=True, start_new_session=True)
def handler(input):
    left = subprocess.Popen(SLEEP).pid
    helper.stdin.write("%d\\n" % input)
    helper.stdin.flush()
    return [int(helper.stdout.readline()), helper.pid, left]
"""
    )
    module = await rig.publish(code, workers=WorkersPolicy(max_calls=3), **kept)
    for i in range(3):
        ran = await rig.call(module, i)
        doubled, helper, left = ran.value
        assert doubled == 2 * i
        assert ran.gone(left)
        assert [int(line.split()[0]) for line in ran.killed] == [left]
        if i < 2:
            assert not ran.gone(helper)
    await rig.settled(rig.executors[module.spec.env])
    assert ran.gone(helper)


async def test_a_fork_in_which_both_return(rig, served):
    module = await rig.publish("import os\ndef handler(input): return [os.fork() == 0, input]", **served)
    for i in range(3):
        assert (await rig.call(module, i)).value == [False, i]


async def test_a_fork_in_a_generator_in_which_both_continue(rig, served):
    code = """
    import os
    def handler(input, context):
        yield 1
        child = os.fork()
        context.progress(1, 2)
        yield 2
        yield 3
        if child: os.waitpid(child, 0)
    """
    ran = await rig.run(code, **served)

    assert ran.value == [1, 2, 3]
    assert len(ran.events) == 4, "the copy spoke too"


async def test_a_child_that_holds_the_channel_of_a_dead_worker(rig, kept):
    """The channel does not close when the worker dies."""
    code = "import os, time\ndef handler(input):\n    if os.fork() == 0: time.sleep(600)\n    os._exit(7)"
    ran = await rig.run(code, **kept)

    assert ran.kind is ErrorKind.WORKER_CRASHED
    assert "exit code 7" in ran.failure.message
    assert len(ran.killed) == 1


async def test_everything_is_closed(rig, served):
    code = "import os\ndef handler(input):\n    if input: os.closerange(0, 65536)\n    return 'fine'"
    module = await rig.publish(code, **served)

    ran = await rig.call(module, 1)
    assert ran.kind is ErrorKind.WORKER_CRASHED
    assert "closed the descriptor of its channel" in ran.failure.message
    assert (await rig.call(module, 0)).value == "fine"


async def test_everything_is_closed_and_the_handler_continues(rig, kept):
    ran = await rig.run(
        "import os, time\ndef handler(input):\n    os.closerange(0, 65536)\n    time.sleep(600)", **kept
    )

    assert ran.kind is ErrorKind.WORKER_CRASHED
    assert "closed the descriptor of its channel" in ran.failure.message


async def test_noise_on_the_channel(rig, kept):
    code = """
    import os
    def handler(input):
        for fd in range(3, 1024):
            try: os.write(fd, input.encode() * 10)
            except OSError: pass
        return 1
    """
    for noise in ("junk", "\0\0\0\1{", "\0\0\0\0"):
        ran = await rig.run(code, noise, **kept)
        assert ran.kind is ErrorKind.WORKER_CRASHED
        assert "channel was disturbed" in ran.failure.message


FORGER = """
import json, os, socket, threading, time
def frame(context, extra=0):
    answer = {"children": False, "type": "result", "id": context.execution_id, "seconds": 0, "value": "forged"}
    data = json.dumps(answer).encode()
    return (len(data) + extra).to_bytes(4, "big") + data
def channel():
    for fd in range(3, 64):
        try:
            return socket.socket(fileno=os.dup(fd))
        except OSError:
            pass
def handler(how, /, context):
    if how == "at once":
        channel().send(frame(context))
    elif how == "long before it returns":
        channel().send(frame(context))
        time.sleep(0.3)
    elif how == "twice":
        channel().send(frame(context) * 2)
    elif how == "half a frame":
        channel().send(frame(context) + frame(context, 9))
    elif how == "after it returned":
        threading.Timer(0.05, channel().send, [frame(context)]).start()
    return "honest"
"""


@pytest.mark.parametrize("how", ["at once", "long before it returns", "twice", "after it returned"])
async def test_a_forged_answer_reaches_no_other_call(rig, served, how):
    await check_forger(await rig.publish(FORGER, **served), rig, how)


@pytest.mark.parametrize("isolation", [Isolation.WARM, Isolation.FORK])
async def test_the_beginning_of_a_forged_answer_reaches_no_other_call(rig, isolation):
    """Of local workers: a relay passes whole frames on."""
    await check_forger(await rig.publish(FORGER, isolation=isolation), rig, "half a frame")


async def check_forger(module, rig, how):
    async def call(value):
        for _ in range(3):  # as `Attempts` do
            ran = await rig.call(module, value)
            if ran.outcome.reached:
                break
        return ran

    for pause in (0.0, 0.1, 0.4):
        await call(how)
        await trio.sleep(pause)
        later = [(await call("")).value for _ in range(3)]
        assert later == ["honest"] * 3


async def test_a_group_that_stops_itself(rig, served):
    code = "import os, signal\ndef handler(input):\n    os.killpg(0, signal.SIGSTOP)\n    return 1"
    ran = await rig.run(code, **served, timeout=0.4)

    assert ran.kind is ErrorKind.TIMEOUT
    await rig.settled(rig.executors[served["env"]])
    if isinstance(ran.pid, int):  # that no container is left is checked by the rig
        assert gone(ran.pid)


async def test_a_group_that_kills_itself(rig, kept):
    ran = await rig.run("import os\ndef handler(input): os.killpg(0, 9)", **kept)

    assert ran.kind is ErrorKind.WORKER_CRASHED


async def test_silence_then_a_result(rig, tmp_path):
    """A silent handler must not be taken for a dead one."""
    flag = tmp_path / "go"
    module = await rig.publish(WAIT_FOR + "def handler(input):\n    wait_for(input)\n    return 'late'")
    results = []

    async def call():
        results.append(await rig.call(module, str(flag)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await trio.sleep(2.5)  # the silence itself, over two rounds of maintenance
        flag.touch()

    assert results[0].value == "late"


async def test_endless_printing_without_a_reader(rig, kept):
    code = "import os\ndef handler(input):\n    while True: os.write(1, b'x' * 65536)"
    ran = await rig.run(code, output=3_000_000, **kept)

    assert ran.kind is ErrorKind.OUTPUT_LIMIT


async def test_an_endless_printer_left_behind(rig, kept):
    """The child prints for ever into the pipe of a worker that has answered."""
    code = LIVING + "def handler(input): return subprocess.Popen(['yes']).pid"
    module = await rig.publish(code, output=10**9, **kept)

    ran = await rig.call(module)

    assert ran.gone(ran.value)
    assert ran.killed == (f"{ran.value} yes",)
    assert (await rig.call(module)).pid == ran.pid


# -- limits ----------------------------------------------------------------------------------------------------------


class Limiting:
    """A rig for modules of one kind."""

    def __init__(self, rig, env):
        self.rig = rig
        self.call = rig.call
        self.publish = functools.partial(rig.publish, env=env)
        self.run = functools.partial(rig.run, env=env)


@pytest.fixture(params=["cgroup", "watched", "engine"])
async def limiting(request, tmp_path, venvs, images):
    """Return a rig of this machine, one of a machine without control groups, and one whose engine sets limits."""
    if request.param == "engine":
        request.getfixturevalue("engine")
    async with open_rig(tmp_path / "rig", venvs=venvs, images=images, watched=request.param == "watched") as rig:
        how = rig.limits.enforcement
        if request.param == "cgroup" and "cgroup" not in how.memory + how.processes:
            pytest.skip(f"control groups cannot be written here: {how}")
        yield Limiting(rig, Kind.DOCKER if request.param == "engine" else Kind.INLINE)


EATER = """
import time
def handler(input):
    kept = bytearray()
    if input:
        while True:
            kept += b"x" * 5_000_000
            time.sleep(0.005)
    kept += b"x" * 30_000_000
    return len(kept)
"""


@pytest.mark.parametrize("isolation", [Isolation.WARM, Isolation.FORK])
async def test_memory_limit(limiting, isolation):
    module = await limiting.publish(EATER, memory=100_000_000, isolation=isolation)

    ran = await limiting.call(module, True)
    assert ran.kind is ErrorKind.OUT_OF_MEMORY
    assert "memory limit of 100000000B (`memory`)" in ran.failure.message
    assert (await limiting.call(module, False)).value == 30_000_000, "what is allowed was refused"


async def test_memory_of_children_counts(limiting):
    code = """
    import subprocess, sys
    EAT = "import time\\nkept = []\\nwhile True: kept.append(b'x' * 5000000); time.sleep(0.005)"
    def handler(input): return subprocess.run([sys.executable, "-c", EAT]).returncode
    """
    ran = await limiting.run(code, memory=100_000_000)

    # A group kills either all of it or the eater alone; the runner sees both.
    assert ran.outcome.failure is None or ran.kind is ErrorKind.OUT_OF_MEMORY
    if ran.outcome.failure is None:
        assert ran.value == -signal.SIGKILL


async def test_memory_limit_while_loading(limiting):
    code = "import time\nkept = []\nwhile True:\n    kept.append(b'x' * 5_000_000)\n    time.sleep(0.005)\n"
    ran = await limiting.run(code, memory=100_000_000)

    assert ran.kind is ErrorKind.OUT_OF_MEMORY


BOMB = """
import os, time
def handler(input):
    made = 0
    for _ in range(60):
        try:
            pid = os.fork()
        except OSError:
            break
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        made += 1
        time.sleep(0.02)
    return made
"""


@pytest.mark.parametrize("isolation", [Isolation.WARM, Isolation.FORK])
async def test_process_limit(limiting, isolation):
    module = await limiting.publish(BOMB, processes=20, isolation=isolation)

    ran = await limiting.call(module)
    if ran.outcome.failure is None:
        assert 18 <= ran.value <= 20
        assert len(ran.killed) == ran.value
        again = await limiting.call(module)
        assert again.value == ran.value, "what was killed still counts"
    else:
        assert ran.kind is ErrorKind.WORKER_CRASHED
        assert "more than 20 processes" in ran.failure.message
        assert 20 <= len(ran.killed) <= 61


async def test_the_process_limit_allows_processes_below_it(limiting):
    code = LIVING + "def handler(input): return [subprocess.run(['true']).returncode for _ in range(30)]"

    assert (await limiting.run(code, processes=3)).value == [0] * 30


async def test_a_tree_that_grows_while_it_is_killed(rig, kept):
    """Each of 3 processes forks 15 times, one after the other, as fast as it can."""
    code = """
    import os, time
    def handler(input):
        for _ in range(3):
            if os.fork() == 0:
                for _ in range(15):
                    if os.fork() == 0: time.sleep(600)
                time.sleep(600)
        return os.getpid()
    """
    ran = await rig.run(code, **kept)

    if isinstance(ran.pid, int):
        assert proc.descendants(ran.value) == [p for p in proc.descendants(ran.value) if gone(p)]
    assert 3 <= len(ran.killed) <= 48


# -- the death of the runner -----------------------------------------------------------------------------------------

RUNNER = """
import json, sys
from pathlib import Path
import trio
from tests.support import open_rig

async def main(path, modules):
    async with open_rig(path / "rig") as rig, trio.open_nursery() as nursery:
        for name, code in modules.items():
            module = await rig.publish(code, name=name, timeout=600.0)
            nursery.start_soon(rig.call, module, str(path / name))
        await trio.sleep_forever()

trio.run(main, Path(sys.argv[1]), json.loads(sys.argv[2]))
"""
BUSY = {
    "spins": "def handler(input):\n    begun(input)\n    while True: pass",
    "regex": "import re\ndef handler(input):\n    begun(input)\n    re.match('(a|aa)+$', 'a' * 60 + 'b')",
    "sleeps": "import time\ndef handler(input):\n    begun(input)\n    time.sleep(600)",
    "deaf": "import signal, time\ndef handler(input):\n    for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
    "    begun(input)\n    while True: time.sleep(600)",
    "child": "import subprocess\ndef handler(input):\n    p = subprocess.Popen(['sleep', '600'])\n"
    "    begun(input, p.pid)\n    p.wait()",
}
BEGUN = """
def begun(path, *pids):
    import json, os
    with open(path + ".tmp", "w") as file: json.dump([os.getpid(), *pids], file)
    os.rename(path + ".tmp", path)
"""


async def test_the_death_of_the_runner_ends_its_workers(tmp_path):
    """Without a watcher, processes that left the group (setsid) are not promised: no process looks for them."""
    modules = json.dumps({name: BEGUN + code for name, code in BUSY.items()})
    argv = [sys.executable, "-c", RUNNER, str(tmp_path), modules]
    async with trio.open_nursery() as nursery:
        start = await nursery.start(functools.partial(trio.run_process, argv, check=False))
        with trio.fail_after(PATIENCE):
            notes = [tmp_path / name for name in BUSY]
            await wait_until(lambda: all(note.exists() for note in notes), "the handlers did not begin")
            pids = [pid for note in notes for pid in json.loads(note.read_text())]
            assert len(pids) == len(BUSY) + 1
            assert not any(gone(pid) for pid in pids)
            start.kill()
            await start.wait()
            await wait_until(lambda: all(gone(pid) for pid in pids), lambda: f"{[p for p in pids if not gone(p)]} live")

    # The workers of a dead runner come to the next one above that adopts orphans: here that is the test.
    await wait_until(lambda: _reaped(pids), "zombies are left")


def _reaped(pids):
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)
