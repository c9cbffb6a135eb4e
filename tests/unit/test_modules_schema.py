"""Unit: the JSON Schema of modules.yaml: it accepts what the runner accepts, and finds most mistakes."""

from __future__ import annotations

import re

import attrs
import jsonschema
import pytest
import yaml

from config.load import SETTINGS
from config.mistakes import parse_yaml
from config.modules import ModuleSpec, read_modules
from protocol.model import Kind
from runner.cli.authors import modules_schema
from tests.documents import ROOT
from tests.unit.test_config_load import MISTAKES_IN_SETTINGS
from tests.unit.test_config_modules import CASES, MISTAKES_IN_MODULES

SCHEMA = modules_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)
BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
BEYOND = {
    "timeout: .nan": "JSON has no such number",
    "queue_timeout: 8d": "amounts in text are not compared",
    "memory: 15MiB": "amounts in text are not compared",
    "memory: 0.3k": "amounts in text are not compared",
    "memory: 16777216.0": "JSON has one kind of number",
    "output: 0.0001k": "amounts in text are not compared",
    "processes: 1.0": "JSON has one kind of number",
    "workers: {min: 5}": "a rule between two fields",
    "calls: 10, concurrency": "a rule between two fields",
    "calls: 2, isolation": "a rule between two fields",
    "retry: {backoff: {max: 2d}}": "amounts in text are not compared",
    "retry: {backoff: {initial: 1m}}": "a rule between two fields",
    'description: "\\0"': "a null character cannot be in a file by chance",
    "handler: jobs:f": "a rule between two fields",
    "python: 3": "the number may be the beginning of a version",
    "python: '>=4'": "the Pythons that exist",
    "variables: {PYTHONHASHSEED: 0": "the variables of Python",
    "secrets: [A, PYTHONHOME]": "the variables of Python",
    "secrets: {PYTHONUTF8": "the variables of Python",
    "secrets: [A], variables": "a rule between two fields",
    "input_schema: {a: [1, .nan]}": "JSON has no such number",
    "requirements: [a b]": "the grammar of requirements",
    "requirements: [-e .]": "the grammar of requirements",
    "requirements: [--index-url": "the grammar of requirements",
    'requirements: ["a\\n-e ."]': "the grammar of requirements",
}
"""Mistakes that only the runner finds, by the beginning of their text, with the reason."""
BEYOND_A_FIELD = {
    "{env: inline, path: notes.txt}": "the files that exist",
    "{env: inline, path: empty}": "the files that exist",
    '{env: inline, code: "a\\0b"}': "a null character cannot be in a file by chance",
    '{env: inline, path: "a\\0b"}': "a null character cannot be in a file by chance",
    "{env: inline, path: xxx": "the files that exist",
}
BEYOND_A_SETTING = {
    "max_frame: 1k": "amounts in text are not compared",
    "max_buffered: 1k": "amounts in text are not compared",
    "jwt_leeway: 10m": "amounts in text are not compared",
    "idle: .inf": "JSON has no such number",
    "cors_origins: [example.org]": "the grammar of addresses",
    "cors_origins: ['https": "the grammar of addresses",
    "trusted_proxies: [10": "the grammar of addresses",
    "notices_allow: [": "the grammar of addresses",
    "external_url: ": "the grammar of addresses",
}


def finds(document):
    return not CHECK.is_valid(document)


def beyond(text, known):
    return [start for start in known if text.startswith(start)]


def test_it_is_a_json_schema_with_every_field_and_setting():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    module = SCHEMA["$defs"]["module"]["properties"]
    settings = SCHEMA["properties"]["runner"]["anyOf"][0]["properties"]
    assert list(module) == [field.name for field in attrs.fields(ModuleSpec)]
    assert all(module.values()), "a field has a reader without a schema"
    assert settings.keys() == SETTINGS.keys()
    assert all(len(shape) > 1 and shape["description"] for shape in settings.values())
    assert module["timeout"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0, "maximum": 7 * 86400.0}
    assert module["env"]["enum"] == [*Kind]
    assert "exactly one of `code` and `path`" in module["code"]["description"]


@pytest.mark.parametrize("case", CASES, ids=[case[0][:60] for case in CASES])
def test_it_finds_the_mistakes_in_fields(case):
    document = yaml.safe_load(f"modules:\n  - {{name: m, env: venv, code: 'handler = print', {case[0]}}}\n")

    assert finds(document) is not bool(beyond(case[0], BEYOND))


@pytest.mark.parametrize("module", [case[0] for case in MISTAKES_IN_MODULES], ids=lambda text: text[:60])
def test_it_finds_the_mistakes_in_modules(module):
    assert finds(yaml.safe_load(f"modules: {{m: {module}}}")) is not bool(beyond(module, BEYOND_A_FIELD))


@pytest.mark.parametrize("runner", [case[0] for case in MISTAKES_IN_SETTINGS], ids=lambda text: text[:60])
def test_it_finds_the_mistakes_in_settings(runner):
    document = yaml.safe_load(f"modules: []\nrunner:\n  {runner}\n")

    assert finds(document) is not bool(beyond(runner, BEYOND_A_SETTING))


@pytest.mark.parametrize(
    "text",
    [
        "modulse: []",
        "[]",
        "modules: 3",
        "modules: [3]",
        "modules: [{env: inline, code: x}]",
        "modules: [{name: Big, env: inline, code: x}]",
        "modules: {execute: {env: inline, code: x}}",
        "modules: {m: {env: inline, code: x, path: y}}",
        "modules: {m: {env: inline, code: x, requirements: [a]}}",
        "modules: {m: {env: venv, code: x, isolation: none}}",
        "modules: {m: {env: inline, code: x, schedules: [{cron: '* * * * *', overlap: often}]}}",
        "modules: {m: {env: inline, code: x, endpoints: [{path: a}]}}",
        "modules: {m: {env: inline, code: x, on_end: [{url: 'ftp://x'}]}}",
        "modules: {m: {env: inline, code: x, secrets: {A: {env: B, file: c}}}}",
        "modules: {m: {env: inline, code: x, secrets: [OPERATO_A]}}",
    ],
)
def test_it_finds_the_mistakes_of_the_whole_file(text, tmp_path):
    assert finds(yaml.safe_load(text))
    (tmp_path / "modules.yaml").write_text(text)
    assert read_modules(tmp_path / "modules.yaml")[1], "the runner accepts it"


def documents():
    """Yield the examples in YAML: of the repository, and of all pages, as whole files."""
    yield ROOT / "modules.yaml", (ROOT / "modules.yaml").read_text()
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if "ko" in page.relative_to(ROOT).parts:
            continue
        for text in BLOCK.findall(page.read_text()):
            if "\n  inline: |" in text:  # values of the chart
                continue
            whole = text if re.search(r"^(modules|runner):", text, re.MULTILINE) else f"modules:\n{text}"
            if re.search(r"^(modules|runner):", text, re.MULTILINE) or text.lstrip().startswith("- name:"):
                yield page, whole


@pytest.mark.parametrize(("page", "text"), [*documents()], ids=lambda value: getattr(value, "name", ""))
def test_it_accepts_every_example(page, text):
    document = parse_yaml(text).value

    assert [error.message for error in CHECK.iter_errors(document)] == [], page
