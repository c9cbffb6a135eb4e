"""Contract: signals, child processes, random numbers and variables of a handler are those of a Python program."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from config.modules.policies import WorkersPolicy
from environments.leftovers import shortened
from protocol.errors import ErrorKind
from protocol.model import Isolation, Kind
from tests.support import open_rig
from tests.workers import WORKERS, chosen


@pytest.fixture(params=WORKERS)
def how(request):
    """Return the fields that choose the kind of worker."""
    return chosen(request)


@pytest.fixture(params=[name for name in WORKERS if name.endswith("fork")])
def forked(request):
    """Return such fields for `isolation: fork`."""
    return chosen(request)


@pytest.fixture(params=[name for name in WORKERS if name.endswith("warm")])
def warm(request):
    """Return such fields for `isolation: warm`."""
    return chosen(request)


@pytest.fixture
async def near(tmp_path, venvs, images, condas):
    """Return a rig below a long path: multiprocessing puts sockets into TMPDIR, whose paths have at most 107 bytes."""
    path = tmp_path / ("long" * 30)
    with shortened(path / "work") as short:
        async with open_rig(path, venvs=venvs, images=images, condas=condas, short=short) as rig:
            yield rig


@pytest.fixture
def ignoring():
    """Ignore and block signals, as `nohup` and some service managers do for what they start."""
    numbers = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in before.items():
        signal.signal(number, handler)


# -- signals ----------------------------------------------------------------------------------------------------------

DISPOSITIONS = """
import os, signal, subprocess, sys
# Signals 32 and 33 belong to the C library: no Python can set them, and a machine may ignore them.
STATUS = (
    "print(['%016x' % (int(l.split()[1], 16) & ~(3 << 31))"
    " for l in open('/proc/self/status') if l[:6] in ('SigIgn', 'SigBlk', 'SigCgt')])"
)
def handler(input):
    reader, writer = os.pipe()
    if os.fork() == 0:
        found = [signal.getsignal(number) == signal.SIG_DFL for number in (1, 3, 10, 12, 15)]
        found.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        found.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set())
        os.write(writer, b"%d" % all(found))
        os._exit(0)
    os.wait()
    sane = {"stdin": -3, "capture_output": True, "text": True, "check": True}
    started = [subprocess.run([sys.executable, "-I", "-S", "-c", STATUS], **sane).stdout for _ in range(2)]
    return [os.read(reader, 1), *started] == [b"1", started[0], started[0]] and started[0]
"""


async def test_children_begin_with_the_signals_of_a_program(ignoring, rig, how):
    """Python itself ignores SIGPIPE and SIGXFSZ, and handles SIGINT."""
    found = (await rig.run(DISPOSITIONS, **how)).value

    ignored = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert found == str([f"{mask:016x}" for mask in (0, ignored, 1 << (signal.SIGINT - 1))]) + "\n"


ENDING = """
import multiprocessing, signal, subprocess, time
fork = multiprocessing.get_context("fork")
def sleep(): time.sleep(60)
def stubborn(ready):
    ready.send(1)
    while True:
        try: time.sleep(60)
        except BaseException as problem: print("caught", type(problem).__name__, flush=True)
def handler(input):
    found = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        child = subprocess.Popen(["sleep", "60"])
        child.send_signal(number)
        found.append(child.wait(9))
    here, there = fork.Pipe()
    for target, arguments in ((sleep, ()), (stubborn, (there,))):
        child = fork.Process(target=target, args=arguments)
        child.start()
        if arguments: here.recv()
        child.terminate()
        child.join(9)
        found.append(child.exitcode)
    return found
