"""Unit: the rules of the house that no other tool holds: who may import what, sizes, ranks, versions, documents."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
PACKAGES = ("runner", "actors", "environments", "config", "protocol")
GENERATED = ROOT / "protocol" / "rpc"
SOURCES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not path.is_relative_to(GENERATED)
)
TESTS = sorted(ROOT.glob("tests/*/*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in SOURCES}

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
LONGER_MODULES = {"protocol/guest.py": 700}
"""The guest is one file."""
GUESTS = {"protocol/guest.py", "protocol/relay.py"}
"""Programs of their own, which run where user code runs."""
LONGER_FUNCTIONS: dict[str, int] = {}


def imported(tree):
    """Return the dotted names of all modules that are imported anywhere in the file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def importers(*libraries):
    """Return the files that import one of these top-level names."""
    return {file for file, tree in TREES.items() if {name.partition(".")[0] for name in imported(tree)} & {*libraries}}


def test_there_is_something_to_hold():
    assert len(SOURCES) > 30
    assert {file.partition("/")[0] for file in TREES} == set(PACKAGES)


# -- who may import what ---------------------------------------------------------------------------------------------


def test_imports_go_one_way(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])

    assert lint_imports(str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True) == 0, capsys.readouterr().out


def test_the_folder_packaging_is_no_package():
    """It would hide the library of that name, which pip and pytest import."""
    assert [path for path in ROOT.glob("packaging/**/__init__.py")] == []  # noqa: C416  (it reads better)


def test_one_module_starts_processes():
    assert importers("subprocess") == {"environments/local/process.py"}


def test_web_libraries_are_known_at_the_doors_only():
    web = ("quart", "quart_trio", "hypercorn", "h11", "h2", "wsproto", "trio_websocket", "httpx")
    rpc = ("grpclib", "betterproto", "trio_asyncio")

    assert {file for file in importers(*web) if not file.startswith("runner/")} == set()
    assert importers(*rpc) <= {"runner/grpc/server.py"}


def test_asyncio_is_known_where_user_code_needs_it_only():
    allowed = {"environments/local/inprocess.py", "environments/conda/child.py", "runner/grpc/server.py", *GUESTS}

    assert importers("asyncio") <= allowed


def test_protocol_is_pure():
    """No event loop, sockets, files, processes, clocks that wait; randomness and the time of day are for ids."""
    pure = {"__future__", "array", "collections", "enum", "itertools", "typing", "attrs", "msgspec", "protocol"}
    ids = {"os", "time"}
    found = {}
    for file, tree in TREES.items():
        if file.startswith("protocol/") and file not in GUESTS:
            names = {name.partition(".")[0] for name in imported(tree)}
            found[file] = names - pure - (ids if file == "protocol/ids.py" else set())
            calls = {
                node.func.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            assert not calls & {"open", "exec", "eval", "__import__", "input", "print"}, file

    assert {file: names for file, names in found.items() if names} == {}
    used = {node.attr for node in ast.walk(TREES["protocol/ids.py"]) if isinstance(node, ast.Attribute)}
    assert used <= {"time_ns", "urandom", "from_bytes"}


def test_the_environment_is_read_in_one_place():
    found = {
        file
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}
        if isinstance(node.value, ast.Name) and node.value.id == "os"
    }

    assert found <= {"config/load.py", *GUESTS}


# -- sizes and ranks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", TREES)
def test_a_module_can_be_read_in_one_sitting(file):
    assert len((ROOT / file).read_text().splitlines()) <= LONGER_MODULES.get(file, MAX_MODULE_LINES)


def test_a_function_fits_on_a_screen():
    lengths = {
        f"{file}:{node.name}": node.end_lineno - node.lineno + 1
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert {
        name: lines for name, lines in lengths.items() if lines > LONGER_FUNCTIONS.get(name, MAX_FUNCTION_LINES)
    } == {}
    assert LONGER_FUNCTIONS.keys() <= lengths.keys(), "an exception that is not needed any more"


RANKS = {"unit": "Unit:", "contract": "Contract:", "acceptance": "Acceptance:", "benchmarks": "Benchmark:"}


@pytest.mark.parametrize("path", TESTS, ids=[str(path.relative_to(ROOT)) for path in TESTS])
def test_every_test_file_says_its_rank_first(path):
    assert path.read_text().startswith(f'"""{RANKS[path.parent.name]} ')


def test_there_are_no_other_tests():
    assert {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__"} <= set(RANKS)
    assert list(ROOT.glob("tests/test_*.py")) == []
    assert [path for package in PACKAGES for path in (ROOT / package).rglob("*test*.py")] == []


# -- versions and documents ------------------------------------------------------------------------------------------


def test_the_version_is_the_newest_of_the_changelog():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+[^\]\s]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert versions[0] == project["version"]


def test_locks_name_packages_and_no_hosts():
    """A machine with another index installs from them as it is set up to."""
    locks = sorted(ROOT.glob("requirements*.txt"))

    assert [path.name for path in locks] == ["requirements-dev.txt", "requirements.txt"]
    for path in locks:
        text = path.read_text()
        assert "://" not in text
        assert "--index-url" not in text
        assert "--hash=sha256:" in text
