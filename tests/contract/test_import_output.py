"""Contract: the output of an import belongs to the execution that caused the start, in every kind of worker."""

from __future__ import annotations

import fcntl
import json
import sys
from functools import partial

import pytest
import structlog
import trio

from actors.events import EventLog
from actors.workers.pool import Phases, Waiter
from config.load import secret_values
from config.modules.policies import WorkersPolicy
from config.modules.spec import ModuleSpec
from config.secrets import Secret
from environments.store.key import environment_key
from protocol.errors import ErrorKind
from protocol.events import OutputEvent, StatusEvent, decode_all, text_of
from protocol.model import Isolation, Kind, Status, Stream
from tests.support import ANYBODY, PATIENCE, WAIT_FOR, inline, open_rig, open_service, wait_until
from tests.workers import WORKERS, chosen

SAYS = """
import os, sys
os.system("echo child")
print("import")
print("problem", file=sys.stderr)
def init():
    print("init")
def handler(input):
    print("handler")
    return os.getpid()
"""
OWN = (
    WAIT_FOR + "import os\nprint(os.getpid(), end='')\ndef handler(input):\n    wait_for(input)\n    return os.getpid()"
)
"""Prints the id of its process in the import; the handler returns the same."""


@pytest.fixture(params=WORKERS)
def how(request):
    """Return the fields that choose the kind of worker."""
    return chosen(request)


