"""Unit: variables from an environment's own files, and the package name of a spec."""

from __future__ import annotations

import json

import pytest

from config.modules.spec import ModuleSpec
from environments.conda.activation import _variables
from environments.conda.conda import _Heard, _name, _specs, _url
from protocol.model import Kind


def test_variables_come_from_packages_then_from_the_environment(tmp_path):
    (tmp_path / "etc/conda/env_vars.d").mkdir(parents=True)
    (tmp_path / "conda-meta").mkdir()
    for name, variables in (("a", {"A": "1", "B": "1"}), ("b", {"B": 2})):
        (tmp_path / f"etc/conda/env_vars.d/{name}.json").write_text(json.dumps(variables))
    (tmp_path / "etc/conda/env_vars.d/broken.json").write_text("{")
    (tmp_path / "conda-meta/state").write_text(json.dumps({"env_vars": {"C": "3", "A": "4"}}))

    assert _variables(tmp_path) == {"A": "4", "B": "2", "C": "3"}
    assert _variables(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("numpy", "numpy"),
        ("numpy>=2", "numpy"),
        ("Python 3.12", "python"),
        ("python=3.12=*_cpython", "python"),
        ("conda-forge::python>=3", "python"),
        ("https://host/channel::python[version='3']", "python"),
        ("python!=3.12", "python"),
        ("python~=3.12", "python"),
        ("python-dateutil", "python-dateutil"),
        ("python|pypy", "python"),
    ],
)
def test_the_package_that_a_spec_names(line, name):
    assert _name(line) == name


def test_there_is_always_a_python():
    def specs(*dependencies, python=None):
        return _specs(ModuleSpec("m", Kind.CONDA, code="", dependencies=dependencies, python=python))

    assert specs("numpy") == ["numpy", "python"]
    assert specs("numpy", python="3.12") == ["numpy", "python 3.12.*"]
    assert specs("python=3.11") == ["python=3.11"]
    assert specs("python-dateutil") == ["python-dateutil", "python"]


def test_channels_have_addresses():
    assert _url("conda-forge") == "https://conda.anaconda.org/conda-forge"
    assert _url("file:///srv/channel") == "file:///srv/channel"


def test_what_the_child_program_says():
    lines = []
    heard = _Heard(lines.append)
    for message in (
        {"event": "solved", "packages": [["python", "3.12.1", "https://host/python.conda", "ab"]]},
        {"event": "download", "name": "python", "done": 1_500_000, "total": 30_000_000},
        {"event": "link", "name": "python", "at": 1, "total": 1},
        {"event": "error", "message": "no good:\nfor two reasons"},
        {"event": "done"},
    ):
        heard.hear(json.dumps(message))
    heard.hear("Segmentation fault")
    heard.hear("")

    assert lines == [
        "solved: 1 packages",
        "downloading python: 1.5 of 30.0 MB",
        "installing python (1 of 1)",
        "no good:",
        "for two reasons",
        "Segmentation fault",
    ]
    assert heard.done
    assert heard.error == "no good:\nfor two reasons"
    assert heard.packages[0][1] == "3.12.1"
