"""Contract: what every kind of worker owes a handler, its author and its caller; the same tests over all of them."""

from __future__ import annotations

import functools
import itertools
import json
import os
import stat
import threading

import msgspec
import pytest
import trio
import trio.testing

from actors.events import EventLog
from actors.workers.call import Outcome
from environments.local.inprocess import InProcess
from protocol import messages
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Isolation, Kind
from tests.support import PATIENCE, WAIT_FOR, Ran, open_rig
from tests.values import CONVERTED, REFUSED, SETUP
from tests.workers import WORKERS, Flag, chosen

SERVED = {name: WORKERS[name] for name in ("inline-warm", "inline-fork", "docker-warm", "docker-fork")}
"""The two ways in which the guest program serves a call; for tests that have to wait for time limits."""


@pytest.fixture(params=WORKERS)
def how(request):
    """Return the fields that choose the kind of worker."""
    return chosen(request)


@pytest.fixture(params=SERVED)
def served(request):
    """Return the same as `how`, for tests that take their time."""
    return chosen(request)


@pytest.fixture(params=[name for name in WORKERS if name != "docker-fresh"])
def run(rig, request):
    """Return `run(code, input, **fields)`: publish a module and call it.

    A first call in a fresh container is what it is in one that is kept.
    """
    return functools.partial(rig.run, **chosen(request))


@pytest.fixture
def flag(rig, how, tmp_path):
    return Flag(rig, how, tmp_path)


class InTheRunner:
    """Calls handlers in this process, behind the same face as the rig."""

    def __init__(self, rig):
        self.rig = rig
        self.inside = InProcess()
        self.ids = itertools.count(1)

    async def __call__(self, code, value=None, *, call=None, **fields):
        return await self.call(await self.rig.publish(code, isolation=Isolation.NONE, **fields), value, **(call or {}))

    async def call(self, module, value=None, *, on_event=None, timeout=None, **more):
        events = []

        def listen(event):
            events.append(event)
            if on_event is not None:
                on_event(event)

        data = bytes(value) if isinstance(value, msgspec.Raw) else json.dumps(value).encode()
        arguments = module.digest, module.entry, module.function, module.spec.concurrency, data
        with trio.fail_after(PATIENCE):
            try:
                result = await self.inside.call(
                    *arguments,
                    seconds=timeout or module.spec.timeout,
                    execution_id=f"e{next(self.ids)}",
                    on_event=listen,
                    **more,
                )
            except RunnerError as problem:
                return Ran(Outcome(failure=problem.failure, exit_code=1), events=tuple(events))
        return Ran(Outcome(result=result), events=tuple(events))


@pytest.fixture
async def in_the_runner(rig):
    """Return `run(code, input, **fields)` for handlers without any wall."""
    runner = InTheRunner(rig)
    yield runner
    loops = [thread for thread in threading.enumerate() if thread.name.startswith("loop inprocess_")]
    runner.inside.close()
    for thread in loops:
        await trio.to_thread.run_sync(thread.join, PATIENCE)


@pytest.fixture(params=[*WORKERS, "in-process"])
def run_any(request, rig, in_the_runner):
    """Return the same as `run`, also for handlers without any wall."""
    if request.param == "in-process":
        return in_the_runner
    return functools.partial(rig.run, **chosen(request))


@pytest.fixture(params=[*WORKERS, "in-process"])
def any_caller(request, rig, in_the_runner):
    """Return `any_caller(code)`, which publishes a module for this kind of worker and returns `call(input)`."""
    fields = {"isolation": Isolation.NONE} if request.param == "in-process" else chosen(request)
    caller = in_the_runner.call if request.param == "in-process" else rig.call

    async def publish(code):
        return functools.partial(caller, await rig.publish(code, **fields))

    return publish


# -- what a handler may be ------------------------------------------------------------------------------------------

