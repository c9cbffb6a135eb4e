"""Contract: what all REST endpoints share, ahead of quart and behind it: parameters, and bugs of the runner."""

from __future__ import annotations

import json

import attrs
import pytest
import structlog
from trio_websocket import ConnectionRejected

from config.schema import InputCheck
from runner.rest.openapi import OPERATIONS
from tests.contract.test_streams import ECHO, messages_of, open_site
from tests.support import inline

TYPED = inline("typed", "def handler(input): return input", input_schema={"type": "integer"})


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (ECHO, TYPED)) as opened:
        yield opened


async def broken(*_args, **_options):
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("verb", "method", "path"),
    [
        ("execute", "POST", "/modules/execute/echo"),
        ("get", "GET", "/executions/x"),
        ("follow", "GET", "/executions/x/events"),
    ],
)
async def test_a_bug_is_logged_under_the_request_id_of_its_problem(site, monkeypatch, verb, method, path):
    monkeypatch.setattr(type(site.service), verb, broken)
    with structlog.testing.capture_logs() as logs:
        status, headers, body = await site.ask(method, path)

    problem = json.loads(body)
    [entry] = [entry for entry in logs if entry["log_level"] == "error"]
    assert (status, problem["kind"]) == (500, "internal")
    assert problem["detail"] == f"internal error; search the runner's log for request ID {problem['request_id']}"
    assert headers[b"x-request-id"].decode() == entry["request_id"] == problem["request_id"]
    assert isinstance(entry["exc_info"], RuntimeError)
    assert entry["path"] == path


def misread(monkeypatch, name, parameter):
    """Let the reader of a parameter have a bug."""

    def reads(_text):
        raise KeyError("a bug")

    [operation] = [each for each in OPERATIONS if each.name == name]
    for table in (operation.query, operation.headers):
        for key, known in table.items():
            if known.name == parameter:
                monkeypatch.setitem(table, key, attrs.evolve(known, value=attrs.evolve(known.value, read=reads)))


@pytest.mark.parametrize(
    ("name", "parameter", "method", "path"),
    [
        ("listNotices", "state", "GET", "/notices?state=x"),
        ("listModules", "limit", "GET", "/modules?limit=1"),
        ("deleteModule", "force", "DELETE", "/modules/echo?force=true"),
        ("execute", "version", "POST", "/modules/execute/echo?version=1"),
        ("submit", "priority", "POST", "/executions?priority=1"),
        ("executeBatch", "parallel", "POST", "/modules/execute/echo/batch?parallel=1"),
        ("followEvents", "from", "GET", "/executions/x/events?from=1"),
    ],
)
async def test_a_bug_of_a_reader_is_a_problem_that_is_logged_once(site, monkeypatch, name, parameter, method, path):
    misread(monkeypatch, name, parameter)
    with structlog.testing.capture_logs() as logs:
        status, headers, body = await site.ask(method, path)

    [entry] = [entry for entry in logs if entry["log_level"] == "error"]
    assert (status, json.loads(body)["kind"]) == (500, "internal")
    assert headers[b"x-request-id"].decode() == entry["request_id"] == json.loads(body)["request_id"]
    assert isinstance(entry["exc_info"], KeyError)


async def test_a_bug_behind_quart_is_answered_at_once_when_it_is_printed(site, monkeypatch, capfd):
    misread(monkeypatch, "listModules", "limit")

    status, _, body = await site.ask("GET", "/modules?limit=1")

    assert status == 500
    printed = "".join(capfd.readouterr())
    assert printed.count(json.loads(body)["request_id"]) == 1
    assert printed.count("KeyError: 'a bug'") == 1


async def test_a_bug_before_a_websocket_is_open_is_a_problem(site, monkeypatch):
    monkeypatch.setattr(type(site.service), "follow", broken)
    with structlog.testing.capture_logs(), pytest.raises(Exception) as caught:  # noqa: PT011  (a group)
        async with site.socket("/executions/x/stream"):
            pass
    rejected = caught.value
    while isinstance(rejected, BaseExceptionGroup):
        [rejected] = rejected.exceptions
    assert isinstance(rejected, ConnectionRejected)
    assert (rejected.status_code, "request_id" in json.loads(rejected.body)) == (500, True)


async def test_a_bug_in_an_open_websocket_is_sent_and_closes(site, monkeypatch):
    def fails(*_args, **_options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(site.service), "begin", fails)
    with structlog.testing.capture_logs() as logs:
        async with site.socket("/modules/stream/echo") as socket:
            await socket.send_message("1")
            [message] = await messages_of(socket)
            assert socket.closed.code == 1011

    [entry] = [entry for entry in logs if entry["log_level"] == "error"]
    assert message["error"]["kind"] == "internal"
    assert entry["request_id"] in message["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "field", "words"),
    [
        ("POST", "/modules/execute/echo?colour=red", "colour", "allowed: version"),
        ("GET", "/executions/x?colour=red", "colour", "allowed: none"),
        ("POST", "/modules/execute/echo?version=1&version=2", "version", "version may be given once"),
        ("GET", "/executions?limit=1&limit=2", "limit", "limit may be given once"),
        ("GET", "/modules?" + "&".join(["tag=a"] * 21), "tag", "at most 20 times"),
        ("GET", "/executions?limit=0", "limit", "limit must be a whole number from 1 to 500, not '0'"),
        ("GET", "/executions/x/events?from=1_0", "from", "from must be the number of an event"),
        ("GET", "/executions/x/output?format=xml", "format", "format must be one of text, jsonl, not 'xml'"),
        ("DELETE", "/modules/echo?force=yes", "force", "force must be true or false, not 'yes'"),
        ("GET", "/modules/echo/stats?window=soon", "window", "window must be a duration, such as 15m, 24h, 7d"),
    ],
)
async def test_a_wrong_parameter_is_named_with_what_it_must_be(site, method, path, field, words):
    status, _, body = await site.ask(method, path)

    problem = json.loads(body)
    assert (status, problem["kind"], problem["field"]) == (400, "bad_input", field)
    assert words in problem["detail"]


async def test_a_repeated_header_is_not_ignored(site):
    twice = {"X_Timeout": "5\r\nX-Timeout: 0.001"}

    status, _, body = await site.ask("POST", "/modules/execute/echo", 1, **twice)

    assert (status, json.loads(body)["field"]) == (400, "X-Timeout")


@pytest.mark.parametrize("path", ["/healthz?probe=1", "/readyz?probe=1"])
async def test_a_probe_may_add_a_query(site, path):
    assert (await site.ask("GET", path))[0] == 200


async def test_the_check_of_inputs_is_made_once_for_each_version(site, monkeypatch):
    made = []
    init = InputCheck.__init__

    def counted(self, schema):
        made.append(schema)
        init(self, schema)

    monkeypatch.setattr(InputCheck, "__init__", counted)
    for given, status in ((1, 200), ("x", 400), (2, 200)):
        assert (await site.ask("POST", "/modules/execute/typed", given))[0] == status

    assert made == [{"type": "integer"}]
