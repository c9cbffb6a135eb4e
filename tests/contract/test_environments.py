"""Contract: environments on disk and the processes that build them: one build, whole or not at all, nothing left."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import trio
import trio.testing

from config.load import base_environment
from environments import proc
from environments.base import ChannelClosedError
from environments.installer import find_uv
from environments.local.inline import GUEST_FILES, Launcher
from environments.local.process import ProcessTable
from environments.store.store import MANIFEST, Store
from protocol.errors import ErrorKind
from protocol.model import Kind
from tests.support import PATIENCE, Watch, gone, open_fds, open_rig, wait_until

VERSION = "{}.{}.{}".format(*sys.version_info)


def make_wheel(folder: Path, name: str = "tiny", **files: bytes) -> str:
    """Write a wheel with one module and return the requirement that names it: no index is needed."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    content = {
        f"{name}.py": "answer = 42\n",
        **{f"{file}.bin": data for file, data in files.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for file, data in content.items():
            wheel.writestr(zipfile.ZipInfo(file), data)  # of no time, so that its hash is the same whenever it is made
    return f"{name} @ {path.as_uri()}"


def environments_in(root: Path) -> list[str]:
    """Return the names of finished environments; fails when something half-built is there."""
    temporary = root / ".tmp"
    assert not temporary.exists() or not list(temporary.iterdir()), "something half-built is left"
    return [path.name for path in root.iterdir() if not path.name.startswith(".")]


@pytest.fixture
async def fresh(tmp_path):
    """Executors with a store of their own that never reach for the network."""
    async with open_rig(tmp_path / "rig", offline=True) as rig:
        yield rig


@pytest.fixture
def store(tmp_path):
    """Lend a store, and release its environments at the end."""
    store = Store(tmp_path)
    yield store
    store.uses.keep(())


# -- venv ------------------------------------------------------------------------------------------------------------


async def test_a_venv_is_its_own_python(rig):
    code = "import sys\ndef handler(input): return [sys.prefix, sys.base_prefix, sys.version.split()[0]]"
    prefix, base, version = (await rig.run(code, env=Kind.VENV)).value

    assert Path(prefix).parent == rig.venv_environment.store.root
    assert prefix != base
    assert version == VERSION


async def test_a_requirement_without_an_index(fresh, tmp_path):
    code = "import tiny\ndef handler(input): return tiny.answer"
    ran = await fresh.run(code, env=Kind.VENV, requirements=(make_wheel(tmp_path),))

    assert ran.value == 42
    (name,) = environments_in(fresh.path / "venvs")
    assert name.startswith(f"venv-py{VERSION}-")
    assert (fresh.path / "venvs" / name / MANIFEST).is_file()
    assert (fresh.path / "venvs" / ".logs" / f"{name}.log").is_file()


async def test_a_requirement_from_the_index(rig):
    code = "import iniconfig\ndef handler(input): return iniconfig.__name__"
    ran = await rig.run(code, env=Kind.VENV, requirements=("iniconfig==2.0.0",), build_timeout=60.0)

    if ran.outcome.failure is not None and _unreachable():
        pytest.skip("neither the package index nor a cached copy can be reached")
    assert ran.value == "iniconfig"


def _unreachable():
    try:
        socket.create_connection(("pypi.org", 443), timeout=5).close()
    except OSError:
        return not any(
            os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "UV_INDEX_URL", "UV_DEFAULT_INDEX")
        )
    return False


async def test_user_code_does_not_get_the_environment_variables_of_the_installer(tmp_path, monkeypatch):
    monkeypatch.setenv("UV_INDEX_URL", "https://user:password@index.invalid")
    async with open_rig(tmp_path / "rig", offline=True) as rig:
        code = "import os\ndef handler(input): return open('/proc/self/environ').read() + str(dict(os.environ))"
        assert "password" not in (await rig.run(code, env=Kind.VENV)).value


