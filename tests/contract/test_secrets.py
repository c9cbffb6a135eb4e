"""Contract: secrets in every kind of worker: the handler gets them, its output is masked, the runner stores none."""

from __future__ import annotations

from functools import partial

import pytest
import structlog
import trio

from actors.events import EventLog, Follower
from actors.workers import masking
from config.load import secret_values
from config.modules.spec import ModuleSpec
from config.secrets import Secret
from protocol.errors import ErrorKind
from protocol.events import ItemEvent, OutputEvent, ProgressEvent
from protocol.model import Isolation, Kind, Status
from tests.support import ANYBODY, PATIENCE, WAIT_FOR, open_rig, open_service
from tests.workers import WORKERS, Flag, chosen

VALUE = "hunter2-correct-horse"
LINES = "-----BEGIN KEY-----\nMIIBOgIBAAJBAKj34GkxFhD9\n-----END KEY-----"
SECRETS = {"TOKEN": Secret(env="TEST_TOKEN"), "KEY": Secret(env="TEST_KEY")}


@pytest.fixture
async def rig(tmp_path, venvs, images, condas):
    """Return executors with the secrets of this test."""
    values = partial(secret_values, environ={"TEST_TOKEN": VALUE, "TEST_KEY": LINES})
    async with open_rig(tmp_path / "rig", venvs=venvs, images=images, condas=condas, secrets=values) as opened:
        yield opened


@pytest.fixture(params=[name for name in WORKERS if name != "docker-fresh"])
def how(request):
    return chosen(request)


@pytest.fixture
def run(rig, how):
    """Return `run(code, input, **fields)`: publish a module that has secrets and call it."""
    return partial(rig.run, **{"secrets": SECRETS, **how})


# -- values for the handler -------------------------------------------------------------------------------------------


async def test_the_handler_has_the_values_beside_its_variables(run):
    code = """
    import os
    TOKEN = os.environ["TOKEN"]
    def handler(input):
        return [TOKEN, os.environ["KEY"], os.environ["PLAIN"], [n for n in os.environ if n.startswith("TEST_")]]
    """
    ran = await run(code, variables={"PLAIN": "x"})

    assert ran.value == [VALUE, LINES, "x", []], "a result is an answer, and is not altered"


# -- masking ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch):
    """Hold back a possible beginning of a value for long enough on a busy machine."""
    monkeypatch.setattr(masking, "HOLD_SECONDS", PATIENCE)


async def test_both_streams_in_every_form_of_a_value(run, patient):
    code = """
    import os, subprocess, sys, time
    def handler(input):
        token = os.environ["TOKEN"]
        print("out", token)
        print("err", token, file=sys.stderr)
        for character in token:  # each is a read of its own, or some are
            os.write(1, character.encode())
            time.sleep(0.001)
        os.write(1, b"|")
        subprocess.run(["sh", "-c", 'printf %s "$TOKEN"'], check=True)
        print()
        print(os.environ["KEY"])
        print({"key": os.environ["KEY"]})
        return len(token)
    """
    ran = await run(code)

    assert ran.value == len(VALUE)
    assert ran.stdout == "out ***\n***|***\n***\n{'key': '***'}\n"
    assert ran.stderr == "err ***\n"


async def test_a_value_that_lies_across_reads_of_much_output(run, patient):
    """A pipe holds 64 KiB, so that its end cuts some of the values."""
    code = """
    import os, sys
    def handler(input):
        sys.stdout.write("x".join([os.environ["TOKEN"]] * 20000))
    """
    ran = await run(code)

    assert ran.outcome.failure is None
    assert ran.stdout == "x".join(["***"] * 20000)


async def test_the_beginning_of_a_value_is_there_at_the_end(run):
    ran = await run("def handler(input):\n    import sys\n    sys.stdout.write('hunter2-')")

    assert ran.stdout == "hunter2-"


