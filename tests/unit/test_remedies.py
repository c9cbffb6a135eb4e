"""Unit: the remedy for a missing import, in the words of the module's own fields."""

from __future__ import annotations

import pytest

from config.modules.spec import ModuleSpec
from environments.remedies import with_remedy
from protocol.errors import ErrorKind, Failure
from protocol.model import Kind


def remedy(name, root, *, kind=ErrorKind.LOAD_FAILED, error="ModuleNotFoundError", package=False, rest="", **fields):
    spec = ModuleSpec(**{"name": "m", "env": Kind.VENV, "code": "", **fields})
    before = f"No module named {name!r}{rest}"
    after = with_remedy(Failure(kind, before, error), spec, root, package=package).message
    first, _, second = after.partition("\n")
    assert first == before
    return second


CASES = {
    "inline": ("yaml", {"env": Kind.INLINE}, "`inline` has the standard library only: use `env: venv` with"),
    "inline, by name": ("yaml", {"env": Kind.INLINE}, "`requirements: [PyYAML]`."),
    "venv": ("cv2", {}, "Add opencv-python-headless to `requirements` of the module."),
    "conda": ("cv2", {"env": Kind.CONDA}, "Add opencv to `dependencies` of the module."),
    "docker": ("PIL", {"env": Kind.DOCKER}, "Add Pillow to `requirements` of the module."),
    "image": ("PIL", {"env": Kind.DOCKER, "image": "x"}, "`requirements` of the module, or install it in the image."),
    "unknown": ("pandas", {}, "Add pandas to `requirements` of the module, or the package that has it if its name"),
    "there": ("sklearn", {"requirements": ("Scikit_Learn[x]>=1",)}, "scikit-learn is installed, but has no `sklearn`"),
    "part": ("numpy.nothing", {}, "`numpy` is there, but has no `nothing`"),
    "newer": ("tomllib", {}, 'since Python 3.11: set `python: "3.11"` or later, or use tomli from `requirements`.'),
    "newer, inline": ("tomllib", {"env": Kind.INLINE}, 'use `env: venv` with `python: "3.11"` or later, or use tomli'),
    "newer, part": ("compression.zstd", {}, 'since Python 3.14: set `python: "3.14"` or later.'),
    "older": ("distutils", {}, 'no `distutils` after Python 3.11: set `python: "3.11"` or earlier.'),
    "older, image": ("cgi", {"env": Kind.DOCKER, "image": "x"}, "choose an image with that version or earlier."),
    "built without": ("tkinter", {}, "of the standard library, but not of this Python"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_library(case, tmp_path):
    name, fields, expected = CASES[case]

    assert expected in remedy(name, tmp_path, **fields)


def test_a_file_of_the_module(tmp_path):
    (tmp_path / "jobs" / "parts").mkdir(parents=True)
    for file in ("helpers.py", "jobs/tools.py", "jobs/parts/deep.py"):
        (tmp_path / file).touch()

    assert remedy("helpers", tmp_path, package=True) == (
        "`helpers.py` is a file of this package: write `from . import helpers`."
    )
    assert remedy("tools", tmp_path) == "The module has it as `jobs/tools.py`: write `from jobs import tools`."
    assert remedy("deep", tmp_path) == "The module has it as `jobs/parts/deep.py`: write `from jobs.parts import deep`."
    assert remedy("jobs.report", tmp_path) == "`jobs` of the module has no `report`."


def test_a_file_that_hides_a_library(tmp_path):
    (tmp_path / "email.py").touch()

    assert remedy("email.mime", tmp_path, rest="; 'email' is not a package") == (
        "`email.py` of the module hides the library `email`: rename the file."
    )


def test_a_file_beside_the_module(tmp_path):
    for file in ("main.py", "helpers.py"):
        (tmp_path / file).touch()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").touch()
    fields = {"code": None, "path": tmp_path / "main.py"}

    assert remedy("helpers", tmp_path / "code", **fields) == (
        "`helpers.py` is beside `main.py`, but not in the module: give the folder as `path`."
    )
    assert "`parts/` is beside" in remedy("parts", tmp_path / "code", **fields)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("No module named 'yaml'", "ValueError"),
        ("No module named yaml", "ModuleNotFoundError"),
        ("it prints No module named 'yaml'", "ModuleNotFoundError"),
        ("No module named 'yaml'", None),
    ],
)
def test_other_failures_stay(message, error, tmp_path):
    failure = Failure(ErrorKind.HANDLER_ERROR, message, error)

    assert with_remedy(failure, ModuleSpec(name="m", env=Kind.VENV, code=""), tmp_path, package=False) is failure


def missing_file(name, root, **fields):
    spec = ModuleSpec(**{"name": "m", "env": Kind.INLINE, "code": "", **fields})
    message = f"[Errno 2] No such file or directory: {name!r}"
    failure = with_remedy(Failure(ErrorKind.HANDLER_ERROR, message, "FileNotFoundError"), spec, root, package=False)
    assert failure.message.startswith(message)
    return failure.message.removeprefix(message).strip()


def test_a_data_file_of_the_module(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").touch()
    (tmp_path / "code").mkdir()

    assert missing_file("data/a.txt", tmp_path) == (
        "The module has it; the working directory is another folder: write `Path(__file__).parent / 'data/a.txt'`."
    )
    assert missing_file("data/a.txt", tmp_path / "code", path=tmp_path / "m.py", code=None) == (
        "`data` is beside `m.py`, but not in the module: give the folder as `path`, and write "
        "`Path(__file__).parent / 'data/a.txt'`."
    )
    for other in ("data/b.txt", "/etc/none", "../data/a.txt", "x" * 5000):
        assert missing_file(other, tmp_path) == ""