@pytest.mark.parametrize("same", [True, False])
async def test_many_first_calls_of_two_modules_share_builds(fresh, tmp_path, same):
    one = make_wheel(tmp_path)
    other = one if same else make_wheel(tmp_path, "other")
    fields = {"env": Kind.VENV, "concurrency": 2}
    code = "def handler(input): return input"
    a = await fresh.publish(code, name="a", requirements=(one,), **fields)
    b = await fresh.publish(code + "  # b", name="b", requirements=(other,), **fields)
    values = []

    async def call(module, i):
        values.append((await fresh.call(module, i)).value)

    async with trio.open_nursery() as nursery:
        for i in range(50):
            nursery.start_soon(call, b if i % 2 else a, i)

    assert sorted(values) == list(range(50))
    assert fresh.venv_environment.store.builds == (1 if same else 2)
    assert len(environments_in(fresh.path / "venvs")) == (1 if same else 2)


async def test_a_built_environment_is_used_by_the_next_runner(tmp_path):
    requirements = (make_wheel(tmp_path),)
    for expected in (1, 0):
        async with open_rig(tmp_path / f"rig{expected}", venvs=tmp_path / "venvs", offline=True) as rig:
            ran = await rig.run("def handler(input): return 1", env=Kind.VENV, requirements=requirements)
            assert ran.value == 1
            assert rig.venv_environment.store.builds == expected


async def test_an_index_is_asked_only_for_wheels_that_are_not_in_the_cache(tmp_path):
    """The lock tells which wheels: the installer has them in its cache, or fails at once and asks the index."""
    note, script = tmp_path / "installs", tmp_path / "uv"
    script.write_text(COUNTING_UV.replace("NOTE", str(note)).replace("UV", str(find_uv())))
    script.chmod(0o755)
    requirements = (make_wheel(tmp_path),)
    for failing, expected in (("0", ["cache"]), ("1", ["cache", "index"])):
        async with open_rig(tmp_path / failing) as rig:
            rig.venv_environment._uv = str(script)
            rig.venv_environment.installer_environ = {**rig.venv_environment.installer_environ, "FAILING": failing}
            code = "import tiny\ndef handler(input): return tiny.answer"
            assert (await rig.run(code, env=Kind.VENV, requirements=requirements)).value == 42
        assert note.read_text().split() == expected
        note.unlink()


async def test_a_resolution_failure_has_the_installers_own_lines(fresh):
    requirement = "no-such-package-of-operato==1.0"
    module = await fresh.publish("def handler(input): pass", env=Kind.VENV, requirements=(requirement,))

    failure = (await fresh.call(module)).failure
    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert "could not be locked" in failure.message
    assert "no-such-package-of-operato" in failure.message
    assert environments_in(fresh.path / "venvs") == [] if (fresh.path / "venvs").exists() else True
    assert [p for p in (fresh.path / "locks").iterdir() if p.suffix != ".txt"] == []

    again = (await fresh.call(module)).failure
    assert again.kind is ErrorKind.ENVIRONMENT_FAILED
    assert "not tried again" in again.message


async def test_a_python_that_is_not_here(fresh):
    failure = (await fresh.run("def handler(input): pass", env=Kind.VENV, python="3.99")).failure

    assert (failure.kind, failure.field) == (ErrorKind.ENVIRONMENT_FAILED, "python")
    assert "Python 3.99 was not found" in failure.message


async def test_a_machine_without_uv(fresh):
    fresh.venv_environment._uv = None
    fresh.venv._starter.probing.found = await fresh.venv_environment.probe()

    failure = (await fresh.run("def handler(input): pass", env=Kind.VENV)).failure
    assert failure.kind is ErrorKind.UNAVAILABLE
    assert "pip install uv" in failure.message


SLOW_UV = """#!/bin/sh
# Makes half an environment, starts a helper outside of the group, and then takes its time.
for last; do :; done
case "$1" in venv) mkdir -p "$(echo "$@" | tr ' ' '\\n' | grep '/\\.tmp/')"/bin ;; esac
setsid sleep 600 &
echo $$ > NOTE.tmp; mv NOTE.tmp NOTE
echo "working on it"
sleep 600
"""


