"""Acceptance: the files of `make dist`: each runs on its own, and is reproducible; and a checkout runs from source."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio_websocket import wrap_client_stream

from environments.installer import find_uv
from environments.pythons import python_candidates
from runner.version import commit, release
from tests import engines
from tests.contract.test_environments import make_wheel
from tests.interpreter import program
from tests.server_process import ROOT, Server, running, wait_for

pytestmark = pytest.mark.timeout(600)
KINDS = ("pyz", "pex")
BEYOND = ("3.10", "3.15")
"""Pythons that the executables are not made for."""
PATIENCE = 120
NOT_FETCHED = 75
ECHO = """
modules:
  echo: {env: inline, code: "def handler(input): return input"}
  python: {env: inline, code: "import sys\\ndef handler(input): return '%d.%d' % sys.version_info[:2]"}
"""


class Made:
    """The built files, and the wheels they were built from."""

    def __init__(self, out: Path, wheels: Path) -> None:
        self.out, self.wheels = out, wheels
        (self.wheel,) = out.glob("operato_runner-*.whl")
        (self.sdist,) = out.glob("operato_runner-*.tar.gz")

    def executable(self, kind: str) -> Path:
        return self.out / f"operato-runner.{kind}"


def make(source: Path, out: Path, wheels: Path, **how: Any) -> None:
    """Build as `make dist` does. Without a network the tests are skipped, and fail in CI."""
    command = [sys.executable, "packaging/make_dist.py", "--out", str(out), "--wheels", str(wheels)]
    done = subprocess.run(
        command, cwd=source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **how
    )
    if done.returncode == NOT_FETCHED:
        reason = f"the packages of requirements.txt cannot be downloaded here: {done.stdout.strip().splitlines()[-1]}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Build once, with the packages that `make dist` downloaded before."""
    folder = tmp_path_factory.mktemp("dist")
    kept = ROOT / "build" / "wheels"
    wheels = kept if (kept / "complete").exists() else folder / "wheels"
    make(ROOT, folder / "out", wheels)
    yield Made(folder / "out", wheels)
    shutil.rmtree(folder)


