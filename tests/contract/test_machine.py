"""Contract: built environments and workers as callers see them: states, sizes, users, and nothing of other modules."""

from __future__ import annotations

import pytest
import trio

from config.modules.spec import ModuleSpec
from environments.venv import VenvEnvironment
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.model import Kind
from runner.auth import Principal
from runner.auth.tokens import sign
from tests.contract.test_environments import make_wheel
from tests.contract.test_streams import SECRET, open_site
from tests.support import ANYBODY, PATIENCE, WAIT_FOR, Watch, inline, open_service, wait_until

SLOW = inline("slow", f"{WAIT_FOR}\ndef handler(input):\n    wait_for(input)\n    return 1")

VENV = ModuleSpec(name="m", env=Kind.VENV, code="def handler(input): return input")
WAITS = ModuleSpec(
    name="waits", env=Kind.VENV, code=f"{WAIT_FOR}\ndef handler(input):\n    wait_for(input)\n    return 1"
)


def bearer(*modules):
    return sign(SECRET, subject="lee", scopes=["admin"], expires_seconds=60, modules=list(modules))


async def test_workers_are_listed_with_what_they_do(tmp_path):
    async with open_site(tmp_path, (SLOW, inline("quick", "def handler(input): return 1"))) as site:
        assert await site.json("GET", "/workers") == {"items": []}
        await site.json("POST", "/modules/execute/quick", 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.json, "POST", "/modules/execute/slow", str(tmp_path / "go"))

            def working():
                return [each for each in site.service.machine.workers(ANYBODY) if each["state"] == "busy"]

            await wait_until(working, "no worker is busy")
            quick, slow = (await site.json("GET", "/workers"))["items"]
            assert (quick["module"], quick["state"], quick["calls"], quick["env"]) == ("quick", "idle", 1, "inline")
            assert (slow["module"], slow["state"], slow["calls"]) == ("slow", "busy", 1)
            assert quick["pid"] != slow["pid"]
            assert quick["age"] >= 0
            site.token = bearer("sl*")
            assert [each["module"] for each in (await site.json("GET", "/workers"))["items"]] == ["slow"]
            (tmp_path / "go").touch()


async def test_a_worker_that_is_being_started_is_listed(tmp_path):
    module = inline("imports", f"{WAIT_FOR}\nwait_for({str(tmp_path / 'go')!r})\ndef handler(input): return 1")
    async with open_service(tmp_path, (module,)) as service, trio.open_nursery() as nursery:
        nursery.start_soon(service.execute, ANYBODY, "imports", b"1")
        await wait_until(lambda: service.machine.workers(ANYBODY), "no worker is being started")
        (worker,) = service.machine.workers(ANYBODY)
        assert (worker["state"], worker["pid"], worker["calls"]) == ("starting", None, 0)
        (tmp_path / "go").touch()


async def test_built_environments_have_size_content_and_users(tmp_path):
    tiny = make_wheel(tmp_path, big=b"x" * 100_000)
    code = "def handler(input): return input"
    modules = [
        ModuleSpec(name="tiny", env=Kind.VENV, code=code, requirements=(tiny,)),
        ModuleSpec(name="also", env=Kind.VENV, code=f"{code}  # the same", requirements=(tiny,)),
        ModuleSpec(name="empty", env=Kind.VENV, code=code),
        inline("inline", code),
    ]
    async with open_site(tmp_path, modules) as site:
        with trio.fail_after(PATIENCE):
            for module in ("tiny", "also", "empty"):
                await site.json("POST", f"/modules/{module}/prepare")
        larger, smaller = (await site.json("GET", "/environments/built"))["items"]
        assert larger["size_bytes"] > smaller["size_bytes"] + 90_000
        assert [name.partition("@")[0] for name in larger["modules"]] == ["also", "tiny"]
        assert [name.partition("@")[0] for name in smaller["modules"]] == ["empty"]
        assert any(line.startswith("tiny @ file:") for line in larger["packages"])
        assert larger["in_use"]

        store = site.service.executors[Kind.VENV].environment.store
        store.log_path(larger["key"]).write_text("".join(f"line {number}\n" for number in range(20_000)))
        shown, text, _ = await site.service.machine.environment(ANYBODY, larger["key"])
        assert shown == larger
        assert text.startswith("line ")
        assert text.endswith("line 19999\n")
        assert 60_000 < len(text) < 66_000
        site.token = bearer("empty")
        assert (await site.json("GET", "/environments/built"))["items"] == [smaller]
        with pytest.raises(RunnerError) as caught:
            await site.service.machine.environment(ANYBODY, "no-such")
        assert caught.value.failure.kind is ErrorKind.NOT_FOUND