COUNTING_UV = """#!/bin/sh
if [ "$2" = install ]; then
    case " $* " in
    *" --offline "*) echo cache >> NOTE; if [ "$FAILING" = 1 ]; then exit 1; fi ;;
    *) echo index >> NOTE ;;
    esac
fi
exec UV "$@"
"""


@pytest.fixture
def slow_uv(fresh, tmp_path):
    """Make builds last for ever; return the file that says that one has begun."""
    note, script = tmp_path / "began", tmp_path / "uv"
    script.write_text(SLOW_UV.replace("NOTE", str(note)))
    script.chmod(0o755)
    fresh.venv_environment._uv = str(script)
    return note


@pytest.mark.parametrize("stage", ["lock", "build"])
async def test_a_build_that_is_cut_off_leaves_nothing(fresh, slow_uv, tmp_path, stage):
    requirements = (make_wheel(tmp_path),) if stage == "lock" else ()
    module = await fresh.publish("", env=Kind.VENV, requirements=requirements, build_timeout=1.0)
    async with trio.open_nursery() as nursery:
        results = []

        async def call():
            results.append(await fresh.call(module))

        nursery.start_soon(call)
        await fresh.wait_until(slow_uv.exists, "the build did not begin")
        builder = int(slow_uv.read_text())
        if stage == "build":
            assert list((fresh.path / "venvs" / ".tmp").iterdir())

    failure = results[0].failure
    assert (failure.kind, failure.field) == (ErrorKind.ENVIRONMENT_FAILED, "build_timeout")
    assert "working on it" in failure.message
    await fresh.wait_until(lambda: gone(builder), "the installer is still running")
    await fresh.wait_until(lambda: not _sleepers(), "its helpers go on")
    await fresh.settled(fresh.venv)
    if (fresh.path / "venvs").exists():
        assert environments_in(fresh.path / "venvs") == []
    if (fresh.path / "locks").exists():
        assert list((fresh.path / "locks").iterdir()) == []


def _sleepers():
    return [pid for pid in proc.descendants(os.getpid()) if proc.name(pid) == "sleep" and proc.alive(pid)]


async def test_closing_during_a_build_leaves_nothing(tmp_path):
    """The rig and the fixture of all tests check that no process is left."""
    note, script = tmp_path / "began", tmp_path / "uv"
    script.write_text(SLOW_UV.replace("NOTE", str(note)))
    script.chmod(0o755)
    async with open_rig(tmp_path / "rig") as rig:
        rig.venv_environment._uv = str(script)
        await rig.publish("", env=Kind.VENV)
        await rig.wait_until(note.exists, "the build did not begin")

    assert environments_in(tmp_path / "rig" / "venvs") == []


async def test_a_full_disk_leaves_nothing_half_built_and_can_be_mended(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        async with open_rig(tmp_path / "rig", venvs=disk / "venvs", offline=True) as rig:
            large = make_wheel(tmp_path, large=os.urandom(4_000_000))
            code = "import tiny\ndef handler(input): return tiny.answer"
            module = await rig.publish(code, env=Kind.VENV, requirements=(large,))

            failure = (await rig.call(module)).failure
            assert failure.kind in (ErrorKind.ENVIRONMENT_FAILED, ErrorKind.UNAVAILABLE)
            assert "No space left" in failure.message
            assert environments_in(disk / "venvs") == []

            subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
            await trio.sleep(rig.venv._scheduler.pools[module.digest].pause(trio.current_time()))
            assert (await rig.call(module)).value == 42
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# -- the store -------------------------------------------------------------------------------------------------------


quiet = Watch()


async def test_one_build_for_a_key(store, tmp_path):
    going = 0
    most = 0

    async def build(to):
        nonlocal going, most
        going += 1
        most = max(most, going)
        await trio.testing.wait_all_tasks_blocked()
        to.mkdir()
        (to / "part").write_text("x")
        going -= 1

    async with trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(store.get, f"k{i % 2}", {"a": 1}, build, quiet)

    assert store.builds == 2
    assert most == 2, "different keys wait for each other"
    assert sorted(environments_in(tmp_path)) == ["k0", "k1"]
    assert store.ready("k0")


async def test_a_failed_build_leaves_nothing_and_the_next_one_tries(store, tmp_path):
    async def fail(to):
        to.mkdir()
        (to / "part").write_text("x")
        raise OSError(errno.ENOSPC, "No space left")

    async def succeed(to):
        to.mkdir()

    with pytest.raises(OSError, match="No space"):
        await store.get("k", {}, fail, quiet)
    assert environments_in(tmp_path) == []
    assert await store.get("k", {}, succeed, quiet) == tmp_path / "k"


async def test_a_cancelled_build_leaves_nothing(store, tmp_path):
    async def build(to):
        to.mkdir()
        await trio.sleep_forever()

    with trio.move_on_after(0.05) as scope:
        await store.get("k", {}, build, quiet)
    assert scope.cancelled_caught
    assert environments_in(tmp_path) == []


async def test_a_directory_without_its_manifest_is_no_environment(store, tmp_path):
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "half").write_text("")

    async def build(to):
        to.mkdir()

    path = await store.get("k", {}, build, quiet)
    assert [p.name for p in path.iterdir()] == [MANIFEST]