"""


async def test_children_end_by_the_signals_that_they_get(rig, how):
    ran = await rig.run(ENDING, **how)

    assert ran.value == [-2, -15, -1, -15, -15]
    assert (ran.stdout, ran.stderr, ran.killed) == ("", "", ())


async def test_handlers_of_the_author_are_inherited(rig, how):
    code = """
    import multiprocessing, signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    fork = multiprocessing.get_context("fork")
    def wait(ready):
        ready.send(1)
        while True: time.sleep(0.01)  # pause() would miss a signal that comes just before it
    def handler(input):
        here, there = fork.Pipe()
        child = fork.Process(target=wait, args=(there,))
        child.start()
        here.recv()
        child.terminate()
        child.join(9)
        return child.exitcode
    """
    assert (await rig.run(code, **how)).value == 7


OWN_ENDS = {
    "itself": "os.kill(os.getpid(), signal.SIGTERM)",
    "its group": "os.killpg(os.getpgrp(), signal.SIGTERM)",
    "from a coroutine": "asyncio.run(end())",
}


@pytest.mark.parametrize("end", OWN_ENDS.values(), ids=OWN_ENDS)
async def test_a_handler_that_ends_itself_was_not_cancelled(rig, end, how):
    code = "import asyncio, os, signal\nasync def end(): os.kill(os.getpid(), signal.SIGTERM)\n"
    code += f"def handler(input):\n    if input: {end}\n    return 'fine'"
    module = await rig.publish(code, **how)

    ran = await rig.call(module, 1)

    assert ran.kind is ErrorKind.WORKER_CRASHED
    assert "SIGTERM" in ran.failure.message
    assert (await rig.call(module, 0)).value == "fine"


async def test_an_import_that_ends_itself(rig, how):
    ran = await rig.run("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\ndef handler(input): pass", **how)

    assert ran.kind is ErrorKind.LOAD_FAILED
    assert "SIGTERM" in ran.failure.message


async def test_an_interrupt_is_an_exception_of_the_handler(rig, how):
    module = await rig.publish("import signal\ndef handler(i, /):\n    signal.raise_signal(signal.SIGINT)", **how)

    for _ in range(2):
        ran = await rig.call(module)
        assert (ran.kind, ran.failure.type) == (ErrorKind.HANDLER_ERROR, "KeyboardInterrupt")


async def test_the_soft_stop_still_runs_the_finally_blocks(rig, how):
    code = "import time\ndef handler(i, /):\n    try: time.sleep(60)\n    finally: print('cleaned up', flush=True)"

    ran = await rig.run(code, timeout=0.3, **how)

    assert ran.kind is ErrorKind.TIMEOUT
    assert ran.stdout == "cleaned up\n"


# -- multiprocessing --------------------------------------------------------------------------------------------------

WORKING = """
import concurrent.futures, multiprocessing, threading
from multiprocessing import shared_memory
def double(number): return 2 * number
def fill(queue, name):
    memory = shared_memory.SharedMemory(name)
    memory.buf[0] = 7
    memory.close()
    queue.put("filled")
def handler(method, /):
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        found = [pool.map(double, [1, 2, 3])]
    pool.join()
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        found.append(list(executor.map(double, [4, 5])))
    with context.Manager() as manager:
        shared = manager.dict(a=1)
        found.append(dict(shared))
    memory, queue = shared_memory.SharedMemory(create=True, size=16), context.Queue()
    child = context.Process(target=fill, args=(queue, memory.name))
    child.start()
    found.append(queue.get(timeout=20))
    child.join(20)
    found += [child.exitcode, memory.buf[0]]
    memory.close()
    memory.unlink()
    said = []
    thread = threading.Thread(target=said.append, args=("thread",))
    thread.start()
    thread.join()
    return found + said
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_multiprocessing_works(near, method, how):
    """Twice: what the first call has started and what it has left must not disturb the second one."""
    module = await near.publish(WORKING, **how, timeout=25.0)
    for _ in range(2):
        ran = await near.call(module, method)
        assert ran.value == [[2, 4, 6], [8, 10], {"a": 1}, "filled", 0, 7, "thread"]
        assert ran.killed == ()
        if how["env"] is not Kind.DOCKER:  # images without libgcc_s say so when a process ends its threads
            assert ran.stderr == ""


SEGMENT = """
import os, signal, time
from multiprocessing import shared_memory
def handler(input):
    kept = globals().setdefault("kept", [])
    kept.append(shared_memory.SharedMemory(create=True, size=1000))
    print(kept[-1].name, flush=True)
    if input == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if input == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if input == "sleep": time.sleep(60)
    if input == "child" and os.fork() == 0: time.sleep(60)
    return [os.path.exists("/dev/shm/" + memory.name) for memory in kept]
"""
OURS = [name for name in WORKERS if not name.startswith("docker")]
"""Containers have shared memory of their own, which goes with them."""


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("end", ["", "crash", "kill", "sleep", "child"])
async def test_shared_memory_that_is_left_goes_with_the_worker(rig, request, kind, end):
    how = chosen_for(request, kind)
    once = WorkersPolicy(max_calls=1)
    module = await rig.publish(SEGMENT, **how, workers=once, timeout=0.5 if end == "sleep" else 15.0)

    ran = await rig.call(module, end)

    await rig.settled(rig.executors[how["env"]])
    name = ran.stdout.strip()
    assert name.startswith("psm_")
    if end in ("", "child"):  # the worker ends after its last call has been answered
        await rig.wait_until(lambda: not Path("/dev/shm", name).exists(), "the segment is left")
    assert not Path("/dev/shm", name).exists()
    if end != "sleep":  # the fork of a call that does not end in time is named
        assert len(ran.killed) == (end == "child")


def chosen_for(request, kind):
    """Return the fields of one kind of worker."""
    request.param = kind
    return chosen(request)


async def test_shared_memory_stays_while_its_worker_lives(rig, warm):
    module = await rig.publish(SEGMENT, **warm)

    for count in (1, 2, 3):
        ran = await rig.call(module)
        assert ran.value == [True] * count
        assert (ran.stderr, ran.killed) == ("", ())


async def test_shared_memory_of_a_forked_call_goes_with_the_call(rig, forked):
    code = SEGMENT.replace("def handler(input):\n", "def handler(input):\n    if input: return os.path.exists(input)\n")
    module = await rig.publish(code, **forked)

    ran = await rig.call(module)

    assert "1 leaked shared_memory" in ran.stderr, "the warning that any program gets belongs to the call"
    assert (await rig.call(module, "/dev/shm/" + ran.stdout.strip())).value is False


