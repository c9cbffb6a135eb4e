"""Acceptance: the distribution `operato-client`, from its wheel, against the real server, in each of its ways."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from environments.installer import find_uv
from tests.pythons import PYTHONS
from tests.server_process import ROOT, Server, running, url_of

CLIENT = ROOT / "packaging" / "client"
OLDEST = "3.9"
MODULES = """
modules:
  - {name: echo, env: inline, code: "def handler(input): return input"}
  - name: bad
    env: inline
    code: |
      def handler(input):
          print("before")
          return input["y"]
  - name: strict
    env: inline
    input_schema: {type: object, properties: {n: {type: integer}}}
    code: "def handler(input): return input"
  - name: sleep
    env: inline
    code: |
      import time
      def handler(input):
          time.sleep(input)
          return input
  - name: nap
    env: inline
    code: |
      import time
      def handler(input):
          time.sleep(input if input != "x" else 0.3)
          return input / 1
  - name: some
    env: inline
    code: |
      def handler(input):
          if input == 13:
              raise ValueError(input)
          return input
  - name: counts
    env: inline
    code: |
      def handler(input):
          for n in range(input):
              print("n", n, flush=True)
              yield n
  - name: reverse
    env: inline
    code: |
      from operato import File
      def handler(file: File, text: str):
          return {"file": File(file.read_bytes()[::-1], name="r"), "text": text[::-1]}
  - name: hello-world
    env: inline
    code: |
      def handler(input):
          name = (input or {}).get("name", "world")
          print(f"greeting {name}")
          return {"message": f"Hello, {name}!"}
  - {name: installed, env: inline, path: ./installed}
"""
INSTALLED = """
import operato, sys
from operato import File, context

def handler(file: File):
    context().progress(text="found")
    late = "httpx" in sys.modules
    return [operato.__file__, context().attempt, file.read_text(), File(b"made", name="a.txt"), late]
"""


def build(source: Path, kind: str, out: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (made,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the content of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build(CLIENT, "wheel", folder / "out")) as file:
        file.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, site: Path):
    home = tmp_path_factory.mktemp("server")
    shutil.copytree(site / "operato", home / "installed" / "operato")
    (home / "installed" / "main.py").write_text(INSTALLED)
    with running(home, MODULES) as opened:
        yield opened
        assert opened.stop() == 0


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return the oldest supported Python, and a folder with the packages that the client needs."""
    if OLDEST not in PYTHONS:
        pytest.skip(f"there is no Python {OLDEST} on this machine")
    folder = tmp_path_factory.mktemp("oldest")
    install = [find_uv() or "uv", "pip", "install", "-q", "--no-config", "--python", PYTHONS[OLDEST]]
    wanted = ["httpx>=0.27,<1", "anyio>=4,<5", "trio"]
    done = subprocess.run([*install, "--target", str(folder), *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"the packages of the client cannot be downloaded here: {done.stderr.strip()}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return PYTHONS[OLDEST], folder


def run_program(python: str, folders: list[Path], way: str, server: Server, home: Path) -> None:
    program = [python, str(ROOT / "tests" / "operato_program.py"), way, url_of(server), server.token, str(home)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    assert "cancelling" in done.stdout


@pytest.mark.parametrize("way", ["sync", "asyncio", "trio"])
def test_every_method_works_in_each_way(server: Server, site: Path, tmp_path: Path, way: str):
    run_program(sys.executable, [site], way, server, tmp_path)


@pytest.mark.parametrize("way", ["sync", "trio"])
def test_every_method_works_under_the_oldest_python(server: Server, site: Path, oldest, tmp_path: Path, way: str):
    python, packages = oldest
    run_program(python, [site, packages], way, server, tmp_path)


@pytest.mark.parametrize(("page", "number"), [("README.md", 0), ("docs/client.md", 0), ("docs/client.md", 1)])
def test_the_examples_of_the_documentation_run(server: Server, site: Path, page: str, number: int):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    text = [block for block in blocks if "from operato import" in block and "Client" in block][number]
    environ = {"PYTHONPATH": str(site), "OPERATO_URL": url_of(server), "OPERATO_TOKEN": server.token}
    done = subprocess.run(
        [sys.executable, "-c", text], env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{'message': 'Hello, Ada!'}\n")


def test_a_worker_with_the_client_installed_finds_its_call(server: Server):
    answer = server.client.post("/modules/execute/installed", files={"file": ("a.txt", b"content")})
    place, attempt, text, made, late = answer.json()["result"]
    assert Path(place).parts[-2:] == ("operato", "__init__.py")
    assert "installed" in place
    assert (attempt, text, late) == (1, "content", False)
    assert made["$file"]["name"] == "a.txt"


def test_the_sdist_makes_the_same_wheel(site: Path, tmp_path: Path):
    with tarfile.open(build(CLIENT, "sdist", tmp_path / "out")) as file:
        assert all(member.isfile() for member in file.getmembers())
        file.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("operato_client-*")
    with zipfile.ZipFile(build(source, "wheel", tmp_path / "again")) as file:
        content = {name: file.read(name) for name in file.namelist()}

    files = [path for path in site.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    assert content == {str(path.relative_to(site)): path.read_bytes() for path in files}
    assert content["operato/authors.py"] == (ROOT / "protocol" / "authors" / "operato.py").read_bytes()
    assert "operato/py.typed" in content
    assert any(name.endswith("/licenses/LICENSE") for name in content)