async def test_directories_of_killed_runners_are_removed(store, tmp_path):
    """Their process ids may never be used again."""
    left = tmp_path / ".tmp" / "k.999999999"
    left.mkdir(parents=True)
    foreign = tmp_path / ".tmp" / "other.999999999"
    foreign.mkdir()

    async def build(to):
        to.mkdir()

    await store.get("k", {}, build, quiet)
    assert not left.exists()
    assert foreign.exists(), "the lock of that key is not held"


async def test_a_build_waits_for_the_same_build_of_another_process(store, tmp_path):
    watch = Watch()
    lines = watch.lines

    async def build(to):
        to.mkdir()

    (tmp_path / ".locks").mkdir()
    with (tmp_path / ".locks" / "k").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with trio.move_on_after(0.05) as scope:
            await store.get("k", {}, build, watch)
        assert scope.cancelled_caught
        assert lines == ["another process is building this environment"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get, "k", {}, build, watch)
            await wait_until(lambda: len(lines) == 2, "no build waits")
            (tmp_path / "k").mkdir()
            (tmp_path / "k" / MANIFEST).write_text('{"key": "k"}')
            fcntl.flock(lock, fcntl.LOCK_UN)

    assert store.builds == 0, "what the other process built was built again"


# -- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    return ProcessTable(tmp_path / "work")


def test_a_program_that_does_not_exist_leaves_nothing(table, tmp_path):
    before = open_fds()
    with pytest.raises(FileNotFoundError):
        table.spawn(["/no/such/program"], {})

    assert open_fds().keys() == before.keys()
    assert list((tmp_path / "work").iterdir()) == []
    assert table.statistics() == 0


def test_a_start_that_fails_half_way_leaves_nothing(table, tmp_path, monkeypatch):
    def fail(_pid):
        raise OSError(errno.EMFILE, "Too many open files")

    before = open_fds()
    monkeypatch.setattr(os, "pidfd_open", fail)
    with pytest.raises(OSError, match="Too many"):
        table.spawn([sys.executable, "-c", "import time; time.sleep(600)"], {})

    assert open_fds().keys() == before.keys()
    assert list((tmp_path / "work").iterdir()) == []
    assert table.statistics() == 0


async def test_the_channel_of_a_guest_that_ended(table):
    guest = table.spawn([sys.executable, "-S", "-c", "pass"], base_environment())
    with trio.fail_after(PATIENCE):
        assert await guest.wait_ended() == 0
        with pytest.raises(ChannelClosedError):
            await guest.receive()
        with pytest.raises(ChannelClosedError):
            await guest.send(b"x" * 10_000_000)
    assert await table.end(guest) == ()
    guest.close()
    guest.close()
    assert table.statistics() == 0


