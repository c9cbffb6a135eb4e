"""Acceptance: the newest Python, as far as a machine without it can tell: its wheels, and the names that it removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpclib.health.v1 import health_pb2

from environments.installer import find_uv
from tests.server_process import ROOT, running

NEWEST = "3.14"
LOCKS = ["requirements.txt", "packaging/image.lock", "packaging/build.lock"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_wheel(lock: str, machine: str, tmp_path: Path) -> None:
    """Only the index is read. Without it the test is skipped, and fails in CI."""
    uv = [find_uv() or "uv", "pip", "install", "--dry-run", "--no-config", "--no-deps", "--require-hashes"]
    uv += ["--only-binary", ":all:", "--python-version", NEWEST, "--python-platform", f"{machine}-manylinux_2_28"]
    command = [*uv, "--python", sys.executable, "--target", str(tmp_path), "-r", str(ROOT / lock)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    told = done.stderr
    if done.returncode != 0 and "no usable wheels" not in told and "wheels with a matching" not in told:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"the package index cannot be read: {told[-500:]}")
    assert done.returncode == 0, told


REMOVED = """
import ast, asyncio, collections.abc, importlib.abc, pkgutil, pty, sqlite3, sys, typing, urllib.request, warnings

watchers = [f"{kind}ChildWatcher" for kind in ("Abstract", "Fast", "MultiLoop", "Pidfd", "Safe", "Threaded")]
access = ["get_child_watcher", "set_child_watcher"]
names = {
    asyncio: [*watchers, *access],
    asyncio.events: access,
    asyncio.unix_events: watchers,
    typing: ("ByteString",),
    collections.abc: ("ByteString",),
    ast: ("Num", "Str", "Bytes", "NameConstant", "Ellipsis"),
    importlib.abc: ("ResourceReader", "Traversable", "TraversableResources"),
    pkgutil: ("find_loader", "get_loader"),
    pty: ("master_open", "slave_open"),
    sqlite3: ("version", "version_info"),
    urllib.request: ("URLopener", "FancyURLopener"),
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # later Pythons warn of some
    for module, removed in names.items():
        for name in removed:
            vars(module).pop(name, None)
            if hasattr(module, name):  # a function makes and keeps it when it is asked for
                del module.__getattr__
                vars(module).pop(name, None)
            assert not hasattr(module, name), (module, name)

def no_loop(policy):
    raise RuntimeError("There is no current event loop")
type(asyncio.get_event_loop_policy()).get_event_loop = no_loop

for name in PROGRAM:
    __import__(name)

from runner.cli import main
main()
"""
MODULES = """
modules:
  echo: {env: inline, code: "def handler(input): return input"}
  hinted: {env: inline, code: "def handler(input: dict[str, int]): return sorted(input)"}
  within: {env: inline, isolation: none, code: "async def handler(input): return input"}
"""


def test_the_runner_serves_without_the_names_that_it_removed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    packages = ("protocol", "config", "environments", "actors", "runner")
    files = [path.relative_to(ROOT) for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    programs = ("protocol.guest", "protocol.many", "protocol.parts", "protocol.relay", "protocol.sharing")
    program.write_text(
        f"PROGRAM = {[name for name in names if not name.startswith(('runner.__main__', *programs))]}\n{REMOVED}"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with running(tmp_path, MODULES, program=[sys.executable, str(program)], environ=environ) as server:
        assert server.execute("echo", 5).json()["result"] == 5
        assert server.execute("hinted", {"a": 1}).json()["result"] == ["a"]
        assert server.execute("within", "in").json()["result"] == "in"
        assert len(server.client.get("/modules").json()["items"]) == 3
        with grpc.insecure_channel(f"127.0.0.1:{server.ready['grpc'][0][1]}") as channel:
            # Without grpc_health, which cannot be imported beside grpclib: both define the same messages.
            answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30)
            assert health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING
        assert server.stop() == 0
