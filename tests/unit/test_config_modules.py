"""Unit: the modules file, its mistakes with their lines, and modules from JSON."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest
from attrs import evolve, fields
from hypothesis import given
from hypothesis import strategies as st

from config import requirements, units
from config.mistakes import MAX_DEPTH, ConfigError, Mistake, Wrong, parse_yaml
from config.modules.file import ModulesFile, read_modules
from config.modules.policies import Backoff, RetryPolicy, WorkersPolicy
from config.modules.spec import ModuleSpec, crowding, spec_from_mapping, spec_to_mapping
from config.secrets import Secret
from protocol.errors import ErrorKind
from protocol.model import Isolation, Kind
from tests.modules_file import load_modules

CODE = "def handler(value, /):\n    return value\n"


def load(folder: Path, text: str | bytes) -> ModulesFile:
    file = folder / "modules.yaml"
    file.write_bytes(text if isinstance(text, bytes) else dedent(text).encode())
    return load_modules(file)


def mistakes(folder: Path, text: str | bytes) -> list[str]:
    """Return the mistakes as people see them, without the folder of the file."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [str(mistake).replace(f"{folder}/", "") for mistake in caught.value.mistakes]


def check(folder: Path, text: str | bytes, *expected: str) -> None:
    """Expect exactly these mistakes; text that ends in `...` is compared up to there."""
    found = mistakes(folder, text)
    cut = [
        line[: len(want) - 3] + "..." if want.endswith("...") else line
        for line, want in zip(found, expected, strict=False)
    ]
    assert [*cut, *found[len(expected) :]] == list(expected)


def one(folder: Path, fields_: str) -> ModuleSpec:
    """Return the only module, of kind venv with code, that has these fields besides."""
    return load(folder, f"modules:\n  - {{name: m, env: venv, code: 'handler = print', {fields_}}}\n").modules[0]


def test_concurrency_counts_calls(tmp_path):
    """By default it is four workers of them."""
    specs = [one(tmp_path, each) for each in ("tags: []", "calls: 100", "calls: 600", "calls: 10, concurrency: 25")]

    assert [(spec.calls, spec.concurrency, spec.most_workers) for spec in specs] == [
        (1, 4, 4),
        (100, 400, 4),
        (600, 1000, 2),
        (10, 25, 3),
    ]
    assert [crowding(spec, 2) for spec in specs] == [None] * 4
    text = "`concurrency` 50 needs 50 workers, but `max_workers` is 8; lower it, or raise `max_workers`, or ..."
    crowded = one(tmp_path, "concurrency: 50")
    assert (crowding(crowded, 8) or "").startswith(text[:-3])
    assert crowding(crowded, 50) is None


def test_a_plain_function_runs_one_call_at_a_time(tmp_path):
    code = "modules:\n- {name: m, env: inline, calls: 2, code: 'def handler(input): return input'}\n"
    text = "'handler' is not async, so one call at a time runs in a worker; write `async def` (line 1 of the code)"

    check(tmp_path, code, f"modules.yaml:2: m.calls: {text}")
    assert from_json({"calls": 2, "code": "async def handler(input): yield input"}).calls == 2


# What is read.


def test_a_full_module_is_read(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "sub").mkdir()
    (tmp_path / "jobs" / "sub" / "report.py").write_text("def run(value): ...")
    file = load(
        tmp_path,
        """\
        runner:
          rest_port: 8100
        modules:
          - name: report.daily-1
            env: venv
            path: jobs
            handler: sub/report:run
            version: 1.10
            tags: [a, b]
            description: Reports.
            requirements: ["numpy>=2,<3", "httpx[http2]==0.28.*; python_version >= '3.9'"]
            python: 3.10
            isolation: fork
            timeout: 5m
            queue_timeout: 250ms
            build_timeout: 1.5h
            start_timeout: 7
            memory: 256MB
            cpus: 0.5
            processes: 3
            output: 1GiB
            concurrency: 8
            workers: {min: 2, idle: 1h, max_calls: 100}
            retry:
              attempts: 3
              backoff: {initial: 1s, factor: 3, max: 1m, jitter: 0}
              on: [timeout, lost]
            variables: {DEBUG: yes, RATE: 1.10, COUNT: 7, TEXT: hello, LD_LIBRARY_PATH: /lib}
            secrets: [TOKEN]
            input_schema: {type: object, properties: {on: {type: number}}}
        """,
    )

    assert file == ModulesFile(
        modules=(
            ModuleSpec(
                name="report.daily-1",
                env=Kind.VENV,
                path=tmp_path / "jobs",
                handler="sub/report:run",
                version="1.10",
                tags=("a", "b"),
                description="Reports.",
                requirements=("numpy>=2,<3", "httpx[http2]==0.28.*; python_version >= '3.9'"),
                python="3.10",
                isolation=Isolation.FORK,
                timeout=300.0,
                queue_timeout=0.25,
                build_timeout=5400.0,
                start_timeout=7.0,
                memory=256_000_000,
                cpus=0.5,
                processes=3,
                output=1024**3,
                concurrency=8,
                workers=WorkersPolicy(min=2, idle=3600.0, max_calls=100),
                retry=RetryPolicy(3, Backoff(1.0, 3.0, 60.0, 0.0), (ErrorKind.TIMEOUT, ErrorKind.LOST)),
                variables={"DEBUG": "yes", "RATE": "1.10", "COUNT": "7", "TEXT": "hello", "LD_LIBRARY_PATH": "/lib"},
                secrets={"TOKEN": Secret(env="OPERATO_SECRET_TOKEN")},
                input_schema={"type": "object", "properties": {"on": {"type": "number"}}},
            ),
        ),
        runner={"rest_port": 8100},
        path=tmp_path / "modules.yaml",
        lines={"rest_port": 2},
        files=(tmp_path / "jobs",),
    )


def test_modules_may_be_a_mapping_of_names(tmp_path):
    file = load(
        tmp_path,
        """\
        modules:
          first: {env: inline, code: "handler = print"}
          42: {env: docker, image: "python:3.12", network: true}
        """,
    )

    assert file.modules == (
        ModuleSpec("first", Kind.INLINE, code="handler = print"),
        ModuleSpec("42", Kind.DOCKER, image="python:3.12", network=True),
    )


