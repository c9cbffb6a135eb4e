"""Acceptance: the container image, built and used as documented: doors, key, process 1, shutdown."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from protocol.rpc.operato.runner import v1
from tests import engines
from tests.chart import Rendered
from tests.server_process import ROOT, wait_for

pytestmark = [pytest.mark.usefixtures("engine"), pytest.mark.timeout(600)]
LEFT_OUT = shutil.ignore_patterns(".*", "tests", "data", "venv", "venvs", "condas", "dist", "__pycache__")
SECRET = "a secret that is long enough for HS256"
KEYS = {"existingSecret": "keys"}
TLS = {"existingSecret": "certificate", "clientCa": True}
PATIENCE = 60
MODULES = """
modules:
  - name: hello
    env: inline
    code: |
      import os
      def handler(input):
          return {"message": f"Hello, {input['name']}!", "user": os.getuid()}
  - name: slow
    env: inline
    code: |
      import time
      def handler(input):
          print("begun", flush=True)
          time.sleep(2)
          return "ended"
  - name: leaver
    env: inline
    code: |
      import os, signal, subprocess, sys, time
      SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
      def handler(input):
          if os.fork() == 0:
              os.setsid()
              for _ in range(3):
                  subprocess.Popen(SLEEP)
              os._exit(0)
          os.wait()
          os._exit(9)
"""


def make_context(folder: Path) -> Path:
    """Return a build context: the work tree, and the wheels that an index would serve."""
    context = folder / "context"
    shutil.copytree(ROOT, context, ignore=LEFT_OUT)
    shutil.copy(ROOT / ".dockerignore", context)
    (context / "data").mkdir()
    (context / "data" / "jwt-secret").write_text("it belongs to no image")
    locks = [option for name in ("image", "build") for option in ("-r", str(ROOT / "packaging" / f"{name}.lock"))]
    wheelhouse = str(context / "packaging" / "wheelhouse")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-d", wheelhouse, *locks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"the wheels cannot be downloaded: {done.stderr[-500:]}")
    return context


@pytest.fixture(scope="module")
def image(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Build the image on a base with only Python, without a network."""
    context = make_context(tmp_path_factory.mktemp("image"))
    base, name = engines.make_base_image_for_wheels(), f"{engines.IMAGE}:runner"
    with engines.client() as api:
        before = {found["Id"] for found in api.images(filters={"dangling": True})}
        lines = api.build(
            path=str(context),
            tag=name,
            buildargs={"BASE_IMAGE": base, "PIP_NO_INDEX": "1", "COMMIT": "0123abc", "VERSION": "9.8.7"},
            network_mode="none",
            rm=True,
            forcerm=True,
            decode=True,
            timeout=600,
        )
        said = [line.get("stream") or line.get("error") or "" for line in lines]
        try:
            assert f"Successfully tagged {name}\n" in said, "".join(said)[-3000:]
            yield name
        finally:
            for found in api.images(filters={"dangling": True}):
                if found["Id"] not in before:
                    api.remove_image(found["Id"], force=True)


def bridged() -> bool:
    """Return whether the engine has a bridge network for containers."""
    with engines.client() as api:
        return any(network["Name"] == "bridge" for network in api.networks())


class Container:
    """A runner in a container with every restriction; its doors are reachable from this machine."""

    def __init__(self, image: str, modules: Path, environ: dict[str, str], binds: list[str]) -> None:
        self.binds = [f"{modules}:/app/modules.yaml:ro", *binds]
        with engines.client() as api:
            self.bridge = bridged()
            host = api.create_host_config(
                binds=self.binds,
                cap_drop=["ALL"],
                read_only=True,
                security_opt=["no-new-privileges"],
                tmpfs={"/tmp": "rw,nosuid,nodev,size=16m"},
                port_bindings={8000: ("127.0.0.1",), 50051: ("127.0.0.1",)} if self.bridge else None,
                network_mode=None if self.bridge else "host",
            )
            if not self.bridge:  # an engine without a network: on the machine's own, on loopback and free ports
                ports = {"OPERATO_REST_PORT": "0", "OPERATO_GRPC_PORT": "0"}
                environ = {"OPERATO_HOST": "127.0.0.1", **environ, **ports}
            self.id = api.create_container(
                image,
                environment=environ,
                host_config=host,
                ports=[8000, 50051] if self.bridge else None,
                healthcheck={"interval": 500_000_000},
            )["Id"]
            api.start(self.id)

    def run(self, *argv: str) -> tuple[int, str]:
        """Run a program beside the runner; return its exit code and output."""
        with engines.client() as api:
            made = api.exec_create(self.id, list(argv))["Id"]
            said = api.exec_start(made).decode()
            return api.exec_inspect(made)["ExitCode"], said

    def python(self, code: str) -> str:
        status, said = self.run("python", "-c", code)
        assert status == 0, said
        return said

    def state(self) -> dict[str, Any]:
        with engines.client() as api:
            state: dict[str, Any] = api.inspect_container(self.id)["State"]
        return state

    def wait_healthy(self) -> None:
        wait_for(lambda: self.state().get("Health", {}).get("Status") == "healthy" or self.ended(), PATIENCE)
        assert not self.ended(), self.log()

    def ended(self) -> bool:
        return self.state()["Status"] == "exited"

    def log(self) -> str:
        with engines.client() as api:
            text: str = api.logs(self.id).decode()
        return text

    def address(self, door: str) -> str:
        if not self.bridge:
            ready = json.loads(self.run("python", "-c", "print(open('/tmp/operato-ready.json').read())")[1])
            return f"127.0.0.1:{ready[door][0][1]}"
        with engines.client() as api:
            (found,) = api.port(self.id, {"rest": 8000, "grpc": 50051}[door])
        return f"127.0.0.1:{found['HostPort']}"

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """Lend a client with a token signed by the image itself."""
        status, token = self.run("operato-runner", "token", "--subject", "test", "--scope", "admin")
        assert status == 0, token
        headers = {"authorization": f"Bearer {token.strip()}"}
        with httpx.Client(base_url=f"http://{self.address('rest')}", headers=headers, timeout=30) as client:
            yield client

    def stop(self) -> int:
        """Stop the container as an engine does; return the exit code."""
        with engines.client() as api:
            api.stop(self.id, timeout=PATIENCE)
        return int(self.state()["ExitCode"])


