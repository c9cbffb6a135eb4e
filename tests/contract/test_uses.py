"""Contract: environments in use are never removed or replaced; a removal is complete, across processes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import trio

from environments.store.store import MANIFEST, Store
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Kind
from tests.contract.test_environments import environments_in, make_wheel
from tests.support import PATIENCE, Watch, open_rig, wait_until

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, trio
from pathlib import Path
from environments.store import Store

async def main():
    uses = Store(Path(sys.argv[1])).uses
    await uses.hold("k", lambda line: print(line, flush=True))
    print("held", flush=True)
    sys.stdin.read()
    uses.keep(())

trio.run(main)
"""


async def build(to):
    to.mkdir()
    (to / "data").write_text(f"built in {to.parent.name}")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    yield store
    store.uses.keep(())


def process(store):
    """Return a process that uses the environment `k` until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def line_of(child):
    ready, _, _ = select.select([child.stdout], [], [], PATIENCE)
    assert ready, "it says nothing"
    return child.stdout.readline().strip()


@contextmanager
def another(store):
    with process(store) as child:
        try:
            assert line_of(child) == "held"
            yield child
        finally:
            child.kill()


async def test_what_another_process_uses_is_not_removed(store):
    await store.get("k", {}, build, Watch())
    store.uses.keep(())
    with another(store) as child:
        assert await store.remove("k") is False
        assert store.ready("k")
        (found,) = await store.stored()
        assert found.in_use
        assert found.users == (child.pid,)
        child.kill()
        child.wait()
    assert await store.remove("k") is True, "the kernel gives the lock of a killed process back"
    assert not store.ready("k")
    assert environments_in(store.root) == []


async def test_what_another_process_uses_is_not_replaced(store):
    await store.get("k", {}, build, Watch())
    store.uses.keep(())
    with another(store) as child:
        for in_place in (False, True):
            with pytest.raises(RunnerError) as caught:
                await store.replace("k", {}, build, Watch(), in_place=in_place)
            assert caught.value.failure.kind is ErrorKind.CONFLICT
            assert f"process {child.pid}" in caught.value.failure.message
    assert store.builds == 1
    assert store.ready("k")


async def test_whoever_comes_during_a_removal_waits(store):
    await store.get("k", {}, build, Watch())
    store.uses.keep(())
    with store.uses.alone("k") as alone, process(store) as child:
        try:
            assert alone
            assert line_of(child) == "another process is removing or replacing this environment"
            select_now, _, _ = select.select([child.stdout], [], [], 0)
            assert not select_now
        finally:
            child.kill()


async def test_this_process_counts_too(store):
    await store.get("k", {}, build, Watch())

    assert await store.remove("k") is False
    store.uses.keep(("other",))
    assert await store.remove("k") is True


async def test_the_last_use_is_noted_once_a_minute(store):
    await store.get("k", {}, build, Watch())
    os.utime(store.uses.path("k"), (1000, 1000))
    store.uses.touch("k")
    assert store.uses.last("k") == 1000, "a moment ago it was noted"

    store.uses.keep(())
    used = store.uses.last("k")
    assert used > 1000, "the end of a use is one"
    (found,) = await store.stored()
    assert found.used_at >= used
    assert store.uses.last("k") == used, "looking is no use"


async def test_an_environment_of_an_older_runner_was_used_when_it_was_built(store):
    (store.root / "venv-py3.12.1-ab").mkdir(parents=True)
    (store.root / "venv-py3.12.1-ab" / MANIFEST).write_text(json.dumps({"built_at": 77.0}))
    (found,) = await store.stored()

    assert (found.kind, found.python, found.used_at, found.in_use) == ("venv", "3.12.1", 77.0, False)


@pytest.mark.parametrize("in_place", [False, True])
async def test_a_rebuild_replaces_the_whole(store, in_place):
    await store.get("k", {}, build, Watch(), in_place=in_place)
    (store.path("k") / "broken").write_text("")
    store.uses.keep(())
    await store.replace("k", {"kind": "x"}, build, Watch(), in_place=in_place)

    assert sorted(path.name for path in store.path("k").iterdir()) == ["data", MANIFEST]
    assert store.manifest("k")["kind"] == "x"
    assert environments_in(store.root) == ["k"]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("how", ["fails", "cancelled"])
async def test_a_rebuild_that_comes_to_nothing_changes_nothing(store, in_place, how):
    await store.get("k", {}, build, Watch())
    (store.path("k") / "mark").write_text("")
    store.uses.keep(())

    begun = trio.Event()

    async def bad(to):
        to.mkdir()
        begun.set()
        if how == "fails":
            raise OSError("disk")
        await trio.sleep_forever()

    async def rebuild():
        with pytest.raises(OSError, match="disk") if how == "fails" else nullcontext():
            await store.replace("k", {}, bad, Watch(), in_place=in_place)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rebuild)
        await begun.wait()
        if how == "cancelled":
            nursery.cancel_scope.cancel()
    assert store.ready("k")
    assert (store.path("k") / "mark").exists()
    assert environments_in(store.root) == ["k"]


async def test_one_that_is_used_when_its_rebuild_is_done_stays(store):
    await store.get("k", {}, build, Watch())
    store.uses.keep(())
    (store.path("k") / "mark").write_text("")

    async def slow(to):
        await store.uses.hold("k", print)
        await build(to)

    with pytest.raises(RunnerError, match="is in use by process"):
        await store.replace("k", {}, slow, Watch())
    assert (store.path("k") / "mark").exists()
    assert environments_in(store.root) == ["k"]


async def test_what_killed_processes_left_is_tidied(store):
    for name in ("old.k.999999999", "k.999999999", "j.999999999"):
        (store.root / ".tmp" / name).mkdir(parents=True)
    async with store.lock("j", Watch()):
        assert await store.tidy() == 2
    assert [path.name for path in (store.root / ".tmp").iterdir()] == ["j.999999999"], "somebody builds it"


async def test_a_runner_uses_what_it_serves_and_no_more(tmp_path):
    other = Store(tmp_path / "venvs")
    async with open_rig(tmp_path / "rig", venvs=tmp_path / "venvs", offline=True) as rig:
        module = await rig.publish("def handler(input): return 1", env=Kind.VENV, requirements=(make_wheel(tmp_path),))
        assert (await rig.call(module)).value == 1
        (key,) = environments_in(tmp_path / "venvs")
        rig.venv._maintain()
        assert await other.remove(key) is False

        await rig.publish_all([])
        await wait_until(lambda: rig.venv.statistics().ended == 1, "its worker does not end")
        rig.venv._maintain()
        assert rig.venv_environment.store.uses._held == {}
        assert await other.remove(key) is True

        module = await rig.publish("def handler(input): return 2", env=Kind.VENV, requirements=(make_wheel(tmp_path),))
        assert (await rig.call(module)).value == 2, "it is built again"
    assert await other.remove(key) is True, "a runner that has ended uses nothing"


async def test_what_is_prepared_is_used_before_it_is_known(tmp_path):
    async with open_rig(tmp_path / "rig", venvs=tmp_path / "venvs", offline=True) as rig:
        store = rig.venv_environment.store
        rig.venv._starter.builds.running += 1  # a build of another module
        await store.uses.hold("k", print)
        rig.venv._maintain()
        assert store.uses._held.keys() == {"k"}
        rig.venv._starter.builds.running -= 1
        rig.venv._maintain()
        assert store.uses._held == {}