@pytest.mark.parametrize("text", ["modules: []", "modules:", "runner: {}", "modules: {}\nrunner:\n"])
def test_a_file_may_serve_nothing_yet(tmp_path, text):
    assert load(tmp_path, text).modules == ()


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    assert load(tmp_path, b"\xef\xbb\xbfmodules: []").modules == ()


def test_aliases_and_merge_keys_are_followed(tmp_path):
    file = load(
        tmp_path,
        """\
        modules:
          - &base {name: one, env: inline, code: &code "handler = print", timeout: 5s}
          - {<<: *base, name: two, timeout: 6s}
          - {name: three, env: inline, code: *code}
        """,
    )

    assert [(spec.name, spec.timeout, spec.code) for spec in file.modules] == [
        ("one", 5.0, "handler = print"),
        ("two", 6.0, "handler = print"),
        ("three", 60.0, "handler = print"),
    ]


def test_conda_has_dependencies_and_requirements(tmp_path):
    spec = load(
        tmp_path,
        "modules: {m: {env: conda, code: handler = print, dependencies: [numpy >=1.0],"
        " channels: [forge], requirements: [a]}}",
    ).modules[0]

    assert (spec.dependencies, spec.channels, spec.requirements) == (("numpy >=1.0",), ("forge",), ("a",))


def test_a_handler_may_have_any_name_that_python_knows(tmp_path):
    text = "modules: {m: {env: inline, code: 'def 처리(input): pass', handler: 처리}}"

    assert load(tmp_path, text).modules[0].handler == "처리"


def test_syntax_of_another_python_is_not_judged(tmp_path):
    spec = load(tmp_path, "modules: {m: {env: venv, python: '3.13', code: 'def ('}}").modules[0]

    assert spec.code == "def ("


def test_code_that_only_warns_compiles(tmp_path):
    code = "handler = 1 is 1"

    assert load(tmp_path, f"modules: {{m: {{env: inline, code: '{code}'}}}}").modules[0].code == code


# The whole file is wrong.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "modules.yaml: is empty; write `modules: []` for a file without modules"),
        ("# only this\n", "modules.yaml: is empty; ..."),
        (
            "- a\n",
            "modules.yaml:1: contains a list where a mapping with `modules:` is expected; write ...",
        ),
        ("modules", "modules.yaml:1: contains 'modules' where a mapping with `modules:` is expected"),
        (b"a: b\nc: \xff\n", "modules.yaml:2: is not UTF-8 text: invalid start byte at byte 8"),
        ("a: [1,\nb: }\n", "modules.yaml:1: is not valid YAML: the [ in column 4 has no ]; ..."),
        ("a:\n\tb: 1\n", "modules.yaml:2: is not valid YAML: this line begins with a tab; ..."),
        ("a: 1\nb: \x07\n", "modules.yaml:2: is not valid YAML: the character U+0007 is not allowed (column 4)"),
        (
            "modules: []\n---\nmodules: []\n",
            "modules.yaml:2: is not valid YAML: this line begins a second document; ...",
        ),
        ("[" * 5000, "modules.yaml: is nested too deeply"),
        (
            "modules: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
            "modules.yaml:1: is nested more than 64 levels deep, ...",
        ),
        ("modules: &a [*a]", "modules.yaml:1: is nested more than 64 levels deep, or contains itself"),
        ("modules: &a {<<: *a}", "modules.yaml: is nested too deeply"),
        (
            "module: []",
            "modules.yaml:1: module: unknown section; a file has modules and runner; did you mean 'modules'?",
        ),
        ("modules: 3", "modules.yaml:1: modules: 3 is not a list of modules or a mapping of their names"),
        ("runner: [a]", "modules.yaml:1: runner: a list is not a mapping of settings"),
        ("modules: []\nmodules: []", "modules.yaml:2: modules: is given twice, first in line 1"),
        ("modules: !!python/name:os.system", "modules.yaml:1: modules: the YAML tag ..."),
        ("modules: []\n? [a]\n: 1", "modules.yaml:2: a key must be text"),
        ("modules: {<<: 1}", "modules.yaml:1: modules: `<<` accepts only mappings"),
        ("modules: []\nrunner: {conda_exe: !!int x}", "modules.yaml:2: runner.conda_exe: 'x' cannot be read as int"),
    ],
)
def test_the_whole_file_is_wrong(tmp_path, text, expected):
    check(tmp_path, text, expected)


def test_a_missing_file_is_a_mistake(tmp_path):
    file = tmp_path / "none.yaml"

    with pytest.raises(ConfigError) as caught:
        load_modules(file)

    assert caught.value.mistakes == (Mistake("does not exist", str(file), None, ""),)


def test_a_folder_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_modules(tmp_path)


def test_aliases_of_aliases_end_at_the_limit(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]

    check(tmp_path, "\n".join(lines), "modules.yaml:1: repeats more than 100000 values through aliases")


def test_merges_of_merges_end_at_the_limit(tmp_path):
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)]

    check(tmp_path, "\n".join(lines), "modules.yaml:1: repeats more than 100000 values through aliases")


@pytest.mark.parametrize(
    "text",
    [
        "b: &b {}\na: &a {<<: [" + "*b," * 5000 + "]}\nr: {<<: [" + "*a," * 5000 + "]}\n",
        "a: &a {<<: [" + "1," * 5000 + "]}\nr: {<<: [" + "*a," * 5000 + "]}\n",
        "a: &a {" + "".join(f"k{n}: 1, " for n in range(2000)) + "}\nr: {<<: [" + "*a," * 5000 + "]}\n",
        "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: *a{n - 1}, k{n}: 1}}\n" for n in range(1, 900)),
    ],
    ids=["empty", "wrong", "wide", "chain"],
)
def test_merges_count_as_repetitions(text, monkeypatch):
    """Each of these would take minutes."""
    monkeypatch.setattr("config.mistakes.document.MAX_REPEATED", 2000)
    with pytest.raises(Wrong, match=r"repeats more than 2000 values|nested too deeply"):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("description: no", "description: false is not text; YAML reads no, off and false as false"),
        ("description: on", "description: true is not text; YAML reads yes, on and true as true"),
        ("tags: [a, off]", "tags[1]: false is not text; YAML reads no, off and false as false"),
        ("isolation: no", "isolation: false is not one of warm, fork, fresh, none; YAML reads no, off and false as"),
        ("handler: yes", "handler: true is not text; YAML reads yes, on and true as true"),
        ("retry: {on: [no]}", "retry.on[0]: false is not one of"),
    ],
)
def test_words_that_yaml_reads_as_booleans(tmp_path, field, expected):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"modules: {{m: {{env: inline, code: handler = print, {field}}}}}")

    (only,) = caught.value.mistakes
    assert f"{only.field}: {only.message}".startswith(f"m.{expected}"), only
    assert "write the word in quotes" in only.message