FORMS = {
    "def": ("def handler(input): return {'got': input}", {"got": 7}),
    "async": ("async def handler(input):\n    import asyncio; await asyncio.sleep(0)\n    return [input]", [7]),
    "generator": ("def handler(input):\n    yield input\n    yield input + 1", [7, 8]),
    "async generator": (
        "async def handler(input):\n    import asyncio\n    for i in range(2):\n        await asyncio.sleep(0)\n"
        "        yield input + i",
        [7, 8],
    ),
    "lambda": ("handler = lambda input: input * 2", 14),
    "object": ("class H:\n    def __call__(self, input): return input\nhandler = H()", 7),
    "partial": ("import functools\ndef f(a, input): return [a, input]\nhandler = functools.partial(f, 1)", [1, 7]),
    "decorated": (
        "import functools\ndef d(f):\n    @functools.wraps(f)\n    def w(*a): return f(*a)\n    return w\n"
        "@d\ndef handler(input): return input",
        7,
    ),
    "a default of its own": ("def handler(input, _factor=3): return input * _factor", 21),
    "nothing": ("def handler(input): pass", None),
    "a builtin": ("handler = abs", 7),
}


@pytest.mark.parametrize("form", FORMS)
async def test_forms_of_handlers(run_any, form):
    code, expected = FORMS[form]

    assert (await run_any(code, 7)).value == expected


async def test_every_json_value_comes_back_as_it_is(run_any):
    value = {"a": [None, True, False, 0, -1, 1.5, 1e300, 2**70, "é\n\u2028😀", [], {}], "": {"ключ": [[[]]]}}

    assert (await run_any("def handler(input): return input", value)).value == value


async def test_context(run_any):
    code = """
    def handler(input, context):
        return [context.execution_id, context.attempt, context.remaining, context.deadline]
    """
    identity, attempt, remaining, deadline = (await run_any(code, timeout=9.0)).value

    assert identity.startswith("e")
    assert attempt == 1
    assert 5 < remaining <= 9
    assert deadline > 1e9


async def test_progress_arrives_in_order(run_any):
    code = """
    def handler(input, context):
        for i in range(3):
            context.progress(i, 3, "step %d" % i)
        context.progress(text="x" * 100_000)
    """
    events = (await run_any(code)).events

    assert [(e.done, e.total, e.text) for e in events[:3]] == [(float(i), 3.0, f"step {i}") for i in range(3)]
    assert events[3].done is None
    assert 1000 < len(events[3].text) < 100_000, "long texts are cut, not refused"


async def test_progress_from_threads_beside_large_items(run_any):
    code = """
    import threading
    def handler(input, context):
        def tell():
            for i in range(200):
                context.progress(i, 200, "x" * 3000)
        threads = [threading.Thread(target=tell) for _ in range(3)]
        for thread in threads: thread.start()
        for i in range(5):
            yield "y" * 1_000_000
        for thread in threads: thread.join()
    """
    ran = await run_any(code)

    assert len(ran.value) == 5
    assert len(ran.events) == 605


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_items_are_told_as_they_come(rig, how, flag, kind):
    """The handler continues only after its first item has arrived."""
    code = WAIT_FOR + f"{kind} handler(input):\n    yield 'first'\n    wait_for(input)\n    yield 'second'\n"

    ran = await rig.run(code, flag.path, call={"on_event": lambda _event: flag.touch()}, **how)

    assert ran.value == ["first", "second"]
    assert [json.loads(bytes(e.value)) for e in ran.events] == ["first", "second"]


async def test_output_is_read_while_the_handler_runs(rig, how, flag):
    code = WAIT_FOR + "def handler(input):\n    print('begun')\n    wait_for(input)\n"
    module = await rig.publish(code, **how)
    log = EventLog(limit=1000, keep=1000)

    async def watch():
        await rig.wait_until(lambda: log.printed, "no output while running")
        flag.touch()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        ran = await rig.call(module, flag.path, log=log)

    assert ran.value is None
    assert ran.stdout == "begun\n"


async def test_init_and_state_between_calls(rig, how):
    code = """
    import os
    count = 0
    def init():
        global count
        count = 100
    def handler(input):
        global count
        count += 1
        return [count, os.getpid()]
    """
    module = await rig.publish(code, **how)
    ran_1, ran_2 = await rig.call(module), await rig.call(module)
    (first, pid_1), (second, pid_2) = ran_1.value, ran_2.value

    assert first == 101
    if how["isolation"] is Isolation.WARM:
        assert (second, pid_2) == (102, pid_1)
    else:
        assert second == 101, "state of one call is seen by the next"
        assert (pid_2, ran_2.pid) != (pid_1, ran_1.pid), "numbers are the same in every container"