@pytest.fixture
def start(image: str, tmp_path: Path) -> Iterator[Any]:
    """Return a function that starts a container; all are removed, with their volumes."""
    started = []

    def start(environ: dict[str, str] | None = None, binds: list[str] = ()) -> Container:  # type: ignore[assignment]
        modules = tmp_path / "modules.yaml"
        modules.write_text(MODULES)
        started.append(Container(image, modules, environ or {}, list(binds)))
        return started[-1]

    yield start
    with engines.client() as api:
        for container in started:
            api.remove_container(container.id, force=True, v=True)


def test_the_metadata_of_the_image(image):
    with engines.client() as api:
        found = api.inspect_image(image)["Config"]

    assert found["User"] == "10001:10001"
    assert set(found["Volumes"]) == {"/data", "/environments"}
    assert set(found["ExposedPorts"]) == {"8000/tcp", "50051/tcp"}
    assert found["StopSignal"] == "SIGTERM"
    assert found["Labels"]["org.opencontainers.image.revision"] == "0123abc"
    assert found["Labels"]["org.opencontainers.image.version"] == "9.8.7"
    assert not [line for line in found["Env"] if line.startswith(("OPERATO_JWT_SECRET", "PIP_"))]


def test_a_container_serves_by_the_documented_command(start):
    container = start()
    container.wait_healthy()

    printed = re.search(r"Authorization: Bearer ([\w.-]+)'", container.log())
    assert printed, "no token was printed"
    assert "http://127.0.0.1:" in container.log(), "0.0.0.0 is no address for clients"
    url = f"http://{container.address('rest')}/modules/execute/hello"
    answer = httpx.post(url, json={"name": "Ada"}, headers={"authorization": f"Bearer {printed[1]}"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"] == {"message": "Hello, Ada!", "user": 10001}
    assert httpx.post(url, json={"name": "Ada"}).status_code == 401

    with grpc.insecure_channel(container.address("grpc")) as channel:
        execute = channel.unary_unary(
            "/operato.runner.v1.ExecutorService/Execute",
            request_serializer=bytes,
            response_deserializer=v1.ExecuteResponse().parse,
        )
        request = v1.ExecuteRequest(module_name="hello", input_json='{"name": "Bob"}')
        answer = execute(request, metadata=(("authorization", f"Bearer {printed[1]}"),), timeout=30)
    assert json.loads(answer.result_json)["message"] == "Hello, Bob!"

    status, said = container.run("operato-runner", "doctor")
    assert status == 0, said
    for folder in ("/data", "/environments/venvs", "/environments/condas"):
        assert f"{folder} can be " in said


LOOK = """
import json, os, pathlib
found = {}
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()
        found[process.name] = [state[0], state[1], (process / "cmdline").read_text().replace("\\0", " ")]
    except OSError:
        pass
found.pop(str(os.getpid()), None)
print(json.dumps(found))
"""
LEAVE = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.2)
    os._exit(0)
"""


def test_the_watcher_is_process_1_and_reaps_orphans(start):
    """Orphans are given to process 1, and only process 1 can reap them."""
    container = start()
    container.wait_healthy()
    found = json.loads(container.python(LOOK))
    assert "runner.watch" in found["1"][2]
    assert [parent for _, parent, line in found.values() if "operato-runner serve" in line] == ["1"]
    container.python(LEAVE)  # an orphan of a command of the operator, not of a worker

    with container.client() as client:
        for _ in range(3):
            crashed = client.post("/modules/execute/leaver", json=None).json()
            assert crashed["error"]["kind"] == "worker_crashed"
            assert len(crashed["killed"]) == 3, crashed

    def left() -> list[str]:
        found = json.loads(container.python(LOOK)).values()
        return [line for state, parent, line in found if state == "Z" or "time.sleep(600)" in line]

    wait_for(lambda: not left())


def test_sigterm_drains_and_exits_with_0(start):
    container = start()
    container.wait_healthy()
    answers = []
    with container.client() as client:
        thread = threading.Thread(target=lambda: answers.append(client.post("/modules/execute/slow", json=None)))
        thread.start()
        wait_for(lambda: client.get("/executions", params={"status": "running"}).json()["items"])
        assert container.stop() == 0, container.log()
        thread.join(PATIENCE)

    (answer,) = answers
    assert (answer.status_code, answer.json()["result"]) == (200, "ended")
    assert "stopped, all work had ended" in container.log()


@pytest.fixture
def volume() -> Iterator[str]:
    """Name a volume; request it before `start`, so that it is removed after its containers."""
    name = f"operato-test-{uuid.uuid4().hex}"
    yield name
    with engines.client() as api:
        api.remove_volume(name)


def test_a_volume_keeps_the_record_and_the_secret(volume, start):
    first = start(binds=[f"{volume}:/data"])
    first.wait_healthy()
    with first.client() as client:
        made = client.post("/modules/execute/hello", json={"name": "Ada"}).json()
        token = client.headers["authorization"]
    assert first.stop() == 0
    second = start(binds=[f"{volume}:/data"])
    second.wait_healthy()

    url = f"http://{second.address('rest')}/executions/{made['id']}"
    assert httpx.get(url, headers={"authorization": token}).json()["result"] == made["result"]


def test_a_secret_from_a_file_is_the_key_and_no_token_is_printed(start, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o644)
    container = start({"OPERATO_JWT_SECRET_FILE": "/run/secrets/jwt"}, [f"{secret}:/run/secrets/jwt:ro"])
    container.wait_healthy()

    with container.client() as client:
        assert client.get("/modules").status_code == 200
    status, said = container.run("operato-runner", "call", "hello", '{"name": "Ada"}')
    assert status == 0, said
    assert "Hello, Ada!" in said
    assert "Bearer" not in container.log()
    assert SECRET not in container.log()
    assert "jwt-secret" not in container.python("import os; print(os.listdir('/data'))")


def test_without_a_key_it_does_not_listen(start):
    container = start({"OPERATO_JWT_OWN_SECRET": "false", "OPERATO_HOST": "0.0.0.0"})
    wait_for(container.ended, PATIENCE)

    assert container.state()["ExitCode"] == 2
    assert "no key for tokens is configured; configure `jwt_secret`, `jwt_secret_file`" in container.log()


def test_variables_and_files_of_a_pod_of_the_chart_serve(start, tmp_path):
    rendered = Rendered({"auth": KEYS})
    mounts = {mount["name"]: mount["mountPath"] for mount in rendered.container["volumeMounts"]}
    folders = {"modules": rendered.one("ConfigMap")["data"], "keys": {"jwt-secret": SECRET}}
    for name, files in folders.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    environ = {**rendered.environ, "OPERATO_HOST": "127.0.0.1"} if not bridged() else rendered.environ
    container = start(environ, [f"{tmp_path / name}:{mounts[name]}:ro" for name in folders])
    container.wait_healthy()

    with container.client() as client:
        answer = client.post("/modules/execute/hello-world", json={"name": "pod"})
        assert answer.json()["result"] == {"message": "Hello, pod!"}
        for name in ("livenessProbe", "readinessProbe"):
            assert client.get(rendered.container[name]["httpGet"]["path"]).status_code == 200
    assert container.run(*Rendered({"auth": KEYS, "tls": TLS}).container["readinessProbe"]["exec"]["command"])[0] == 0
    assert "Bearer" not in container.log()
    pause = Rendered({"auth": KEYS, "preStopSeconds": 1}).container["lifecycle"]["preStop"]["exec"]["command"]
    assert container.run(*pause) == (0, "")


def test_a_variable_of_a_kubernetes_service_is_an_error(start):
    """The reason for `enableServiceLinks: false` in the chart: unknown variables with the prefix are errors."""
    container = start({"OPERATO_RUNNER_SERVICE_HOST": "10.0.0.1"})
    wait_for(container.ended, PATIENCE)

    assert container.state()["ExitCode"] == 2
    assert "OPERATO_RUNNER_SERVICE_HOST: unknown setting" in container.log()