def test_a_key_that_is_given_twice_is_named(tmp_path):
    check(
        tmp_path,
        "modules:\n  m: {env: inline, code: handler = print, timeout: 1, timeout: 2}",
        "modules.yaml:2: m.timeout: is given twice, first in line 2",
    )


# Fields.


def test_all_mistakes_are_told_at_once_by_line(tmp_path):
    check(
        tmp_path,
        """\
        modules:
          - name: hello-world
            env: inline
            code: "handler = print"
            isolation: warn
            timout: 3
            timeout: 0
          - name: Bad
            env: venv
            code: |
              def handler(value, /):
                  return (
          - just text
          - env: vnv
            code: handler = print
          - name: hello-world
            env: inline
            path: gone.py
        modul: 1
        """,
        "modules.yaml:5: hello-world.isolation: 'warn' is not one of warm, fork, fresh, none; did you mean 'warm'?",
        "modules.yaml:6: hello-world.timout: unknown field; did you mean 'timeout'?",
        "modules.yaml:7: hello-world.timeout: 0s is out of range; it must be more than 0s and at most 7d",
        "modules.yaml:8: modules[1].name: 'Bad' is not a name: ...",
        "modules.yaml:12: modules[1].code: does not compile: '(' was never closed"
        " (line 2 of the code, column 12: `return (`)",
        "modules.yaml:13: modules[2]: 'just text' is not a module; a module is a mapping",
        "modules.yaml:14: modules[3].name: is missing",
        "modules.yaml:14: modules[3].env: 'vnv' is not one of inline, venv, conda, docker; did you mean 'venv'?",
        "modules.yaml:16: hello-world.name: the name is given twice, first in line 2",
        "modules.yaml:18: hello-world.path: 'gone.py' does not exist",
        "modules.yaml:19: modul: unknown section; a file has modules and runner; did you mean 'modules'?",
    )


def test_a_name_is_given_once(tmp_path):
    check(
        tmp_path,
        """\
        modules:
          a: {env: inline, code: "handler = print"}
          b:
            name: c
            env: inline
            code: "handler = print"
          a: {env: inline, code: "handler = print"}
          d: {name: d, env: inline, code: "handler = print"}
        """,
        "modules.yaml:4: b.name: the name is already given as 'b'; leave it out here",
        "modules.yaml:7: a: is given twice, first in line 2",
    )


def test_a_field_is_given_once(tmp_path):
    check(
        tmp_path,
        "modules:\n  - name: a\n    env: inline\n    code: handler = print\n    env: inline\n",
        "modules.yaml:5: a.env: is given twice, first in line 3",
    )


def test_a_mistake_carries_what_is_allowed(tmp_path):
    with pytest.raises(ConfigError) as caught:
        one(tmp_path, "isolation: warn")

    [mistake] = caught.value.mistakes
    assert (mistake.file, mistake.line) == (str(tmp_path / "modules.yaml"), 2)
    assert (mistake.field, mistake.allowed) == ("m.isolation", "warm, fork, fresh, none")


DURATION = "is not a duration; write a number of seconds, or text such as 30s, 5m, 1.5h, 250ms, 7d"
SIZE = "is not a size; write a whole number of bytes, or text such as 256MB, 1GiB, 512k"
OUT = "is out of range; it must be"


