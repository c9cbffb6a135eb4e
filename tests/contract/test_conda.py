"""Contract: conda environments: solved once, installed completely or not at all, activated, shared by content."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import attrs
import pytest
import trio

from environments import proc
from environments.conda.conda import Client, find_client
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Kind
from tests.contract.test_environments import environments_in, make_wheel
from tests.proxies import file_server, refusing_port
from tests.support import PATIENCE, Watch, gone, open_rig

GREET = "import greet\ndef handler(input): return greet.hi(input)"


@pytest.fixture
async def conda(tmp_path, channel):
    """Executors with a store of their own, and how a module of the channel is published."""
    async with open_rig(tmp_path / "rig") as rig:
        yield rig


@pytest.fixture
def how(channel):
    return {"env": Kind.CONDA, "channels": (channel,)}


async def test_a_conda_environment_is_its_own_python(conda, how):
    code = """
    import os, subprocess, sys
    def handler(input):
        told = subprocess.run(["python", "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
        return [sys.prefix, sys.base_prefix, told.stdout.strip(), os.environ["CONDA_PREFIX"], sys.path]
    """
    prefix, base, child, variable, path = (await conda.run(code, **how)).value

    (name,) = environments_in(conda.condas)
    assert Path(prefix) == conda.condas / name
    assert prefix == base == child == variable
    assert [p for p in path if not p.startswith(prefix) and "code/" not in p] == []


async def test_versions_live_side_by_side(conda, how):
    modules = [
        await conda.publish(GREET, name=f"m{version}", dependencies=(f"greet={version}",), **how) for version in (1, 2)
    ]

    assert (await conda.call(modules[0], "a")).value == "hi a from 1.0"
    assert (await conda.call(modules[1], "b")).value == "hi b from 2.0"
    assert len(environments_in(conda.condas)) == 2


@pytest.mark.parametrize("spec", ["greet 1.0", "greet=1.*", "greet>=1,<2", "greet=1.0=0*"])
async def test_ways_to_write_a_dependency(conda, how, spec):
    assert (await conda.run(GREET, "a", dependencies=(spec,), **how)).value == "hi a from 1.0"


async def test_many_first_calls_build_once(conda, how):
    modules = [await conda.publish(GREET, name=name, dependencies=("greet",), **how) for name in ("a", "b")]
    values = []

    async def call(i):
        values.append((await conda.call(modules[i % 2], i)).value)

    async with trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(call, i)

    assert sorted(values) == sorted(f"hi {i} from 2.0" for i in range(20))
    environment = conda.executors[Kind.CONDA].environment
    assert environment.store.builds == 1
    assert len([path for path in (conda.path / "locks").iterdir() if path.suffix == ".lock"]) == 1


async def test_activation_is_captured_once(conda, how):
    code = """
    import os
    def handler(input):
        with open(os.environ["ACT_HOME"] + "/prefix.txt") as file:
            return [{k: v for k, v in os.environ.items() if k.startswith("ACT_")}, file.read()]
    """
    variables, text = (await conda.run(code, dependencies=("act",), **how)).value
    prefix = str(conda.condas / environments_in(conda.condas)[0])

    assert variables == {
        "ACT_HOME": f"{prefix}/share/act",
        "ACT_LINES": "one\ntwo",
        "ACT_VARIABLE": "from the package",
    }
    assert text == prefix, "the package does not know where it is"


async def test_a_pip_part(conda, how, tmp_path):
    code = "import greet, tiny\ndef handler(input): return [greet.hi(input), tiny.answer, tiny.__file__]"
    ran = await conda.run(code, "a", dependencies=("greet",), requirements=(make_wheel(tmp_path),), **how)

    hi, answer, file = ran.value
    assert (hi, answer) == ("hi a from 2.0", 42)
    (name,) = environments_in(conda.condas)
    assert file.startswith(str(conda.condas / name))
    assert "tiny" in (conda.condas / name / "requirements.lock").read_text()


async def test_what_user_code_changes_does_not_reach_the_next_environment(conda, how):
    """A file of an environment is a copy: through a hard link the cache would be changed with it."""
    spoil = """
    import greet
    def handler(input):
        with open(greet.__file__, "a") as file: file.write("def hi(name): return 'spoilt'\\n")
    """
    await conda.run(spoil, dependencies=("greet=1.0",), **how)
    ran = await conda.run(GREET, "a", name="other", dependencies=("greet=1.0", "act"), **how)

    assert ran.value == "hi a from 1.0"


async def test_what_cannot_be_solved_is_said_in_the_words_of_the_solver(conda, how):
    failure = (await conda.run(GREET, dependencies=("greet=3",), **how)).failure

    assert (failure.kind, failure.field) == (ErrorKind.ENVIRONMENT_FAILED, "dependencies")
    assert "could not be solved" in failure.message
    assert "greet" in failure.message
    assert not conda.condas.exists() or environments_in(conda.condas) == []
    assert list((conda.path / "locks").iterdir()) == []


async def test_a_channel_that_is_not_there(conda):
    with refusing_port() as port:
        nowhere = (f"http://127.0.0.1:{port}/channel",)
        failure = (await conda.run(GREET, env=Kind.CONDA, channels=nowhere, dependencies=("greet",))).failure

    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert f"127.0.0.1:{port}" in failure.message


async def test_a_package_that_was_changed_is_refused(conda, how, channel, tmp_path):
    copy = tmp_path / "copy"
    for folder in Path(channel.removeprefix("file://")).iterdir():
        (copy / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            data = file.read_bytes()
            changed = data.replace(b"hi {name} from", b"bye {name} to  ", 1) if "greet-1.0" in file.name else data
            (copy / folder.name / file.name).write_bytes(changed)
    failure = (await conda.run(GREET, **how | {"channels": (copy.as_uri(),)}, dependencies=("greet=1.0",))).failure

    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert environments_in(conda.condas) == []


async def test_an_environment_without_a_python_for_workers(conda, how):
    failure = (await conda.run(GREET, python="3.99", **how)).failure

    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert "python" in failure.message


async def test_a_built_environment_is_used_by_the_next_runner_without_its_channel(tmp_path, channel):
    """The lock names the package, and the cache has it."""
    copy = tmp_path / "copy"
    os.symlink(channel.removeprefix("file://"), copy)
    for expected in (1, 0):
        async with open_rig(tmp_path / f"rig{expected}", condas=tmp_path / "condas") as rig:
            if not expected:
                os.rename(tmp_path / "rig1" / "locks", rig.path / "locks")
                copy.unlink()
            module = await rig.publish(GREET, env=Kind.CONDA, channels=(copy.as_uri(),), dependencies=("greet",))
            assert (await rig.call(module, "a")).value == "hi a from 2.0"
            assert rig.executors[Kind.CONDA].environment.store.builds == expected


@pytest.fixture
async def slow(channel):
    """Return the URL of the same channel, from a server that takes its time for the one large package."""
    root = Path(channel.removeprefix("file://"))

    def read(path):
        file = root / path.lstrip("/")
        return file.read_bytes() if file.is_file() else None

    async with file_server(read, pause=0.0005) as port:
        yield f"http://127.0.0.1:{port}"


async def test_progress_of_a_download(conda, slow):
    module = await conda.publish("", env=Kind.CONDA, channels=(slow,), build_timeout=4.0)
    failure = (await conda.call(module)).failure

    assert (failure.kind, failure.field) == (ErrorKind.ENVIRONMENT_FAILED, "build_timeout")
    assert "solved: 1 packages" in failure.message
    assert "downloading python: " in failure.message
    assert " MB" in failure.message
    assert environments_in(conda.condas) == []


def pythons():
    return {pid for pid in proc.descendants(os.getpid()) if proc.alive(pid) and "python" in proc.name(pid)}


@pytest.mark.parametrize("end", ["cancel", "kill"])
async def test_a_build_that_ends_early_leaves_nothing(conda, slow, end):
    environment = conda.executors.get(Kind.CONDA)
    assert environment is None
    before = pythons()  # those of other tests
    module = await conda.publish("", env=Kind.CONDA, channels=(slow,), build_timeout=60.0)
    results = []

    async def call():
        results.append(await conda.call(module))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await conda.wait_until(lambda: list(conda.condas.glob(".logs/*.log")), "the install did not begin")
        await conda.wait_until(lambda: pythons() - before, "there is no installer")
        (installer,) = pythons() - before
        if end == "kill":
            os.kill(installer, signal.SIGKILL)
        else:
            await conda.publish_all([])
            conda.executors[Kind.CONDA]._fleet.nursery.cancel_scope.cancel()
            nursery.cancel_scope.cancel()

    await conda.wait_until(lambda: gone(installer), "the installer still runs")
    await conda.wait_until(lambda: not list(conda.condas.glob(".tmp/*")), "something half-built is left")
    if end == "kill":
        assert results[0].kind is ErrorKind.ENVIRONMENT_FAILED
        assert "could not be installed" in results[0].failure.message


# -- other clients ---------------------------------------------------------------------------------------------------

TOOL = """#!/bin/sh
# Stands for micromamba: notes how it was called, and copies an environment that the library has made.
echo "$@" > NOTE
while [ "$1" != --prefix ]; do shift; done
case "$*" in *no-such-package*) echo "nothing provides no-such-package"; exit 1 ;; esac
echo "Transaction starting"
cp -R MADE "$2" && rm "$2/operato.json"
"""


@pytest.mark.parametrize("pip", [False, True])
async def test_listed_rebuilt_and_removed_when_nobody_uses_it(tmp_path, how, pip):
    """With a `pip:` part it is built in place, since pip writes its path into files."""
    requirements = (make_wheel(tmp_path),) if pip else ()
    async with open_rig(tmp_path / "rig", condas=tmp_path / "condas") as rig:
        module = await rig.publish(GREET, dependencies=("greet",), requirements=requirements, **how)
        environment = rig.executors[Kind.CONDA].environment
        assert (await rig.call(module, "a")).value == "hi a from 2.0"
        (key,) = environments_in(tmp_path / "condas")
        assert (await environment.known(module.spec)).key == key
        (found,) = await environment.stored()
        assert (found.key, found.kind, found.in_use) == (key, "conda", True)
        assert await environment.remove(key) is False
        with pytest.raises(RunnerError, match="is in use by process"):
            await environment.rebuild(module.spec, Watch())

        await rig.publish_all([])
        await rig.wait_until(lambda: rig.executors[Kind.CONDA].statistics().ended == 1, "its worker does not end")
        environment.keep(())
        (tmp_path / "condas" / key / "mark").touch()
        prepared = await environment.rebuild(module.spec, Watch())
        assert prepared.key == key
        assert not (tmp_path / "condas" / key / "mark").exists()
        module = await rig.publish(GREET, dependencies=("greet",), requirements=requirements, **how)
        assert (await rig.call(module, "b")).value == "hi b from 2.0"
        assert environment.store.builds == 2

    assert await environment.remove(key) is True
    assert environments_in(tmp_path / "condas") == []


async def test_a_key_is_not_known_before_anything_is_locked(conda, how):
    module = await conda.publish(GREET, dependencies=("greet",), **how)
    other = attrs.evolve(module.spec, dependencies=("greet=1",))
    known = await conda.executors[Kind.CONDA].environment.known(other)

    assert (known.key, known.why) == (None, "its packages are not locked yet")


async def test_an_installed_tool_makes_the_environment(tmp_path, channel):
    """No conda program can be installed from the registries of this project: the test checks its arguments."""
    async with open_rig(tmp_path / "first") as rig:
        await rig.run(GREET, "a", env=Kind.CONDA, channels=(channel,), dependencies=("greet=1.0",))
        (made,) = environments_in(rig.path / "condas")
    tool, note = tmp_path / "micromamba", tmp_path / "note"
    tool.write_text(TOOL.replace("NOTE", str(note)).replace("MADE", str(tmp_path / "first" / "condas" / made)))
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    async with open_rig(tmp_path / "second", conda_exe=tool) as rig:
        module = await rig.publish(GREET, env=Kind.CONDA, channels=(channel,), dependencies=("greet=1.0",))
        assert (await rig.call(module, "a")).value == "hi a from 1.0"
        failure = (await rig.run(GREET, env=Kind.CONDA, name="n", dependencies=("no-such-package",))).failure
        (name,) = environments_in(rig.path / "condas")

    assert note.read_text().startswith("create --yes --prefix ")
    assert "--override-channels --channel conda-forge no-such-package python" in note.read_text()
    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert "nothing provides no-such-package" in failure.message
    manifest = json.loads((tmp_path / "second" / "condas" / name / "operato.json").read_text())
    assert manifest["client"] == "micromamba"


async def test_a_machine_without_any_client(conda, how, monkeypatch):
    monkeypatch.setattr("environments.conda.conda._library", lambda: None)
    monkeypatch.setattr("environments.conda.conda.shutil.which", lambda *_args, **_options: None)
    failure = (await conda.run(GREET, **how)).failure

    assert (failure.kind, failure.field) == (ErrorKind.UNAVAILABLE, "env")
    assert "pip install '.[conda]'" in failure.message

    monkeypatch.undo()
    module = conda.registry.snapshot.get("m")
    with trio.fail_after(PATIENCE):
        while (ran := await conda.call(module, "a")).outcome.failure is not None and ran.kind is ErrorKind.UNAVAILABLE:
            await trio.sleep(0.1)
    assert ran.kind is ErrorKind.LOAD_FAILED, "greet is not among its dependencies"


def program(folder, name):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_which_client_is_taken(tmp_path, monkeypatch):
    library = Client("py-rattler 1", library="/somewhere")
    monkeypatch.setattr("environments.conda.conda._library", lambda: library)
    conda = program(tmp_path / "bin", "conda")
    environ = {"PATH": str(tmp_path / "bin")}
    assert find_client(None, environ) is library
    assert find_client(Path(conda), environ).exe == conda

    monkeypatch.setattr("environments.conda.conda._library", lambda: None)
    assert find_client(None, environ).exe == conda
    mamba = program(tmp_path / "bin", "mamba")
    assert find_client(None, environ).exe == mamba
    named = program(tmp_path / "other", "micromamba")
    assert find_client(None, environ | {"MAMBA_EXE": named}).exe == named
    assert find_client(None, {"PATH": str(tmp_path / "none")}) is None
