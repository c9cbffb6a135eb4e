"""Acceptance: the real server answers any request as its OpenAPI document describes, and the document is valid."""

from __future__ import annotations

import json
import random
import re
import socket
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema.validators import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

from protocol.errors import ErrorKind
from runner.auth.principal import Scope
from runner.auth.tokens import sign
from runner.http import WEBSOCKET
from runner.rest.openapi.executions import EXECUTE
from runner.rest.openapi.operation import Operation
from runner.rest.openapi.operations import OPERATIONS
from runner.status import CODES
from tests.server_process import Server, running

MODULES = r"""
modules:
  - name: greet
    env: inline
    tags: [examples]
    description: "Greets, as `name` says."
    timeout: 20s
    variables: {GREETING: Hello}
    input_schema:
      type: object
      properties: {name: {$ref: "#/$defs/name"}, inner: {$ref: "#"}}
      required: [name]
      $defs: {name: {type: string, maxLength: 40}}
    code: |
      def handler(input, context):
          print("greeting")
          context.progress(1, 1, "done")
          return {"message": f"Hello, {input['name']}!"}
  - {name: echo, env: inline, retry: {attempts: 2, backoff: {initial: 0}}, code: "def handler(input): return input"}
  - {name: fails, env: inline, retry: {attempts: 2, backoff: {initial: 0}}, code: "def handler(input): return 1 / 0"}
  - {name: old, env: inline, input_schema: {$schema: "http://json-schema.org/draft-04/schema#", maximum: 3,
     exclusiveMaximum: true}, code: "def handler(input): yield input"}
runner: {docker_host: "unix:///no/such/engine.sock"}
"""
NAMES = ("echo", "fails", "greet", "old")
PREFIX = EXECUTE.path.removesuffix("{name}")
CALLS = tuple(f"POST /modules/execute/{name}" for name in ("echo", "greet"))
MODES = {"valid": GenerationMode.POSITIVE, "invalid": GenerationMode.NEGATIVE}
CASES = [
    *((label, mode) for label in CALLS for mode in MODES),
    *(
        (f"{op.method} {op.path}", mode)
        for op in OPERATIONS
        for mode in MODES
        if op.method != WEBSOCKET
        if mode == "valid" or op.body or any(p.place != "path" for p in op.parameters if not op.any_query)
    ),
]
SOCKET = {
    "connection": "upgrade",
    "upgrade": "websocket",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-version": "13",
}
OPAQUE = {"cursor", "window", "priority", "run_at", "delay", "unresolved"}
"""Parameters whose valid values JSON Schema cannot describe, such as those that need another one."""
JSONS = ("application/json", "application/problem+json")
DESCRIBE = {
    *("POST /modules", "POST /modules/upload", "PUT /modules/{name}", "PATCH /modules/{name}"),
    *("POST /modules/execute/{name}/batch", "POST /modules/execute/{name}", "POST /executions", "POST /files"),
    *("POST /executions/{id}/rerun", "POST /schedules", "PATCH /schedules/{id}"),
}
"""Operations whose body is a module, an input, an archive, JSON lines, a form or a time, or must have the digest that a
part of the request names: a schema cannot describe them fully.
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("openapi"), MODULES) as started:
        yield started
        assert started.stop() == 0
        assert "failed inside" not in (started.home / "log").read_text()


@pytest.fixture(scope="module")
def spec(server: Server) -> dict[str, Any]:
    return server.client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def ended(server: Server) -> str:
    """Return the id of an execution that has ended."""
    return server.execute("greet", {"name": "you"}).json()["id"]


@pytest.fixture(scope="module")
def registered(server: Server) -> str:
    """Return the version of a module `api` that was registered."""
    answer = server.client.put("/modules/api", json={"env": "inline", "code": "def handler(input): return input"})
    assert answer.status_code == 201, answer.text
    return answer.json()["version"]


def token(server: Server, *scopes: str, modules: tuple[str, ...] = ()) -> dict[str, str]:
    secret = (server.home / "data" / "jwt-secret").read_text().strip()
    signed = sign(secret, subject="somebody", scopes=scopes, expires_seconds=600, modules=modules)
    return {"authorization": f"Bearer {signed}"}


# -- the document ------------------------------------------------------------------------------------------------------


def test_the_document_is_valid(server: Server, spec: dict[str, Any]) -> None:
    alone = httpx.get(f"{server.client.base_url}/openapi.json", trust_env=False).json()

    assert [str(problem) for problem in OpenAPIV31SpecValidator(spec).iter_errors()] == []
    assert [str(problem) for problem in OpenAPIV31SpecValidator(alone).iter_errors()] == []
    assert alone["openapi"].startswith("3.1.")
    assert alone["info"]["version"] == version()


def version() -> str:
    project = Path(__file__).parents[2] / "pyproject.toml"
    return str(tomllib.loads(project.read_text())["project"]["version"])


def test_modules_are_shown_to_those_who_may_use_them(server: Server, spec: dict[str, Any]) -> None:
    def shown(headers: dict[str, str]) -> list[str]:
        found = httpx.get(f"{server.client.base_url}/openapi.json", headers=headers, trust_env=False)
        assert found.status_code == 200
        names = [p.removeprefix(PREFIX) for p in found.json()["paths"] if p.startswith(PREFIX)]
        assert "{name}" in names
        hidden = set(NAMES) - set(names)
        assert not [name for name in hidden if f'"input.{name}"' in found.text or f"execute.{name}" in found.text]
        return [name for name in names if name in NAMES]

    both = (Scope.EXECUTIONS_RUN, Scope.MODULES_READ)
    assert shown({}) == []
    assert shown(token(server, *both)) == list(NAMES)
    assert shown(token(server, *both, modules=("e*", "gr??t"))) == ["echo", "greet"]
    assert shown(token(server, Scope.ADMIN, modules=("old",))) == ["old"]
    assert shown(token(server, Scope.EXECUTIONS_RUN)) == []
    assert shown(token(server, Scope.MODULES_READ)) == []
    assert server.client.get("/openapi.json", headers={"authorization": "Bearer x"}).status_code == 401


def test_a_module_has_its_own_path(spec: dict[str, Any]) -> None:
    greet, old = (spec["paths"][f"/modules/execute/{name}"]["post"] for name in ("greet", "old"))

    assert (greet["summary"], greet["description"]) == ("Run greet", "Greets, as `name` says.")
    assert [parameter["name"] for parameter in greet["parameters"]][:1] == ["version"]
    assert greet["requestBody"]["required"]
    assert greet["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/input.greet"}
    assert spec["components"]["schemas"]["input.greet"]["properties"] == {
        "name": {"$ref": "#/components/schemas/input.greet/$defs/name"},
        "inner": {"$ref": "#/components/schemas/input.greet"},
    }
    assert "GET /modules/old" in old["description"]
    assert not old["requestBody"]["required"]


def test_the_page_loads_nothing_from_other_servers(server: Server) -> None:
    page = httpx.get(f"{server.client.base_url}/docs", trust_env=False)
    policy = page.headers["content-security-policy"]

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "//" not in policy
    assert not [word for word in ("http://", "https://", "src=", " style=", "innerHTML", "eval(") if word in page.text]


# -- answers are as described ------------------------------------------------------------------------------------------


def test_scopes_are_those_of_the_table(server: Server, ended: str) -> None:
    """Every other scope is not enough, this one is; without a token the answer is 401."""
    scopes = set(Scope) - {Scope.ADMIN}
    for operation in OPERATIONS:
        url = f"{server.client.base_url}{operation.path}".replace("{name}", "echo").replace("{id}", ended)
        url = url.replace("{version}", "1")
        ask = partial(ask_once, operation, url)
        if operation.scope is None:
            assert ask({}).status_code == 200, operation.path
            continue
        missing, others = ask({}), ask(token(server, *(scopes - {operation.scope})))
        assert (missing.status_code, missing.json()["kind"]) == (401, "unauthenticated"), operation.path
        assert (others.status_code, others.json()["kind"]) == (403, "forbidden"), operation.path
        assert operation.scope.value in others.json()["detail"]
        assert ask(token(server, operation.scope)).status_code not in (401, 403), operation.path


def ask_once(operation: Operation, url: str, shown: dict[str, str]) -> httpx.Response:
    """Return an answer, without its body where it is a stream or a websocket."""
    method, headers = ("GET", SOCKET) if operation.method == WEBSOCKET else (operation.method, {})
    body = b'{"module": "echo"}' if operation.body else None
    headers = {**headers, **({"content-type": next(iter(operation.body))} if operation.body else {})}
    with (
        httpx.Client(trust_env=False, timeout=20) as client,
        client.stream(method, url, headers={**headers, **shown}, content=body) as answer,
    ):
        if answer.status_code != 101 and "event-stream" not in answer.headers.get("content-type", ""):
            answer.read()
        return answer


def test_real_answers_are_as_they_are_described(server: Server, spec: dict[str, Any], ended: str) -> None:
    """The schemas are closed for this test, so that it notices a field without a description."""
    check = Conformity(server, spec)

    check("POST /modules/execute/greet", 200, json={"name": "you"})
    check("POST /modules/execute/{name}", 200, name="old", json=1)
    check("POST /modules/execute/{name}", 500, name="fails", json={})
    check("POST /modules/execute/{name}", 202, name="echo", headers={"prefer": "respond-async"})
    check("POST /modules/execute/{name}", 404, name="unknown")
    check("POST /modules/execute/greet", 400, json={"name": 1})
    lines = check("POST /modules/execute/{name}/batch", 200, "echo", json=[1, 2]).text.splitlines()
    assert {json.loads(line).pop("index") for line in lines} == {0, 1}
    for line in lines:
        check.value({"$ref": "#/components/schemas/Execution"}, without(json.loads(line), "index"))
    check("POST /executions", 202, json={"module": "echo"})
    check("POST /executions", 400, json={"module": "echo", "colour": 1})
    failed = server.execute("fails", {}).json()["id"]
    for identity in (ended, failed):
        check("GET /executions/{id}", 200, identity)
        check("GET /executions/{id}/output", 200, identity)
        check("GET /executions/{id}/output", 200, identity, params={"format": "jsonl"})
        check("POST /executions/{id}/cancel", 200, identity)
        stream = check("GET /executions/{id}/events", 200, identity)
        events = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: ")]
        for event in events:
            check.value({"$ref": "#/components/schemas/Event"}, event)
        assert {event["type"] for event in events} >= {"status", "result" if identity == ended else "error"}
    check("GET /executions/{id}", 404, "nothing")
    assert len(check("GET /executions", 200).json()["items"]) >= 3
    check("GET /executions", 400, params={"limit": 0})
    check("GET /modules/{name}/stats", 200, name="fails")
    check("GET /modules/{name}/stats", 404, name="nothing")
    assert len(check("GET /modules", 200).json()["items"]) >= len(NAMES)
    check("GET /modules/{name}", 200, name="greet")
    check("POST /modules/{name}/prepare", 200, name="greet")
    check("GET /environments", 200)
    check("GET /environments/built", 200)
    check("GET /workers", 200)
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
        check(f"GET {path}", 200)
    check("GET /modules/stream/{name}", 426, name="echo")


def test_real_answers_about_modules_of_the_api_are_as_described(server: Server, spec: dict[str, Any]) -> None:
    check = Conformity(server, spec)
    code = "def handler(input): return {}"
    body = {"name": "mine", "env": "inline", "code": code.format(1), "timeout": "20s", "memory": 64 << 20}

    first = check("POST /modules", 201, json=body).json()["version"]
    check("POST /modules", 409, json=body)
    check("POST /modules", 400, json={**body, "name": "other", "colour": "red"})
    check("PUT /modules/{name}", 200, "mine", json=body)
    check("PUT /modules/{name}", 201, "mine", json={**body, "code": code.format(2)}, params={"activate": "false"})
    check("PUT /modules/{name}", 412, "mine", json=body, headers={"if-match": '"1234567"'})
    check("PATCH /modules/{name}", 201, "mine", json={"tags": ["a"]})
    check("PATCH /modules/{name}", 424, "mine", json={"code": f"1 / 0\n{code}"}, params={"prepare": "true"})
    check("GET /modules/{name}", 200, "mine")
    assert len(check("GET /modules/{name}/versions", 200, "mine").json()["items"]) == 3
    check("GET /modules/{name}/versions", 200, "greet")
    url = f"/modules/mine/versions/{first}"
    check("GET /modules/{name}/versions/{version}", 200, url=url)
    check("POST /modules/{name}/versions/{version}/activate", 200, url=f"{url}/activate")
    check("DELETE /modules/{name}/versions/{version}", 409, url=url)
    archive = check("GET /modules/template", 200).content
    zipped = {"content": archive, "headers": {"content-type": "application/zip"}}
    check("POST /modules/upload", 201, params={"name": "my-module"}, **zipped)
    check("POST /modules/upload", 400, content=b"x", headers={"content-type": "application/zip"})
    assert len(check("GET /audit", 200).json()["items"]) >= 4
    check("DELETE /modules/{name}", 409, "greet")
    check("DELETE /modules/{name}", 204, "mine")
    check("DELETE /modules/{name}", 404, "mine")


class Conformity:
    """Asks, and compares the answer with the document."""

    def __init__(self, server: Server, spec: dict[str, Any]) -> None:
        self.server = server
        self.spec = closed(spec)

    def __call__(self, label: str, status: int, name: str = "", **request: Any) -> httpx.Response:
        method, path = label.split()
        request.setdefault("url", re.sub(r"\{\w+\}", name, path))
        answer = self.server.client.request(method, **request)
        assert answer.status_code == status, answer.text
        responses = self.spec["paths"][path][method.lower()]["responses"]
        shared = self.spec["components"]["responses"]
        said = responses[str(status)]
        content = shared[said["$ref"].rpartition("/")[2]]["content"] if "$ref" in said else said.get("content")
        if content is None:
            assert answer.content == b"", label
            return answer
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in content, label
        if kind in JSONS:
            self.value(content[kind]["schema"], answer.json())
        return answer

    def value(self, schema: dict[str, Any], value: Any) -> None:
        """Compare one value with a schema."""
        errors = list(Draft202012Validator({**schema, "components": self.spec["components"]}).iter_errors(value))
        assert errors == [], json.dumps(value)[:1000]


def without(value: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: part for key, part in value.items() if key != name}


def closed(node: Any) -> Any:
    """Return a schema, or the whole document, whose objects allow no properties but the named ones."""
    if isinstance(node, list):
        return [closed(part) for part in node]
    if not isinstance(node, dict):
        return node
    made = {key: closed(part) for key, part in node.items()}
    if made.get("type") == "object" and isinstance(made.get("properties"), dict):
        made.setdefault("additionalProperties", False)
    return made


# -- any request -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "how"), CASES)
def test_generated_requests_are_answered_as_described(
    server: Server, spec: dict[str, Any], ended: str, registered: str, label: str, how: str
) -> None:
    (method, path), mode = label.split(), MODES[how]
    # Bulk cancellation needs a filter, of those that fit what has not ended: OpenAPI cannot say this.
    refused = ("413",) if path == "/executions/cancel" else ("400", "413")
    unmet = ["2xx", "400", "401", "403", "404", "405", "409", "412", "413", "415", "429", "5xx"]
    config = SchemathesisConfig.from_dict(
        {
            "generation": {"with-security-parameters": False},
            "headers": {"authorization": f"Bearer {server.token}"},
            "checks": {
                "ignored_auth": {"enabled": False},
                "positive_data_acceptance": {"expected-statuses": [each for each in unmet if each not in refused]},
                "negative_data_rejection": {"expected-statuses": unmet[1:]},
            },
        }
    )
    schema = schemathesis.openapi.from_dict(spec, config=config)
    schema.config.update(base_url=str(server.client.base_url))
    operation = schema[path][method]
    real = {"name": "api" if "modules/{name}" in path else "echo", "version": registered, "id": ended}

    @settings(
        max_examples=15,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        check_case(server, case, mode)
        known = {name: real.get(name, value) for name, value in (case.path_parameters or {}).items()}
        if known and mode is GenerationMode.POSITIVE:  # once more about something that is there
            case.path_parameters.update(known)
            case.query.pop("version", None)
            check_case(server, case, mode)

    run()


def check_case(server: Server, case: schemathesis.Case, mode: GenerationMode) -> None:
    answer = case.call(timeout=20)
    body = answer.json() if answer.headers.get("content-type", [""])[0] in JSONS else {}
    excluded = []
    late = CODES[ErrorKind.TIMEOUT].http
    if answer.status_code == late and body["error"]["kind"] == "timeout":
        excluded.append(schemathesis.checks.not_a_server_error)  # it was allowed next to no time
    described = case.operation.label in DESCRIBE or case.media_type not in (None, "application/json")
    if (mode is GenerationMode.POSITIVE and described) or body.get("field") in OPAQUE:
        excluded.append(schemathesis.checks.CHECKS.get_one("positive_data_acceptance"))
    case.validate_response(answer, excluded_checks=excluded)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/modules/execute/greet", '{"name": 1e999}', 400),
        ("POST", "/modules/execute/greet", '{"name": "a", "inner": ' * 400 + "1" + "}" * 400, 400),
        ("POST", "/modules/execute/echo", "[1, 1e999]", 400),
        ("POST", "/modules", '{"name": "m", "env": "inline", "code": "", "timeout": 1e999}', 400),
        ("POST", "/modules", '{"name": "m", "env": "inline", "code": "", "timeout": 9e73}', 400),
        ("GET", "/executions//output", None, 404),
        ("GET", "/modules/stream/echo", None, 426),
    ],
)
def test_extreme_values_have_answers_of_their_own(
    server: Server, method: str, path: str, body: str | None, status: int
) -> None:
    key = {"idempotency-key": path} if "echo" in path else {}
    answer = server.client.request(method, path, content=body, headers=key)

    assert answer.status_code == status, answer.text
    assert "internal" not in answer.text


BITS = [
    *("%00", "%FF", "%ed%a0%80", "%2F", "/", "..", "%2e%2e", "%", "%zz", "é", "\xff", "%F0%9F%98%80", "", " ", "+"),
    *("&", "=", ";", "#", "%0d%0a", "null", "[]", "{}", "true", "a" * 300, "echo", "greet", "text", "jsonl"),
    *("0", "-1", "nan", "inf", "1e999", "1_0", "9" * 25, "\uff11", "7d", "99999999999999d", "1e308", "-1e308"),
    *("2026-01-31", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "respond-async", "text/event-stream"),
]
BODIES = [
    *(
        b"",
        b"null",
        b"{}",
        b"\xff",
        b'"\\ud800"',
        b"[" * 3000,
        b"[" * 400 + b"]" * 400,
        b"1e999",
        b"[NaN]",
        b"1" * 5000,
    ),
    *(b'{"name": 1e999}', b'{"name": "\\u0000"}', b'{"name": "\\ud800"}', b'{"inner": ' * 400 + b"1" + b"}" * 400),
    *(b'{"module": "echo"}', b'{"module": "echo", "input": 1e999}', b'{"module": "echo", "timeout": 1e999}'),
    *(b'{"module": "\\ud800"}', b'{"module": "echo", "version": "\\ud800"}', b'{"module": "echo", "timeout": -1}'),
]
HEADERS = [
    "Idempotency-Key",
    "X-Timeout",
    "Prefer",
    "Last-Event-ID",
    "Accept",
    "Content-Type",
    "Range",
    "Cookie",
    "Origin",
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=[operation.name for operation in OPERATIONS])
def test_no_bytes_are_answered_with_500(server: Server, ended: str, operation: Operation) -> None:
    """Paths, queries and headers are put together from parts that go wrong in servers."""
    chance = random.Random(operation.name)
    for _ in range(40):
        raw = nonsense(chance, operation, server.token, ended)
        with socket.create_connection(("127.0.0.1", server.ready["rest"][0][1]), timeout=20) as link:
            link.sendall(raw)
            head = b""
            while b"\r\n\r\n" not in head and (part := link.recv(65536)):
                head += part
        status = int(head[9:12])
        assert status < 500 or status in (503, 504), (raw, head)
        assert b"\r\nlocation: http" not in head.lower(), (raw, head)


def nonsense(chance: random.Random, operation: Operation, token: str, ended: str) -> bytes:
    """Return a request that is nearly one of this operation."""

    def bits() -> str:
        return "".join(chance.choices(BITS, k=chance.choice([1, 1, 2])))

    path, query = operation.path, []
    headers = [("Host", "x"), ("Authorization", f"Bearer {token}")]
    for parameter in operation.parameters:
        if parameter.place == "path":
            path = path.replace(f"{{{parameter.name}}}", chance.choice(["echo", "greet", ended, bits(), bits()]))
        elif chance.random() < 0.4:
            query.append(f"{parameter.name}={bits()}")
    headers += [(name, bits()) for name in HEADERS if chance.random() < 0.15]
    body, method = chance.choice(BODIES), operation.method
    if method == WEBSOCKET:
        method, body = "GET", b""
        headers += SOCKET.items() if chance.random() < 0.7 else ()
    headers.append(("Content-Length", str(len(body))))
    line = f"{method} {path}{'?' if query else ''}{'&'.join(query)} HTTP/1.1\r\n"
    coding = chance.choice(["utf-8", "latin-1"])
    head = line.encode("latin-1", "replace") + b"".join(f"{n}: {v}\r\n".encode(coding, "replace") for n, v in headers)
    return head + b"\r\n" + body