CASES: list[tuple[str, ...]] = [
    ("timeout: true", f"timeout: true {DURATION}"),
    ("timeout: 5 apples", f"timeout: '5 apples' {DURATION}"),
    ("timeout: -5s", f"timeout: '-5s' {DURATION}"),
    ("timeout: -5", f"timeout: -5s {OUT} more than 0s and at most 7d"),
    ("timeout: .nan", f"timeout: nan {DURATION}"),
    ("timeout: .inf", f"timeout: inf {DURATION}"),
    ("timeout: null", f"timeout: nothing {DURATION}"),
    (f"timeout: 1{'0' * 400}", "timeout: 10..."),
    ("queue_timeout: 8d", f"queue_timeout: 8d {OUT} more than 0s and at most 7d"),
    ("build_timeout: 0", f"build_timeout: 0s {OUT} more than 0s and at most 7d"),
    ("start_timeout: []", f"start_timeout: a list {DURATION}"),
    ("memory: 15MiB", f"memory: 15MiB {OUT} from 16MiB to 4194304TiB"),
    ("memory: lots", f"memory: 'lots' {SIZE}"),
    ("memory: 0.3k", "memory: 300B ..."),
    ("memory: 16777216.0", f"memory: 16777216.0 {SIZE}"),
    ("memory: true", f"memory: true {SIZE}"),
    ("output: -1", f"output: -1B {OUT} from 0B to 4194304TiB"),
    ("output: 0.0001k", f"output: '0.0001k' {SIZE}"),
    ("cpus: 0", f"cpus: 0 {OUT} more than 0 and at most 4096"),
    ("cpus: '2'", "cpus: '2' is not a number"),
    ("cpus: .inf", "cpus: inf is not a number"),
    ("processes: 0", f"processes: 0 {OUT} 1 or more"),
    ("processes: 1.0", "processes: 1.0 is not a whole number"),
    ("concurrency: 0", f"concurrency: 0 {OUT} from 1 to 1000"),
    ("concurrency: 1001", f"concurrency: 1001 {OUT} from 1 to 1000"),
    ("concurrency: yes", "concurrency: true is not a whole number"),
    ("workers: 3", "workers: is not a mapping"),
    ("workers: {mn: 3}", "workers.mn: unknown field; did you mean 'min'?"),
    ("workers: {min: 5}", "workers.min: 5 is more than concurrency, which is 4"),
    ("calls: 0", f"calls: 0 {OUT} from 1 to 1000"),
    (
        "calls: 10, concurrency: 25, workers: {min: 4}",
        "workers.min: 4 is more than concurrency, which is 25, needs (3)",
    ),
    *(
        (f"calls: 2, isolation: {each}", f"calls: is for isolation: warm, where calls share a worker, not for {each}")
        for each in ("fork", "fresh")
    ),
    ("workers: {min: -1}", f"workers.min: -1 {OUT} 0 or more"),
    ("workers: {idle: 0}", f"workers.idle: 0s {OUT} more than 0s and at most 7d"),
    ("workers: {max_calls: -1}", f"workers.max_calls: -1 {OUT} 0 or more"),
    ("rate: 10", "rate: 10 ..."),
    ("rate: 0/s", "rate: '0/s' is not a number from 1 to 9999 and a unit..."),
    ("group: customer", "group: is not a mapping"),
    ("group: {concurrency: 1}", "group.key: is missing"),
    ("group: {key: customer}", "group.key: 'customer' is not a path into the input, such as $.customer..."),
    ("group: {key: $.a, concurrency: 0}", f"group.concurrency: 0 {OUT} from 1 to 1000"),
    ("retry: {attempts: 0}", f"retry.attempts: 0 {OUT} from 1 to 100"),
    ("retry: {attempts: 101}", f"retry.attempts: 101 {OUT} from 1 to 100"),
    ("retry: {on: timeout}", "retry.on: 'timeout' is not a list"),
    ("retry: {on: [lost, tmeout]}", "retry.on[1]: 'tmeout' is not one of bad_input, ..."),
    ("retry: {backoff: {factor: 0.5}}", f"retry.backoff.factor: 0.5 {OUT} from 1 to 100"),
    ("retry: {backoff: {jitter: 2}}", f"retry.backoff.jitter: 2 {OUT} from 0 to 1"),
    ("retry: {backoff: {max: 2d}}", f"retry.backoff.max: 2d {OUT} from 0s to 1d"),
    ("retry: {backoff: {initial: 1m}}", "retry.backoff.initial: 1m is more than max, which is 30s"),
    ("tags: a", "tags: 'a' is not a list"),
    ("tags: [a, ' ', 3]", "tags[1]: is empty", "tags[2]: 3 is not text; write it in quotes"),
    ("description: 3", "description: 3 is not text; write it in quotes"),
    ('description: "\\0"', "description: contains a null character"),
    ("handler: a-b", "handler: 'a-b' is not the name of a function, or `file:function` for a file of a folder"),
    ("handler: /etc/x:f", "handler: names a file, but ...", "handler: '/etc/x:f' is not ..."),
    ("handler: ../x:f", "handler: names a file, but ...", "handler: '../x:f' is not ..."),
    ("handler: jobs:f", "handler: names a file, but `code` is only one; use `path`"),
    ("version: 'a b'", "version: 'a b' is not a version: ..."),
    ("python: 3", "python: '3' is not a Python version such as 3.12 or 3.12.4, or a range such as >=3.11,<4"),
    ("python: '>=4'", "python: '>=4' allows no Python 3 from 3.8 on"),
    (
        "variables: [a]",
        "variables: a list is not a mapping of names to values; write lines ...",
    ),
    ("variables: {1a: x}", "variables.1a: '1a' is not the name of a variable: ..."),
    ("variables: {OPERATO_X: x}", "variables.OPERATO_X: OPERATO_X is reserved: ..."),
    (
        "variables: {PYTHONHASHSEED: 0, PYTHONUTF8: 1, PYTHONPATH: /x, PYTHON_ENV: test, PYTHONOPTIMIZE: ''}",
        "variables.PYTHONHASHSEED: PYTHONHASHSEED has no effect: Python reads it when it starts, ...",
    ),
    ("secrets: [A, PYTHONHOME]", "secrets[1]: PYTHONHOME has no effect: ..."),
    ("secrets: {PYTHONUTF8: {env: A}}", "secrets.PYTHONUTF8: PYTHONUTF8 has no effect: ..."),
    ("shm: 1MiB", "shm: is not for env: venv, only for docker; use env: docker"),
    ("variables: {A: [], B: .nan}", "variables.A: a list is not text, ...", "variables.B: nan is not text, ..."),
    ("secrets: [A-B]", "secrets[0]: 'A-B' is not the name of a variable: ..."),
    ("secrets: [A], variables: {A: b}", "secrets[0]: A is given in `variables` too"),
    ("input_schema: []", "input_schema: a list is not a mapping"),
    ("input_schema: {a: [1, .nan]}", "input_schema.a[1]: nan is not a JSON number"),
    ("requirements: [a b]", "requirements[0]: 'a b' is not a requirement such as ..."),
    (
        "requirements: [-e .]",
        "requirements[0]: the option -e is not allowed: environments do not change; commit it ...",
    ),
    (
        "requirements: [--index-url=http://x]",
        "requirements[0]: the option --index-url is not allowed: package indexes are set in the operator's ...",
    ),
    ('requirements: ["a\\n-e ."]', "requirements[0]: the option -e is not allowed: environments do not change; ..."),
    ("path: x.py", "path: `code` is given too; a module has either", "path: 'x.py' does not exist"),
    ("isolation: none", "isolation: none is not for env: venv; it is only for inline"),
    ("dependencies: [a]", "dependencies: is not for env: venv, only for conda; use env: conda"),
    ("channels: [a]", "channels: is not for env: venv, only for conda; use env: conda"),
    ("image: x", "image: is not for env: venv, only for docker; use env: docker"),
    ("network: no", "network: is not for env: venv, only for docker; use env: docker"),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0][:60] for case in CASES])
def test_a_field_is_wrong(tmp_path, case):
    given_fields, *expected = case
    check(
        tmp_path,
        f"modules:\n  - {{name: m, env: venv, code: 'handler = print', {given_fields}}}\n",
        *(f"modules.yaml:2: m.{line}" for line in expected),
    )


