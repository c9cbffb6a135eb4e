"""Unit: what `operato-client` has in common with the runner: error kinds, variables, names for handlers, version."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from config.client import DEFAULT_URL, VARIABLES
from protocol.authors import operato as authors
from protocol.errors import RETRYABLE, ErrorKind
from tests.operato_package import CLIENT, checked, imported

ROOT = Path(__file__).parents[2]
SOURCES = {path.relative_to(CLIENT).as_posix(): path for path in sorted(CLIENT.rglob("*.py"))}


@pytest.fixture
def operato():
    with imported() as package:
        yield package


def test_every_error_kind_has_a_class(operato):
    kinds = operato.errors.KINDS

    assert kinds.keys() == set(ErrorKind)
    assert {kind for kind, each in kinds.items() if each.retryable} == set(RETRYABLE)
    assert all(getattr(operato, each.__name__) is each for each in kinds.values())


def test_a_kind_of_a_later_runner_is_told_by_its_status(operato):
    failure = operato.errors.failure

    assert type(failure({"kind": "novel", "title": "x"}, status=404)) is operato.NotFoundError
    assert type(failure({"kind": "novel", "title": "x"}, status=418)) is operato.BadInputError
    assert type(failure({"kind": "novel", "message": "x"}, status=500)) is operato.InternalError


def test_variables_are_those_of_the_command_line(operato):
    settings = operato.connection.settings
    assert (settings.VARIABLES, settings.DEFAULT_URL) == (VARIABLES, DEFAULT_URL)
    read = settings.read_settings(environ={"OPERATO_URL": "wss://h:1/p/", "OPERATO_TOKEN": " t "})
    assert (read.url, read.token()) == ("https://h:1/p", "t")
    assert read.context is not None
    assert (
        settings.read_settings("http://a", "b", environ={"OPERATO_URL": "http://c", "OPERATO_TOKEN": ""}).url
        == "http://a"
    )
    assert settings.read_settings(environ={}).token is None


@pytest.mark.parametrize(
    "url", ["x", "ftp://h", "http://", "http://u:p@h", "http://h?x=1", "http://h:x", "http://h\n", "http://[::1"]
)
def test_what_is_no_url_is_refused(operato, url):
    settings = operato.connection.settings
    with pytest.raises(operato.BadInputError):
        settings.read_settings(url, environ={})


def test_handlers_import_from_it_what_workers_have(operato):
    assert set(authors.__all__) <= set(operato.__all__)
    assert all(hasattr(operato, name) for name in operato.__all__)
    assert (CLIENT / "operato" / "authors.py").resolve() == Path(authors.__file__).resolve()


def test_both_clients_have_the_same_methods(operato):
    """A method of AsyncClient that Client lacks would be found by users first."""

    def methods(kind):
        return {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))}

    parts = {"files": "Files", "executions": "Executions", "schedules": "Schedules", "modules": "Modules"}
    with operato.Client("http://127.0.0.1:1") as plain:
        assert methods(type(plain)) == methods(operato.AsyncClient)
        for name, kind in parts.items():
            inner = getattr(plain._inner, name)
            assert type(inner).__name__ == kind
            assert methods(type(getattr(plain, name))) == methods(type(inner))


def test_its_license_is_that_of_the_runner():
    assert (CLIENT / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_its_version_is_that_of_the_runner():
    versions = [
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]["version"] for folder in (ROOT, CLIENT)
    ]
    assert versions[0] == versions[1]


def test_its_code_keeps_the_sizes_of_the_house():
    for name, path in SOURCES.items():
        if path.is_symlink():
            continue
        text = path.read_text()
        assert len(text.splitlines()) <= 400, name
        for node in ast.walk(ast.parse(text, feature_version=(3, 9))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 60, f"{name}:{node.name}"


def test_its_types_are_strict_for_its_users(tmp_path, tmp_path_factory):
    use = tmp_path / "use.py"
    use.write_text(
        "from operato import AsyncClient, Client, Event, Execution, File, HandlerError, Stream\n"
        "def plain(client: Client) -> list[Execution]:\n"
        "    stream: Stream[Event] = client.stream('a', File(b'x'))\n"
        "    execution: Execution = client.submit('a', priority=3)\n"
        "    reveal_type(client.executions.list(module='a'))\n"
        "    client.submit('a', priority='high')\n"
        "    with client.events(execution) as events:\n"
        "        return [client.executions.get(execution.id) for _ in events]\n"
        "async def waits(client: AsyncClient) -> bytes:\n"
        "    reveal_type(await client.map('a', [1]))\n"
        "    return await client.files.download('x')\n"
    )
    used = checked(use, tmp_path_factory.getbasetemp() / "mypy", "3.10")
    assert 'Revealed type is "operato.streams.Stream[operato.records.Execution]"' in used
    assert 'Revealed type is "list[Any]"' in used
    errors = [line for line in used.splitlines() if ": error:" in line]
    assert len(errors) == 1, used
    assert 'Argument "priority"' in errors[0]
