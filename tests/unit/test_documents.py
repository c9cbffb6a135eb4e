"""Unit: the documents say what is there: files, names, settings, fields, commands, error kinds, routes."""

from __future__ import annotations

import ast
import re

import attrs
import click
import pytest

from config.client import VARIABLES
from config.load import SETTINGS, shown_default
from config.modules import ModuleSpec
from protocol.errors import RETRYABLE
from runner.cli import commands
from runner.rest.openapi.operations import OPERATIONS
from runner.status import CODES
from tests.documents import DOCS, DOCUMENTS, GUIDES, KOREAN, KOREAN_PAGES, PAGES, ROOT, read, slug, source_of, stamp

TREES = {
    path: ast.parse(path.read_text())
    for folder in ("runner", "actors", "environments", "config", "protocol")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
ROW = re.compile(r"^\| (.+?) \|(.*)\|$", re.MULTILINE)


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def rows(page, heading=None):
    """Return the cells of each table row of a page, or of the part below one heading."""
    prose = read(DOCS / page).prose
    if heading is not None:
        prose = re.split(rf"^#+ {re.escape(heading)}$", prose, flags=re.MULTILINE)[1]
    lines = (line for line in prose.splitlines() if line.startswith("| ") and not line.startswith("| ---"))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def quoted(text):
    return re.findall(r"`([^`]+)`", text)


# -- named things exist ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_links_lead_somewhere(path):
    for link in read(path).links:
        if re.match(r"https?://|mailto:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        if anchor:
            assert anchor in read(file).anchors, link


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_headings_have_the_same_anchor_on_the_forge_and_on_the_site(path):
    """The forge does not fold blanks and dashes."""
    for _, heading in read(path).headings:
        assert slug(heading) == re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()), heading


MADE = {"runner/commit.txt", "docs/ko/"}
"""What a build makes, and translators."""


def is_there(name):
    path = name.rstrip("/").partition(":")[0]
    if name in MADE or path in MADE or (ROOT / path).exists() or path.startswith(("data/", "dist/", "venvs/")):
        return True
    return any(ROOT.glob(path)) if "*" in path else False


def paths_in(document):
    """Yield what stands in backquotes and names a file or folder of the repository, by its full path."""
    top = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    for name in document.names:
        if re.fullmatch(rf"({top})/[\w./*-]*|[A-Z]+(\.ko)?\.md|[\w-]+\.(toml|lock)|mkdocs\.yml", name):
            yield name


@pytest.mark.parametrize("path", [*GUIDES, *PAGES], ids=names([*GUIDES, *PAGES]))
def test_files_that_are_named_exist(path):
    theirs = {"pylock.toml", "requirements.lock", "uv.lock"}  # of modules

    assert [name for name in paths_in(read(path)) if not is_there(name) and name not in theirs] == []


@pytest.mark.parametrize("path", GUIDES, ids=names(GUIDES))
def test_modules_are_named_by_their_whole_path(path):
    """A bare `pool.py` could be anywhere, and a test could not find it."""
    bare = [name for name in read(path).names if re.fullmatch(r"[\w-]+\.py", name) and name != "__init__.py"]

    assert [name for name in bare if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_targets_of_make_that_are_named_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    document = read(path)
    named = re.findall(r"^make ([a-z-]+)", "\n".join(document.blocks), re.MULTILINE)
    named += [match[1] for name in document.names if (match := re.match(r"make ([a-z-]+)", name))]

    assert {*named} - targets == set()


def members():
    """Return the members of each class of the packages, and each function and constant of a module, by name."""
    classes, others = {}, set()
    client = [ast.parse(path.read_text()) for path in (ROOT / "packaging" / "client").rglob("*.py")]
    for tree in (*TREES.values(), *client):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found = classes.setdefault(node.name, set())
                for inner in ast.walk(node):
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                        found.add(inner.name)
                    elif isinstance(inner, ast.Attribute):
                        found.add(inner.attr)
                    elif isinstance(inner, ast.Name):
                        found.add(inner.id)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                others.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                others.add(node.id)
    return classes, others


CLASSES, FUNCTIONS = members()
FOREIGN = {"Cancelled", "Delegate", "Idempotency", "Location", "Markdown", "Material", "None", "Raw", "True", "False"}
"""Words with a capital that are of others."""


@pytest.mark.parametrize("path", GUIDES, ids=names(GUIDES))
def test_classes_and_methods_that_are_named_exist(path):
    unknown = []
    for name in read(path).names:
        if match := re.fullmatch(r"([A-Z][a-z]\w*)(?:\.(\w+))?(?:\(.*\))?", name):
            known = match[1] in FOREIGN or (match[1] in CLASSES and (not match[2] or match[2] in CLASSES[match[1]]))
        elif match := re.fullmatch(r"((?:runner|actors|environments|config|protocol)(?:\.\w+)*)\.(\w+)", name):
            place = ROOT / match[1].replace(".", "/")
            there = (place / f"{match[2]}.py").exists() or (place / match[2]).is_dir()
            known = there or (
                (place.is_dir() or place.with_suffix(".py").exists()) and match[2] in FUNCTIONS | CLASSES.keys()
            )
        else:
            continue
        if not known:
            unknown.append(name)

    assert unknown == []


# -- existing things are documented ------------------------------------------------------------------------------------


def settings_rows():
    return [row for row in rows("cli.md", "Settings") if row[0].startswith("`")]


def test_every_setting_is_in_the_reference():
    assert sorted(name for row in settings_rows() for name in quoted(row[0])) == sorted(SETTINGS)
    assert "`--config`" in read(DOCS / "cli.md").prose


def test_the_defaults_of_settings_are_those_of_the_reference():
    shown = {
        name: default
        for row in settings_rows()
        if len(quoted(row[0])) == len(quoted(row[1]))
        for name, default in zip(quoted(row[0]), quoted(row[1]), strict=True)
    }
    fixed = {name: shown_default(setting) for name, setting in SETTINGS.items()}
    varying = {"max_workers", "docker_cpus"}  # the number of CPUs; a number that is written in two ways

    assert {name: text for name, text in fixed.items() if text is not None and name not in varying} == {
        name: text for name, text in shown.items() if fixed[name] is not None and name not in varying
    }


def test_every_field_of_a_module_is_in_the_reference():
    fields = {name for row in rows("modules.md", "Fields") for name in quoted(row[0])}

    assert {field.name for field in attrs.fields(ModuleSpec)} <= fields


def all_commands(group, *path):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from all_commands(command, *path, name)
        else:
            yield (*path, name), command


def root_group():
    (group,) = {
        value for value in vars(commands).values() if isinstance(value, click.Group) and "serve" in value.commands
    }
    return group


def test_every_command_and_option_is_in_the_reference():
    page = (DOCS / "cli.md").read_text() + (DOCS / "environments.md").read_text()
    common = {*SETTINGS, *VARIABLES, "config", "help"}
    missing = []
    for path, command in all_commands(root_group()):
        if not all(re.search(rf"\b{part}\b", page) for part in path):
            missing.append(" ".join(path))
        for option in command.params:
            written = max(option.opts, key=len)
            if isinstance(option, click.Option) and option.name not in common and written not in page:
                missing.append(f"{' '.join(path)} {written}")

    assert missing == []


def test_error_kinds_have_the_codes_of_the_reference():
    table = {}
    for row in rows("errors.md"):
        if len(row) == 7 and row[0].startswith("`"):
            kind, http, grpc, websocket, code, _, again = row
            http = re.match(r"\d+", http)[0]
            table[kind.strip("`")] = (int(http), grpc, int(websocket), int(code), again == "yes")

    assert table == {
        str(kind): (codes.http, codes.grpc, codes.websocket, codes.exit, kind in RETRYABLE)
        for kind, codes in CODES.items()
    }


def test_every_route_is_in_the_reference():
    written = {}
    for cell, scope, *_ in rows("calling/rest.md", "Routes"):
        for name in quoted(cell):
            if match := re.match(r"(GET|POST|PUT|PATCH|DELETE|WS) (/[^?]*)", name):
                written[match[2], match[1]] = scope.strip("`")
    methods = {"WEBSOCKET": "WS"}
    theirs = {(each.path, methods.get(each.method, each.method)): str(each.scope or "none") for each in OPERATIONS}

    assert theirs == {place: scope.partition(",")[0] for place, scope in written.items()}


# -- forms -------------------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8 * 1024


def test_the_quick_start_has_the_commands_that_people_type():
    page = (DOCS / "quickstart.md").read_text()

    for command in (
        "python -m venv venv; source venv/bin/activate; pip install -r requirements.txt; python main.py",
        "python main.py --config=./my-modules.yaml --rest-port=8080 --grpc-port=50052 --venv-path=./my-venvs",
        "python main.py --no-rest",
        "python main.py --no-grpc",
        "docker build -t operato/runner:latest .",
        "docker run -p 8000:8000 -p 50051:50051 -v ./modules.yaml:/app/modules.yaml operato/runner:latest",
        "helm install operato-runner packaging/operato-runner -f values.yaml",
    ):
        assert f"\n{command}\n" in page


def test_sequence_diagrams_have_no_separators_in_their_texts():
    """A semicolon or a hash ends a text there."""
    diagrams = [block for block in read(ROOT / "ARCHITECTURE.md").blocks if block.startswith("```mermaid")]

    assert len(diagrams) == 6
    assert [block for block in diagrams if re.search(r"[;#]", block)] == []


def test_decisions_are_numbered_and_listed():
    text = (ROOT / "DECISIONS.md").read_text()
    entries = re.findall(r"^## (\d+)\. (.*)$", text, re.MULTILINE)
    index = re.findall(r"^\| (\d+) \| \[(.*)\]\(#(.*)\) \| (.*) \|$", text, re.MULTILINE)

    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    assert [(number, title) for number, title, _, _ in index] == entries
    statuses = re.findall(r"^\*\*Status:\*\* (.*)$", text, re.MULTILINE)
    assert [status for _, _, _, status in index] == statuses
    for number, title, anchor, status in index:
        assert anchor == slug(f"{number}. {title}")
        assert re.fullmatch(r"in force|(amended|superseded) by \d+(, \d+)*", status), number
        assert all(1 <= int(other) <= len(entries) for other in re.findall(r"\d+", status))


# -- Korean ------------------------------------------------------------------------------------------------------------

PAIRS = {ROOT / "README.ko.md": ROOT / "README.md"} | {page: source_of(page) for page in KOREAN_PAGES}


@pytest.mark.parametrize("korean", PAIRS, ids=names(PAIRS))
def test_a_korean_page_is_the_same_document(korean):
    english = PAIRS[korean]
    ours, theirs = read(korean), read(english)

    assert [level for level, _ in ours.headings] == [level for level, _ in theirs.headings]
    assert ours.blocks == theirs.blocks
    assert theirs.headings, "it is empty"


@pytest.mark.parametrize("page", KOREAN_PAGES, ids=names(KOREAN_PAGES))
def test_a_korean_page_is_as_new_as_its_source(page):
    source = source_of(page)
    first = page.read_text().partition("\n")[0]

    assert first == stamp(source), (
        f"{source.relative_to(ROOT)} has changed since {page.relative_to(ROOT)} was made of it: bring that up to date, "
        "then replace its first line (`make docs-stamp` prints it)"
    )


@pytest.mark.skipif(not KOREAN_PAGES, reason="there are no Korean pages beside README.ko.md")
def test_every_page_is_there_in_korean():
    assert {page.relative_to(KOREAN) for page in KOREAN_PAGES} == {page.relative_to(DOCS) for page in PAGES}