MISTAKES_IN_MODULES = [
    ("{env: inline}", "m: has no code; give `code` or `path`"),
    ("{env: docker}", "m: has no code; give `code` or `path`"),
    ("{env: inline, code: ''}", "m: has no code; give `code` or `path`"),
    ("{code: handler = print}", "m.env: is missing; it is one of inline, venv, conda, docker"),
    (
        "{env: none, code: handler = print}",
        "m.env: 'none' is not one of inline, venv, conda, docker; did you mean 'inline'?",
    ),
    (
        "{env: inline, code: handler = print, requirements: [a]}",
        "m.requirements: is not for env: inline, only for venv, docker, conda; use env: venv",
    ),
    (
        "{env: inline, code: handler = print, python: 3.12}",
        "m.python: is not for env: inline, only for venv, conda, docker; use env: venv",
    ),
    ("{env: docker, image: -x}", "m.image: '-x' is not the name of an image"),
    ("{env: docker, image: x, isolation: none}", "m.isolation: none is not for env: docker; it is only for inline"),
    (
        "{env: conda, code: handler = print, dependencies: [-x]}",
        "m.dependencies[0]: '-x' is not text without a leading '-'",
    ),
    ("{env: inline, code: 3}", "m.code: 3 is not text; write it in quotes"),
    ('{env: inline, code: "a\\0b"}', "m.code: contains a null character"),
    ("{env: inline, path: ''}", "m: has no code; give `code` or `path`"),
    ("{env: inline, path: notes.txt}", "m.path: 'notes.txt' is not a .py file"),
    (
        "{env: inline, path: empty}",
        "m.handler: none of main.py, __init__.py, handler.py is in the folder; name it as `handler: file:function`",
    ),
    ('{env: inline, path: "a\\0b"}', "m.path: contains a null character"),
    (f"{{env: inline, path: {'x' * 300}}}", "m.path: ..."),
]


@pytest.mark.parametrize(("module", "expected"), MISTAKES_IN_MODULES)
def test_a_module_is_wrong(tmp_path, module, expected):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    found = mistakes(tmp_path, f"modules: {{m: {module}}}")
    prefix, _, _ = f"modules.yaml:1: {expected}".partition("...")
    assert found[0].startswith(prefix)
    assert len(found[0]) == len(prefix) or "..." in expected
    assert len(found) == (2 if "path: ''" in module else 1)


# Code.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("code: |\n      x = 1\n      y = (\n", 5),
        ("code: |-\n\n\n      y = (\n", 6),
        ("code: |  # why\n      def f():\n      pass\n", 5),
        ("code: 'handler = print = ('\n", 3),
        ("code:\n      x = (\n", 3),
        ("code: >\n      x = 1\n\n      y = (\n", 3),
        ("code: |\n      x = 1\n      return 3\n", 5),
        ("code: |\n      x = 1\n      # coding\n      await = 3\n", 6),
    ],
)
def test_code_that_does_not_compile_is_told_by_its_line(tmp_path, text, line):
    [found] = mistakes(tmp_path, f"modules:\n  m:\n    {text}    env: inline\n")

    assert found.startswith(f"modules.yaml:{line}: m.code: does not compile: ")


def test_code_of_an_alias_is_told_where_it_stands(tmp_path):
    [first, second] = mistakes(
        tmp_path,
        """\
        modules:
          a:
            env: inline
            code: &code |
              x = 1
              y = (
          b: {env: inline, code: *code}
        """,
    )

    assert (
        first
        == "modules.yaml:6: a.code: does not compile: '(' was never closed (line 2 of the code, column 5: `y = (`)"
    )
    assert (
        second
        == "modules.yaml:6: b.code: does not compile: '(' was never closed (line 2 of the code, column 5: `y = (`)"
    )


def test_code_that_is_nested_too_deeply_is_a_mistake():
    with pytest.raises(ConfigError, match=r"code: does not compile"):
        from_json({"code": "x = " + "-" * 7_000 + "1"})


# Files that are named.


def test_a_path_is_made_absolute(tmp_path):
    (tmp_path / "a.py").write_text(CODE)

    assert load(tmp_path, "modules: {m: {env: inline, path: a.py}}").modules[0].path == tmp_path / "a.py"


def test_the_file_may_be_named_relative_to_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text(CODE)
    (tmp_path / "modules.yaml").write_text(
        "modules: {m: {env: inline, path: a.py, timeout: 0s}, n: {env: inline, path: a.py}}"
    )
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match=r"^modules.yaml:1: m.timeout: "):
        load_modules(Path("modules.yaml"))


def test_a_requirements_file_is_read_with_what_it_includes(tmp_path):
    (tmp_path / "deps").mkdir()
    (tmp_path / "deps" / "all.txt").write_text(
        "# all of them\n\nnumpy>=2  # fast\n-r more.txt\n"
        "attrs==24.2 \\\n    --hash=sha256:00ff \\\n    --hash=sha256:11ee\n"
        "tool @ https://host/tool.whl#sha256=00\n"
    )
    (tmp_path / "deps" / "more.txt").write_text("httpx [http2] ; python_version > '3'\r\n")

    spec = load(tmp_path, "modules: {m: {env: venv, code: handler = print, requirements: deps/all.txt}}").modules[0]

    assert spec.requirements == (
        "numpy>=2",
        "httpx [http2] ; python_version > '3'",
        "attrs==24.2 --hash=sha256:00ff --hash=sha256:11ee",
        "tool @ https://host/tool.whl#sha256=00",
    )


def test_mistakes_of_requirements_files_name_their_file_and_line(tmp_path):
    (tmp_path / "all.txt").write_text("numpy\n-i http://x\n-r all.txt\n-r more.txt\n-r none.txt\n./more\n-c c.txt\n")
    (tmp_path / "more.txt").write_text("\n-r all.txt\n= 3\n")
    (tmp_path / "more").mkdir()

    found = mistakes(tmp_path, "modules: {m: {env: venv, code: handler = print, requirements: all.txt, timeout: 0}}")

    assert [line[: line.index(";")] if ";" in line else line for line in found] == [
        "modules.yaml:1: m.timeout: 0s is out of range",
        (
            "all.txt:2: m.requirements: the option -i is not allowed: package indexes are set "
            "in the operator's uv configuration"
        ),
        "all.txt:3: m.requirements: all.txt: a requirements file cannot include itself",
        "all.txt:5: m.requirements: none.txt: does not exist",
        "all.txt:6: m.requirements: './more' is a folder, which changes without notice",
        "all.txt:7: m.requirements: c.txt: does not exist",
        "more.txt:2: m.requirements: all.txt: a requirements file cannot include itself",
        "more.txt:3: m.requirements: '= 3' is not a requirement such as requests, numpy>=2,<3 or name @ https://host/file.whl",
    ]