async def test_a_process_that_pretends_to_be_a_tracker_is_killed(rig, how):
    code = """
    import subprocess, sys
    def handler(input):
        code = "import time; time.sleep(60)  # .resource_tracker import main"
        return subprocess.Popen([sys.executable, "-c", code]).pid
    """
    ran = await rig.run(code, **how)

    assert ran.gone(ran.value)
    assert [int(line.split()[0]) for line in ran.killed] == [ran.value]


ATEXIT = """
import atexit, os
def say(text): print(text, flush=True)
atexit.register(say, "import")
def handler(path, /):
    atexit.register(open(path, "w").write, "call") if path else None
    return os.getpid()
"""


@pytest.mark.parametrize("isolation", [Isolation.WARM, Isolation.FORK, Isolation.FRESH])
async def test_exit_handlers(rig, tmp_path, isolation):
    """They run when the process of their registration ends in order; a forked call ends without them."""
    note, imported = tmp_path / "call", tmp_path / "import"
    code = ATEXIT.replace('say, "import"', f'open({str(imported)!r}, "w").write, "import"')
    module = await rig.publish(code, isolation=isolation, workers=WorkersPolicy(max_calls=1))

    await rig.call(module, str(note))
    await rig.settled(rig.inline)

    assert imported.read_text() == "import"
    assert note.read_text() == ("" if isolation is Isolation.FORK else "call")


# -- state ------------------------------------------------------------------------------------------------------------

DICE = """
import random, uuid, secrets
random.seed(1)
own = random.Random(1)
def handler(input): return [random.random(), str(uuid.uuid4()), secrets.token_hex(8), own.random()]
"""


async def test_forked_calls_have_different_random_numbers(rig, forked):
    module = await rig.publish(DICE, **forked)
    first, second = [(await rig.call(module)).value for _ in range(2)]

    assert all(a != b for a, b in zip(first[:3], second[:3], strict=True))
    assert first[3] == second[3], "a generator of one's own is copied, as the documents say"


async def test_forked_calls_seed_numpy_if_it_is_imported(rig, tmp_path, forked):
    """A stand-in: numpy itself needs an index."""
    folder = tmp_path / "dice"
    (folder / "numpy" / "random").mkdir(parents=True)
    (folder / "numpy" / "__init__.py").write_text("")
    (folder / "numpy" / "random" / "__init__.py").write_text("seeds = 0\ndef seed():\n    global seeds; seeds += 1\n")
    (folder / "main.py").write_text("import numpy.random\ndef handler(input): return numpy.random.seeds\n")

    assert (await rig.run("", path=folder, **forked)).value == 1


CLOCK = """
import subprocess, sys, time
before = time.localtime(0).tm_hour
def handler(input):
    code = "import time; print(time.localtime(0).tm_hour)"
    said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).stdout
    return [before, time.tzname[0], said.decode()]
"""


async def test_the_time_zone_of_the_variables(rig, how):
    assert (await rig.run(CLOCK, variables={"TZ": "KST-9"}, **how)).value == [9, "KST", "9\n"]


async def test_variables_of_python_work(rig, tmp_path, how):
    variables = {
        "PYTHONPATH": "/first:/second",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONWARNINGS": "error::DeprecationWarning,ignore::UserWarning",
    }
    code = """
    import faulthandler, sys, warnings
    def handler(input):
        warnings.warn("not shown", UserWarning)
        try: warnings.warn("an error", DeprecationWarning)
        except DeprecationWarning: raised = True
        print("shown at once", end="")
        return [sys.path[1:3], sys.dont_write_bytecode, faulthandler.is_enabled(), raised]
    """
    ran = await rig.run(code, variables=variables, **how)

    assert ran.value == [["/first", "/second"], True, True, True]
    assert (ran.stdout, ran.stderr) == ("shown at once", "")


async def test_shared_memory_of_a_container(rig, with_engine):
    """As large as the memory limit, or as `shm` says; the failure names the place and the field."""
    code = """
    from multiprocessing import shared_memory
    def handler(size, /):
        memory = shared_memory.SharedMemory(create=True, size=size)
        memory.buf[:] = bytes(size)
        memory.close()
        memory.unlink()
        return 1
    """
    memory = {"env": Kind.DOCKER, "memory": 300 << 20}
    assert (await rig.run(code, 100 << 20, **memory)).value == 1
    for isolation in (Isolation.WARM, Isolation.FORK):
        module = await rig.publish(code, **memory, shm=1 << 20, isolation=isolation)
        assert (await rig.call(module, 1 << 19)).value == 1
        failure = (await rig.call(module, 1 << 22)).failure
        assert failure.kind is ErrorKind.WORKER_CRASHED
        assert "SIGBUS, as when /dev/shm is full (field `shm`)" in failure.message