class Program:
    """An executable with an empty home and no variables."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        self.argv = [str(program()), str(file)]
        self.environ = {"HOME": str(self.home), "PATH": "/usr/local/bin:/usr/bin:/bin"}
        if "DOCKER_HOST" in os.environ:
            self.environ["DOCKER_HOST"] = os.environ["DOCKER_HOST"]

    def run(self, *arguments: str, code: int = 0, argv: list[str] | None = None) -> str:
        done = subprocess.run(
            [*(argv or self.argv), *arguments],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == code, done.stderr
        return done.stdout or done.stderr


@pytest.fixture(scope="module", params=KINDS)
def handed(made: Made, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp(request.param)
    yield Program(made.executable(request.param), folder)
    shutil.rmtree(folder)


# -- one file that runs ------------------------------------------------------------------------------------------------


def test_version_from_an_empty_home(handed: Program, made: Made) -> None:
    told = handed.run("--version")

    assert told.startswith(f"operato-runner {release()} ({(commit() or '')[:7]}")
    assert handed.run("--version") == told
    assert list(handed.folder.iterdir()) == [handed.home], "files were left beside the home"


@cache
def pythons() -> dict[str, Path]:
    """Return the interpreters of this machine by version: those of the executables, and the versions just beyond."""
    found = {}
    for minor in range(10, 16):
        for path in python_candidates(f"3.{minor}", [Path(part) for part in os.environ["PATH"].split(":")]):
            asked = subprocess.run(
                [path, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True,
                text=True,
                check=False,
            )
            if asked.returncode == 0 and asked.stdout.strip() == f"3.{minor}":
                found.setdefault(f"3.{minor}", path)
    return found


def test_every_supported_python_runs_it(handed: Program) -> None:
    found = {name: path for name, path in pythons().items() if name not in BEYOND}
    assert found

    (handed.folder / "modules.yaml").write_text(ECHO)
    for name, path in found.items():
        told = handed.run("run", "python", argv=[str(path), handed.argv[-1]])
        assert json.loads(told) == name, "inline is the interpreter that runs the file"


@pytest.mark.parametrize("handed", ["pyz"], indirect=True)
def test_another_python_is_refused_with_a_remedy(handed: Program) -> None:
    """A pex looks for another Python by itself."""
    others = [path for name, path in pythons().items() if name in BEYOND]
    if not others:
        pytest.skip("there is no Python here that is not supported")

    told = handed.run("--version", code=1, argv=[str(others[0]), handed.argv[-1]])

    assert told.startswith("error: this file is for cpython-311-")
    assert f"such as `python3.12 {handed.argv[-1]}`" in told


def test_it_is_a_program_by_itself(handed: Program) -> None:
    tools = handed.folder / "tools"
    tools.mkdir()
    (tools / "python3").symlink_to(program())
    handed.environ["PATH"] = f"{tools}:{handed.environ['PATH']}"

    assert handed.run("--version", argv=[handed.argv[-1]]).startswith("operato-runner ")


@pytest.mark.parametrize("kind", KINDS)
def test_the_client_of_clusters_is_inside(made: Made, kind: str) -> None:
    with zipfile.ZipFile(made.executable(kind)) as file:
        assert any(name.endswith("nats/aio/client.py") for name in file.namelist())


def test_uv_is_inside(handed: Program) -> None:
    (handed.folder / "modules.yaml").write_text(ECHO)

    findings = json.loads(handed.run("doctor", "--json", "--rest-port", "0", "--grpc-port", "0"))["findings"]
    (uv,) = (finding for finding in findings if finding["name"] == "uv")

    assert uv["state"] == "ok"
    assert f"({handed.home}/" in uv["says"]


# -- a server of it ----------------------------------------------------------------------------------------------------

MODULES = """
runner: {offline: true}
modules:
  - name: hello
    env: inline
    code: |
      def handler(input):
          print("greeting")
          return {"message": f"Hello, {input['name']}!"}
  - name: slow
    env: inline
    timeout: 30s
    code: |
      import pathlib, time
      def handler(input):
          pathlib.Path(input).write_text("begun")
          time.sleep(60)
  - name: sees
    env: inline
    code: |
      import importlib.util, os
      def handler(names, /):
          return [name for name in names if importlib.util.find_spec(name)], sorted(os.environ)
  - {name: bare, env: venv, code: "import sys\\ndef handler(input): return sys.prefix != sys.base_prefix"}
  - name: needs
    env: venv
    requirements: ["REQUIREMENT"]
    code: |
      import tiny
      def handler(input):
          return tiny.answer