async def test_async_init_and_the_handler_share_a_loop(run_any):
    code = """
    import asyncio
    async def init():
        global loop
        loop = asyncio.get_running_loop()
    async def handler(input):
        return loop is asyncio.get_running_loop()
    """
    assert (await run_any(code)).value is True


async def test_another_name_and_a_package(rig, how, tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .prices import price\ndef total(input): return sum(map(price, input))\n")
    (folder / "prices.py").write_text("def price(name): return {'tea': 2, 'milk': 1}[name]\n")

    ran = await rig.run("", ["tea", "milk"], path=folder, handler="total", **how)

    assert ran.value == 3


async def test_a_module_named_like_one_of_the_standard_library(run_any):
    code = "import json\ndef handler(input): return [json.dumps([1]), __name__]"

    text, name = (await run_any(code, name="json")).value
    assert text == "[1]"
    assert name != "json"


async def test_pickled_classes_and_dataclasses_of_the_module(run_any):
    code = """
    from __future__ import annotations
    import dataclasses, pickle
    @dataclasses.dataclass
    class Point:
        x: int
    def handler(input):
        return pickle.loads(pickle.dumps(Point(input))).x
    """
    assert (await run_any(code, 5)).value == 5


# -- the surroundings ------------------------------------------------------------------------------------------------


async def test_the_environment_is_built_from_nothing(rig, how, monkeypatch):
    monkeypatch.setenv("OPERATO_JWT_SECRET", "hidden")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    code = """
    import os, sys
    def handler(input):
        return [dict(os.environ), open("/proc/self/environ").read(), sys.argv, sys.path]
    """
    ran = await rig.run(code, variables={"COLOR": "grün"}, **how)
    environ, raw, argv, path = ran.value

    allowed = {"PATH", "LANG", "HOME", "TMPDIR", "COLOR", "VIRTUAL_ENV", "LC_CTYPE"}
    allowed |= {"HOSTNAME"} if how["env"] is Kind.DOCKER else set()
    allowed |= {"CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CONDA_SHLVL"} if how["env"] is Kind.CONDA else set()
    assert set(environ) <= allowed
    assert environ["COLOR"] == "grün"
    assert "hidden" not in raw
    assert argv == ["handler"]
    assert "/nowhere" not in path
    assert not [p for p in path if p.startswith(os.getcwd()) and "site-packages" not in p and ".venv" not in p]


async def test_home_is_private_and_goes_with_the_worker(run):
    code = """
    import os, tempfile
    def handler(input):
        assert os.getcwd() == os.environ["HOME"] == os.environ["TMPDIR"] == tempfile.gettempdir()
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(b"left behind")
        return [os.environ["HOME"], os.stat(".").st_mode]
    """
    ran = await run(code)
    home, mode = ran.value

    assert home.startswith("/")
    assert stat.S_IMODE(mode) == 0o700  # that it is gone in the end is checked by the rig


async def test_descriptors_of_the_runner_are_not_handed_on(run):
    code = """
    import os
    def handler(input):
        return sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
    """
    secret = os.open("/etc/passwd", os.O_RDONLY)
    try:
        fds = (await run(code)).value
    finally:
        os.close(secret)

    # 0 to 2, the channel, the lifeline, the listing itself, and the answer pipe of a fork
    assert len(fds) <= 7
    assert fds[:3] == [0, 1, 2]


async def test_stdin_is_empty(run):
    assert (await run("import sys\ndef handler(input): return sys.stdin.read()")).value == ""


async def test_subprocess_and_multiprocessing_work(run):
    code = """
    import subprocess, sys, multiprocessing
    def square(x): return x * x
    def handler(input):
        told = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True, check=True)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            squares = pool.map(square, [1, 2, 3])
            pool.close()
            pool.join()
        return [told.stdout, squares]
    """
    ran = await run(code)
    assert ran.value == ["42\n", [1, 4, 9]]
    assert ran.killed == ()


# -- modules that cannot be loaded -----------------------------------------------------------------------------------

UNLOADABLE = {
    "missing": ("def handle(input): pass\ndef _x(): pass", "LoadError", ["no function 'handler'", "handle"]),
    "missing, nothing there": ("x = 1", "LoadError", ["no functions"]),
    "not callable": ("handler = 42", "LoadError", ["int, not a function"]),
    "syntax": ("def handler(input)\n    pass", "SyntaxError", ["expected ':'"]),
    "import": ("import no_such_module_1\ndef handler(input): pass", "ModuleNotFoundError", ["no_such_module_1"]),
    "raises": ("1 / 0", "ZeroDivisionError", ["division by zero"]),
    "exits": ("import sys; sys.exit('no licence')", "SystemExit", ["no licence"]),
    "init raises": ("def init(): raise KeyError('url')\ndef handler(input): pass", "KeyError", ["url"]),
    "async init raises": ("async def init(): raise OSError('db')\ndef handler(input): pass", "OSError", ["db"]),
    "null bytes": ("x = '\0'", ("SyntaxError", "ValueError"), ["null bytes"]),
}


@pytest.mark.parametrize("case", UNLOADABLE)
async def test_what_cannot_be_loaded_says_why(run_any, case):
    code, kind, hints = UNLOADABLE[case]

    failure = (await run_any(code)).failure

    assert failure.kind is ErrorKind.LOAD_FAILED
    assert failure.type in ((kind,) if isinstance(kind, str) else kind)
    for hint in hints:
        assert hint in failure.message
    assert "guest.py" not in (failure.traceback or "")


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("import os; os._exit(3)", "ended with exit code 3 while the module was imported"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV while the module was imported"),
        ("import os; os.closerange(3, 65536)", "channel"),
    ],
)
async def test_a_death_while_loading(run, code, hint):
    failure = (await run(code + "\ndef handler(input): pass")).failure

    assert failure.kind is ErrorKind.LOAD_FAILED
    assert hint in failure.message