def test_a_requirements_file_must_be_there_and_be_text(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff")

    check(
        tmp_path,
        "modules:\n  a: {env: venv, code: handler = print, requirements: none.txt}\n"
        "  b: {env: venv, code: handler = print, requirements: bad.txt}\n",
        "modules.yaml:2: a.requirements: none.txt: does not exist; give a list, a text of lines, or the name of a ...",
        "modules.yaml:3: b.requirements: bad.txt: is not UTF-8 text: invalid start byte at byte 0",
    )


@pytest.mark.parametrize(
    "line",
    [
        "requests",
        "a.b-c_d",
        "numpy>=2,<3",
        "numpy >= 2 , < 3",
        "x (>=1.0)",
        "httpx[http2, cli]==0.28.*",
        "x~=1.0; sys_platform == 'linux' and extra == 'y'",
        "x===weird",
        "x @ git+https://host/repo@tag",
        "x!=1.0",
        "x>=1,",
        "git+https://host/repo@main",
        "https://host/x.whl",
        "x @ https://host/x.tar.gz#sha256=00 ; os_name == 'posix'",
        "x==1 --hash=sha256:aa --hash=sha256:bb",
    ],
)
def test_a_requirement_line_is_left_to_the_installer(line):
    assert lines_of([f" {line} "]) == [line]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "=1",
        "x 1.0",
        "x; a --index-url http://x",
        "x @",
        "x @ -y",
        "x[",
        "x" * 5000,
        "x" + " " * 50_000 + "y",
        "--pre",
        "-r",
    ],
)
def test_a_line_that_is_no_requirement(line):
    assert len(wrongs_of([line])) == 1
    assert lines_of([line]) == []


FROM_THIS_MACHINE = [
    "x @ file:///opt/x",
    "x@file:x",
    "x [a] @ FILE:///opt/x",
    "x \\\n  @ file:///opt/x",
    "x @ ./x",
    "x @ x",
    "x @ /opt/x",
    "x @ ${HOME}/x",
    "./x",
    "x/y",
    "/opt/x",
    "x-1.0.tar.gz",
    "x-1.0-py3-none-any.whl",
    "file:///opt/x",
    "git+file:///opt/x",
    "x @ git+file:///opt/x",
    "x @ git+ssh://git@host/x",
    "x @ https://host/${UV_INDEX_URL}/x.whl",
    "https://host/x.whl#${UV_INDEX_URL}",
    "-r more.txt",
    "-c more.txt",
    "-f /opt",
    "--find-links=/opt",
    "-e .",
    "--editable=/opt/x",
]


@pytest.mark.parametrize("line", FROM_THIS_MACHINE)
@pytest.mark.parametrize("form", ["list", "text"])
def test_a_caller_of_the_api_names_nothing_of_this_machine(line, form):
    data = {"env": "venv", "code": CODE, "requirements": [line] if form == "list" else f"six\n{line}\n"}
    with pytest.raises(ConfigError) as caught:
        from_json(data)

    (only,) = caught.value.mistakes
    assert only.field == ("requirements[0]" if form == "list" else "requirements")


def test_a_folder_is_refused_with_what_to_do_instead(tmp_path):
    (tmp_path / "pkg").mkdir()
    for line in ("./pkg", "pkg/", f"pkg @ file://{tmp_path}/pkg", f"pkg @ {tmp_path}/pkg", "-e ./pkg", "-e pkg"):
        (found,) = wrongs_of([line], tmp_path)
        assert "git+https://" in found.message
        assert "wheel" in found.message


def test_files_of_packages_are_found_from_the_file_that_names_them(tmp_path):
    (tmp_path / "deps").mkdir()
    (tmp_path / "deps" / "all.txt").write_text("./x-1.whl\ny @ y-1.whl#sha256=00\nz @ file:z.whl\n/a.whl\n")
    near = f"file://{tmp_path}/deps"

    spec = load(tmp_path, "modules: {m: {env: venv, code: handler = print, requirements: deps/all.txt}}").modules[0]

    assert spec.requirements == (
        f"{near}/x-1.whl",
        f"y @ {near}/y-1.whl#sha256=00",
        f"z @ {near}/z.whl",
        "file:///a.whl",
    )
    assert spec_from_mapping(spec_to_mapping(spec), base=None, allow_path=True, trusted=True) == spec


def lines_of(items: list[str], folder: Path | None = None) -> list[str]:
    return requirements.read_lines(items, requirements.Origin(folder, trusted=True))[0][0]


def wrongs_of(items: list[str], folder: Path | None = None) -> list[Wrong]:
    return requirements.read_lines(items, requirements.Origin(folder, trusted=True))[1]


WRITTEN = (
    "\ufeff# all of them \\\r\n\r\nsix>=1  # why\r\nidna[x , y]==3 ; python_version >= '3' \\\r\n"
    "    --hash=sha256:00 \\\r\n    --hash=sha256:11\r\n-c limits.txt\r\n-r  more.txt # and\r\n"
)
READ = (
    ("six>=1", "idna[x , y]==3 ; python_version >= '3' --hash=sha256:00 --hash=sha256:11", "more", "last"),
    ("limit<2", "deeper<3"),
)


@pytest.mark.parametrize("form", ["file", "list", "text", "upload", "conda"])
def test_requirements_are_read_in_one_way_in_every_form(tmp_path, form):
    for name, text in (
        ("all.txt", WRITTEN),
        ("limits.txt", "limit<2\n-r deeper.txt"),
        ("deeper.txt", "deeper<3"),
        ("more.txt", "more\n-r=last.txt"),
        ("last.txt", "last"),
        ("environment.yml", json.dumps({"dependencies": ["python", {"pip": [WRITTEN]}]})),
    ):
        (tmp_path / name).write_bytes(text.encode())
    given = {"file": "all.txt", "list": [WRITTEN], "text": WRITTEN, "upload": "all.txt"}
    data = {"env": "venv", "code": CODE, "requirements": given.get(form)}
    if form == "conda":
        data = {"env": "conda", "code": CODE, "dependencies": "environment.yml"}

    spec = from_json(data, base=tmp_path, allow_path=True, trusted=form != "upload")

    assert (spec.requirements, spec.constraints) == READ