"""


@pytest.fixture(scope="module")
def server(handed: Program) -> Iterator[Server]:
    text = MODULES.replace("REQUIREMENT", make_wheel(handed.folder))
    handed.run("--version")  # the first start unpacks it, which takes longer than the start of a server may
    with running(handed.folder, text, program=handed.argv, environ=handed.environ) as started:
        yield started
        assert started.stop() == 0


def test_rest(server: Server) -> None:
    answer = server.execute("hello", {"name": "you"}).json()

    assert (answer["status"], answer["result"], answer["stdout"]) == (
        "succeeded",
        {"message": "Hello, you!"},
        "greeting\n",
    )


def test_the_page_and_its_document_are_inside(server: Server) -> None:
    assert "<html" in server.client.get("/docs").text
    assert server.client.get("/openapi.json").json()["info"]["version"] == release()


def test_the_dashboard_is_inside(server: Server) -> None:
    page = server.client.get("/ui/sign-in")
    assert page.status_code == 200, page.text
    for path in re.findall(r'"(/ui/static/[^"]+)"', page.text):
        assert server.client.get(path).status_code == 200, path
    done = server.client.post("/ui/sign-in", data={"token": server.token}, headers={"sec-fetch-site": "same-origin"})
    assert done.status_code == 303
    assert "Sign out" in server.client.get("/ui/").text


async def test_websocket(server: Server) -> None:
    headers = [("authorization", f"Bearer {server.token}")]
    with trio.fail_after(PATIENCE):
        # On a stream of the test: trio-websocket leaves its own open when the server closes first.
        stream = await trio.open_tcp_stream("127.0.0.1", server.ready["rest"][0][1])
        async with stream, trio.open_nursery() as nursery:
            path = "/modules/stream/hello"
            opened = await wrap_client_stream(nursery, stream, "127.0.0.1", path, extra_headers=headers)
            await opened.send_message('{"name": "you"}')
            events = [json.loads(await opened.get_message())]
            while events[-1]["type"] != "result":
                events.append(json.loads(await opened.get_message()))
            nursery.cancel_scope.cancel()

    assert "greeting\n" in [event.get("text") for event in events]


def test_grpc_with_a_real_client(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "protocol"), "executor.proto"]
    subprocess.run([*command, f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"], check=True)
    for client in ("aio", "health"):
        argv = [sys.executable, str(ROOT / "tests" / "acceptance" / "grpc_clients.py"), client]
        port = str(server.ready["grpc"][0][1])
        told = subprocess.check_output([*argv, port, server.token], cwd=tmp_path, text=True, timeout=PATIENCE)
        answer = json.loads(told)
        if client == "aio":
            assert (answer["result"], answer["cancelled"]) == ({"message": "Hello, you!"}, "CancelledError")
        else:
            assert answer["status"] == "SERVING"
            assert "ExecuteStream" in answer["methods"], "reflection has the descriptors"


def test_a_module_does_not_see_how_the_runner_is_packaged(server: Server) -> None:
    seen, variables = server.execute("sees", ["json", "trio", "uv", "runner", "shiv", "pex"]).json()["result"]

    assert seen == ["json"]
    assert [name for name in variables if name.startswith(("PEX", "SHIV", "PYTHON", "__"))] == []


@pytest.mark.parametrize(("module", "result"), [("bare", True), ("needs", 42)])
def test_venv(server: Server, module: str, result: object) -> None:
    answer = server.execute(module, None).json()

    assert (answer["status"], answer["result"]) == ("succeeded", result), answer["error"]


def test_the_log_has_the_version(server: Server) -> None:
    assert f"version={release()} (" in (server.home / "log").read_text().replace("'", "")


def test_run_without_a_server(handed: Program) -> None:
    (handed.folder / "modules.yaml").write_text(ECHO)

    assert json.loads(handed.run("run", "echo", '{"a": [1, 2]}')) == {"a": [1, 2]}


@pytest.mark.usefixtures("with_engine")
def test_docker(handed: Program) -> None:
    image = f"{engines.IMAGE}:base"
    text = f'modules: {{boxed: {{env: docker, image: "{image}", code: "def handler(input): return input + 1"}}}}'
    (handed.folder / "modules.yaml").write_text(text)

    assert json.loads(handed.run("run", "boxed", "41")) == 42


# -- wheel and sdist ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install the wheel with its dependencies, without an index; return the environment."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv")
    (folder / "lock").write_text("".join(f"{line}\n" for line in versions()))
    uv = [find_uv() or "uv", "pip", "install", "-q", "--no-config", "--offline", "--no-index"]
    uv += ["--python", str(folder / "venv" / "bin" / "python"), "--find-links", str(made.wheels)]
    subprocess.run([*uv, "-c", str(folder / "lock"), str(made.wheel)], check=True, cwd=folder)
    yield folder / "venv"
    shutil.rmtree(folder)


def versions() -> list[str]:
    """Return the versions of the lock, without hashes."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line.removesuffix("\\").strip() for line in lines if line.strip() and not line.startswith(" ")]


def test_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "modules.yaml").write_text(ECHO)
    told = []
    for argv in (["operato-runner"], ["python", "-m", "runner"]):
        command = [str(installed / "bin" / argv[0]), *argv[1:]]
        told.append(subprocess.check_output([*command, "--version"], cwd=tmp_path, text=True))
        ran = subprocess.check_output([*command, "run", "echo", "[1]"], cwd=tmp_path, text=True)
        assert json.loads(ran) == [1]

    assert told[0] == told[1]
    assert told[0].startswith(f"operato-runner {release()} ({(commit() or '')[:7]}")


def test_the_contents_of_the_wheel(made: Made) -> None:
    with zipfile.ZipFile(made.wheel) as wheel:
        names = set(wheel.namelist())

    source = {"protocol/SPEC.md", "protocol/executor.proto", "protocol/rpc/executor.binpb", "protocol/guest.py"}
    pages = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("runner/ui/*/*.*") if path.suffix != ".pyc"}
    assert "runner/ui/templates/base.html" in pages
    assert names >= {*source, *pages, "protocol/relay.py", "protocol/values.py", "runner/py.typed", "runner/commit.txt"}
    top = {name.partition("/")[0] for name in names}
    assert top == {
        *("runner", "actors", "protocol", "environments", "config"),
        f"operato_runner-{release()}.dist-info",
    }


