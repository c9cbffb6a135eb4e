"""Contract: a module's source is checked under the interpreter that will import it, if this machine has it."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
import trio

from config.code import Source
from config.modules.spec import ModuleSpec
from environments import checking
from environments.checking import check_module, check_under
from environments.local.inline import Launcher
from environments.local.process import ProcessTable
from environments.store.store import Store
from environments.venv import VenvEnvironment
from protocol.model import Kind
from tests.contract.test_guest_pythons import PYTHONS
from tests.support import PATIENCE

RUNNING = "{}.{}".format(*sys.version_info)
OTHERS = sorted(set(PYTHONS) - {RUNNING}, key=lambda name: int(name.split(".")[1]))


@pytest.fixture
def table(tmp_path):
    made = ProcessTable(tmp_path / "work")
    yield made
    assert made.statistics() == 0


@pytest.fixture
def venv(table, tmp_path):
    """Return the kind `venv`, which finds the interpreters that this machine's tests know."""
    path = ":".join(str(Path(PYTHONS[version]).parent) for version in PYTHONS)
    launcher = Launcher.install(table, tmp_path, {"PATH": os.defpath})
    return VenvEnvironment(launcher, Store(tmp_path / "venvs"), tmp_path / "locks", {"PATH": path})


def script(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("version", OTHERS)
async def test_the_grammar_is_that_of_the_other_python(venv, version):
    text = "def handler(input):\n    match input:\n        case 1: return (lambda x, /: x)(2)\n"
    found = await check_module(venv, ModuleSpec("m", Kind.VENV, code=text, python=version))

    if int(version.split(".")[1]) < 10:
        (wrong,) = found
        assert wrong.message.startswith("does not compile: invalid syntax (line 2 of the code")
        assert (wrong.where, wrong.offset) == (("code",), 1)
    else:
        assert found == []


@pytest.mark.parametrize("version", OTHERS)
async def test_the_handler_of_a_file_is_looked_for(venv, version, tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "report.py").write_text("def handlr(input): ...\ndef init(x): ...\n")
    spec = ModuleSpec("m", Kind.VENV, path=tmp_path / "job", handler="report:handler", python=version)

    missing, init = await check_module(venv, spec)
    assert missing.message == "there is no function 'handler'; report.py has handlr, init; did you mean 'handlr'?"
    assert (init.file, init.line, init.where) == (str(tmp_path / "job" / "report.py"), 2, ("path",))


async def test_nothing_is_told_where_there_is_nothing_to_ask(venv, tmp_path):
    wrong = "def ("

    assert await check_module(venv, ModuleSpec("m", Kind.VENV, code=wrong, python="3.2")) == []
    assert await check_module(venv, ModuleSpec("m", Kind.VENV, code=wrong)) == []
    assert await check_module(venv, ModuleSpec("m", Kind.VENV, code=wrong, python=RUNNING)) == []
    assert await check_module(venv, ModuleSpec("m", Kind.CONDA, code=wrong, python="3.9")) == []


async def test_an_entry_that_is_gone_is_told(venv, tmp_path):
    spec = ModuleSpec("m", Kind.VENV, path=tmp_path, python=(OTHERS or [RUNNING])[0])
    if not OTHERS:
        pytest.skip("there is one Python on this machine")

    (wrong,) = await check_module(venv, spec)
    assert wrong.message.startswith("none of main.py, __init__.py, handler.py is in the folder")


@pytest.mark.parametrize("text", ["exit 3", "echo nonsense", "true", "echo '[[1]]'; echo 5"])
async def test_an_interpreter_that_cannot_answer_decides_nothing(table, tmp_path, text):
    verdict = await check_under(table, script(tmp_path, text), Source(b"def (", "handler"), {})

    assert verdict == ([], False)


async def test_one_that_is_not_there_decides_nothing(table, tmp_path):
    assert await check_under(table, str(tmp_path / "none"), Source(b"", "handler"), {}) == ([], False)


async def test_one_that_takes_too_long_is_ended(table, tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "SECONDS", 0.2)
    with trio.fail_after(PATIENCE):
        slow = script(tmp_path, "sleep 1000")
        assert await check_under(table, slow, Source(b"", "f"), {"PATH": os.defpath}) == ([], False)


async def test_the_source_is_not_run_and_nothing_is_left(table, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    text = f"open({str(tmp_path / 'ran')!r}, 'w')\ndef handler(input): ...\n".encode()

    assert await check_under(table, sys.executable, Source(text, "handler"), {}) == ([], True)
    assert not (tmp_path / "ran").exists()
    assert list((tmp_path / "temporary").iterdir()) == []
