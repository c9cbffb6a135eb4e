"""Contract: changes on the disk are published, however and whenever they are written; the rest is logged."""

from __future__ import annotations

import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import structlog
import trio
import trio.testing

from actors.registry import code_store
from actors.registry.publisher import Publisher
from actors.registry.registry import Registry
from actors.system import System
from config.load import secret_values
from runner.serve.reload import Bell, Reloader, folders_of
from tests.modules_file import load_modules
from tests.support import wait_until

NEVER = 10_000.0
"""Seconds between looks, so long that changes are found only by notices of the kernel."""
OFTEN = 0.02


@attrs.frozen
class Held(System):
    """A system whose `publish` counts in `begun` and waits for `gate`."""

    begun: list[int] = attrs.field(factory=list)
    gate: list[trio.Event] = attrs.field(factory=list)

    async def publish(self, specs):
        self.begun.append(1)
        if self.gate:
            await self.gate.pop(0).wait()
        await super().publish(specs)


@attrs.define
class Served:
    """A folder that is served and watched."""

    home: object
    system: Held
    reloader: Reloader
    lines: list

    def write(self, text, name="modules.yaml"):
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def replace(self, text, name="modules.yaml"):
        """Write to a temporary file and rename it, as careful editors do."""
        self.write(text, f"{name}.new")
        (self.home / f"{name}.new").replace(self.home / name)

    @property
    def modules(self):
        return self.system.registry.snapshot.modules

    def code(self, name="m"):
        return self.modules[name].entry.read_text() if name in self.modules else None

    async def wait(self, condition, why="it was not published"):
        await wait_until(condition, lambda: f"{why}: {self.lines}", seconds=20)

    async def wait_logged(self, *words):
        await self.wait(lambda: any(all(word in str(line) for word in words) for line in self.lines), f"{words}")


def inline(**modules):
    return "modules:\n" + "".join(f"  {name}: {{env: inline, {fields}}}\n" for name, fields in modules.items())


ONE = inline(m="code: 'handler = x1'")
TWO = inline(m="code: 'handler = x2'")


@pytest.fixture
def lines():
    """Return the lines of the log."""
    with structlog.testing.capture_logs() as captured:
        yield captured


@asynccontextmanager
async def serving(home, lines, *, look_seconds=NEVER, watching=True, first=ONE):
    (home / "modules.yaml").write_text(first)
    registry = Registry(Publisher(home.parent / f"{home.name}-kept", secret_values))
    system = Held(registry, {}, None, None, None, None)
    modules = load_modules(home / "modules.yaml")
    async with trio.open_nursery() as nursery:
        await nursery.start(registry.run)
        await system.publish(modules.modules)
        reloader = Reloader(modules, system, Bell(), look_seconds)
        nursery.start_soon(lambda: reloader.run(watching=watching))
        yield Served(home, system, reloader, lines)
        nursery.cancel_scope.cancel()


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(params=["notices", "looks"])
async def served(request, home, lines, monkeypatch):
    """Return a served folder that detects changes by notices, or only by looks."""
    if request.param == "looks":
        monkeypatch.setattr(Reloader, "_hear", deaf)
    async with serving(home, lines, look_seconds=NEVER if request.param == "notices" else OFTEN) as opened:
        yield opened


async def deaf(*_):
    raise OSError(28, "No space left on device (no more watches)")


# -- changes -----------------------------------------------------------------------------------------------------------


async def test_a_file_that_is_written_or_replaced(served):
    served.write(TWO)
    await served.wait(lambda: served.code() == "handler = x2")
    served.replace(ONE)
    await served.wait(lambda: served.code() == "handler = x1")
    served.replace(TWO)
    await served.wait(lambda: served.code() == "handler = x2")


async def test_a_file_that_is_missing_for_a_while(served):
    (served.home / "modules.yaml").unlink()
    await served.wait_logged("not reloaded", "does not exist")
    assert served.code() == "handler = x1"
    served.write(TWO)
    await served.wait(lambda: served.code() == "handler = x2")


async def test_code_in_a_file_and_in_a_folder(served):
    served.write("handler = y1", "one.py")
    served.write("handler = y1", "jobs/main.py")
    served.write(inline(m="path: one.py", jobs="path: jobs"))
    await served.wait(lambda: served.code() == "handler = y1")

    served.replace("handler = y2", "one.py")
    await served.wait(lambda: served.code() == "handler = y2")
    served.write("handler = y3", "jobs/main.py")
    await served.wait(lambda: served.code("jobs") == "handler = y3")
    served.write("z = 1", "jobs/deep/er/more.py")
    await served.wait(lambda: "more.py" in str([*served.modules["jobs"].root.rglob("*")]))
    served.write("z = 2", "jobs/deep/er/more.py")
    await served.wait(lambda: (served.modules["jobs"].root / "deep/er/more.py").read_text() == "z = 2")
    (served.home / "jobs/deep/er/more.py").unlink()
    await served.wait(lambda: not (served.modules["jobs"].root / "deep/er/more.py").exists())