def test_a_text_has_the_lines_of_its_mistakes(tmp_path):
    assert one(tmp_path, r'requirements: "six\nidna"').requirements == ("six", "idna")
    text = "modules:\n- name: m\n  env: venv\n  code: handler = print\n  requirements: |\n    six\n    -i x\n"
    check(tmp_path, text, "modules.yaml:7: m.requirements: the option -i is not allowed: ...")


def test_constraints_are_a_field_too(tmp_path):
    (tmp_path / "c.txt").write_text("b<2\n")
    data = {"env": "venv", "code": CODE, "requirements": ["a", "-c c.txt"], "constraints": "c<3\nd<4\n"}

    assert from_json(data, base=tmp_path, allow_path=True).constraints == ("c<3", "d<4", "b<2")
    assert from_json({**data, "requirements": ["a"], "constraints": ["b"]}).constraints == ("b",)


def test_many_files_that_include_each_other_end(tmp_path):
    for level in range(30):
        (tmp_path / f"{level}.txt").write_text(f"-r {level + 1}.txt\n-r {level + 1}.txt\n")
    with pytest.raises(ConfigError, match="10 files already include each other here"):
        from_json({"env": "venv", "code": CODE, "requirements": "0.txt"}, base=tmp_path, allow_path=True)


# JSON.


def from_json(data: dict, **options) -> ModuleSpec:
    return spec_from_mapping({"name": "m", "env": "inline"} | data, **{"base": None, "allow_path": False} | options)


def refused(data: dict, *expected: str, **options) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(data, **options)
    assert [str(mistake) for mistake in caught.value.mistakes] == list(expected)
    assert {(mistake.file, mistake.line) for mistake in caught.value.mistakes} == {(None, None)}


def test_json_mistakes_are_told_at_once_without_lines():
    refused(
        {"code": "x = (", "timeout": "soon", "tag": [], "variables": {"A": True, "B": None}},
        "code: does not compile: '(' was never closed (line 1 of the code, column 5: `x = (`)",
        f"timeout: 'soon' {DURATION}",
        "variables.B: nothing is not text, a number or a boolean",
        "tag: unknown field; did you mean 'tags'?",
    )


def test_json_variables_are_text():
    assert from_json({"code": "handler = print", "variables": {"A": True, "B": 1.5}}).variables == {
        "A": "true",
        "B": "1.5",
    }


@pytest.mark.parametrize("data", [[], None, "x"])
def test_json_that_is_no_mapping(data):
    with pytest.raises(ConfigError, match="is not a module; a module is a mapping"):
        spec_from_mapping(data, base=None, allow_path=False)


def test_json_may_hold_half_characters():
    refused({"code": "x = '\ud800'"}, "code: contains half of a character (a lone surrogate)")


def test_json_cannot_name_files(tmp_path):
    refused({"path": "/etc/x.py"}, "path: '/etc/x.py': files are only for the operator's modules file")
    refused(
        {"env": "venv", "code": "handler = print", "requirements": "a.txt"},
        "requirements: 'a.txt': files are only for the operator's modules file; give a list, a text of lines, or the"
        " name of a requirements file",
    )


def test_json_cannot_leave_the_isolation(tmp_path):
    refused(
        {"code": "handler = print", "isolation": "none"},
        "isolation: none is not for this; it is only for the operator's modules file",
    )
    assert from_json({"code": "handler = print", "isolation": "none"}, trusted=True).isolation is Isolation.NONE


def test_an_uploaded_module_stays_in_its_folder(tmp_path):
    folder = tmp_path / "upload"
    folder.mkdir()
    (folder / "main.py").write_text(CODE)
    (folder / "r.txt").write_text("-r ../secret.txt\n")
    (tmp_path / "secret.txt").write_text("password\n")
    (folder / "link").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    inside = {"base": folder, "allow_path": True}

    assert from_json({"path": "main.py"}, **inside).path == folder / "main.py"
    assert from_json({"path": "."}, **inside).path == folder
    for path in ("..", "../secret.txt", "link", "/etc"):
        refused({"path": path}, f"path: {path!r} is outside of the folder of the module", **inside)
    refused({"path": "loop"}, "path: 'loop' does not exist", **inside)
    with pytest.raises(ConfigError, match=r"r.txt:1: requirements: '../secret.txt' is outside of the folder"):
        from_json({"env": "venv", "path": "main.py", "requirements": "r.txt"}, **inside)


def test_without_a_folder_a_path_is_absolute(tmp_path):
    (tmp_path / "a.py").write_text(CODE)

    assert from_json({"path": str(tmp_path / "a.py")}, allow_path=True).path == tmp_path / "a.py"
    refused({"path": "a.py"}, "path: 'a.py' is not an absolute path", allow_path=True)


def test_every_module_comes_back_from_its_mapping(tmp_path):
    (tmp_path / "a.py").write_text(CODE)
    plain = ModuleSpec("plain", Kind.INLINE, code=CODE, isolation=Isolation.NONE)
    full = ModuleSpec(
        "full",
        Kind.DOCKER,
        path=tmp_path / "a.py",
        version="1.0",
        tags=("a",),
        description="d",
        requirements=("numpy",),
        constraints=("numpy<3",),
        python="3.12",
        isolation=Isolation.FRESH,
        timeout=0.5,
        memory=10**9,
        cpus=1.5,
        processes=2,
        workers=WorkersPolicy(1, 3.5, 7),
        retry=RetryPolicy(2, Backoff(1.0, 2.0, 3.0, 0.5), (ErrorKind.LOST,)),
        variables={"A": "b"},
        secrets={"TOKEN": Secret(env="OPERATO_SECRET_TOKEN"), "KEY": Secret(file=tmp_path / "key")},
        network=False,
        image="python:3.12",
        input_schema={"type": ["object", "null"], "properties": {"x": {"minimum": 1.5}}},
    )
    for spec in (
        plain,
        full,
        evolve(full, env=Kind.CONDA, image=None, network=None, dependencies=("x >=1",), channels=("c",)),
    ):
        data = json.loads(json.dumps(spec_to_mapping(spec), allow_nan=False))
        assert spec_from_mapping(data, base=None, allow_path=True, trusted=True) == spec


