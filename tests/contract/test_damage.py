"""Contract: damaged code, worker programs and environments on disk are noticed at use, and mended."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from protocol.errors import ErrorKind
from protocol.model import Isolation, Kind
from tests.programs import FILES
from tests.support import open_rig
from tests.workers import chosen

CODE = "def handler(input):\n    return input\n"
LOCAL = ("inline-fresh", "venv-warm", "conda-warm", "docker-fresh")


@pytest.fixture(params=LOCAL)
def kind(request):
    """Return the fields of a module whose next worker is a new process, or container."""
    return chosen(request) | {"isolation": Isolation.FRESH}


@pytest.fixture
async def rig(tmp_path):
    async with open_rig(tmp_path / "rig") as opened:
        yield opened


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [emptied, Path.unlink, lambda path: path.write_text(CODE.replace("input\n", "13\n"))]
)
async def test_code(rig, kind, damage):
    module = await rig.publish(CODE, **kind)
    assert (await rig.call(module, 1)).value == 1
    damage(module.entry)

    assert (await rig.call(module, 2)).value == 2


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [emptied, Path.unlink, lambda path: shutil.rmtree(path.parent)])
async def test_the_worker_program(rig, damage, file):
    module = await rig.publish(CODE, isolation=Isolation.FRESH)
    assert (await rig.call(module, 1)).value == 1
    (folder,) = (rig.path / "guest").iterdir()
    program = folder / file
    damage(program)

    assert (await rig.call(module, 2)).value == 2


async def test_the_bytecode_of_the_worker_program(rig):
    module = await rig.publish(CODE, isolation=Isolation.FRESH)
    assert (await rig.call(module, 1)).value == 1
    (compiled,) = (rig.path / "guest").rglob("guest.*.pyc")
    compiled.write_bytes(compiled.read_bytes()[:16])

    assert (await rig.call(module, 2)).value == 2
    assert (await rig.call(module, 3)).value == 3


async def test_the_worker_program_that_another_runner_left_empty(tmp_path):
    async with open_rig(tmp_path / "rig") as rig:
        (program,) = (rig.path / "guest").rglob("guest.py")
    emptied(program)
    shutil.rmtree(tmp_path / "rig" / "work")

    async with open_rig(tmp_path / "rig") as rig:
        assert (await rig.run(CODE, 1)).value == 1


def without_python(path: Path) -> None:
    (path / "bin" / "python").unlink()


def python_without_its_beginning(path: Path) -> None:
    (path / "bin" / "python").unlink()
    (path / "bin" / "python").write_bytes(bytes(5000))
    (path / "bin" / "python").chmod(0o755)


@pytest.mark.parametrize("damage", [without_python, python_without_its_beginning, shutil.rmtree])
async def test_an_environment(rig, damage):
    module = await rig.publish(CODE, env=Kind.VENV, isolation=Isolation.FRESH)
    assert (await rig.call(module, 1)).value == 1
    (manifest,) = (rig.path / "venvs").glob("*/operato.json")
    damage(manifest.parent)

    assert (await rig.call(module, 2)).value == 2
    assert manifest.is_file()


async def test_an_environment_without_a_readable_manifest_is_built_again(tmp_path):
    async with open_rig(tmp_path / "rig", venvs=tmp_path / "venvs") as rig:
        await rig.run(CODE, 1, env=Kind.VENV)
    (manifest,) = (tmp_path / "venvs").glob("*/operato.json")
    emptied(manifest)

    async with open_rig(tmp_path / "next", venvs=tmp_path / "venvs") as rig:
        assert (await rig.run(CODE, 1, env=Kind.VENV)).value == 1
        assert manifest.stat().st_size > 0


async def test_a_handler_that_ends_its_worker_at_the_import_damages_no_environment(rig):
    ran = await rig.run("import os\nos._exit(3)", env=Kind.VENV)

    assert ran.kind is ErrorKind.LOAD_FAILED
    assert rig.venv.statistics().built == 1