async def test_a_folder_that_replaces_another(served):
    served.write("handler = y1", "jobs/main.py")
    served.write(inline(jobs="path: jobs"))
    await served.wait(lambda: served.code("jobs") == "handler = y1")
    for number in (2, 3):
        served.write(f"handler = y{number}", "next/main.py")
        (served.home / "jobs").rename(served.home / f"old{number}")
        (served.home / "next").rename(served.home / "jobs")
        await served.wait(lambda number=number: served.code("jobs") == f"handler = y{number}")
    served.write("handler = y4", "jobs/main.py")
    await served.wait(lambda: served.code("jobs") == "handler = y4")


async def test_links_that_change_to_another_folder(home, lines):
    """A mounted configuration is updated this way: `modules.yaml` itself is not touched."""
    for number in (1, 2):
        (home / f"v{number}").mkdir()
        (home / f"v{number}" / "modules.yaml").write_text(ONE.replace("1", str(number)))
    (home / "now").symlink_to("v1")
    (home / "modules.yaml").symlink_to("now/modules.yaml")
    async with serving(home, lines) as served:
        (home / "next").symlink_to("v2")
        (home / "next").replace(home / "now")
        await served.wait(lambda: served.code() == "handler = x2")
        (home / "v2" / "modules.yaml").write_text(ONE.replace("1", "3"))
        await served.wait(lambda: served.code() == "handler = x3")


async def test_code_that_comes_after_the_file_that_names_it(served):
    served.write(inline(m="path: deep/late.py"))
    await served.wait_logged("not reloaded", "does not exist")
    served.write("handler = y1", "deep/late.py")
    await served.wait(lambda: served.code() == "handler = y1")


async def test_requirements_files_and_what_they_include(served):
    served.write("-r more.txt\n", "all.txt")
    served.write("a\n", "more.txt")
    served.write("modules: {m: {env: venv, code: 'handler = x1', requirements: all.txt}}")
    await served.wait(lambda: served.modules["m"].spec.requirements == ("a",))
    served.replace("b\n", "more.txt")
    await served.wait(lambda: served.modules["m"].spec.requirements == ("b",))
    served.write("c\n", "all.txt")
    await served.wait(lambda: served.modules["m"].spec.requirements == ("c",))


# -- changes during a reload -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look_seconds", [NEVER, OFTEN])
async def test_changes_during_a_reload_are_published_after_it(home, lines, look_seconds):
    async with serving(home, lines, look_seconds=look_seconds) as served:
        for number in range(2, 6):
            gate = trio.Event()
            served.system.gate.append(gate)
            begun = len(served.system.begun)
            served.write(inline(m=f"code: 'handler = x{number}'"))
            await served.wait(lambda begun=begun: len(served.system.begun) > begun)
            served.replace(inline(m=f"code: 'handler = x{number} + 100'"))
            gate.set()
            await served.wait(lambda number=number: served.code() == f"handler = x{number} + 100")


async def test_changes_between_reading_and_watching_are_published(home, lines):
    (home / "jobs").mkdir()
    (home / "jobs" / "main.py").write_text("handler = y1")
    registry = Registry(Publisher(home.parent / "kept", secret_values))
    system = Held(registry, {}, None, None, None, None)
    (home / "modules.yaml").write_text(inline(jobs="path: jobs"))
    modules = load_modules(home / "modules.yaml")
    async with trio.open_nursery() as nursery:
        await nursery.start(registry.run)
        await system.publish(modules.modules)
        (home / "jobs" / "main.py").write_text("handler = y2")  # not watched yet
        nursery.start_soon(Reloader(modules, system, Bell(), NEVER).run)
        await wait_until(lambda: registry.snapshot.get("jobs").entry.read_text() == "handler = y2", "it was lost")
        nursery.cancel_scope.cancel()


async def test_files_of_another_time_are_not_read_for_ever(home, lines):
    async with serving(home, lines) as served:
        served.write(TWO)
        os.utime(home / "modules.yaml", (4e9, 4e9))
        await served.wait(lambda: served.code() == "handler = x2")
        await trio.testing.wait_all_tasks_blocked(0.5)
        count = len(served.system.begun)
        await trio.testing.wait_all_tasks_blocked(0.5)
        assert len(served.system.begun) == count < 6