@pytest.fixture
def logged():
    """Collect the lines of the runner's log."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def imports(lines):
    return [line for line in lines if line["event"] == "the import printed"]


# -- whose it is -------------------------------------------------------------------------------------------------------


async def test_it_precedes_the_output_of_the_handler(rig, how, logged):
    module = await rig.publish(SAYS, **how)
    first, second = await rig.call(module), await rig.call(module)

    fresh = how["isolation"] is Isolation.FRESH
    assert first.stdout == "child\nimport\ninit\nhandler\n"
    assert first.stderr == "problem\n"
    assert second.stdout == (first.stdout if fresh else "handler\n")
    assert second.stderr == (first.stderr if fresh else "")
    assert [(line["stdout"], line["stderr"]) for line in imports(logged)] == [
        ("child\nimport\ninit\n", "problem\n")
    ] * (2 if fresh else 1)
    assert imports(logged)[0]["module"] == str(module.ref)


async def test_an_import_that_fails(rig, how, logged):
    ran = await rig.run(SAYS + "\nprint('the end')\nraise ValueError(3)", **how)

    assert ran.kind is ErrorKind.LOAD_FAILED
    assert ran.stdout == "child\nimport\nthe end\n"
    assert ran.stderr == "problem\n"
    assert [line["stdout"] for line in imports(logged)] == [ran.stdout]


async def test_an_import_that_exits(rig, how):
    """The worker ends before it is ready, so the caller gets another start, and the output of both."""
    ran = await rig.run("import os\nprint('import', flush=True)\nos._exit(3)", **how)

    assert ran.kind is ErrorKind.LOAD_FAILED
    assert ran.stdout == "import\n" * 2


async def test_an_import_that_prints_without_an_end(rig, how, logged):
    ran = await rig.run("while True:\n    print('x' * 1000)", output=100_000, **how)

    assert (ran.kind, ran.failure.field) == (ErrorKind.OUTPUT_LIMIT, "output")
    assert len(ran.stdout) >= 100_000
    (line,) = imports(logged)
    assert line["bytes"] >= 100_000
    assert len(line["stdout"]) < 9000
    assert "\n...\n" in line["stdout"]


async def test_import_and_handler_have_a_limit_each(rig, how):
    code = "print('x' * 800)\ndef handler(input):\n    print('y' * 800)"
    ran = await rig.run(code, output=1000, **how)

    assert ran.value is None
    assert ran.stdout == "x" * 800 + "\n" + "y" * 800 + "\n"


async def test_values_of_secrets_are_masked(tmp_path, venvs, images, condas, how, logged):
    values = partial(secret_values, environ={"TEST_TOKEN": "hunter2-correct-horse"})
    code = """
    import os, sys, time
    print(os.environ["TOKEN"])
    for character in os.environ["TOKEN"]:
        os.write(2, character.encode())
        time.sleep(0.001)
    sys.stdout.write("hunter2-")
    def handler(input):
        print("handler", os.environ["TOKEN"])
    """
    async with open_rig(tmp_path / "rig", venvs=venvs, images=images, condas=condas, secrets=values) as rig:
        ran = await rig.run(code, secrets={"TOKEN": Secret(env="TEST_TOKEN")}, **how)

    assert ran.value is None
    assert ran.stdout.replace("\n", "") == "***hunter2-handler ***"
    assert "hunter2-correct" not in str(logged) + str(ran)
    assert len(imports(logged)) == 1


async def test_each_start_belongs_to_its_cause(rig, tmp_path):
    """Callers that start workers at the same time get the worker whose import they saw."""
    module = await rig.publish(OWN, concurrency=4)
    ran = []

    async def call():
        ran.append(await rig.call(module, str(tmp_path / "flag")))

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(call)
        await rig.wait_until(lambda: rig.inline.statistics().busy == 4, "not all workers start")
        (tmp_path / "flag").touch()

    printed = [one.stdout for one in ran if one.stdout]
    assert all(one.stdout in ("", str(one.value)) for one in ran), [(one.stdout, one.value) for one in ran]
    assert len(printed) == len(set(printed)) == rig.inline.statistics().started == 4


async def test_a_caller_that_waits_for_the_start_of_another_gets_nothing(rig, tmp_path):
    module = await rig.publish(OWN, concurrency=1)
    ran = []

    async def call():
        ran.append(await rig.call(module, str(tmp_path / "flag")))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(call)
        await rig.wait_until(lambda: rig.inline.statistics().waiting == 2, "no caller waits")
        (tmp_path / "flag").touch()

    assert [one.stdout for one in ran] == [str(ran[0].value), "", ""]


async def test_a_cause_that_has_gone(rig, tmp_path, logged):
    """The next caller gets its worker, and no output of it."""
    code = WAIT_FOR + f"print('one')\nwait_for({str(tmp_path / 'flag')!r})\nprint('two')\ndef handler(input): return 1"
    module = await rig.publish(code, concurrency=1)
    gone, ran = EventLog(limit=1000, keep=1000), []

    async def call():
        ran.append(await rig.call(module))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as first:
                first.start_soon(partial(rig.call, module, log=gone))
                await rig.wait_until(lambda: "one" in text_of(gone.kept(), Stream.STDOUT), "nothing was printed")
                scope.cancel()
        nursery.start_soon(call)
        await rig.wait_until(lambda: rig.inline.statistics().waiting, "no caller waits")
        (tmp_path / "flag").touch()

    assert (ran[0].value, ran[0].stdout) == (1, "")
    assert text_of(gone.kept(), Stream.STDOUT) == "one\n"
    assert [line["stdout"] for line in imports(logged)] == ["one\ntwo\n"]
    assert rig.inline.statistics().started == 1


@pytest.mark.parametrize("how", [name for name in WORKERS if not name.endswith("fresh")], indirect=True)
async def test_a_worker_that_no_execution_caused(rig, how, logged):
    """A fresh worker serves one call, so that none is kept ahead."""
    module = await rig.publish(SAYS, workers=WorkersPolicy(min=1), **how)
    executor = rig.executors[how["env"]]
    await rig.wait_until(lambda: executor.statistics().idle == 1, "no worker is kept")
    ran = await rig.call(module)

    assert ran.stdout == "handler\n"
    assert [line["stdout"] for line in imports(logged)] == ["child\nimport\ninit\n"]


async def test_the_record_has_it_before_the_begin(tmp_path):
    code = "print('import')\nraise ValueError(3)"
    modules = [inline("says", SAYS), inline("fails", code), inline("later", code)]
    async with open_service(tmp_path, modules) as service:
        with trio.fail_after(PATIENCE):
            says = await service.execute(ANYBODY, "says", b"null")
            fails = await service.execute(ANYBODY, "fails", b"null")
            later = await service.submit(ANYBODY, "later", b"null")
            await wait_until(lambda: service.runs.find(later.id) is None, "it does not end")
        stored = [await service.get(ANYBODY, one.id) for one in (says, fails, later)]

    events = decode_all(stored[0].events)
    begin = next(event.seq for event in events if isinstance(event, StatusEvent) and event.status is Status.RUNNING)
    assert text_of(events, Stream.STDOUT) == "child\nimport\ninit\nhandler\n"
    assert [event.text for event in events if isinstance(event, OutputEvent) and event.seq > begin] == ["handler\n"]
    assert [text_of(decode_all(one.events), Stream.STDOUT) for one in stored[1:]] == ["import\n"] * 2
    assert [one.failure.kind for one in stored[1:]] == [ErrorKind.LOAD_FAILED] * 2


# -- builds ------------------------------------------------------------------------------------------------------------


KEY = environment_key(Kind.VENV, (), "{}.{}.{}".format(*sys.version_info))


@pytest.mark.parametrize("name", ["first", "same"])
async def test_a_call_that_joins_a_build_says_so(tmp_path, name):
    """The build of `first` was begun by its publication; `same` has the same environment."""
    code = "def handler(input): return input"
    both = [ModuleSpec(name="first", env=Kind.VENV, code=code), ModuleSpec(name="same", env=Kind.VENV, code=code + "#")]
    locks = tmp_path / "venvs" / ".locks"
    locks.mkdir(parents=True)
    with (locks / KEY).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        async with open_service(tmp_path, both) as service:
            with trio.fail_after(PATIENCE):
                await wait_until(lambda: service.executors[Kind.VENV].statistics().building, "nothing is built")
                await trio.sleep(0.1)
                accepted = await service.submit(ANYBODY, name, b"1")
                live = service.runs.find(accepted.id)

                def reason():
                    return live.waiting and live.waiting.reason

                await wait_until(lambda: reason() == "building environment", reason)
                await trio.sleep(0.3)
                assert reason() == "building environment"
                fcntl.flock(file, fcntl.LOCK_UN)
                await wait_until(lambda: service.runs.find(accepted.id) is None, "it does not end")
            ended = await service.get(ANYBODY, accepted.id)

    took = ended.timings
    assert took.build >= 0.3
    assert took.queue + took.build + took.start + took.load <= ended.finished_at - ended.created_at + 0.05
    assert took.queue < took.build


async def test_a_call_behind_a_build_says_so(tmp_path):
    """It waits for the only worker, which another call starts; the wait for the build is not a wait in the queue."""
    locks = tmp_path / "rig" / "venvs" / ".locks"
    async with open_rig(tmp_path / "rig") as rig:
        locks.mkdir(parents=True)
        with (locks / KEY).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            module = await rig.publish("def handler(input): return 1", env=Kind.VENV, concurrency=1)
            told, all_phases = [[], []], [Phases(), Phases()]

            async def call(i):
                async with rig.venv.lease(module, all_phases[i], ask=lambda: Waiter(told[i].append)):
                    pass

            async with trio.open_nursery() as nursery:
                for i in (0, 1):
                    nursery.start_soon(call, i)
                await rig.wait_until(lambda: all("building environment" in one for one in told), lambda: str(told))
                await trio.sleep(0.2)
                fcntl.flock(file, fcntl.LOCK_UN)

    first = 0 if all_phases[0].start else 1
    assert told[first][-2:] == ["starting worker", "importing module"]
    assert told[1 - first][-1] == "a worker is being started; callers that wait: 2"
    assert all(phases.build >= 0.2 for phases in all_phases)
    assert all_phases[first].queue < all_phases[first].build
    assert all_phases[1 - first].start == all_phases[1 - first].load == 0


async def test_a_build_has_two_lines_in_the_log(tmp_path, logged):
    async with open_rig(tmp_path / "rig", offline=True) as rig:
        await rig.run("def handler(input): return 1", env=Kind.VENV)
        await rig.run("def handler(input): return 2", env=Kind.VENV)
        missing = ("no-such-package-of-operato @ file:///nowhere/at_all-1.0-py3-none-any.whl",)
        await rig.run("def handler(input): return 1", env=Kind.VENV, requirements=missing, name="missing")

    lines = [line for line in logged if line["event"].startswith("build ") and line["module"] == "m"]
    assert [line["event"] for line in lines] == ["build began", "build ended"]
    assert {line["key"] for line in lines} == {KEY}
    assert lines[1]["result"] == "built"
    assert lines[1]["seconds"] > 0


# -- remedies ----------------------------------------------------------------------------------------------------------

REMEDIES = {
    Kind.INLINE: "use `env: venv` with `requirements: [PyYAML]`",
    Kind.VENV: "Add PyYAML to `requirements` of the module",
    Kind.CONDA: "Add pyyaml to `dependencies` of the module",
    Kind.DOCKER: "Add PyYAML to `requirements` of the module",
}


@pytest.mark.parametrize("where", ["import", "handler"])
async def test_a_missing_library_is_named_with_its_remedy(rig, how, where):
    block = "import sys\nsys.meta_path.insert(0, type('No', (), {'find_spec': staticmethod(no)}))\n"
    code = (
        "def no(name, *_):\n    if name == 'yaml': raise ModuleNotFoundError(\"No module named 'yaml'\", name=name)\n"
    )
    code += block + (
        "import yaml\ndef handler(input): pass" if where == "import" else "def handler(i, /):\n    import yaml"
    )
    ran = await rig.run(code, **how)

    assert ran.kind is (ErrorKind.LOAD_FAILED if where == "import" else ErrorKind.HANDLER_ERROR)
    assert ran.failure.message.startswith("No module named 'yaml'\n")
    assert REMEDIES[how["env"]] in ran.failure.message


async def test_a_missing_library_without_isolation(tmp_path):
    spec = inline("bare", "import no_such_library\ndef handler(input): pass", isolation=Isolation.NONE)
    async with open_service(tmp_path, [spec]) as service:
        ended = await service.execute(ANYBODY, "bare", json.dumps(None).encode())

    assert ended.failure.kind is ErrorKind.LOAD_FAILED
    assert "use `env: venv` with `requirements: [no_such_library]`" in ended.failure.message
