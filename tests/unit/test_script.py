"""Unit: the block of a Python file that describes it (PEP 723), and which of several descriptions counts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.code import RUNNING_VERSION
from config.completing import blocks, read_block
from config.folders import load_script
from config.mistakes import ConfigError
from config.modules import ModuleSpec, module_from_archive, read_module, read_modules, read_script, spec_from_mapping
from protocol.model import Kind

REFERENCE = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
"""The expression of the specification."""
HANDLER = "def handler(input): return input\n"
WHOLE = """\
#!/usr/bin/env python
# /// script
# requires-python = ">=3.9"
# dependencies = [
#   "attrs>=20",
#   "idna",  # with a comment
# ]
#
# [tool.operato]
# description = "Reports"
# timeout = "5s"
# retry.attempts = 2
# input_schema = {type = "object"}
#
# [tool.operato.variables]
# LANG = "C"
#
# [[tool.operato.schedules]]
# cron = "0 3 * * *"
# input = {day = "monday"}
#
# [[tool.operato.endpoints]]
# path = "/report"
#
# [tool.other]
# timeout = "not ours"
# ///
import idna


def handler(input):
    return idna.__version__
"""


def block_of(text: str) -> str:
    lines = dedent(text).splitlines()
    return "\n".join(["# /// script", *(f"# {line}".rstrip() for line in lines), "# ///", HANDLER])


def from_code(code: str, **fields: Any) -> ModuleSpec:
    return spec_from_mapping({"name": "m", "code": code} | fields, base=None, allow_path=False)


# -- the block -------------------------------------------------------------------------------------------------------

LINES = st.sampled_from(
    ["# /// script", "# /// test", "# ///", "#", "# a = 1", "#x", "", "x = 1", " # ///", "# /// a b"]
)


@given(st.lists(LINES, max_size=14), st.sampled_from(["\n", ""]))
def test_blocks_are_those_of_the_specification(lines, end):
    text = "\n".join(lines) + end
    expected = [
        (
            match["type"],
            text.count("\n", 0, match.start()) + 1,
            [line[2:] if line.startswith("# ") else line[1:] for line in match["content"].splitlines()],
        )
        for match in REFERENCE.finditer(text)
    ]

    assert list(blocks(text)) == expected


def test_lines_may_end_as_on_windows():
    assert read_block(WHOLE.replace("\n", "\r\n")).fields == read_block(WHOLE).fields


def test_a_file_without_a_block_has_none():
    assert read_block(HANDLER) is None
    assert read_block("# /// script\n# dependencies = []\n") is None, "it does not end"
    assert read_block("# /// pyproject\n# x = 1\n# ///\n") is None, "it is of another type"


def test_dates_are_texts():
    block = read_block(block_of("[tool.operato]\nschedules = [{at = 2027-01-31T09:30:00, timezone = 'UTC'}]"))

    assert block.fields["schedules"] == [{"at": "2027-01-31T09:30:00", "timezone": "UTC"}]


def test_every_field_comes_from_the_block():
    spec = from_code(WHOLE)

    assert (spec.env, spec.requirements, spec.python) == (Kind.VENV, ("attrs>=20", "idna"), ">=3.9")
    assert (spec.description, spec.timeout, spec.retry.attempts) == ("Reports", 5, 2)
    assert (spec.variables, [each.path for each in spec.endpoints]) == ({"LANG": "C"}, ["/report"])
    assert [each.input for each in spec.schedules] == [{"day": "monday"}]
    assert spec.packages_from == {"m.py": ""}


@pytest.mark.parametrize(
    ("text", "env"),
    [
        ("dependencies = []", Kind.INLINE),
        ("dependencies = ['a']", Kind.VENV),
        ("[tool.operato]\ndependencies = ['numpy']", Kind.CONDA),
        ("dependencies = ['a']\n[tool.operato]\nenv = 'docker'", Kind.DOCKER),
        ("[tool.operato]\nimage = 'python:3.12'", Kind.DOCKER),
        ("dependencies = ['a']\n[tool.operato]\nenv = 'conda'", Kind.CONDA),
    ],
)
def test_without_env_it_is_venv_with_packages_else_inline(text, env):
    assert from_code(block_of(text)).env is env


def test_a_written_field_wins_over_the_block():
    spec = from_code(WHOLE, timeout=9, requirements=["six"], variables={}, python="3.12")

    assert (spec.timeout, spec.requirements, spec.variables, spec.python) == (9, ("six",), {}, "3.12")
    assert spec.description == "Reports"
    assert spec.packages_from == {}


def test_the_python_of_the_block_may_be_one_version():
    assert from_code(block_of("requires-python='>=3.9'\n[tool.operato]\nenv='venv'\npython='3.12'")).python == "3.12"


MISTAKES = [
    ("dependencies = 'idna'", "m.py:2: dependencies: 'idna' is not a list; write [\"NAME\"]"),
    ("dependencies = [\n  'a',\n  3,\n]", "m.py:4: dependencies[1]: 3 is not text; write it in quotes"),
    ("dependencies = ['-r other.txt']", "m.py:2: dependencies[0]: '-r other.txt' is an option; ..."),
    ("dependencies = [\n 'a',\n 'b c',\n]", "m.py:4: dependencies[1]: 'b c' is not a requirement ..."),
    ("requires-python = '3.12'", "m.py:2: requires-python: '3.12' is not a range of Pythons such as >=3.11"),
    ("requires-python = '>=four'", "m.py:2: requires-python: '>=four' is not a Python version ..."),
    ("requires-python = '>=3.30'", "m.py:2: requires-python: '>=3.30' allows no Python 3 from 3.8 on"),
    (
        "requires-python = '<3.9'",
        'm.py:2: requires-python: env: inline is the Python of the runner, ...; write `env = "venv"` ...',
    ),
    ("\n[tool.operato]\ntimout = '5s'", "m.py:4: timout: unknown field; did you mean 'timeout'?"),
    ("[tool.operato]\ntimeout = 'soon'", "m.py:3: timeout: 'soon' is not a duration; ..."),
    ("[tool.operato.retry]\nattempts = 0", "m.py:3: retry.attempts: ..."),
    ("[[tool.operato.endpoints]]\npath = '/a'\n[[tool.operato.endpoints]]\npath = 3", "m.py:5: endpoints[1].path: ..."),
    ("[tool.operato]\ncode = ''", "m.py:3: code: is not for [tool.operato]: the file itself is the code; remove it"),
    ("[tool]\noperato = 3", "m.py:3: tool.operato: is not a table; write [tool.operato], and ..."),
    (
        "dependencies = ['a']\n[tool.operato]\nrequirements = ['b']",
        "m.py:4: requirements: is given as `dependencies` at the top of the block too; ...",
    ),
    (
        "dependencies = ['a']\n[tool.operato]\nenv = 'inline'",
        "m.py:2: dependencies: is not for env: inline, ...; use env: venv",
    ),
    ("[tool.uv.sources]\na = {git = 'https://x.org/a'}", "m.py:2: tool.uv.sources: is read by uv only; write ..."),
    ("dependencies = [", "m.py:2: the block is not TOML: Invalid value"),
    ("a = 1\nb =", "m.py:3: the block is not TOML: Invalid value"),
    ("a = 'x" + "x" * 70000, "m.py:1: the block is over 65536 characters"),
]


def fits(text: str, expected: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, expected.split("..."))), text, re.DOTALL) is not None


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[each[1][:50] for each in MISTAKES])
def test_a_mistake_has_file_line_and_field(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(block_of(text))

    file, mistakes = read_script(Path("m.py"))
    assert [str(mistake) for mistake in mistakes if fits(str(mistake), expected)], list(map(str, mistakes))
    assert file.modules == ()


def test_two_blocks_are_a_mistake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(block_of("dependencies = []") + block_of("dependencies = []"))

    (mistake,) = read_script(Path("m.py"))[1]
    assert str(mistake) == "m.py:5: has two `# /// script` blocks, the first in line 1; keep one"


# -- where it is read ------------------------------------------------------------------------------------------------


def test_one_file_is_a_module_by_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("My Report.py").write_text(WHOLE)
    file, mistakes = read_script(Path("My Report.py"))

    assert mistakes == ()
    assert [spec.name for spec in file.modules] == ["my-report"]
    assert file.files[0] == file.path == tmp_path / "My Report.py"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("none.py", None, "none.py: does not exist"),
        ("_.py", HANDLER, "_.py: name: '_' cannot be the name of a module; write `name` below [tool.operato]"),
        ("m.py", "x = 1\n", "m.py: handler: there is no function 'handler'; ..."),
        ("m.py", "x = (\n", "m.py:1: path: does not compile: ..."),
    ],
)
def test_a_file_that_is_no_module_is_told(tmp_path, monkeypatch, name, text, expected):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)

    (mistake,) = read_script(Path(name))[1]
    assert fits(str(mistake), expected), str(mistake)


def test_the_modules_file_may_name_such_a_file(tmp_path):
    (tmp_path / "report.py").write_text(WHOLE)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "main.py").write_text(block_of("[tool.operato]\ntimeout = '7s'"))
    (tmp_path / "modules.yaml").write_text(
        "modules:\n  a: {path: report.py, timeout: 9s, endpoints: []}\n  b: {path: jobs}\n  c: {path: plain.py}\n"
    )
    (tmp_path / "plain.py").write_text(HANDLER)
    file, mistakes = read_modules(tmp_path / "modules.yaml")

    assert mistakes == ()
    assert [(spec.env, spec.timeout) for spec in file.modules] == [
        (Kind.VENV, 9),
        (Kind.INLINE, 7),
        (Kind.INLINE, 60),
    ]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "modules.yaml").write_text("modules:\n  a: {path: pipe.py, env: inline}\n")

    (mistake,) = read_modules(tmp_path / "modules.yaml")[1]
    assert "'pipe.py' is not a .py file" in str(mistake) or "does not exist" in str(mistake)


def test_a_mistake_in_code_within_yaml_has_the_line_of_the_yaml_file(tmp_path):
    code = block_of("[tool.operato]\ntimeout = 'soon'").replace("\n", "\n      ")
    (tmp_path / "modules.yaml").write_text(f"modules:\n  - name: m\n    code: |\n      {code}\n")

    (mistake,) = read_modules(tmp_path / "modules.yaml")[1]
    assert str(mistake).startswith(f"{tmp_path}/modules.yaml:6: m.code: timeout: 'soon' is not a duration")


def test_an_uploaded_file_has_a_block_too(tmp_path):
    text = WHOLE.replace("[tool.operato]\n", "[tool.operato]\n# name = 'sent'\n", 1)
    (tmp_path / "job.py").write_text(text)
    spec = read_module(module_from_archive({"job.py": text.encode()}), tmp_path)

    assert (spec.name, spec.env, spec.handler, spec.requirements) == (
        "sent",
        Kind.VENV,
        "job:handler",
        ("attrs>=20", "idna"),
    )
    assert spec.packages_from == {"job.py": ""}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("isolation = 'none'", "only for the operator's modules file"),
        ("secrets = {A = {file = '/etc/passwd'}}", "secrets"),
        ("user = 'root'", "only for the operator's modules file"),
    ],
)
def test_an_uploaded_block_has_no_more_rights_than_a_description(tmp_path, field, message):
    text = block_of(f"[tool.operato]\n{field}")
    (tmp_path / "job.py").write_text(text)

    with pytest.raises(ConfigError, match=message) as caught:
        read_module(module_from_archive({"job.py": text.encode()}, "m"), tmp_path)
    assert str(caught.value).startswith("job.py:3: ")


def test_an_uploaded_block_cannot_name_files_of_the_runner(tmp_path):
    text = block_of("dependencies = ['a @ file:///etc/a.whl']")
    (tmp_path / "job.py").write_text(text)

    with pytest.raises(ConfigError, match=r"job.py:2: dependencies.*only for the operator"):
        read_module(module_from_archive({"job.py": text.encode()}, "m"), tmp_path)


def test_inline_is_the_python_of_the_runner():
    running = "{}.{}".format(*RUNNING_VERSION)

    assert from_code(block_of(f"requires-python = '>={running}'")).env is Kind.INLINE
    assert (
        from_code(block_of(f"requires-python = '>={running}'\n[tool.operato]\nenv = 'venv'")).python == f">={running}"
    )


def test_a_file_needs_no_modules_file_and_takes_the_settings_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("m.py").write_text(HANDLER)
    loaded = load_script({"conda_path": "mine"}, Path("m.py"))
    cache = tmp_path / "home" / ".cache" / "operato-runner"

    assert [spec.name for spec in loaded.modules.modules] == ["m"]
    store = loaded.settings.store
    assert (store.data_dir, store.venv_path, store.conda_path) == (cache / "data", cache / "venvs", tmp_path / "mine")

    Path("modules.yaml").write_text("runner: {venv_path: envs}\nmodules: [{name: wrong}]\n")
    store = load_script({}, Path("m.py")).settings.store
    assert (store.data_dir, store.venv_path) == (tmp_path / "data", tmp_path / "envs"), "modules do not matter"

    Path("m.py").write_text("x = (")
    with pytest.raises(ConfigError, match=r"m\.py:1: path: does not compile"):
        load_script({}, Path("m.py"))


def test_a_user_without_a_home_keeps_environments_in_the_folder(tmp_path, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", homeless)
    Path("m.py").write_text(HANDLER)

    assert load_script({}, Path("m.py")).settings.store.venv_path == tmp_path / "venvs"