# -- secrets ---------------------------------------------------------------------------------------------------------


def digest(served):
    return served.modules["m"].digest


async def test_a_rotated_secret_is_a_change(home, lines):
    (home / "token").write_text("first")
    first = inline(m="code: 'handler = x1', secrets: {TOKEN: {file: token}}")
    async with serving(home, lines, first=first) as served:
        before = served.modules["m"]
        served.replace("second", "token")
        await served.wait(lambda: digest(served) != before.digest, "it is not a change")
        assert served.modules["m"].ref == before.ref, "the module is the same"
        await served.wait_logged("'reloaded'", "'changed': ['m']")
        assert "first" not in str(lines)
        assert "second" not in str(lines)


@pytest.mark.parametrize("means", ["notices", "looks"])
async def test_secrets_that_a_cluster_mounts_and_rotates(home, lines, means, monkeypatch):
    """The files in the folder of a mounted secret are links through another link, and only that link is replaced."""
    if means == "looks":
        monkeypatch.setattr(Reloader, "_hear", deaf)
    mounted = home / "mounted"
    mounted.mkdir()

    def mount(name, value):
        (mounted / name).mkdir()
        (mounted / name / "token").write_text(value)
        (mounted / "..data_tmp").symlink_to(name)
        (mounted / "..data_tmp").rename(mounted / "..data")

    mount("..1", "first")
    (mounted / "token").symlink_to("..data/token")
    first = inline(m="code: 'handler = x1', secrets: {TOKEN: {file: mounted/token}}")
    async with serving(home, lines, first=first, look_seconds=NEVER if means == "notices" else OFTEN) as served:
        await served.wait(lambda: mounted in served.reloader.watched, "it is not watched")
        for number in (2, 3):
            before = digest(served)
            mount(f"..{number}", f"value {number}")
            await served.wait(lambda before=before: digest(served) != before, f"rotation {number} was not seen")


async def test_a_missing_secret_keeps_the_modules_until_it_is_back(home, lines):
    (home / "token").write_text("first")
    first = inline(m="code: 'handler = x1', secrets: {TOKEN: {file: token}}")
    async with serving(home, lines, first=first) as served:
        before = served.modules["m"]
        (home / "token").unlink()
        await served.wait_logged("not reloaded", "m.secrets.TOKEN: ", "does not exist")
        assert served.modules["m"] is before
        served.write("second", "token")
        await served.wait(lambda: digest(served) != before.digest)


async def test_a_bell_reads_secrets_again(home, lines):
    (home / "token").write_text("first")
    first = inline(m="code: 'handler = x1', secrets: {TOKEN: {file: token}}")
    async with serving(home, lines, watching=False, first=first) as served:
        before = digest(served)
        served.write("second", "token")
        served.reloader.bell.ring()
        await served.wait(lambda: digest(served) != before)


# -- the log -----------------------------------------------------------------------------------------------------------


async def test_a_reload_logs_the_added_changed_and_removed_modules(home, lines):
    async with serving(
        home, lines, watching=False, first=inline(a="code: handler = x", b="code: handler = x", c="code: handler = x")
    ) as served:
        served.write(inline(b="code: handler = y", c="code: handler = x", d="code: handler = x"))
        served.reloader.bell.ring()
        await served.wait_logged("'reloaded'")  # logged after it was published
        (line,) = [line for line in lines if line["event"] == "reloaded"]
        assert (line["added"], line["changed"], line["removed"]) == (["d"], ["b"], ["a"])

        served.reloader.bell.ring()
        await served.wait_logged("reloaded, no changes")

        served.write("runner: {grace: 5s}\n" + inline(d="code: handler = x"))
        served.reloader.bell.ring()
        await served.wait_logged("the section `runner:` is read only at the start")


async def test_a_bell_that_rings_early_is_heard(home, lines):
    async with serving(home, lines, watching=False) as served:
        served.reloader.bell.ring()
        served.reloader.bell.ring()
        await served.wait_logged("reloaded, no changes")


REFUSED = {
    "a mistake": (inline(m="timeout: 0"), "m.timeout: 0s is out of range"),
    "a missing secret": (
        inline(m="code: handler = x, secrets: [NOT_THERE]"),
        "m.secrets.NOT_THERE: OPERATO_SECRET_",
    ),
    "no such file": (inline(m="path: none.py"), "m.path: 'none.py' does not exist"),
    "half of a file": ("modules:\n  m: {env: inl", "is not valid YAML"),
    "nothing": ("", "is empty"),
}