def test_the_sdist_makes_the_same_wheel(made: Made, tmp_path: Path) -> None:
    with tarfile.open(made.sdist) as sdist:
        sdist.extractall(tmp_path, filter="data")
        moment = sdist.getmembers()[0].mtime
    (source,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again")]
    subprocess.run(command, cwd=source, env={**os.environ, "SOURCE_DATE_EPOCH": str(int(moment))}, check=True)

    assert (tmp_path / "again" / made.wheel.name).read_bytes() == made.wheel.read_bytes()


# -- from source -------------------------------------------------------------------------------------------------------

COMMANDS = "python -m venv venv; source venv/bin/activate; pip install -r requirements.txt; exec python main.py"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a clone with the changes of the work tree."""
    source = tmp_path_factory.mktemp("source") / "a checkout"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(source)], check=True)
    git = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.check_output([*git, "-cdo", "--exclude-standard"], text=True).split("\0")
    for name in filter(None, listed):  # uncommitted changes are part of the test
        target = source / name
        target.unlink(missing_ok=True)
        if (ROOT / name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
    yield source
    shutil.rmtree(source)


def test_a_checkout_serves_by_the_commands_of_the_readme(made: Made, checkout: Path, tmp_path: Path) -> None:
    """Variables change the ports, the data directory and the source of the packages only."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python").symlink_to(program())
    environ = {
        "HOME": str(tmp_path),
        "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin",
        "PIP_NO_COMPILE": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(made.wheels),
        **{f"OPERATO_{name}_PORT": "0" for name in ("REST", "GRPC")},
        **{f"OPERATO_{name}": str(tmp_path / name) for name in ("DATA_DIR", "VENV_PATH", "CONDA_PATH")},
    }
    log = tmp_path / "log"
    with log.open("w") as file:
        command = ["bash", "-ec", COMMANDS]
        server = subprocess.Popen(command, cwd=checkout, env=environ, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: "Bearer" in log.read_text() or server.poll() is not None, PATIENCE)
        assert server.poll() is None, log.read_text()
        printed = re.search(r"curl -s -X POST (\S+) \\\n +-H 'Authorization: (Bearer \S+)'", log.read_text())
        assert printed, "no curl line with a token was printed"
        url, token = printed.groups()
        answer = httpx.post(url, json={"name": "Ada"}, headers={"authorization": token}, timeout=30, trust_env=False)
        assert answer.json()["result"] == {"message": "Hello, Ada!"}
    finally:
        server.terminate()
        code = server.wait(PATIENCE)
    assert code == 0, log.read_text()


# -- reproducibility ---------------------------------------------------------------------------------------------------


def test_the_checksums_are_right(made: Made) -> None:
    told = dict(reversed(line.split("  ")) for line in (made.out / "SHA256SUMS").read_text().splitlines())

    files = {path.name: path for path in made.out.iterdir() if path.name != "SHA256SUMS"}
    assert told == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert {name.rpartition(".")[2] for name in told} == {"pyz", "pex", "whl", "gz"}
    assert sum(name.startswith("operato_client-") for name in told) == 2


def test_another_checkout_makes_the_same_bytes(made: Made, checkout: Path, tmp_path: Path) -> None:
    """In another folder, by a user whose umask keeps files private."""
    make(checkout, tmp_path / "out", made.wheels, umask=0o077)

    assert (tmp_path / "out" / "SHA256SUMS").read_text() == (made.out / "SHA256SUMS").read_text()
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_contains_the_place_or_time_of_the_build(made: Made, kind: str) -> None:
    with zipfile.ZipFile(made.executable(kind)) as file:
        entries = file.infolist()
        places = [str(place).encode() for place in (ROOT, made.out.parent, Path(sys.prefix))]
        telling = [entry.filename for entry in entries if any(place in file.read(entry) for place in places)]

    assert telling == []
    assert [entry.filename for entry in entries if entry.filename.endswith(".pyc")] == []
    assert len({entry.date_time for entry in entries}) == 1
    assert made.executable(kind).stat().st_mode & stat.S_IXOTH
