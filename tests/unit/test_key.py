"""Unit: the key of an environment depends on its whole content and on nothing else."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from environments.store import key
from environments.store.key import environment_key, platform_tag
from protocol.model import Kind

ROOT = Path(__file__).parents[2]
LINES = ("numpy==2.1.0", "requests==2.32.0")


@pytest.fixture
def linux(monkeypatch):
    monkeypatch.setattr(key, "platform_tag", lambda: "linux-x86_64-glibc-2.36")


@pytest.mark.usefixtures("linux")
def test_the_key_of_known_content():
    """A change of this value makes every runner build every environment again: raise `_LAYOUT` when that is meant."""
    assert environment_key(Kind.VENV, LINES, "3.12.1") == "venv-py3.12.1-3cc2557b16f9b16da9f6"


def test_it_says_kind_and_python_and_is_a_plain_file_name():
    made = environment_key(Kind.CONDA, ["weird/../name; '\"\n"], "3.13")

    assert re.fullmatch(r"conda-py3\.13-[0-9a-f]{20}", made)


def test_equal_content_has_an_equal_key():
    assert environment_key(Kind.VENV, LINES, "3.12.1") == environment_key(Kind.VENV, list(LINES), "3.12.1")
    assert environment_key(Kind.VENV, [f"  {line}\n" for line in LINES], "3.12.1") == environment_key(
        Kind.VENV, LINES, "3.12.1"
    )


def test_everything_that_goes_in_counts(monkeypatch):
    contents = [
        (Kind.VENV, LINES, "3.12.1"),
        (Kind.CONDA, LINES, "3.12.1"),
        (Kind.VENV, LINES, "3.12.2"),
        (Kind.VENV, LINES[:1], "3.12.1"),
        (Kind.VENV, (), "3.12.1"),
        (Kind.VENV, ("",), "3.12.1"),
        (Kind.VENV, LINES[::-1], "3.12.1"),
        (Kind.VENV, ("".join(LINES),), "3.12.1"),
        (Kind.VENV, (", ".join(LINES),), "3.12.1"),
        (Kind.VENV, ("numpy==2.1.0", "requests==2.32.1"), "3.12.1"),
    ]
    made = [environment_key(*content) for content in contents]
    for name, value in (("platform_tag", lambda: "linux-riscv64-musl-1.2"), ("_LAYOUT", -1)):
        with monkeypatch.context() as patch:
            patch.setattr(key, name, value)
            made.append(environment_key(*contents[0]))

    assert [pair for pair in itertools.combinations(made, 2) if pair[0] == pair[1]] == []


def test_it_is_the_same_in_another_process():
    code = f"from environments.store.key import *; print(environment_key(Kind.VENV, {LINES!r}, '3.12'))"
    environ = {"PYTHONHASHSEED": "1", "LC_ALL": "C"}
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, check=True, capture_output=True, text=True
    )

    assert other.stdout.strip() == environment_key(Kind.VENV, LINES, "3.12")


def test_the_platform_names_system_machine_and_c_library(monkeypatch):
    monkeypatch.setattr(key.sysconfig, "get_platform", lambda: "linux-aarch64")
    monkeypatch.setattr(key.platform, "libc_ver", lambda: ("glibc", "2.39"))

    assert platform_tag() == "linux-aarch64-glibc-2.39"