async def test_loading_that_does_not_end(run):
    failure = (await run("while True: pass", start_timeout=0.5)).failure

    assert failure.kind is ErrorKind.LOAD_FAILED
    assert failure.field == "start_timeout"


async def test_loading_that_prints_without_end(run):
    failure = (await run("while True: print('x' * 1000)", output=100_000)).failure

    assert failure.kind is ErrorKind.OUTPUT_LIMIT
    assert "imported" in failure.message


async def test_a_fork_in_the_module_does_not_answer_twice(run):
    code = "import os\nos.fork()\ndef handler(input): return input"

    assert (await run(code, 1)).value == 1


# -- handlers that fail ----------------------------------------------------------------------------------------------

RAISES = "\ndef deep(x):\n    raise ValueError('no good: %s' % x)\n"


@pytest.mark.parametrize(
    "code",
    [
        "def handler(input): deep(input)",
        "async def handler(input): deep(input)",
        "def handler(input):\n    yield 1\n    deep(input)",
        "async def handler(input):\n    yield 1\n    deep(input)",
    ],
    ids=["def", "async", "generator", "async generator"],
)
async def test_a_traceback_has_the_frames_of_the_user_only(run_any, code):
    ran = await run_any(RAISES + code, 5)
    failure = ran.failure

    assert (failure.kind, failure.type, failure.message) == (ErrorKind.HANDLER_ERROR, "ValueError", "no good: 5")
    trace = failure.traceback
    assert "in handler" in trace
    assert "raise ValueError('no good: %s' % x)" in trace
    assert "guest.py" not in trace
    assert "inprocess.py" not in trace
    assert "asyncio" not in trace
    assert ran.outcome.exit_code == 1


ODD = {
    "SystemExit": ("raise SystemExit(3)", "handler_error", "sys.exit(3)"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "handler_error", ""),
    "GeneratorExit": ("raise GeneratorExit", "handler_error", ""),
    "MemoryError": ("raise MemoryError", "out_of_memory", "MemoryError"),
    "a huge allocation": ("return bytearray(1 << 60)", "out_of_memory", "MemoryError"),
    "recursion": ("return handler(input)", "handler_error", "recursion"),
    "surrogate": (r"raise ValueError('\ud800 bad')", "handler_error", r"\ud800 bad"),
    "a long message": ("raise ValueError('x' * 10_000_000)", "handler_error", "xxx"),
    "no message": (
        "class Mute(Exception):\n        def __str__(self): raise RuntimeError\n    raise Mute",
        "handler_error",
        "no message: __str__ raised",
    ),
    "a group": ("import asyncio\n    raise asyncio.CancelledError('mine')", "handler_error", "mine"),
    "a cause": ("try: 1 / 0\n    except Exception as e: raise KeyError('outer') from e", "handler_error", "outer"),
}


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("where", ["worker", "in-process"])
async def test_odd_ways_to_fail(rig, in_the_runner, case, kind, where):
    code, expected, hint = ODD[case]
    if kind == "async def" and case == "recursion":
        code = "return await handler(input)"
    code = f"{kind} handler(input):\n    if not input: return 'fine'\n    {code}\n"
    module = await rig.publish(code, isolation=Isolation.NONE if where == "in-process" else Isolation.WARM)
    call = in_the_runner.call if where == "in-process" else rig.call

    failure = (await call(module, 1)).failure

    assert failure.kind == expected
    assert hint in failure.message
    assert len(failure.message) < 100_000
    assert (await call(module, 0)).value == "fine"


