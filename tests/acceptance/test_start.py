"""Acceptance: what the program imports, on which its time to start and its memory depend."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.server_process import ROOT, Server, running

MODULES = """
runner: {docker_host: "unix:///nowhere/docker.sock"}
modules:
  echo: {env: inline, code: "def handler(input): return input"}
  imported:
    env: inline
    isolation: none
    code: |
      import sys
      def handler(input):
          return sorted(name for name, module in list(sys.modules.items()) if module is not None)
  hinted: {env: inline, code: "def handler(input: dict[str, int]): return input"}
"""
HEAVY = {
    *("quart", "flask", "werkzeug", "jinja2"),  # routes that manage and list
    "cryptography",  # public keys
    *("jsonschema", "referencing", "re2"),  # schemas
    *("docker", "requests", "urllib3"),  # a container engine
    *("httpx", "trio_websocket", "rich", "pygments"),  # commands
    "rattler",
}
CLUSTER = ("nats", "nkeys", "actors.cluster")
"""Libraries and rooms that only a runner with the setting `cluster` needs."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    """Return a server in whose process one module runs, which returns the names of everything imported."""
    with running(tmp_path, MODULES.replace("hinted: {", "# hinted: {"), real=True) as server:
        yield server
        assert server.stop() == 0


def names(server: Server) -> set[str]:
    """Return the names of everything that the server has imported."""
    answer = server.execute("imported", None).json()
    assert answer["status"] == "succeeded", answer
    return {*answer["result"]}


def imported(server: Server) -> set[str]:
    """Return the names of the libraries that the server has imported."""
    return {name.partition(".")[0] for name in names(server)}


def of_clusters(found: Iterable[str]) -> set[str]:
    """Return those of these names that only clusters need."""
    return {name for name in found if name.startswith(CLUSTER)}


def test_a_server_of_inline_modules_imports_nothing_for_other_purposes(served: Server) -> None:
    """Calls, probes and metrics included."""
    assert served.execute("echo", 5).json()["result"] == 5
    assert [served.client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3

    assert imported(served) & HEAVY == set()


@pytest.mark.usefixtures("with_engine")
def test_an_engine_alone_imports_no_library_for_containers(tmp_path: Path) -> None:
    with running(tmp_path, MODULES.partition("}\n")[2], real=True) as server:
        kinds = {item["env"]: item["available"] for item in server.client.get("/environments").json()["items"]}
        assert kinds["docker"]
        assert imported(server) & {"docker", "requests", "urllib3"} == set()
        assert server.stop() == 0


def test_quart_is_imported_at_the_first_request_for_it(served: Server) -> None:
    assert [item["name"] for item in served.client.get("/modules").json()["items"]] == ["echo", "imported"]

    assert "quart" in imported(served)
    assert served.client.get("/nowhere").status_code == 404


def test_the_dashboard_is_imported_at_the_first_request_for_it(served: Server) -> None:
    assert imported(served) & HEAVY == set()
    assert served.client.get("/ui/sign-in").status_code == 200
    assert {"quart", "jinja2"} <= imported(served)


def test_a_runner_alone_imports_nothing_of_clusters(served: Server) -> None:
    """The asyncio in each process is of structlog: its loop runs in no process of the runner."""
    assert served.execute("echo", 5).json()["result"] == 5
    accepted = served.client.post("/executions", json={"module": "echo", "input": 5}).json()
    served.client.post("/ui/sign-in", data={"token": served.token}, headers={"sec-fetch-site": "same-origin"})
    paths = ("/modules", "/executions", f"/executions/{accepted['id']}", "/schedules", "/metrics", "/readyz")
    pages = ("/ui/", "/ui/executions", f"/ui/executions/{accepted['id']}", "/ui/modules/echo", "/ui/environments")

    answers = {path: served.client.get(path).status_code for path in (*paths, *pages)}

    assert set(answers.values()) == {200}, answers
    found = names(served)
    assert {"actors.executions", "runner.ui.views", "jinja2"} <= found
    assert of_clusters(found) == set()


@pytest.mark.parametrize("arguments", [("doctor",), ("run", "echo", "5")], ids=" ".join)
def test_a_command_without_a_cluster_imports_nothing_of_clusters(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "modules.yaml").write_text(MODULES)
    command = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    found = re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)
    assert done.returncode == 0, done.stderr[-1000:]
    assert "config.cluster" in found
    assert of_clusters(found) == set()


def test_a_hint_imports_the_check_of_schemas_when_it_is_published(tmp_path: Path) -> None:
    """The first call would hold up the event loop."""
    with running(tmp_path, MODULES, real=True) as server:
        assert "jsonschema" in imported(server)
        assert server.execute("hinted", {"a": "b"}).status_code == 400
        assert server.stop() == 0


def test_the_version_is_printed_without_the_command_line() -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    found = {name.partition(".")[0] for name in re.findall(r"\| +(\S+)$", done.stderr, re.MULTILINE)}
    assert done.stdout.startswith("operato-runner ")
    assert found >= {"runner", "tomllib"}
    assert found & {"click", "attr", "attrs", "cattrs", "yaml", "config", "protocol", "trio", "msgspec"} == set()


KEYS = """
import json, sys
from config.settings import AuthSettings
from runner.auth import Verifier
secret = Verifier(AuthSettings(), secret="s" * 32)
seen = ["cryptography" in sys.modules]

import jwt
from tests.tokens import GOOD, PRIVATE, SECRET, pem, token
assert secret.verify_nowait(token()).subject == "kim"
for kind, algorithm in GOOD:
    public = Verifier(AuthSettings(), public_key=pem(PRIVATE[kind]))
    assert public.verify_nowait(token(algorithm, PRIVATE[kind])).subject == "kim", algorithm
key = jwt.algorithms.RSAAlgorithm.to_jwk(PRIVATE["rsa"].public_key(), as_dict=True)
assert [each.key_type for each in jwt.PyJWKSet.from_dict({"keys": [key | {"kid": "a"}]}).keys] == ["RSA"]
assert secret.verify_nowait(token(sub="lee")).subject == "lee"
print(json.dumps([*seen, "cryptography" in sys.modules]))
"""


def test_public_keys_verify_after_a_start_without_their_library() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.check_output([sys.executable, "-c", KEYS], env=environ, text=True)

    assert json.loads(told) == [False, True]
