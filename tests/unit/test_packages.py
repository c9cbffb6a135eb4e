"""Unit: versions of Python, and the files that list the packages of a module: locks, projects, requirements."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from config.completing import passed_over
from config.mistakes import ConfigError, Wrong, read_or_none
from config.modules import (
    ModuleSpec,
    module_from_archive,
    read_module,
    read_modules,
    spec_from_mapping,
    spec_to_mapping,
)
from config.packages import fits, is_explicit, is_locked, is_range, minor_for, read_python, registries, subdir
from protocol.model import Kind

HANDLER = "def handler(input): return input\n"
SHA = "a" * 64
OTHER = "b" * 64
COMMIT = "c" * 40
PYLOCK = f"""\
lock-version = "1.0"
requires-python = ">=3.9"
created-by = "uv"

[[packages]]
name = "idna"
version = "3.7"
marker = "python_version >= '3.8'"
index = "https://packages.invalid/simple"
sdist = {{ url = "https://x.org/idna-3.7.tar.gz", hashes = {{ sha256 = "{OTHER}" }} }}
wheels = [{{ url = "https://x.org/idna-3.7-py3-none-any.whl", hashes = {{ sha256 = "{SHA}", md5 = "aa" }} }}]

[[packages]]
name = "ours"
vcs = {{ type = "git", url = "https://x.org/ours.git", commit-id = "{COMMIT}", subdirectory = "lib" }}

[[packages]]
name = "rates"
archive = {{ url = "https://x.org/rates-1.0.tar.gz", hashes = {{ sha256 = "{SHA}" }} }}
"""
PROJECT = """\
[project]
name = "report"
version = "1"
requires-python = ">=3.9"
dependencies = ["idna>=3", "six"]
"""
LOCK = """\
version = 1
requires-python = ">=3.9"

[[package]]
name = "idna"
version = "3.7"
source = { registry = "https://packages.invalid/simple" }