async def test_errors_tracebacks_and_bad_output(run):
    failed = await run(
        'def handler(input):\n    import os\n    raise type(os.environ["TOKEN"], (ValueError,), {})(dict(os.environ))'
    )
    unsayable = await run('def handler(input):\n    import os\n    return {os.environ["TOKEN"]: 1j}')

    assert (failed.kind, failed.failure.type) == (ErrorKind.HANDLER_ERROR, "***")
    assert "'TOKEN': '***'" in failed.failure.message
    assert VALUE not in failed.failure.traceback
    assert "***" in failed.failure.traceback
    assert (unsayable.kind, unsayable.failure.field) == (ErrorKind.BAD_OUTPUT, "$.***")
    assert VALUE not in str(failed.failure) + str(unsayable.failure)


async def test_an_import_that_fails(run):
    with structlog.testing.capture_logs() as lines:
        ran = await run('import os\nprint(os.environ["TOKEN"])\nopen("/none/" + os.environ["TOKEN"])')

    assert ran.kind is ErrorKind.LOAD_FAILED
    assert "/none/***" in ran.failure.message
    assert VALUE not in str(ran.failure) + str(lines)
    assert any("/none/***" in str(line) for line in lines), "the log has it too"


async def test_progress_and_items(run):
    code = """
    import os
    def handler(input, context):
        os.write(1, b"before ")
        context.progress(1, 2, "with " + os.environ["TOKEN"])
        os.write(1, b"hunter2-")
        yield os.environ["TOKEN"]
        os.write(1, b"after")
    """
    ran = await run(code)
    progress, item = ran.events

    assert isinstance(progress, ProgressEvent)
    assert progress.text == "with ***"
    assert isinstance(item, ItemEvent)
    assert bytes(item.value).decode() == f'"{VALUE}"'
    assert ran.value == [VALUE]
    assert ran.stdout == "before hunter2-after"
    printed = [event for event in ran.output if "hunter2-" in event.text]
    assert printed[0].seq < item.seq, "what was printed before an item comes before it"


async def test_a_worker_is_kept_and_each_call_is_masked(rig, how):
    module = await rig.publish(
        "def handler(input):\n    import os\n    print(os.environ['TOKEN'])", secrets=SECRETS, **how
    )
    first, second = await rig.call(module), await rig.call(module)

    assert [first.stdout, second.stdout] == ["***\n"] * 2
    assert (first.pid == second.pid) is (how["isolation"] is not Isolation.FRESH)


async def test_a_call_that_is_cut_off(run):
    code = """
    import os, time
    def handler(input):
        os.write(1, b"so far " + os.environb[b"TOKEN"][:9])
        time.sleep(60)
    """
    ran = await run(code, timeout=1.0)

    assert ran.kind is ErrorKind.TIMEOUT
    assert ran.stdout == "so far " + VALUE[:9]


async def test_output_is_readable_at_once(rig, how, tmp_path):
    """Including a possible beginning of a value, when no output follows."""
    flag = Flag(rig, how, tmp_path)
    code = WAIT_FOR + "def handler(input):\n    print('hunt', end='', flush=True)\n    wait_for(input)"
    module = await rig.publish(code, secrets=SECRETS, **how)
    log = EventLog(limit=1000, keep=1000)
    seen = []

    async def follow():
        follower = Follower(log)
        while not seen:
            seen.extend(event for event in await follower.next() or () if isinstance(event, OutputEvent))
        flag.touch()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            ran = await rig.call(module, flag.path, log=log)

    assert ran.outcome.failure is None
    assert [event.text for event in seen] == ["hunt"]


async def test_a_module_without_secrets_has_nothing_before_its_log(rig, how):
    workers = []
    module = await rig.publish("def handler(input): print('x')", **how)
    await rig.call(module, on_worker=workers.append)

    assert [worker.masked for worker in workers] == [None]


# -- look-up ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    (tmp_path / "token").write_text("first-value\n")
    return tmp_path / "token"


TELL = "def handler(input):\n    import os\n    return os.environ['TOKEN']"


