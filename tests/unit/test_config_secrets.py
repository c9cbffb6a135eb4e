"""Unit: secrets of modules: their forms, the trust that each source needs, and reading their values."""

from __future__ import annotations

import json
import os
import socket

import pytest

from config import secrets
from config.mistakes import ConfigError
from config.modules.file import read_modules
from config.modules.spec import spec_from_mapping, spec_to_mapping
from config.secrets import MAX_FILE_BYTES, MAX_SECRETS, Secret, values
from tests.modules_file import load_modules


@pytest.fixture
def written(tmp_path):
    """Return a function that reads the file of one module `m`, with its `secrets` from line 5 on."""

    def read(text):
        file = tmp_path / "modules.yaml"
        file.write_text(f"modules:\n  m:\n    env: inline\n    code: handler = x\n{text}\n")
        return file

    return read


def mistakes(file):
    return [str(mistake).partition(".yaml:")[2] for mistake in read_modules(file)[1]]


def api(written, **how):
    data = {"name": "m", "env": "inline", "code": "handler = x", "secrets": written}
    return spec_from_mapping(data, **{"base": None, "allow_path": False, **how})


# -- forms -------------------------------------------------------------------------------------------------------------


def test_names_stand_for_variables_of_the_runner(written):
    (module,) = load_modules(written("    secrets: [TOKEN, KEY, TOKEN]")).modules

    assert module.secrets == {"TOKEN": Secret(env="OPERATO_SECRET_TOKEN"), "KEY": Secret(env="OPERATO_SECRET_KEY")}
    assert list(module.secrets) == ["TOKEN", "KEY"]


def test_each_name_may_have_its_source(written, tmp_path):
    text = "    secrets:\n      A: {env: VAULT_A}\n      B: {file: here/b}\n      C: {file: /run/secrets/c}"
    file = load_modules(written(text))

    assert file.modules[0].secrets == {
        "A": Secret(env="VAULT_A"),
        "B": Secret(file=tmp_path / "here/b"),
        "C": Secret(file=secrets.Path("/run/secrets/c")),
    }
    assert [secret.place for secret in file.modules[0].secrets.values()] == [
        "VAULT_A",
        str(tmp_path / "here/b"),
        "/run/secrets/c",
    ]


def test_files_are_named_as_what_is_to_be_watched_folders_are_not(written, tmp_path):
    (tmp_path / "folder").mkdir()
    text = "    secrets: {A: {file: a}, B: {file: folder}, C: {file: ''}, D: {env: X}, E: 3, F: {file: [x]}}"

    assert read_modules(written(text))[0].files == (tmp_path / "a",)


WRONG = {
    "secrets: 3": ["5: m.secrets: 3 is neither a list of names nor a mapping of names to {env: VARIABLE} or ..."],
    "secrets: [A-B]": ["5: m.secrets[0]: 'A-B' is not the name of a variable: ..."],
    "secrets:\n      - A\n      - OPERATO_B": ["7: m.secrets[1]: OPERATO_B is reserved: ..."],
    "secrets:\n      OPERATO_A: {env: A}": ["6: m.secrets.OPERATO_A: OPERATO_A is reserved: ..."],
    "secrets:\n      A: TOKEN": ["6: m.secrets.A: 'TOKEN' is not a source; write {env: VARIABLE} or {file: PATH}"],
    "secrets:\n      A:": ["6: m.secrets.A: nothing is not a source; ..."],
    "secrets:\n      A: {}": ["6: m.secrets.A: has no source; write {env: VARIABLE} or {file: PATH}"],
    "secrets:\n      A: {env: B, file: c}": ["6: m.secrets.A: has two sources; ..."],
    "secrets:\n      A:\n        fil: c": ["7: m.secrets.A.fil: unknown field; did you mean 'file'?"],
    "secrets:\n      A:\n        env: a b": ["7: m.secrets.A.env: 'a b' is not the name of a variable: ..."],
    "secrets:\n      A:\n        env: 3": ["7: m.secrets.A.env: 3 is not text; write it in quotes"],
    "secrets:\n      A:\n        file: ''": ["7: m.secrets.A.file: is empty"],
    "secrets:\n      A:\n        file: [x]": ["7: m.secrets.A.file: a list is not text"],
    'secrets:\n      A:\n        file: "a\\0"': ["7: m.secrets.A.file: contains a null character"],
    "secrets: [A]\n    variables: {A: b}": ["5: m.secrets[0]: A is given in `variables` too"],
    "secrets:\n      A: {env: B}\n    variables: {A: b}": ["6: m.secrets.A: A is given in `variables` too"],
    "secrets:\n      A: {env: 1}\n      B: {file: ''}": [
        "6: m.secrets.A.env: 1 is not text; write it in quotes",
        "7: m.secrets.B.file: is empty",
    ],
    f"secrets: [{', '.join(f'A{n}' for n in range(MAX_SECRETS + 1))}]": [
        f"5: m.secrets: has {MAX_SECRETS + 1} secrets; a module has at most {MAX_SECRETS}"
    ],
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40].replace("\n", " "))
def test_a_mistake_has_its_line_and_place(written, text):
    found, expected = mistakes(written("    " + text)), WRONG[text]

    assert [line[: len(want.removesuffix("..."))] for line, want in zip(found, expected, strict=True)] == [
        want.removesuffix("...") for want in expected
    ]


