"""Unit: uploaded modules, their `module.yaml`, and the starters."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from config.code.archive import pack, unpack, write_files
from config.mistakes import ConfigError, Wrong
from config.modules.file import read_modules
from config.modules.spec import ModuleSpec, spec_from_mapping
from config.modules.template import starter
from config.modules.upload import module_from_archive, read_module
from protocol.model import Kind
from tests.modules_file import load_modules

CODE = "def handler(input): return input\n"


def read(folder: Path, files: dict[str, str], name: str | None = None) -> ModuleSpec:
    data = {file: dedent(text).encode() for file, text in files.items()}
    described = module_from_archive(data, name)
    write_files(data, folder)
    return read_module(described, folder)


def mistakes(folder: Path, files: dict[str, str], name: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, files, name)
    assert str(folder) not in str(caught.value)
    return [str(mistake) for mistake in caught.value.mistakes]


# -- what is read ----------------------------------------------------------------------------------------------------


def test_a_description_has_the_fields_of_a_module(tmp_path):
    text = """\
        name: report
        env: venv
        python: 3.10
        version: 1.10
        handler: jobs/report:run
        requirements: [tabulate]
        variables: {DEBUG: yes}
        timeout: 5m
        """
    spec = read(tmp_path, {"module.yaml": text, "jobs/report.py": "def run(input): ...", "requirements.txt": "other"})

    assert (spec.name, spec.env, spec.python, spec.version, spec.timeout) == ("report", Kind.VENV, "3.10", "1.10", 300)
    assert (spec.requirements, spec.variables, spec.path) == (("tabulate",), {"DEBUG": "yes"}, tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"handler.py": CODE}, (Kind.INLINE, (), (), "handler")),
        ({"main.py": CODE, "other.py": ""}, (Kind.INLINE, (), (), "handler")),
        ({"__init__.py": CODE, "other.py": ""}, (Kind.INLINE, (), (), "handler")),
        ({"report.py": CODE, "data/x.py": ""}, (Kind.INLINE, (), (), "report:handler")),
        (
            {"handler.py": CODE, "requirements.txt": "a>=1\n-r more.txt\n", "more.txt": "b"},
            (Kind.VENV, ("a>=1", "b"), (), "handler"),
        ),
        ({"handler.py": CODE, "environment.yml": "dependencies: [numpy]"}, (Kind.CONDA, (), ("numpy",), "handler")),
        (
            {"handler.py": CODE, "environment.yml": "dependencies: [numpy]", "requirements.txt": "a"},
            (Kind.CONDA, ("a",), ("numpy",), "handler"),
        ),
        (
            {"handler.py": CODE, "module.yaml": "env: docker", "requirements.txt": "a"},
            (Kind.DOCKER, ("a",), (), "handler"),
        ),
        ({"handler.py": CODE, "module.yaml": "env: inline", "requirements.txt": "a"}, (Kind.INLINE, (), (), "handler")),
        (
            {"work.py": "def run(x): ...", "module.yml": "{env: inline, handler: run}"},
            (Kind.INLINE, (), (), "work:run"),
        ),
    ],
)
def test_files_say_what_the_description_does_not(tmp_path, files, expected):
    spec = read(tmp_path, files, name="m")

    assert (spec.env, spec.requirements, spec.dependencies, spec.handler) == expected


def test_the_name_may_be_given_in_both_places(tmp_path):
    files = {"handler.py": CODE, "module.yaml": "env: inline\nname: m\n"}

    assert read(tmp_path, files, name="m").name == "m"


# -- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        ({"handler.py": CODE}, None, ["name: is missing; write it in module.yaml, or send it with the archive"]),
        (
            {"handler.py": CODE, "module.yaml": "env: inline"},
            None,
            ["module.yaml:1: name: is missing; write it in module.yaml, or send it with the archive"],
        ),
        (
            {"handler.py": CODE, "module.yaml": "env: inline\nname: a"},
            "b",
            ["module.yaml:2: name: 'a' differs from the name it was sent with, 'b'"],
        ),
        (
            {"handler.py": CODE, "module.yaml": "env: inline\ncode: x"},
            "m",
            ["module.yaml:2: code: the code of an uploaded module is in its files; remove `code`"],
        ),
        (
            {"handler.py": CODE, "module.yaml": "modules:\n- {name: m}"},
            "m",
            ["module.yaml:1: modules: describes one module: write its fields at the top, without `modules:`"],
        ),
        (
            {"handler.py": CODE, "module.yaml": "", "module.yml": ""},
            "m",
            ["module.yaml: is given twice, as module.yaml and module.yml; remove one"],
        ),
        (
            {"handler.py": CODE, "module.yaml": "[1]"},
            "m",
            ["module.yaml: contains a list where the fields of a module are expected"],
        ),
        (
            {"handler.py": CODE, "module.yaml": "a: [1"},
            "m",
            ["module.yaml:1: is not valid YAML: the [ in column 4 has no ]; add it, or a comma between the entries"],
        ),
        (
            {"handler.py": CODE, "module.yaml": "env: inline\ntimout: 3\nisolation: none\nuser: root"},
            "m",
            [
                "module.yaml:2: timout: unknown field; did you mean 'timeout'?",
                "module.yaml:3: isolation: none is not for this; it is only for the operator's modules file",
                "module.yaml:4: user: is not for env: inline, only for docker; use env: docker",
                "module.yaml:4: user: is only for the operator's modules file",
            ],
        ),
        (
            {"handler.py": "\ndef init(a): ...\ndef handler(input): ...", "requirements.txt": "a\n-e ."},
            "m",
            [
                "requirements.txt:2: requirements: the option -e is not allowed: environments do not change; commit it"
                " and write `name @ git+https://HOST/REPOSITORY`, build a wheel, or put its code beside the module's",
                "handler.py:2: path: `init` is called without arguments, but needs a; add defaults, or rename the"
                " function (line 2 of handler.py)",
            ],
        ),
        (
            {"handler.py": CODE, "module.yaml": "env: inline\n\nhandler: handlr"},
            "m",
            ["module.yaml:3: handler: there is no function 'handlr'; handler.py has handler; did you mean 'handler'?"],
        ),
        (
            {"a.py": CODE, "b.py": CODE},
            "m",
            ["handler: none of main.py, __init__.py, handler.py is in the folder; name it as `handler: file:function`"],
        ),
        (
            {"handler.py": CODE, "module.yaml": "env: inline\npath: ../x"},
            "m",
            ["module.yaml:2: path: '../x' is outside of the folder of the module"],
        ),
        (
            {"handler.py": CODE, "module.yaml": "env: venv\nrequirements: /etc/passwd"},
            "m",
            ["module.yaml:2: requirements: '/etc/passwd' is outside of the folder of the module"],
        ),
        (
            {"handler.py": CODE},
            "A b",
            ["name: 'A b' is not a name: 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first and last"],
        ),
    ],
)
def test_every_mistake_has_its_place(tmp_path, files, name, expected):
    assert mistakes(tmp_path, files, name) == expected


def test_a_description_is_text_of_some_size():
    with pytest.raises(ConfigError, match=r"module\.yaml:2: is not UTF-8 text: invalid start byte"):
        module_from_archive({"module.yaml": b"a: 1\n\xff"}, "m")
    with pytest.raises(ConfigError, match=r"module\.yaml: is over 65536 bytes"):
        module_from_archive({"module.yaml": b"#" * 2**21}, "m")


@given(
    st.dictionaries(
        st.sampled_from(["module.yaml", "module.yml", "requirements.txt", "handler.py", "x.py"]),
        st.one_of(
            st.binary(max_size=80),
            st.sampled_from([b"{}", b"env: venv", b"name: m", b"handler: [1]", b"env: [1]", b"path: 3"]),
        ),
    ),
    st.sampled_from([None, "m", "A"]),
)
def test_no_files_make_it_fail(files, name):
    with suppress(ConfigError):
        read_module(module_from_archive(files, name), Path("/nonexistent"))


# -- starters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("name", ["my-module", "42", "null", "1.10"])
def test_a_starter_is_a_module_whose_code_passes(tmp_path, kind, name):
    files = starter(name, kind)
    assert unpack(pack(files)) == files
    write_files(files, tmp_path)
    described = module_from_archive(files)
    spec = read_module(described, tmp_path)

    assert (spec.name, spec.env) == (name, kind)
    assert spec == spec_from_mapping(described.fields, base=tmp_path, allow_path=True)


@pytest.mark.parametrize("kind", Kind)
def test_every_field_that_a_starter_shows_may_be_used(tmp_path, kind):
    """The commented-out fields are valid too, all of them together."""
    text = starter("m", kind)["module.yaml"].decode()
    opened = re.sub(r"^# ([a-z_]+: )", r"\1", text, flags=re.MULTILINE)
    opened = (
        re.sub(r"^(?:image|requirements: \[|python).*\n", "", opened, flags=re.MULTILINE)
        if kind is Kind.DOCKER
        else opened
    )
    files = {**starter("m", kind), "module.yaml": opened.encode()}
    write_files(files, tmp_path)

    assert read_module(module_from_archive(files), tmp_path).timeout == 30


def test_starters_show_every_field_that_a_sent_module_may_have():
    texts = [starter("m", kind)["module.yaml"].decode() for kind in Kind]
    shown = {field for text in texts for field in re.findall(r"^(?:# )?([a-z_]+):", text, flags=re.MULTILINE)}

    assert {field.name for field in fields(ModuleSpec)} - shown == {"code", "path", "user", "writable", "packages_from"}


@pytest.mark.parametrize("kind", Kind)
def test_the_snippet_of_a_starter_is_a_modules_file(tmp_path, kind):
    files = starter("m", kind)
    write_files(files, tmp_path / "m")
    (snippet,) = re.findall(r"```yaml\n(.*?)```", files["README.md"].decode(), flags=re.DOTALL)
    (tmp_path / "modules.yaml").write_text(snippet)

    (spec,) = load_modules(tmp_path / "modules.yaml").modules
    assert (spec.name, spec.env, spec.dependencies) == ("m", kind, ("python=3.12",) if kind is Kind.CONDA else ())
    assert read_modules(tmp_path / "modules.yaml")[1] == ()


def test_a_starter_has_a_name_of_a_module():
    with pytest.raises(Wrong, match="is not a name"):
        starter("My module", Kind.INLINE)


@pytest.mark.parametrize(
    ("files", "given", "found"),
    [
        ({"job.py": CODE}, {"name": "x"}, ("x", Kind.INLINE, (), "job:handler")),
        ({"handler.py": CODE, "requirements.txt": "a"}, {"name": "x", "env": "inline"}, ("x", Kind.INLINE, (), "")),
        (
            {"handler.py": CODE, "requirements.txt": "a", "module.yaml": "{name: y, env: inline}"},
            {"name": "x", "env": "venv"},
            ("x", Kind.VENV, ("a",), ""),
        ),
    ],
)
def test_fields_beside_the_archive_are_completed_by_its_files(tmp_path, files, given, found):
    data = {file: text.encode() for file, text in files.items()}
    write_files(data, tmp_path)
    spec = read_module(module_from_archive(data, None, given), tmp_path)

    assert (spec.name, spec.env, spec.requirements, spec.handler) == (*found[:3], found[3] or "handler")