async def test_a_file_is_read_at_the_start_of_a_worker(rig, how, file):
    module = await rig.publish(TELL, secrets={"TOKEN": Secret(file=file)}, **how)
    first = await rig.call(module)
    file.write_text("second-value")
    second = await rig.call(module)
    published = await rig.publish(TELL, secrets={"TOKEN": Secret(file=file)}, **how)
    third = await rig.call(published)

    assert first.value == "first-value"
    assert second.value == ("second-value" if how["isolation"] is Isolation.FRESH else "first-value")
    assert third.value == "second-value"
    assert published.digest != module.digest
    assert published.ref == module.ref
    assert third.pid != first.pid, "a worker with the old value takes no new call"
    assert "value" not in repr(published)


async def test_a_file_that_is_gone_when_a_worker_starts(rig, how, file):
    module = await rig.publish(TELL, secrets={"TOKEN": Secret(file=file), "KEY": Secret(env="TEST_KEY")}, **how)
    file.unlink()
    with structlog.testing.capture_logs() as lines:
        ran = await rig.call(module)

    assert (ran.kind, ran.failure.field) == (ErrorKind.UNAVAILABLE, "secrets")
    assert ran.failure.message == (
        "the value of TOKEN in `secrets` is missing; the runner's log has the places that were searched"
    )
    assert any(line.get("why", "").startswith(f"{file} does not exist") for line in lines)
    assert rig.executors[how["env"]].statistics().started == 0, "no worker was started in vain"


async def test_a_second_start_reads_the_file_again(rig, file):
    module = await rig.publish(TELL, secrets={"TOKEN": Secret(file=file)})
    file.unlink()
    assert (await rig.call(module)).kind is ErrorKind.UNAVAILABLE
    file.write_text("late-value")
    ran = await rig.call(module)
    while ran.outcome.failure is not None:
        assert ran.failure.retry_after is not None
        await trio.sleep(ran.failure.retry_after)
        ran = await rig.call(module)

    assert ran.value == "late-value"


async def test_cancelling_does_not_wait_for_a_place_that_does_not_answer(rig, tmp_path):
    """Such as a file on a network that does not answer."""
    go = trio.Event()
    token = trio.lowlevel.current_trio_token()
    module = await rig.publish(TELL, secrets={"TOKEN": Secret(env="TEST_TOKEN")})

    def slow(_wanted):
        trio.from_thread.run_sync(asked.set, trio_token=token)
        trio.from_thread.run(go.wait, trio_token=token)
        return {}

    asked = trio.Event()
    rig.inline._fleet.secrets = slow
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.call, module)
            await asked.wait()
            nursery.cancel_scope.cancel()
    go.set()


# -- in the runner itself ----------------------------------------------------------------------------------------------


IN_RUNNER = """
def handler(input, context):
    context.progress(1, 2, "with " + input)
    yield input
    raise ValueError("not with " + input)
"""


async def test_without_isolation_errors_and_progress_are_masked(tmp_path):
    (tmp_path / "token").write_text(VALUE)
    fields = {"isolation": Isolation.NONE, "secrets": {"TOKEN": Secret(file=tmp_path / "token")}}
    spec = ModuleSpec("m", Kind.INLINE, code=IN_RUNNER, **fields)
    async with open_service(tmp_path / "home", [spec]) as service:
        ended = await service.execute(ANYBODY, "m", f'"{VALUE}"'.encode())
        (tmp_path / "token").unlink()
        missing = await service.execute(ANYBODY, "m", b'"x"')

    assert ended.status is Status.FAILED
    assert ended.failure.message == "not with ***"
    assert VALUE not in ended.failure.traceback
    assert b'"with ***"' in ended.events
    assert f'"{VALUE}"'.encode() in ended.events, "an item is a part of the answer"
    assert (missing.failure.kind, missing.failure.field) == (ErrorKind.UNAVAILABLE, "secrets")