def test_a_mapping_leaves_out_what_is_not_given():
    assert spec_to_mapping(from_json({"code": "handler = print"})).keys() == {
        field.name for field in fields(ModuleSpec) if field.default is not None and field.name != "path"
    } | {"code"}


def test_what_was_given_is_not_changed():
    data = {"name": "m", "env": "venv", "code": "handler = print", "requirements": [" a "]}
    before = json.dumps(data)

    assert spec_from_mapping(data, base=None, allow_path=False).requirements == ("a",)
    assert json.dumps(data) == before


# Units.


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h", 3600),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("2d", 172800),
        (" 7 s ", 7),
        ("0.1", 0.1),
        (3, 3),
        (0.5, 0.5),
    ],
)
def test_durations(written, seconds):
    assert units.duration(written) == seconds


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        ("512k", 512_000),
        ("256MB", 256_000_000),
        ("1GiB", 2**30),
        ("1.5KiB", 1536),
        ("2Ti", 2**41),
        ("7B", 7),
        ("9", 9),
        (5, 5),
        ("1 mb", 10**6),
    ],
)
def test_sizes(written, amount):
    assert units.size(written) == amount


@pytest.mark.parametrize(
    "value", ["", "s", "1e3", "nan", "inf", "1h30m", "٣", "1,5", None, [], True, math.nan, -math.inf, "1" * 31]
)
def test_what_is_neither_a_duration_nor_a_size(value):
    with pytest.raises(Wrong, match="is not a duration"):
        units.duration(value)
    with pytest.raises(Wrong, match="is not a size"):
        units.size(value)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0))
def test_every_duration_can_be_told(seconds):
    """Values out of range are reported to the author."""
    assert units.format_duration(seconds)


@given(st.floats(min_value=1e-6, max_value=1e12) | st.integers(0, 10**9).map(float))
def test_durations_come_back(seconds):
    assert units.duration(units.format_duration(seconds)) == seconds


@given(st.integers(0, 2**62))
def test_sizes_come_back(amount):
    assert units.size(units.format_size(amount)) == amount


@given(st.text(max_size=40))
def test_any_text_is_a_file_or_mistakes(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("any") / "modules.yaml"
    file.write_bytes(text.encode("utf-8", "replace"))
    with suppress(ConfigError):
        load_modules(file)


# Files that are no files.


def test_the_requirements_files_that_a_file_names_are_told(tmp_path):
    (tmp_path / "all.txt").write_text("-r more.txt\nnone\n-r absent.txt\n")
    (tmp_path / "more.txt").write_text("numpy\n")

    file, wrongs = read_modules_in(
        tmp_path, "modules: {m: {env: venv, code: 'handler = print', requirements: all.txt}}"
    )

    assert file.files == (tmp_path / "all.txt", tmp_path / "more.txt", tmp_path / "absent.txt")
    assert len(wrongs) == 1, "they are returned although one of them is wrong"


def read_modules_in(folder: Path, text: str) -> tuple[ModulesFile, tuple[Mistake, ...]]:
    (folder / "modules.yaml").write_text(text)
    return read_modules(folder / "modules.yaml")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (os.mkfifo, "is not a regular file; devices and pipes cannot be reloaded"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file; devices and pipes cannot be reloaded"),
        (lambda path: path.write_bytes(b""), "is empty; write `modules: []` for a file without modules"),
        (lambda path: path.write_bytes(b"\x7fELF\x02\x01\x01\0\xff"), "is not UTF-8 text"),
        (lambda path: path.write_bytes(b"# x\n" * 5_000_000), "is over 16777216 bytes"),
    ],
    ids=["folder", "link to itself", "pipe", "device", "empty", "binary", "huge"],
)
def test_what_is_no_modules_file(tmp_path, make, why):
    make(tmp_path / "modules.yaml")

    with pytest.raises(ConfigError) as caught:
        load_modules(tmp_path / "modules.yaml")

    (only,) = caught.value.mistakes
    assert only.message.startswith(why)


def test_many_modules_are_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("config.mistakes.MAX_REPEATED", 10)
    text = "modules:\n" + "".join(f"  m{number}: {{env: inline, code: handler = print}}\n" for number in range(100))

    assert len(load(tmp_path, text).modules) == 100


def test_a_value_that_cannot_be_read_is_told_once(tmp_path):
    check(
        tmp_path,
        "modules: {a: {env: inline, code: handler = print, timeout: " + "9" * 5000 + "}}",
        f"modules.yaml:1: a.timeout: '{'9' * 60}' cannot be read as int",
    )


def test_a_long_name_of_a_file_is_cut(tmp_path):
    (found,) = mistakes(tmp_path, f"modules: {{a: {{env: venv, code: handler = print, requirements: {'a' * 5000}}}}}")

    assert len(found) < 200


def test_code_that_was_looked_at_is_not_again(tmp_path):
    (tmp_path / "main.py").write_text("x = (")
    data = {"name": "m", "env": "inline", "path": "."}

    assert spec_from_mapping(data, base=tmp_path, allow_path=True, checked=True).path == tmp_path
    with pytest.raises(ConfigError, match="does not compile"):
        spec_from_mapping(data, base=tmp_path, allow_path=True)


@pytest.mark.parametrize(
    ("fields", "where", "limit"),
    [
        ({"tags": ["t"] * 65}, "tags", "64"),
        ({"variables": {f"V{n}": "x" for n in range(1001)}}, "variables", "1,000"),
        ({"requirements": ["a"] * 5001}, "requirements", "5,000"),
        ({"description": "x" * 65_537}, "description", "65,536"),
        ({"variables": {"V": "x" * 65_537}}, "variables.V", "65,536"),
        ({f"f{n}": 1 for n in range(101)}, "", "100"),
    ],
)
def test_fields_have_a_largest_size(fields, where, limit):
    with pytest.raises(ConfigError) as caught:
        spec_from_mapping(
            {"name": "a", "env": "inline", "code": "def handler(x, /): pass", **fields}, base=None, allow_path=False
        )

    [mistake] = caught.value.mistakes
    assert mistake.field == where
    assert limit in mistake.message