async def test_an_environment_built_again_is_measured_again(tmp_path):
    async with open_service(tmp_path, (VENV,)) as service:
        with trio.fail_after(PATIENCE):
            await service.prepare(ANYBODY, "m")[1].wait_ended()
        store = service.executors[Kind.VENV].environment.store
        (before,) = await service.machine.built(ANYBODY)

        async def larger(folder):
            folder.mkdir()
            (folder / "data").write_bytes(b"x" * 10_000_000)

        store.uses.keep(())
        watch = Watch()
        await store.replace(before["key"], {"kind": "venv"}, larger, watch)
        (after,) = await service.machine.built(ANYBODY)
        assert 10_000_000 <= after["size_bytes"] < 11_000_000


async def test_an_environment_is_built_again_and_its_workers_are_new(tmp_path):
    async with open_service(tmp_path, (VENV,)) as service:
        assert (await service.execute(ANYBODY, "m", b"1")).status == "succeeded"
        (before,) = await service.machine.built(ANYBODY)
        (worker,) = service.machine.workers(ANYBODY)
        mark = tmp_path / "venvs" / before["key"] / "mark"
        mark.touch()

        lines = await service.machine.rebuild(ANYBODY, before["key"])
        assert await service.machine.rebuild(ANYBODY, before["key"]) is lines, "callers share a build"
        assert (await service.execute(ANYBODY, "m", b"2")).status == "succeeded"  # it waited for the build
        assert lines.prepared is not None
        assert lines.prepared.key == before["key"]
        assert not mark.exists()
        (after,) = await service.machine.built(ANYBODY)
        assert after["built_at"] > before["built_at"]
        assert service.machine.workers(ANYBODY)[0]["pid"] != worker["pid"]


async def test_an_environment_in_use_is_not_built_again(tmp_path):
    async with open_service(tmp_path, (VENV, WAITS)) as service, trio.open_nursery() as nursery:
        nursery.start_soon(service.execute, ANYBODY, "waits", f'"{tmp_path / "go"}"'.encode())
        await wait_until(lambda: [w for w in service.machine.workers(ANYBODY) if w["state"] == "busy"], "not busy")
        (found,) = await service.machine.built(ANYBODY)

        with pytest.raises(RunnerError) as caught:
            await service.machine.rebuild(ANYBODY, found["key"])
        assert caught.value.failure.kind is ErrorKind.CONFLICT
        assert "waits@" in caught.value.failure.message
        (tmp_path / "go").touch()


async def test_a_failed_build_leaves_the_environment(tmp_path, monkeypatch):
    async with open_service(tmp_path, (VENV,)) as service:
        assert (await service.execute(ANYBODY, "m", b"1")).status == "succeeded"
        (before,) = await service.machine.built(ANYBODY)

        async def fail(*_):
            raise RunnerError(Failure(ErrorKind.ENVIRONMENT_FAILED, "no room"))

        monkeypatch.setattr(VenvEnvironment, "_build", fail)
        lines = await service.machine.rebuild(ANYBODY, before["key"])
        await lines.wait_ended()
        assert lines.failure is not None
        assert "no room" in lines.failure.message
        assert (await service.machine.built(ANYBODY))[0]["built_at"] == before["built_at"]
        assert (await service.execute(ANYBODY, "m", b"2")).status == "succeeded"


async def test_only_a_caller_of_all_its_modules_builds_a_shared_environment_again(tmp_path):
    async with open_service(tmp_path, (VENV, WAITS)) as service:
        for module in ("m", "waits"):
            await service.prepare(ANYBODY, module)[1].wait_ended()
        (found,) = await service.machine.built(ANYBODY)
        some = Principal("lee", frozenset({"modules:read", "modules:write"}), modules=("m",))
        assert [name.partition("@")[0] for name in (await service.machine.built(some))[0]["modules"]] == ["m"]
        with pytest.raises(RunnerError) as caught:
            await service.machine.rebuild(some, found["key"])
        assert caught.value.failure.kind is ErrorKind.FORBIDDEN
        assert "waits" not in caught.value.failure.message
