"""Contract: calls with files through the whole runner: kept from acceptance on, found again by each attempt."""

from __future__ import annotations

import json

import pytest
import trio

from config.modules.policies import Backoff, RetryPolicy
from config.secrets import Secret
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Isolation, Status
from runner.auth.principal import Principal
from tests.stored import id_of
from tests.support import ANYBODY, PATIENCE, inline, open_service

READS = "from operato import File\ndef handler(input): return File(input['f']).read_text()"
ECHOES = "from operato import File\ndef handler(input): return {'out': File(input['f'])}"
KINDS = {"warm": Isolation.WARM, "fork": Isolation.FORK, "none": Isolation.NONE}


async def upload(service, data, principal=ANYBODY, name="a.txt"):
    async with service.stored.writing(principal, name, "text/plain") as writing:
        await writing.write(data)
        return (await writing.finish()).id


def naming(name):
    return json.dumps({"f": {"$file": {"id": name}}}).encode()


@pytest.mark.parametrize("isolation", ["warm", "fork"])
async def test_a_file_goes_through_a_call_and_is_kept_with_it(tmp_path, isolation):
    async with open_service(tmp_path, [inline("m", ECHOES, isolation=KINDS[isolation])]) as service:
        name = await upload(service, b"content")

        execution = await service.execute(ANYBODY, "m", naming(name))

        assert execution.failure is None
        out = json.loads(execution.result)["out"]["$file"]
        assert (out["id"], out["size"], out["name"]) == (id_of(b"content"), 7, "a.txt")
        found = await service.stored.find(ANYBODY, out["id"])
        assert found.path.read_bytes() == b"content"
        with pytest.raises(RunnerError) as caught:
            await service.stored.remove(ANYBODY, name)
        assert caught.value.failure.kind is ErrorKind.CONFLICT
        assert execution.id in caught.value.failure.message


async def test_bytes_of_the_runner_itself_are_stored(tmp_path):
    code = "def handler(input):\n    yield b'one'\n    yield {'two': b'two'}\n"
    async with open_service(tmp_path, [inline("m", code, isolation=Isolation.NONE)]) as service:
        execution = await service.execute(ANYBODY, "m", b"1")

        one, two = json.loads(execution.result)
        for value, data in ((one, b"one"), (two["two"], b"two")):
            found = await service.stored.find(ANYBODY, value["$file"]["id"])
            assert found.path.read_bytes() == data
        assert not list((tmp_path / "data" / "work").rglob("files-*"))


@pytest.mark.parametrize("begin", ["execute", "submit", "begin"])
async def test_a_missing_file_is_told_before_anything_begins(tmp_path, begin):
    async with open_service(tmp_path, [inline("m", READS)]) as service:
        for name, hint in ((id_of(b"none"), id_of(b"none")), ("sha256:x", "not the id of a file")):
            with pytest.raises(RunnerError) as caught:
                await getattr(service, begin)(ANYBODY, "m", naming(name))

            assert caught.value.failure.kind is ErrorKind.BAD_INPUT
            assert hint in caught.value.failure.message
        assert service.runs.statistics().live == 0


async def test_a_limited_caller_cannot_use_the_file_of_another(tmp_path):
    ann, bob = (Principal(name, frozenset({"admin"}), modules=("m",)) for name in ("ann", "bob"))
    async with open_service(tmp_path, [inline("m", READS), inline("other", READS)]) as service:
        name = await upload(service, b"of ann", ann)

        assert json.loads((await service.execute(ann, "m", naming(name))).result) == "of ann"
        hidden = await upload(service, b"of somebody")
        with pytest.raises(RunnerError) as caught:
            await service.execute(bob, "m", naming(hidden))
        assert caught.value.failure.kind is ErrorKind.BAD_INPUT


async def test_each_attempt_gets_a_fresh_copy(tmp_path):
    code = """
    from operato import File
    def handler(input, context):
        file = File(input["f"])
        text = file.read_text()
        with open(file.path, "w") as changed: changed.write("spoiled")
        if context.attempt < 3: raise ValueError(text)
        return text
    """
    retry = RetryPolicy(attempts=3, backoff=Backoff(initial=0.01, max=0.01), on=(ErrorKind.HANDLER_ERROR,))
    async with open_service(tmp_path, [inline("m", code, retry=retry)]) as service:
        name = await upload(service, b"fresh")

        execution = await service.execute(ANYBODY, "m", naming(name))

        assert json.loads(execution.result) == "fresh"
        assert [each.failure.message for each in execution.failed_attempts] == ["fresh", "fresh"]


async def test_an_accepted_execution_has_its_file_after_a_restart(tmp_path):
    modules = [inline("m", READS, concurrency=1)]
    async with open_service(tmp_path, modules) as service:
        name = await upload(service, b"kept")
        service.runs.dispatcher._backlog.occupy("m", 1)  # its turn is taken, so it is left to the next runner
        execution = await service.submit(ANYBODY, "m", naming(name))
        assert execution.status is Status.QUEUED

    async with open_service(tmp_path, modules) as service:
        with trio.fail_after(PATIENCE):
            while (found := await service.get(ANYBODY, execution.id)).finished_at is None:
                await trio.sleep(0.01)

        assert found.failure is None, found.failure
        assert json.loads(found.result) == "kept"
        assert (await service.stored.find(ANYBODY, name)).id == name


async def test_a_file_that_was_damaged_after_its_acceptance(tmp_path):
    async with open_service(tmp_path, [inline("m", READS)]) as service:
        name = await upload(service, b"whole")
        path = (await service.stored.find(ANYBODY, name)).path
        path.chmod(0o600)
        path.write_bytes(b"other")

        with pytest.raises(RunnerError) as caught:
            await service.execute(ANYBODY, "m", naming(name))

        assert caught.value.failure.kind is ErrorKind.UNAVAILABLE


async def test_secrets_are_not_looked_for_in_files(tmp_path, monkeypatch):
    """Output is masked; a file is an answer, as a result is."""
    monkeypatch.setenv("TEST_TOKEN", "hunter2hunter2")
    code = "import os\ndef handler(input):\n    print(os.environ['TOKEN'])\n    return os.environ['TOKEN'].encode()"
    async with open_service(tmp_path, [inline("m", code, secrets={"TOKEN": Secret(env="TEST_TOKEN")})]) as service:
        execution = await service.execute(ANYBODY, "m", b"1")

        found = await service.stored.find(ANYBODY, json.loads(execution.result)["$file"]["id"])
        assert found.path.read_bytes() == b"hunter2hunter2"
        assert b"hunter2" not in execution.events
