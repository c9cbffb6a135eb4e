"""Unit: the rules of the house that no other tool checks: imports, sizes, faces of rooms, ranks, versions, locks."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

from tests.rooms import GENERATED, PACKAGES, folders

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if not path.is_relative_to(ROOT / GENERATED.replace(".", "/"))
)
TESTS = sorted(ROOT.glob("tests/*/*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in SOURCES}

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
LONGER_MODULES = {"protocol/guest.py": 875, "protocol/relay.py": 420, "protocol/authors/operato.py": 505}
"""Each file of a program of the guest is one more to find, read and verify at each start."""
GUESTS = {
    *(f"protocol/{name}.py" for name in ("guest", "many", "parts", "relay", "sharing", "values")),
    *(f"protocol/authors/{name}.py" for name in ("calling", "operato", "readers", "typed")),
}
"""Separate programs, which run where user code runs."""
LONGER_FUNCTIONS: dict[str, int] = {}
MAX_CLASS_LINES = 250
MAX_METHODS = 20
LONGER_CLASSES: dict[str, tuple[int, int]] = {}
"""Lines and methods of classes above the caps."""
MAX_FILES = 10
FULLER_ROOMS: dict[str, int] = {"actors/history": 11}
"""Files of rooms above the cap."""
ROOMS = sorted(path.parent for path in SOURCES if path.name == "__init__.py" and path.parent.parent != ROOT)
"""Packages within the folders. Their `__init__.py` is their face: the only module that others may import."""


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


def test_there_is_something_to_check():
    assert len(SOURCES) > 30
    assert {file.partition("/")[0] for file in TREES} == set(PACKAGES)


# -- imports ---------------------------------------------------------------------------------------------------------


def test_imports_go_one_way(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])

    assert lint_imports(str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True) == 0, capsys.readouterr().out


@pytest.fixture(scope="module")
def graph():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        return grimp.build_graph(*PACKAGES, cache_dir=None)


def test_the_inside_of_a_room_is_private(graph):
    """From outside only its face is imported, so that its files can be changed, split and renamed freely."""
    rooms = [room.relative_to(ROOT).as_posix().replace("/", ".") for room in ROOMS]
    found = [
        f"{importer} imports {inside}"
        for room in rooms
        for inside in graph.find_descendants(room)
        for importer in graph.find_modules_that_directly_import(inside)
        if importer != room and not importer.startswith(f"{room}.")
    ]

    assert not found, "\n".join(sorted(found))


def test_no_file_imports_the_face_of_its_own_room(graph):
    """The face imports all files of the room: that would be a circle."""
    rooms = [room.relative_to(ROOT).as_posix().replace("/", ".") for room in ROOMS]
    found = [
        f"{importer} imports {room}"
        for room in rooms
        for importer in graph.find_modules_that_directly_import(room)
        if importer.startswith(f"{room}.")
    ]

    assert not found, "\n".join(sorted(found))


def test_there_are_no_circles(graph):
    """Between rooms or files of any folder; `python -m tests.rooms` prints them with the numbers of each folder."""
    assert {folder.name: folder.circles for folder in folders(graph) if folder.circles} == {}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_face_has_a_docstring_and_its_names(room):
    face = TREES[str((room / "__init__.py").relative_to(ROOT))]
    said = ast.get_docstring(face) or ""
    exported = [
        ast.literal_eval(node.value)
        for node in face.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    ]

    assert said
    assert said != "The face of the room.", "it does not say what the room is for"
    assert exported
    assert exported[0]


def test_the_folder_packaging_is_no_package():
    """A package would hide the library of that name, which pip and pytest import."""
    client = ROOT / "packaging" / "client" / "operato"  # of another distribution, found by its own folder only

    assert [path for path in ROOT.glob("packaging/**/__init__.py") if not path.is_relative_to(client)] == []


def test_one_module_starts_processes():
    assert importers("subprocess") == {"environments/local/process.py"}


def test_only_the_doors_import_web_libraries():
    web = ("quart", "quart_trio", "hypercorn", "h11", "h2", "wsproto", "trio_websocket", "httpx", "httpcore")
    rpc = ("grpclib", "betterproto", "ngh2")

    assert {file for file in importers(*web) if not file.startswith("runner/")} == set()
    assert {file for file in importers(*rpc) if not file.startswith("runner/grpc/")} == set()
    assert importers("ngh2") <= {f"runner/grpc/{name}.py" for name in ("call", "connection", "stream")}


def test_asyncio_is_imported_only_where_user_code_needs_it():
    link = "actors/cluster/engine/link.py"
    allowed = {"environments/local/inprocess.py", "environments/conda/child.py", link, *GUESTS}

    assert importers("asyncio") <= allowed
    assert importers("trio_asyncio") == set()
    assert importers("nats") == {link}


def test_protocol_is_pure():
    """No event loop, sockets, files, processes, clocks that wait; randomness and the time of day are for ids."""
    pure = {
        "__future__",
        "array",
        "collections",
        "enum",
        "itertools",
        "json",
        "re",
        "typing",
        "attrs",
        "msgspec",
        "protocol",
    }
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


def test_a_class_has_one_job():
    """Two caps say when a class has several."""
    sizes = {
        f"{file}:{node.name}": (
            node.end_lineno - node.lineno + 1,
            sum(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body),
        )
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    above = {name: size for name, size in sizes.items() if size[0] > MAX_CLASS_LINES or size[1] > MAX_METHODS}

    assert above == LONGER_CLASSES, above


def test_a_room_has_few_files():
    counts = {
        str(folder.relative_to(ROOT)): len({str(file.relative_to(ROOT)) for file in folder.glob("*.py")} - GUESTS) - 1
        for folder in (*ROOMS, *(ROOT / package for package in PACKAGES))
    }

    above = {name: count for name, count in counts.items() if count > MAX_FILES}

    assert above == FULLER_ROOMS, above


RANKS = {
    "unit": "Unit:",
    "contract": "Contract:",
    "acceptance": "Acceptance:",
    "browser": "Browser:",
    "cluster": "Cluster:",
    "benchmarks": "Benchmark:",
}


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
    """A machine with another index installs from that one."""
    locks = sorted(ROOT.glob("requirements*.txt"))

    assert [path.name for path in locks] == ["requirements-dev.txt", "requirements.txt"]
    for path in locks:
        text = path.read_text()
        assert "://" not in text
        assert "--index-url" not in text
        assert "--hash=sha256:" in text
