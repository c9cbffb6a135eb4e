"""Unit: files that a module names: an `environment.yml`, the pip part of dependencies, and their mistakes."""

from __future__ import annotations

import pytest

from config.mistakes import ConfigError
from config.modules.spec import spec_from_mapping, spec_to_mapping
from tests.modules_file import load_modules

ENVIRONMENT = """
name: anything
prefix: /home/somebody/envs/anything
channels: [nodefaults, conda-forge, https://host/channel]
dependencies:
  - python=3.12
  - numpy>=2
  - pip:
      - requests==2.32
      - tiny @ https://host/tiny-1.0-py3-none-any.whl
variables:
  COLOR: green
  PORT: 8080
  DEBUG: yes
"""


@pytest.fixture
def written(tmp_path):
    """Return a function that writes both files and returns the module."""

    def write(environment, module="dependencies: environment.yml"):
        (tmp_path / "environment.yml").write_text(environment)
        lines = "\n".join(f"    {line}" for line in module.splitlines())
        (tmp_path / "modules.yaml").write_text(
            f"modules:\n  - name: m\n    env: conda\n    code: 'def handler(input): pass'\n{lines}\n"
        )
        return load_modules(tmp_path / "modules.yaml").modules[0]

    return write


def test_an_environment_file(written):
    spec = written(ENVIRONMENT)

    assert spec.dependencies == ("python=3.12", "numpy>=2")
    assert spec.requirements == ("requests==2.32", "tiny @ https://host/tiny-1.0-py3-none-any.whl")
    assert spec.channels == ("conda-forge", "https://host/channel")
    assert dict(spec.variables) == {"COLOR": "green", "PORT": "8080", "DEBUG": "yes"}
    assert spec_from_mapping(spec_to_mapping(spec), base=None, allow_path=False) == spec


def test_what_the_module_says_itself_comes_first(written):
    spec = written(
        ENVIRONMENT, "dependencies: environment.yml\nchannels: [mine]\nvariables: {COLOR: red}\nrequirements: [first]"
    )

    assert spec.channels == ("mine",)
    assert spec.variables["COLOR"] == "red"
    assert spec.variables["PORT"] == "8080"
    assert spec.requirements[0] == "first"


def test_the_pip_part_may_stand_in_the_module(written):
    spec = written("", "dependencies: [numpy, {pip: [requests]}]")

    assert (spec.dependencies, spec.requirements) == (("numpy",), ("requests",))


@pytest.mark.parametrize(
    ("environment", "hint"),
    [
        ("", "is empty"),
        ("[1, 2]", "a mapping is expected"),
        ("channels: [a]", "dependencies: nothing is not a list"),
        ("dependencies: numpy", "is not a list"),
        ("dependencies: [numpy]\nplattforms: [x]", "unknown key 'plattforms'"),
        ("dependencies: [{conda: [x]}]", "a mapping is not"),
        ("dependencies: [{pip: x}]", "a mapping is not"),
        ("dependencies: [numpy, {pip: ['--index-url http://x']}]", "--index-url is not allowed"),
        ("dependencies: ['--file x']", "without a leading '-'"),
        ("dependencies: [numpy]\nchannels: [defaults]", "its own terms of use"),
        ("dependencies: [numpy", "environment.yml"),
    ],
)
def test_what_is_wrong_with_an_environment_file(written, environment, hint):
    with pytest.raises(ConfigError) as caught:
        written(environment)

    assert hint in str(caught.value)
    assert "m." in str(caught.value) or "dependencies" in str(caught.value)


def test_an_environment_file_that_is_not_there(tmp_path):
    (tmp_path / "modules.yaml").write_text(
        "modules: [{name: m, env: conda, code: 'def handler(input): pass', dependencies: nothing.yml}]"
    )
    with pytest.raises(ConfigError, match="does not exist"):
        load_modules(tmp_path / "modules.yaml")


@pytest.mark.parametrize(("field", "value"), [("user", "root"), ("writable", True)])
def test_walls_are_moved_by_the_operator_only(field, value):
    data = {"name": "m", "env": "docker", "image": "python:3.12-slim", field: value}

    assert getattr(spec_from_mapping(data, base=None, allow_path=False, trusted=True), field) == value
    with pytest.raises(ConfigError, match="operator's modules file"):
        spec_from_mapping(data, base=None, allow_path=False)
    with pytest.raises(ConfigError, match="only for docker"):
        spec_from_mapping(
            data | {"env": "venv", "image": None, "code": "handler = print"}, base=None, allow_path=False, trusted=True
        )


@pytest.mark.parametrize("user", ["-1", "a b", "root:", ""])
def test_users_that_are_none(user):
    with pytest.raises(ConfigError, match="user"):
        spec_from_mapping(
            {"name": "m", "env": "docker", "image": "i", "user": user}, base=None, allow_path=False, trusted=True
        )


def test_files_are_for_the_operator_only():
    data = {"name": "m", "env": "conda", "code": "def handler(input): pass", "dependencies": "environment.yml"}
    with pytest.raises(ConfigError, match="only for the operator"):
        spec_from_mapping(data, base=None, allow_path=False)