[[package]]
name = "report"
version = "1"
source = { virtual = "." }
"""


def conda_lock(here: str = subdir()) -> str:
    url = f"https://x.org/forge/{here}"
    return dedent(f"""\
        version: 1
        metadata: {{content_hash: {{}}, channels: [], platforms: [{here}], sources: [environment.yml]}}
        package:
        - {{name: python, version: 3.12.1, manager: conda, platform: {here}, url: {url}/python-3.12.1-h1_0.conda,
           hash: {{md5: {"1" * 32}, sha256: {SHA}}}, category: main, optional: false}}
        - {{name: numpy, version: 2.0, manager: conda, platform: win-64, url: {url}/numpy-2.0-0.conda, hash: {{}}}}
        - {{name: pytest, version: 8.0, manager: conda, platform: {here}, url: {url}/pytest-8.0-0.conda,
           hash: {{md5: {"2" * 32}}}, category: dev, optional: true}}
        - {{name: idna, version: 3.7, manager: pip, platform: {here}, url: "https://x.org/idna-3.7-py3-none-any.whl",
           hash: {{sha256: {SHA}}}, category: main, optional: false}}
        """)


def sent(folder: Path, files: dict[str, str]) -> ModuleSpec:
    """Return the module of an upload."""
    for name, text in files.items():
        (folder / name).write_text(text)
    data = {name: text.encode() for name, text in files.items()}
    return read_module(module_from_archive(data, "m"), folder)


# -- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("python", "yes", "no"),
    [
        (None, [(3, 8, 0)], []),
        ("3.12", [(3, 12, 4)], [(3, 11, 9), (3, 1, 2)]),
        ("3.12.4", [(3, 12, 4)], [(3, 12, 5)]),
        (">=3.11,<3.13", [(3, 11, 0), (3, 12, 9)], [(3, 10, 9), (3, 13, 0)]),
        (">3.11", [(3, 11, 1), (3, 12, 0)], [(3, 11, 0), (3, 10, 4)]),
        ("<=3.11", [(3, 11, 0), (3, 10, 4)], [(3, 11, 1)]),
        ("~=3.11", [(3, 11, 0), (3, 14, 1)], [(3, 10, 9)]),
        ("~=3.11.2", [(3, 11, 7)], [(3, 11, 1), (3, 12, 0)]),
        ("==3.11.*", [(3, 11, 7)], [(3, 12, 0)]),
        ("!=3.11.*", [(3, 12, 0)], [(3, 11, 7)]),
        ("==3.11.7", [(3, 11, 7)], [(3, 11, 8)]),
        ("!=3.11.7,>=3.11", [(3, 11, 8)], [(3, 11, 7)]),
    ],
)
def test_a_range_of_pythons_is_what_it_says(python, yes, no):
    assert all(fits(version, python) for version in yes)
    assert not any(fits(version, python) for version in no)


@pytest.mark.parametrize("text", ["3", ">=4", "<3.8", ">=3.11 <3.13", "~=3", "==3.x", ">=3.12a1", "", "*", 3, None])
def test_what_is_no_version_is_refused(text):
    assert read_or_none(read_python, text) is None


def test_a_range_becomes_one_version_where_one_is_needed():
    assert read_python(" >= 3.11, <4 ") == ">=3.11,<4"
    assert (is_range(">=3.11"), is_range("3.11"), is_range(None)) == (True, False, False)
    assert [minor_for(each, "3.12") for each in (None, "3.9", ">=3.9", "<3.11", ">=3.13.2,<3.14")] == [
        "3.12",
        "3.9",
        "3.12",
        "3.10",
        "3.13",
    ]


# -- locks -----------------------------------------------------------------------------------------------------------


def test_a_pylock_is_its_packages_with_their_hashes(tmp_path):
    spec = sent(tmp_path, {"handler.py": HANDLER, "pylock.toml": PYLOCK})

    assert (spec.env, spec.python, spec.packages_from) == (Kind.VENV, ">=3.9", {"pylock.toml": ""})
    assert spec.requirements == (
        f"idna==3.7 ; python_version >= '3.8' --hash=sha256:{SHA} --hash=sha256:{OTHER}",
        f"ours @ git+https://x.org/ours.git@{COMMIT}#subdirectory=lib",
        f"rates @ https://x.org/rates-1.0.tar.gz --hash=sha256:{SHA}",
    )
    assert is_locked(spec.requirements)
    assert spec_from_mapping(spec_to_mapping(spec), base=tmp_path, allow_path=True, checked=True) == spec


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('lock-version = "1.0"', "", "lock-version: nothing is not a version that is read here: 1.0"),
        ('lock-version = "1.0"', "lock-version = ", "is not TOML: .*"),
        ("[[packages]]", "[packages.a]", "packages: is not an array of tables|is not TOML.*"),
        ('name = "idna"', "", "packages: nothing: has a name, version or marker that is not text of one line"),
        ("python_version >= '3.8'", "'dev' in dependency_groups", "packages: idna: its marker asks for .*"),
        ('vcs = { type = "git"', 'vcs = { type = "hg"', "packages: ours: is not a git repository .*"),
        (COMMIT, "main", "packages: ours: is not a git repository with `url` and a full `commit-id`.*"),
        ('archive = { url = "https://x.org/rates-1.0.tar.gz"', 'archive = { path = "a.whl"', "packages: rates: .*"),
        (f'archive = {{ url = "https://x.org/rates-1.0.tar.gz", hashes = {{ sha256 = "{SHA}" }} }}',
         'directory = { path = "." }', "packages: rates: is a folder, which changes without notice; .*"),
        ('version = "3.7"', "", "packages: idna: has no `version` with `wheels` or `sdist`; lock it again"),
        (f'hashes = {{ sha256 = "{OTHER}" }}', "hashes = {}", "packages: idna: has a file without `hashes`.*"),
        (f'sha256 = "{OTHER}"', 'sha256 = "x y"', "packages: idna: 'sha256:x y' is not a hash"),
        ('requires-python = ">=3.9"', 'requires-python = "4"', "requires-python: .*"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_pylock_names_the_package(tmp_path, old, new, expected):
    assert old in PYLOCK
    with pytest.raises(ConfigError) as caught:
        sent(tmp_path, {"handler.py": HANDLER, "pylock.toml": PYLOCK.replace(old, new)})

    text = str(caught.value.mistakes[0])
    assert re.fullmatch(rf"pylock\.toml(:\d+)?: requirements: (?:{expected})", text, re.DOTALL), text


def test_addresses_of_a_pylock_of_others_are_checked_as_requirements(tmp_path):
    with pytest.raises(ConfigError, match="only for the operator's modules file"):
        sent(tmp_path, {"handler.py": HANDLER, "pylock.toml": PYLOCK.replace("https://x.org/rates", "file:///rates")})


def test_a_project_without_a_lock_gives_its_dependencies(tmp_path):
    spec = sent(tmp_path, {"handler.py": HANDLER, "pyproject.toml": PROJECT})

    assert (spec.env, spec.requirements, spec.python) == (Kind.VENV, ("idna>=3", "six"), ">=3.9")
    assert spec.packages_from == {"pyproject.toml": ""}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ('dynamic = ["dependencies"]\n', "project.dynamic: has `dependencies`, .* run `uv lock`"),
        ('[tool.uv.sources]\nidna = {path = "x"}\n', "tool.uv.sources: is read from a lock only; run `uv lock`.*"),
        ("x = [\n", "is not TOML: .*"),
    ],
)
def test_what_only_a_lock_can_say_needs_one(tmp_path, more, expected):
    with pytest.raises(ConfigError) as caught:
        sent(tmp_path, {"handler.py": HANDLER, "pyproject.toml": PROJECT + more})

    assert re.search(rf"^pyproject\.toml(:\d+)?: requirements: {expected}", str(caught.value), re.MULTILINE)


def test_settings_of_tools_are_no_project(tmp_path):
    spec = sent(tmp_path, {"handler.py": HANDLER, "pyproject.toml": "[tool.ruff]\nline-length = 100\n"})

    assert (spec.env, spec.requirements, spec.packages_from) == (Kind.INLINE, (), {})


def test_a_lock_of_uv_is_kept_for_uv(tmp_path):
    spec = sent(tmp_path, {"handler.py": HANDLER, "pyproject.toml": PROJECT, "uv.lock": LOCK})

    assert (spec.env, spec.requirements, spec.python) == (Kind.VENV, (), ">=3.9")
    assert spec.packages_from == {"pyproject.toml": PROJECT, "uv.lock": LOCK}
    assert registries(LOCK) == ["https://packages.invalid/simple"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('{ directory = "libs/a" }', "uv.lock: requirements: package idna: 'libs/a' is a folder, which changes .*"),
        ('{ editable = "libs/a" }', "uv.lock: requirements: package idna: 'libs/a' is a folder, which changes .*"),
        ('{ path = "a.whl" }', "uv.lock: requirements: package idna: 'a.whl' is a file of another machine; .*"),
        ('{ registry = "/srv/wheels" }', "uv.lock: requirements: package idna: '/srv/wheels' is only for .*"),
        ('{ git = "ssh://x.org/a#1" }', "uv.lock: requirements: package idna: 'ssh://x.org/a#1' is only for .*"),
    ],
)
def test_a_lock_of_uv_names_nothing_of_another_machine(tmp_path, source, expected):
    lock = LOCK.replace('{ registry = "https://packages.invalid/simple" }', source)
    with pytest.raises(ConfigError) as caught:
        sent(tmp_path, {"handler.py": HANDLER, "pyproject.toml": PROJECT, "uv.lock": lock})

    assert re.fullmatch(expected, str(caught.value.mistakes[0]))


def test_a_lock_without_its_project_is_no_lock(tmp_path):
    with pytest.raises(ConfigError, match=r"pyproject\.toml: requirements: does not exist"):
        sent(tmp_path, {"handler.py": HANDLER, "uv.lock": LOCK})


def test_a_workspace_is_not_one_module(tmp_path):
    project = PROJECT + '[tool.uv.workspace]\nmembers = ["libs/*"]\n'
    with pytest.raises(ConfigError, match=r"tool\.uv\.workspace: a module is one project"):
        sent(tmp_path, {"handler.py": HANDLER, "pyproject.toml": project, "uv.lock": LOCK})


def test_requirements_with_hashes_are_a_lock():
    assert is_locked([f"a==1 --hash=sha256:{SHA}", f"b @ git+https://x.org/b@{COMMIT}", "--only-binary :all:"])
    assert not is_locked([f"a==1 --hash=sha256:{SHA}", "b==1"])
    assert not is_locked([f"b @ git+https://x.org/b@{COMMIT}"])
    assert not is_locked([])


# -- conda -----------------------------------------------------------------------------------------------------------


def test_a_conda_lock_is_its_packages_for_this_platform(tmp_path):
    files = {"handler.py": HANDLER, "conda-lock.yml": conda_lock(), "environment.yml": "dependencies: [python]\n"}
    spec = sent(tmp_path, files)

    assert spec.env is Kind.CONDA
    assert spec.dependencies == (f"https://x.org/forge/{subdir()}/python-3.12.1-h1_0.conda#{SHA}",)
    assert spec.requirements == (f"idna @ https://x.org/idna-3.7-py3-none-any.whl --hash=sha256:{SHA}",)
    assert spec.packages_from == {"conda-lock.yml": "", "environment.yml": "dependencies: [python]\n"}
    assert is_explicit(spec.dependencies)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            conda_lock("osx-99"),
            "has no packages for this platform, .* (it has osx-99, win-64); make it with `conda-lock",
        ),
        ("version: 2\n", "is not a lock of version 1; make it with `conda-lock lock -f environment.yml`"),
        ("version: 1\npackage: 3\n", "package: is not a list of mappings"),
        (
            conda_lock().replace(SHA, "").replace("1" * 32, ""),
            "package: 'python': has no `url` of a package with a hash",
        ),
        (conda_lock().replace(f"{{sha256: {SHA}}}", "{}"), "package: 'idna': has no `url` with a hash of sha256"),
        ("version: [", "is not valid YAML: "),
    ],
)
def test_a_mistake_in_a_conda_lock_is_told(tmp_path, text, expected):
    with pytest.raises(ConfigError) as caught:
        sent(tmp_path, {"handler.py": HANDLER, "conda-lock.yml": text})

    pattern = re.escape(expected).replace(r"\.\*", ".*")
    assert re.match(rf"conda-lock\.yml(:\d+)?: dependencies: {pattern}", str(caught.value.mistakes[0])), caught.value


# -- several of them -------------------------------------------------------------------------------------------------

EVERY = {
    "uv.lock": LOCK,
    "pylock.toml": PYLOCK,
    "requirements.txt": "six\n",
    "pyproject.toml": PROJECT,
}


@pytest.mark.parametrize(
    ("without", "used"),
    [
        ([], {"uv.lock", "pyproject.toml"}),
        (["uv.lock"], {"pylock.toml"}),
        (["uv.lock", "pylock.toml"], {"requirements.txt"}),
        (["uv.lock", "pylock.toml", "requirements.txt"], {"pyproject.toml"}),
    ],
)
def test_the_first_of_several_files_counts_and_the_others_are_told(tmp_path, without, used):
    files = {name: text for name, text in EVERY.items() if name not in without}
    spec = sent(tmp_path, {"handler.py": HANDLER, **files})

    assert set(spec.packages_from) == used
    assert set(passed_over(spec.path, spec.packages_from)) == set(files) - used


def test_the_block_wins_over_the_files_of_the_folder(tmp_path):
    code = '# /// script\n# dependencies = ["attrs"]\n# ///\n' + HANDLER
    spec = sent(tmp_path, {"handler.py": code, **EVERY})

    assert (spec.requirements, spec.packages_from) == (("attrs",), {"handler.py": ""})


def test_a_folder_of_the_modules_file_is_read_alike(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    for name, text in {"main.py": HANDLER, "requirements.txt": "six\n", "pylock.toml": PYLOCK}.items():
        (folder / name).write_text(text)
    text = "modules:\n  a: {path: job}\n  b: {path: job, env: inline}\n  c: {path: job, env: venv, requirements: []}\n"
    (tmp_path / "modules.yaml").write_text(text + "  d: {path: job, env: docker, requirements: job/requirements.txt}\n")
    file, mistakes = read_modules(tmp_path / "modules.yaml")

    assert mistakes == ()
    assert [(spec.env, len(spec.requirements), list(spec.packages_from)) for spec in file.modules] == [
        (Kind.VENV, 3, ["pylock.toml"]),
        (Kind.INLINE, 0, []),
        (Kind.VENV, 0, []),
        (Kind.DOCKER, 1, ["requirements.txt"]),
    ]


@pytest.mark.parametrize("value", [["a"], {"a/b": ""}, {"a": 3}, {str(each): "" for each in range(5)}])
def test_the_files_of_a_description_are_names_with_texts(value):
    data = {"name": "m", "env": "venv", "code": HANDLER, "packages_from": value}
    with pytest.raises(ConfigError, match="packages_from"):
        spec_from_mapping(data, base=None, allow_path=False)


def test_a_lock_may_have_very_many_hashes(tmp_path):
    line = "numpy==2.0 " + " ".join(f"--hash=sha256:{each:064x}" for each in range(120))
    spec = sent(tmp_path, {"handler.py": HANDLER, "requirements.txt": line + "\n"})

    assert spec.requirements == (line,)
    assert is_locked(spec.requirements)


def test_a_wrong_version_of_python_is_told_with_its_remedy():
    with pytest.raises(Wrong, match=r"a range such as >=3\.11,<4"):
        read_python("three")
