"""Unit: modules as files of their author: the request made of them, and mistakes with their place."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from config.code.archive import pack, unpack
from config.mistakes import ConfigError
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Kind
from runner.cli.module_files import make_starter, read_module_files

ONE = "def handler(input):\n    return 1\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return `write(files)`, which writes texts by name into the current folder."""
    monkeypatch.chdir(tmp_path)

    def go(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return go


def refused(write, files, target, **options):
    home = write(files)
    with pytest.raises(RunnerError) as caught:
        read_module_files((home / target).relative_to(home), options.pop("name", None), **options)
    return caught.value.failure


@pytest.mark.parametrize("kind", Kind)
def test_a_starter_of_each_kind_can_be_pushed(tmp_path, kind):
    files = make_starter("m", kind, tmp_path / "deep" / "er")
    sent = read_module_files(tmp_path / "deep" / "er", None)

    assert (sent.method, sent.path, sent.name) == ("POST", "/modules/upload", "m")
    assert sorted(unpack(sent.body)) == sorted(files)


def test_a_starter_overwrites_nothing(tmp_path):
    (tmp_path / "module.yaml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"would overwrite module\.yaml"):
        make_starter("m", Kind.INLINE, tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["module.yaml"]


@pytest.mark.parametrize(
    ("files", "target", "words"),
    [
        ({"m/handler.py": "x = 1\ndef handler(input) return 1\n"}, "m", "m/handler.py:2: path: does not compile"),
        (
            {"m/handler.py": ONE, "m/module.yaml": "name: m\ntiemout: 3\n"},
            "m",
            "m/module.yaml:2: tiemout: unknown field",
        ),
        ({"m/handler.py": ONE, "m/module.yaml": "env: inline\n"}, "m", "m/module.yaml:1: name: is missing"),
        (
            {"m/handler.py": ONE, "m/requirements.txt": "# a\n-i http://x\n"},
            "m",
            "m/requirements.txt:2: requirements: ",
        ),
        ({"m/handler.py": "def handel(input): pass"}, "m", "m: handler: "),
        ({"m/handler.py": ONE, "m/module.yaml": "name: n\nisolation: none"}, "m", "m/module.yaml:2: isolation: none"),
        ({"m.py": "\n\ndef handler(input:\n"}, "m.py", "m.py:3: path: does not compile"),
        ({"handler.py": ONE}, "handler.py", "--name: 'handler' cannot be the name of the module"),
        ({"Big Name/handler.py": ONE}, "Big Name", "--name: 'Big Name' cannot be the name"),
        (
            {"m.yaml": "env: inline\ncode: |\n  x = 1\n  def handler(input) return\n"},
            "m.yaml",
            "m.yaml:4: code: does not",
        ),
        (
            {"m.yaml": "env: inline\npath: x.py\n"},
            "m.yaml",
            "m.yaml:2: path: the code is in other files; push their folder",
        ),
        ({"m/module.yaml": "name: m\nenv: inline\n"}, "m/module.yaml", "operato-runner modules push m"),
        ({"m.yaml": "modules: []\n"}, "m.yaml", "m.yaml:1: modules: has several"),
        ({"m.yaml": "name: [\n"}, "m.yaml", "m.yaml:1: is not valid YAML"),
        ({"m.zip": "no zip"}, "m.zip", "m.zip: the archive is not a zip file"),
        ({"m.txt": ""}, "m.txt", "m.txt: is not a folder, a .zip, a .py or a .yaml file"),
        ({}, "gone", "gone: there is no such file or folder"),
    ],
)
def test_mistakes_have_their_place(write, files, target, words):
    failure = refused(write, files, target)

    assert failure.kind is ErrorKind.BAD_INPUT
    assert words in failure.message


def test_all_mistakes_in_an_archive_are_reported_at_once(write):
    content = pack({"module.yaml": b"name: m\nenv: inlin\ntimeout: soon\n", "handler.py": ONE.encode()})
    lines = refused(write, {"m.zip": content}, "m.zip").message.splitlines()

    assert [line.split(": ")[0] for line in lines] == ["m.zip/module.yaml:2", "m.zip/module.yaml:3"]


def test_a_given_name_must_equal_that_of_the_fields(write):
    folder = {"m/handler.py": ONE, "m/module.yaml": "name: m\n"}

    assert "m/module.yaml:1: name: 'm' differs from the name" in refused(write, folder, "m", name="n").message
    alone = {"m.yaml": "name: m\nenv: inline\ncode: handler = abs\n"}
    assert "m.yaml:1: name: 'm' differs from --name 'n'" in refused(write, alone, "m.yaml", name="n").message


def test_a_pipe_is_refused_without_waiting(write, tmp_path):
    write({})
    os.mkfifo(tmp_path / "m.zip")

    assert refused(write, {}, "m.zip").message == "m.zip: is not a regular file"


def test_an_archive_over_a_limit_is_too_large(write):
    files = {f"m/{number}": b"" for number in range(2001)}
    failure = refused(write, files, "m")

    assert failure.kind is ErrorKind.TOO_LARGE
    assert "there are more than 2000 files" in failure.message


@pytest.mark.parametrize(
    ("files", "target", "name"),
    [
        ({"square/handler.py": ONE}, "square", "square"),
        ({"square/handler.py": ONE}, "square/", "square"),
        ({"cube.py": ONE}, "cube.py", "cube"),
        ({"m/handler.py": ONE, "m/module.yaml": "name: said\n"}, "m", "said"),
        ({"m.yaml": "env: inline\ncode: handler = abs\n"}, "m.yaml", "m"),
        ({"m.yaml": "name: said\nenv: inline\ncode: handler = abs\n"}, "m.yaml", "said"),
    ],
)
def test_the_name_comes_from_the_fields_else_from_the_files(write, files, target, name):
    home = write(files)

    assert read_module_files(home / target, None).name == name


def test_the_current_folder_has_a_name_too(write, monkeypatch):
    home = write({"square/handler.py": ONE})
    monkeypatch.chdir(home / "square")

    assert read_module_files(Path(), None).name == "square"


def test_a_zip_archive_is_sent_as_it_is(write):
    home = write({})
    with zipfile.ZipFile(home / "m.zip", "w") as archive:
        archive.writestr("in/work.py", ONE)
    sent = read_module_files(home / "m.zip", None)

    assert (sent.body, sent.name) == ((home / "m.zip").read_bytes(), "m")


def test_files_that_are_not_code_are_not_sent(write):
    home = write({"m/handler.py": ONE, "m/.git/config": "x", "m/__pycache__/x.pyc": "x", "m/.venv/a": "x"})

    assert list(unpack(read_module_files(home / "m", None).body)) == ["handler.py"]


def test_fields_with_their_default_value_are_not_sent(write):
    text = (
        "env: venv\nversion: 1.10\npython: 3.10\nretry: {attempts: 2}\nrequirements: r.txt\ntimeout: 60s\ncode: |\n  "
    )
    home = write({"m.yaml": text + ONE.replace("\n", "\n  "), "r.txt": "six\n# no\n"})
    sent = read_module_files(home / "m.yaml", None)
    fields = json.loads(sent.body)

    assert (sent.method, sent.path) == ("PUT", "/modules/m")
    assert fields.pop("packages_from") == {"r.txt": ""}
    assert {name: fields.pop(name) for name in ("name", "env", "version", "python", "requirements", "timeout")} == {
        "name": "m",
        "env": "venv",
        "version": "1.10",
        "python": "3.10",
        "requirements": ["six"],
        "timeout": 60,
    }
    assert fields.pop("retry")["attempts"] == 2
    assert set(fields) == {"code"}


def test_without_a_check_the_runner_decides(write):
    home = write({"m.py": "def handler(input) return 1", "m.yaml": "env: later\nsaid: 1\n", "h.yaml": 'a: "\\ud800"\n'})

    assert read_module_files(home / "m.py", None, check=False).name == "m"
    assert json.loads(read_module_files(home / "m.yaml", None, check=False).body) == {
        "name": "m",
        "env": "later",
        "said": 1,
    }
    assert "half of a character" in refused(write, {}, "h.yaml", check=False).message


def test_files_with_packages_that_do_not_count_are_named(write, capsys):
    project = '[project]\nname = "x"\nversion = "1"\n'
    home = write({"job/main.py": ONE, "job/requirements.txt": "six\n", "job/pyproject.toml": project})
    read_module_files(home / "job", None)

    assert capsys.readouterr().err == "note: job: packages come from requirements.txt; pyproject.toml is not read\n"


def test_one_file_is_named_by_its_block(write):
    home = write({"job.py": "# /// script\n# [tool.operato]\n# name = 'report'\n# ///\n" + ONE})

    assert read_module_files(home / "job.py", None).name == "report"
    with pytest.raises(RunnerError, match="'report' differs from the name it was sent with, 'other'"):
        read_module_files(home / "job.py", "other")