async def test_the_end_of_a_guest_reaches_tasks_that_wait_for_its_channel(table):
    """Closed before its last event is looked at, a descriptor never has one."""
    guest = table.spawn([sys.executable, "-S", "-c", "import time; time.sleep(600)"], base_environment())
    found = []

    async def wait(call, *given):
        with pytest.raises(ChannelClosedError) as caught:
            await call(*given)
        found.append(caught.value.unread)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, guest.receive)
            nursery.start_soon(wait, guest.send, b"x" * 10_000_000)
            await trio.testing.wait_all_tasks_blocked()
            guest.signal_nowait(signal.SIGKILL)
            while guest.exit_code is None:  # the loop looks at no event meanwhile
                os.sched_yield()
            guest.close()
    assert sorted(found) == [False, True]


async def test_signals_go_to_the_guest_only_while_it_lives(table, monkeypatch):
    """Once it is reaped, its process id may belong to another process."""
    guest = table.spawn([sys.executable, "-S", "-c", "pass"], base_environment())
    with trio.fail_after(PATIENCE):
        await guest.wait_ended()
    sent = []
    monkeypatch.setattr(os, "kill", lambda *told: sent.append(told))
    monkeypatch.setattr(os, "killpg", lambda *told: sent.append(told))
    monkeypatch.setattr(proc, "descendants", lambda _pid: [1])

    guest.signal_group_nowait(signal.SIGTERM)
    guest.signal_nowait(signal.SIGTERM)
    assert await table.end(guest) == ()
    assert sent == []
    guest.close()


async def test_a_cancelled_tool_is_gone_with_all_its_processes(table, tmp_path):
    note = tmp_path / "pid"
    script = f"setsid sleep 600 & sleep 600 & echo $! > {note}.tmp; mv {note}.tmp {note}; wait"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: table.run(["sh", "-c", script], base_environment(), on_line=quiet))
        await wait_until(note.exists, "it did not start")
        await wait_until(lambda: len(_sleepers()) == 2, "its helpers did not start")
        nursery.cancel_scope.cancel()

    assert _sleepers() == []
    assert table.statistics() == 0


async def test_a_tool_that_ended_leaves_nothing(table):
    status = await table.run(
        ["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & exit 3"], base_environment(), on_line=quiet
    )

    assert status == 3
    assert _sleepers() == []


async def test_lines_of_a_tool(table):
    lines = []
    script = r"printf 'one\r\ntwo\n\303'; printf '\251\nlast' >&2"
    assert await table.run(["sh", "-c", script], base_environment(), on_line=lines.append) == 0

    assert [line for line in lines if line] == ["one", "two", "é", "last"]


async def test_the_sweep_spares_processes_of_the_runner_itself(table):
    """A trusted handler in the runner's process may start helpers."""
    mine = subprocess.Popen(["sleep", "600"])
    try:
        assert await table.sweep() == ()
        assert mine.poll() is None
    finally:
        mine.kill()
        mine.wait()


async def test_names_with_brackets_and_spaces(tmp_path):
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "600"])
    try:
        await wait_until(lambda: proc.name(process.pid) == program.name, "the name is not seen")
        assert proc.alive(process.pid)
        assert proc.session(process.pid) == os.getsid(0)
        assert process.pid in proc.children(os.getpid())
        assert process.pid in proc._children_by_scan(os.getpid())
    finally:
        process.kill()
        process.wait()
    assert not proc.alive(process.pid)
    assert (proc.name(process.pid), proc.session(process.pid), proc.resident_bytes(process.pid)) == ("?", 0, 0)
    assert proc.children(process.pid) == []


async def test_a_zombie_is_not_alive():
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert not proc.alive(process.pid)
    assert process.pid in proc.children(os.getpid())
    process.wait()


def test_the_guest_program_is_installed_once_and_whole(tmp_path):
    table = ProcessTable(tmp_path / "work")
    first = Launcher.install(table, tmp_path, {})
    (file,) = first.guest_dir.glob("guest.py")
    stamp = file.stat().st_mtime_ns
    second = Launcher.install(table, tmp_path, {})

    assert second.guest_dir == first.guest_dir
    assert file.stat().st_mtime_ns == stamp
    found = [path for path in first.guest_dir.rglob("*") if path.is_file()]
    assert {path.relative_to(first.guest_dir).as_posix() for path in found} == set(GUEST_FILES)