def test_a_module_comes_back_from_its_mapping(written, tmp_path):
    (module,) = load_modules(written("    secrets: {A: {env: VAULT_A}, B: {file: b}}")).modules
    data = json.loads(json.dumps(spec_to_mapping(module)))

    assert data["secrets"] == {"A": {"env": "VAULT_A"}, "B": {"file": str(tmp_path / "b")}}
    assert spec_from_mapping(data, base=None, allow_path=True, trusted=True) == module


# -- trust -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allow_path", [False, True])
def test_others_than_the_operator_have_what_the_operator_named_for_modules(allow_path, tmp_path):
    how = {"allow_path": allow_path, "base": tmp_path if allow_path else None}

    assert api(["A"], **how).secrets == {"A": Secret(env="OPERATO_SECRET_A")}
    assert api({"A": {"env": "OPERATO_SECRET_X"}}, **how).secrets == {"A": Secret(env="OPERATO_SECRET_X")}
    only = (
        "is not allowed: outside of the operator's modules file, modules get only variables that begin with"
        " OPERATO_SECRET_"
    )
    for variable in ("OPERATO_JWT_SECRET", "PATH", "operato_secret_x", "AWS_SECRET_ACCESS_KEY"):
        with pytest.raises(ConfigError) as caught:
            api({"A": {"env": variable}}, **how)
        assert [str(mistake) for mistake in caught.value.mistakes] == [f"secrets.A.env: '{variable}' {only}"]
    for path in ("data/jwt-secret", "/etc/passwd", ""):
        with pytest.raises(ConfigError, match=r"secrets\.A\.file: files are only for the operator's modules file"):
            api({"A": {"file": path}}, **how)


def test_what_the_operator_says_without_a_file_has_no_files():
    assert api({"A": {"env": "PATH"}}, trusted=True).secrets == {"A": Secret(env="PATH")}
    with pytest.raises(ConfigError, match=r"secrets\.A\.file: files are only for"):
        api({"A": {"file": "/x"}}, trusted=True)


def test_without_a_folder_a_file_is_absolute():
    with pytest.raises(ConfigError) as caught:
        api({"A": {"file": "x"}}, trusted=True, allow_path=True)

    assert [str(mistake) for mistake in caught.value.mistakes] == ["secrets.A.file: 'x' is not an absolute path"]


# -- values ------------------------------------------------------------------------------------------------------------


def test_values_of_variables():
    environ = {"OPERATO_SECRET_A": "1", "OPERATO_SECRET_b": "", "A": "x", "C": "two\nlines\n"}

    assert values({}, environ) == {}
    assert values(secrets.read(["b", "A", "b"]), environ) == {"b": "", "A": "1"}
    assert values({"X": Secret(env="A"), "Y": Secret(env="C")}, environ) == {"X": "x", "Y": "two\nlines\n"}


CONTENTS = {
    "plain": (b"hunter2", "hunter2"),
    "a newline at the end": (b"hunter2\n", "hunter2"),
    "one of Windows": (b"hunter2\r\n", "hunter2"),
    "only one is cut off": (b"\nhunter2\n\n", "\nhunter2\n"),
    "blanks stay": (b" hunter2 \n", " hunter2 "),
    "empty": (b"", ""),
    "not ASCII": ("비밀\n".encode(), "비밀"),
    "as large as it may be": (b"x" * MAX_FILE_BYTES, "x" * MAX_FILE_BYTES),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_values_of_files(tmp_path, case):
    content, value = CONTENTS[case]
    (tmp_path / "s").write_bytes(content)

    assert values({"A": Secret(file=tmp_path / "s")}, {}) == {"A": value}


def test_a_file_behind_links_is_read_as_a_cluster_mounts_it(tmp_path):
    (tmp_path / "..2024").mkdir()
    (tmp_path / "..2024/token").write_text("hunter2")
    (tmp_path / "..data").symlink_to("..2024")
    (tmp_path / "token").symlink_to("..data/token")

    assert values({"A": Secret(file=tmp_path / "token")}, {}) == {"A": "hunter2"}


def test_everything_that_cannot_be_had_is_told_without_what_is_in_it(tmp_path):
    for name, content in (("large", b"hunter2" * 10_000), ("null", b"hunter2\0"), ("latin", b"hunter2 \xe9")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        names = ["large", "null", "latin", "gone", "folder", "loop", "pipe", "socket"]
        wanted = {name: Secret(file=tmp_path / name) for name in names} | secrets.read(["A", "B", "C"])
        with pytest.raises(ConfigError) as caught:
            values(wanted, {"OPERATO_SECRET_B": "x", "A": "y", "OPERATO_SECRET_C": "hunter2\udce9"})

    why = {
        "large": "is over 65536 bytes; name a smaller file",
        "null": "contains a null character; encode it, for example as base64",
        "latin": "is not UTF-8 text; encode it, for example as base64",
        "gone": "does not exist; create it",
        "folder": "is a folder; name a file",
        "loop": "cannot be read (Too many levels of symbolic links); make it readable",
        "pipe": "is not a regular file; name a regular file",
        "socket": "cannot be read (No such device or address); make it readable",
    }
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        *(f"{name}: {tmp_path}/{name} {text}, or remove {name} from `secrets`" for name, text in why.items()),
        "A: OPERATO_SECRET_A is not set in the runner's environment; set it, or remove A from `secrets`",
        "C: OPERATO_SECRET_C is not UTF-8 text; encode it, for example as base64, or remove C from `secrets`",
    ]
    assert "hunter2" not in str(caught.value)