@pytest.mark.parametrize(("text", "why"), REFUSED.values(), ids=REFUSED)
async def test_a_file_that_cannot_be_published_keeps_the_modules(home, lines, text, why):
    async with serving(home, lines) as served:
        before = served.system.registry.snapshot
        served.write(text)
        await served.wait_logged("not reloaded", why)
        assert served.system.registry.snapshot is before
        served.write(TWO)
        await served.wait(lambda: served.code() == "handler = x2")


async def test_a_full_disk_keeps_the_modules_and_the_runner(home, lines, monkeypatch):
    async with serving(home, lines) as served:
        with monkeypatch.context() as patch:
            patch.setattr(code_store, "keep", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            served.write(TWO)
            await served.wait_logged("not reloaded", "No space left on device")
        assert served.code() == "handler = x1"
        served.reloader.bell.ring()
        await served.wait(lambda: served.code() == "handler = x2")


@pytest.mark.parametrize("look_seconds", [NEVER, OFTEN])
async def test_names_that_are_not_utf_8_beside_watched_files_change_nothing(home, lines, look_seconds):
    (home / "jobs").mkdir()
    (home / "jobs" / "main.py").write_text("handler = y1")
    first = inline(jobs="path: jobs", m="code: 'handler = x1'")
    async with serving(home, lines, look_seconds=look_seconds, first=first) as served:
        for number in range(3):
            for folder in (home, home / "jobs" / "__pycache__"):
                folder.mkdir(exist_ok=True)
                Path(folder, os.fsdecode(b"r\xe9sum\xe9-%d.txt" % number)).touch()
            text = first.replace("x1", f"z{number}")
            served.write(text)
            await served.wait(lambda text=f"handler = z{number}": served.code() == text)
    assert len([line for line in lines if "detected late" in str(line)]) <= 2


async def test_a_folder_that_is_deleted_and_comes_back(home, lines):
    async with serving(home, lines, look_seconds=OFTEN) as served:
        for number in range(3):
            shutil.rmtree(home)
            await served.wait_logged("not reloaded")
            home.mkdir()
            served.write(TWO.replace("x2", f"z{number}"))
            await served.wait(lambda text=f"handler = z{number}": served.code() == text)


@pytest.mark.parametrize("kind", [RuntimeError, OSError, ValueError])
async def test_no_error_of_the_watcher_ends_the_runner_and_each_is_told_once(home, lines, monkeypatch, kind):
    heard = []

    async def broken(*_):
        heard.append(1)
        raise kind("the library failed")

    monkeypatch.setattr(Reloader, "_hear", broken)
    monkeypatch.setattr("runner.serve.reload._SETTLE_SECONDS", 0.001)
    async with serving(home, lines, look_seconds=OFTEN) as served:
        await served.wait(lambda: len(heard) > 3)
        served.write(TWO)
        await served.wait(lambda: served.code() == "handler = x2")
    assert len([line for line in lines if "detected late" in str(line)]) == 1


async def test_an_unforeseen_failure_of_a_reload_keeps_the_modules(home, lines, monkeypatch):
    async with serving(home, lines, look_seconds=OFTEN) as served:
        with monkeypatch.context() as patch:
            patch.setattr("runner.serve.reload.read_modules", lambda *_: 1 / 0)
            served.write(TWO)
            await served.wait_logged("not reloaded")
        served.reloader.bell.ring()
        await served.wait(lambda: served.code() == "handler = x2")


async def test_temporary_files_of_editors_are_not_a_change(home, lines):
    (home / "jobs").mkdir()
    (home / "jobs" / "main.py").write_text("handler = y1")
    async with serving(home, lines, look_seconds=OFTEN, first=inline(jobs="path: jobs")) as served:
        before = served.modules["jobs"]
        for name in (".main.py.swp", "main.py~", ".#main.py", "4913", "__pycache__/main.pyc"):
            served.write("", f"jobs/{name}")
        served.write("", "beside.log")
        served.write("handler = y1", "jobs/last.py")
        await served.wait(lambda: served.modules["jobs"] is not before)
        assert sorted(path.name for path in served.modules["jobs"].root.iterdir()) == ["last.py", "main.py"]


def test_the_folders_of_all_named_files_are_watched(tmp_path):
    (tmp_path / "a" / "b" / "__pycache__").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")

    found = folders_of([tmp_path / "modules.yaml", tmp_path / "link", tmp_path / "no" / "such" / "x.py"])

    assert found.keys() == {tmp_path, tmp_path / "link", tmp_path / "link" / "b", tmp_path / "a", tmp_path / "a" / "b"}