async def test_exits_and_interrupts_of_every_worker(run_any):
    for code in ("raise SystemExit", "raise KeyboardInterrupt", "import sys; sys.exit('bye')"):
        assert (await run_any(f"def handler(input): {code}")).kind is ErrorKind.HANDLER_ERROR


BAD_VALUES = {
    "nan": ("{'rows': [{'price': 1}, {'price': float('nan')}]}", "$.rows[1].price", "nan"),
    "infinity": ("[float('-inf')]", "$[0]", "-inf"),
    "bytes as a key": ("{'a': {b'x': 1}}", "$.a", "bytes"),
    "set": ("[[1], {1, 2j}]", "$[1][", "complex"),
    "object": ("{'when': __import__('datetime').timedelta(1)}", "$.when", "datetime.timedelta"),
    "function": ("handler", "$", "function"),
    "circular": ("(lambda x: x.append(x) or x)([])", "$[0]", "itself"),
    "deep": ("__import__('functools').reduce(lambda a, _: [a], range(100_000), 0)", "$[0][0]", "deep"),
    "tuple key": ("{'a': {(1, 2): 3}}", "$.a", "tuple"),
    "surrogate": (r"['\ud800']", "$[0]", "surrogate"),
    "surrogate in a key": (r"{'a': {'\udfff': 1}}", "$.a", "surrogate"),
    "nan below a bad key": (r"{'\ud800': float('nan')}", "$", ""),
    "nan below a huge key": ("{'k' * 20_000_000: float('nan')}", "$.kkk", "nan"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
async def test_bad_output_names_the_path(run_any, case):
    value, path, hint = BAD_VALUES[case]

    failure = (await run_any(f"def handler(input): return {value}")).failure

    assert failure.kind is ErrorKind.BAD_OUTPUT
    assert failure.field.startswith(path)
    assert len(failure.field) < 1000
    if len(path) < 20 and case not in ("deep", "set", "nan below a huge key", "nan below a bad key"):
        assert failure.field == path
    assert hint in failure.message


ROWS = {
    name: (CONVERTED | REFUSED)[name]
    for name in (
        "a dataclass", "a named tuple in a dataclass", "a moment", "enums", "sets", "a path", "keys that become text",
        "NaN in a dataclass", "a key that is bytes", "a duration", "keys 1 and '1'", "a lone surrogate",
        "itself in a dataclass",
    )
}  # fmt: skip
TABLE = SETUP + "".join(f"def returns_{number}(): return {row[0]}\n" for number, row in enumerate(ROWS.values()))
HANDLERS = {
    "result": ("def handler(input): return globals()[f'returns_{input}']()\n", "$"),
    "item": ("def handler(input):\n    yield globals()[f'returns_{input}']()\n", "$[0]"),
}


@pytest.mark.parametrize("form", HANDLERS)
async def test_values_are_converted_or_refused_alike_by_every_worker(rig, any_caller, form):
    """The whole table is a test of the guest; these are what would differ if a worker had a definition of its own."""
    handler, root = HANDLERS[form]
    call = await any_caller(TABLE + handler)
    for number, (name, row) in enumerate(ROWS.items()):
        ran = await call(number)
        if len(row) == 2:
            assert ran.value == ([row[1]] if form == "item" else row[1]), name
        else:
            failure = ran.failure
            assert (failure.kind, failure.field) == (ErrorKind.BAD_OUTPUT, row[1].replace("$", root, 1)), name
            assert failure.message.startswith(f"{failure.field}: {row[2]}"), name


async def test_a_number_beyond_a_double_is_refused_before_the_handler(rig, any_caller):
    call = await any_caller("def handler(input): return input")
    for text, path in ((b"[1e400]", "$[0]"), (b'{"a":{"b":-1E+309}}', "$.a.b"), (b"1" * 400 + b".0", "$")):
        failure = (await call(messages.check_json(text))).failure
        assert (failure.kind, failure.field) == (ErrorKind.BAD_INPUT, path)
        assert "is beyond the range of a double" in failure.message
    large = b'{"n":[1e308,1e-400,0e400,123456789012345678901234567890],"text":"1e400"}'
    assert (await call(messages.check_json(large))).value == json.loads(large)


async def test_keys_that_are_not_text_become_text(run_any):
    ran = await run_any("def handler(input): return {1: 'a', None: 'b', True: 'c', 1.5: 'd'}")

    assert ran.value in ({"true": "c", "null": "b", "1.5": "d"}, {"1": "c", "null": "b", "1.5": "d"})


async def test_a_bad_item_names_its_place(run_any):
    failure = (await run_any("def handler(input):\n    yield 1\n    yield {'x': 1j}")).failure

    assert (failure.kind, failure.field) == (ErrorKind.BAD_OUTPUT, "$[1].x")


@pytest.mark.parametrize("python", [None, "3.13"])
@pytest.mark.parametrize("depth", [400, 900, 5000])
async def test_nesting_is_passed_or_refused_but_never_a_crash(rig, depth, python):
    """Newer interpreters can write deeper values than the runner can read."""
    code = f"def handler(input):\n    x = 0\n    for _ in range({depth}): x = [x]\n    return x"
    fields = {} if python is None else {"env": Kind.VENV, "python": python}

    ran = await rig.run(code, **fields)

    if ran.outcome.failure is None:
        assert ran.outcome.result.count(b"[") == depth
    elif "was not found on this machine" in ran.failure.message:
        pytest.skip(ran.failure.message)
    else:
        assert depth > 500
        assert ran.kind is ErrorKind.BAD_OUTPUT


# -- sizes -----------------------------------------------------------------------------------------------------------


async def test_ten_megabytes_in_and_out(run_any):
    code = """
    def handler(input):
        assert len(input) == 10_000_000
        return input[::-1]
    """
    value = (await run_any(code, "a" * 9_999_999 + "b")).value

    assert len(value) == 10_000_000
    assert value.startswith("ba")


async def test_ten_megabytes_of_items(run_any):
    ran = await run_any("def handler(input):\n    for i in range(10): yield str(i) * 1_000_000")

    assert [item[0] for item in ran.value] == list("0123456789")


@pytest.mark.parametrize("isolation", [Isolation.WARM, Isolation.FORK])
async def test_values_over_the_frame_limit(tmp_path, isolation):
    limit = 100_000
    async with open_rig(tmp_path / "rig", max_frame_bytes=limit) as rig:
        module = await rig.publish("def handler(input): return 'x' * input", isolation=isolation)
        items = await rig.publish("def handler(input): yield 'x' * input", name="i", isolation=isolation)

        assert len((await rig.call(module, limit - 300)).value) == limit - 300
        for size in (limit, limit + 70_000, 200_000_000):
            failure = (await rig.call(module, size)).failure
            assert failure.kind is ErrorKind.BAD_OUTPUT
            assert str(limit - 256) in failure.message
            assert "JSON" in failure.message
            failure = (await rig.call(items, size)).failure
            assert (failure.kind, failure.field) == (ErrorKind.BAD_OUTPUT, "$[0]")
        assert (await rig.call(module, 1)).value == "x", "the worker cannot be used any more"


# -- deaths ----------------------------------------------------------------------------------------------------------

DEATHS = {
    "exit": ("os._exit(3)", "exit code 3"),
    "exit 0": ("os._exit(0)", "exit code 0"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "abort": ("os.abort()", "SIGABRT"),
    "kill": ("os.kill(os.getpid(), 9)", "kill"),
}


@pytest.mark.parametrize("case", DEATHS)
async def test_a_death_in_the_handler_costs_one_call(rig, how, case):
    code, hint = DEATHS[case]
    module = await rig.publish(
        f"import os\ndef handler(input):\n    if input: {code}\n    print('hello', end='')\n    return 'fine'\n", **how
    )

    ran = await rig.call(module, 1)

    assert ran.kind is ErrorKind.WORKER_CRASHED
    assert hint.lower() in ran.failure.message.lower()
    assert ran.outcome.exit_code != 0
    again = await rig.call(module, 0)
    assert (again.value, again.stdout) == ("fine", "hello")


async def test_output_before_a_death_is_kept(run):
    code = "import os\ndef handler(input):\n    os.write(1, b'last words'); os.write(2, b'!' * 1000); os._exit(1)"
    ran = await run(code)

    assert ran.stdout == "last words"
    assert ran.stderr == "!" * 1000


# -- time ------------------------------------------------------------------------------------------------------------

SLOW = {
    "def": "def handler(input):\n    import time\n    try: time.sleep(60)\n",
    "async": "async def handler(input):\n    import asyncio\n    try: await asyncio.sleep(60)\n",
    "generator": "def handler(input):\n    import time\n    try:\n        yield 1; time.sleep(60)\n",
    "async generator": "import asyncio\nasync def handler(i, /):\n    try:\n        yield 1; await asyncio.sleep(60)\n",
}


@pytest.mark.parametrize("form", SLOW)
async def test_a_timeout_stops_softly_first(rig, served, form):
    ran = await rig.run(SLOW[form] + "    finally: print('tidied')\n", timeout=0.4, **served)

    assert ran.kind is ErrorKind.TIMEOUT
    assert "0.4 s" in ran.failure.message
    assert ran.outcome.exit_code == 124
    assert ran.stdout == "tidied\n"


@pytest.mark.parametrize(
    "code",
    [
        "import signal, time\ndef handler(input):\n    signal.signal(15, signal.SIG_IGN)\n    time.sleep(60)",
        "import time\ndef handler(_):\n    while 1:\n        try: time.sleep(60)\n        except BaseException: pass",
        "import re\ndef handler(input): re.match('(a|aa)+$', 'a' * 60 + 'b')",
        "import asyncio\nasync def handler(input):\n    while True:\n        try: await asyncio.sleep(60)\n"
        "        except BaseException: pass",
    ],
    ids=["ignored", "caught", "C code", "async caught"],
)
async def test_who_does_not_stop_is_killed(rig, served, code):
    began = trio.current_time()
    ran = await rig.run(code, **served, timeout=0.4)

    assert ran.kind is ErrorKind.TIMEOUT
    assert trio.current_time() - began < 10
    await rig.settled()


async def test_a_caller_may_shorten(run):
    ran = await run("import time\ndef handler(input): time.sleep(60)", call={"timeout": 0.3})

    assert ran.kind is ErrorKind.TIMEOUT
    assert "0.3 s" in ran.failure.message


async def test_a_handler_that_is_stopped_and_returns_has_still_timed_out(run):
    code = "import time\ndef handler(input):\n    try: time.sleep(60)\n    except BaseException: return 'late'"

    assert (await run(code, timeout=0.4)).kind is ErrorKind.TIMEOUT


# -- what is printed -------------------------------------------------------------------------------------------------


async def test_output_limit(run):
    ran = await run("def handler(input):\n    while True: print('x' * 999)", output=1_000_000)

    assert ran.kind is ErrorKind.OUTPUT_LIMIT
    assert ran.failure.field == "output"
    assert len(ran.stdout) >= 1_000_000


async def test_output_limit_is_noticed_at_the_end_too(run):
    """Less than a pipe holds, so that the answer comes first."""
    ran = await run("import os\ndef handler(input): os.write(1, b'x' * 2001)", output=2000)

    assert ran.kind is ErrorKind.OUTPUT_LIMIT
    assert (await run("import os\ndef handler(input): os.write(1, b'x' * 2000)", output=2000)).value is None


PRINTS = {
    "line": ("print('a'); print('b')", "a\nb\n", ""),
    "no newline": ("print('a', end='')", "a", ""),
    "stderr": ("print('a', file=sys.stderr)", "", "a\n"),
    "os.write": ("os.write(1, b'a'); os.write(2, b'b')", "a", "b"),
    "bytes": (r"os.write(1, b'a\xff\xfeb')", "a\ufffd\ufffdb", ""),
    "surrogate": (r"print('\ud800')", "\\ud800\n", ""),
    "unicode": ("print('å' + '語' + '😀')", "å語😀\n", ""),
    "C": ("libc.printf(b'from C'); libc.puts(b'!')", "from C!\n", ""),
    "child": ("subprocess.run(['echo', 'child'])", "child\n", ""),
    "replaced": ("sys.stdout = None; os.write(1, b'a')", "a", ""),
    "logging": ("logging.warning('careful')", "", "WARNING:root:careful\n"),
}


@pytest.mark.parametrize("case", PRINTS)
async def test_everything_that_is_printed(run, case):
    code, out, err = PRINTS[case]
    head = "import ctypes, logging, os, subprocess, sys\nlibc = ctypes.CDLL(None)\n"
    if case == "replaced":
        code += "; sys.stdout = sys.__stdout__"

    ran = await run(f"{head}def handler(input):\n    {code}\n    return 1")

    assert ran.value == 1
    assert (ran.stdout, ran.stderr) == (out, err)


async def test_characters_cut_by_reads(run):
    """A pipe holds a number of bytes that three does not divide."""
    ran = await run("def handler(input): print('語' * 100_000, end='')")

    assert ran.stdout == "語" * 100_000


async def test_a_megabyte_from_c_while_it_holds_the_gil(run):
    code = """
    import ctypes
    libc = ctypes.PyDLL(None)  # does not give up the GIL
    def handler(input):
        text = b"x" * 1_000_000
        libc.printf(b"%s", text)
        libc.fflush(None)
        return "done"
    """
    ran = await run(code)

    assert ran.value == "done"
    assert len(ran.stdout) == 1_000_000


async def test_a_megabyte_on_stderr_before_the_first_of_stdout(run):
    code = "import os, sys\ndef handler(input):\n    sys.stderr.write('e' * 1_000_000)\n    print('out')"
    ran = await run(code)

    assert (ran.stdout, len(ran.stderr)) == ("out\n", 1_000_000)


async def test_order_within_a_stream(run):
    code = """
    import sys
    def handler(input):
        for i in range(3000):
            print(i, file=sys.stderr if i % 2 else sys.stdout)
    """
    ran = await run(code)

    assert ran.stdout.split() == [str(i) for i in range(0, 3000, 2)]
    assert ran.stderr.split() == [str(i) for i in range(1, 3000, 2)]
    assert [event.seq for event in ran.output] == list(range(1, len(ran.output) + 1))


async def test_output_belongs_to_its_call(rig, how):
    calls = 200 if how["isolation"] is Isolation.WARM else 15
    code = """
    import os, sys
    def handler(input):
        if input % 3 == 0: print("call %d" % input, end="")
        if input % 3 == 1: os.write(2, b"call %d" % input)
        return input
    """
    module = await rig.publish(code, **how)
    pids = set()
    for i in range(calls):
        ran = await rig.call(module, i)
        pids.add(ran.pid)
        assert ran.value == i
        assert (ran.stdout, ran.stderr) == (f"call {i}" if i % 3 == 0 else "", f"call {i}" if i % 3 == 1 else "")

    if how["isolation"] is not Isolation.FRESH:
        assert len(pids) == 1


async def test_output_between_calls_belongs_to_nobody(rig, tmp_path):
    """A thread of a warm worker prints when no call runs."""
    code = (
        WAIT_FOR
        + """
def handler(input):
    if input:
        import os, threading
        def later():
            wait_for(input)
            os.write(1, b"stray")
            open(input + ".done", "w").close()
        threading.Thread(target=later).start()
    return 1
"""
    )
    module = await rig.publish(code)
    flag, done = tmp_path / "go", tmp_path / "go.done"
    first = await rig.call(module, str(flag))
    flag.touch()
    await rig.wait_until(done.exists, "the thread did not print")
    await trio.testing.wait_all_tasks_blocked()
    second = await rig.call(module, "")

    assert first.pid == second.pid
    assert first.stdout == second.stdout == ""


async def test_progress_of_an_execution_that_was_answered_is_nobodys(rig):
    code = """
kept = []

def handler(input, context):
    kept.append(context)
    kept[0].progress(input)
    return len(kept)
"""
    module = await rig.publish(code)
    first = await rig.call(module, 1)
    second = await rig.call(module, 2)

    assert first.pid == second.pid
    assert (first.value, second.value) == (1, 2)
