"""Cluster: three runners as processes over three NATS servers, load from every door, and the conditions at the end."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import attrs
import httpx
import jwt

from tests.cluster.servers import Proxies, Servers
from tests.server_process import ROOT, wait_for

NODES = ("a", "b", "c")
SECRET = "s" * 32
REDELIVERY = 3
"""Seconds; less than outside of tests."""
WHOLE_SECONDS = 90.0
FINAL = ("succeeded", "failed", "cancelled")

_CODE = """
      import os, time
      def handler(input, context):
          with open(f"{input['calls']}/{context.execution_id}", "a") as file:
              file.write(f"{context.attempt}\\n")
          print(f"attempt {context.attempt}", flush=True)
          while not os.path.exists(input.get("until", "/")):
              time.sleep(0.02)
          time.sleep(input["seconds"])
          return context.attempt
"""
MODULES = f"""
modules:
  - name: once
    env: inline
    code: &code |{_CODE}
  - name: again
    env: inline
    retry: {{attempts: 20, on: [lost]}}
    code: *code
  - name: few
    env: inline
    concurrency: 3
    retry: {{attempts: 20, on: [lost]}}
    code: *code
  - name: paced
    env: inline
    rate: 1000/s
    retry: {{attempts: 20, on: [lost]}}
    code: *code
"""


@attrs.define(eq=False)
class Runner:
    """One runner. Its folder and its name stay the same when it is started again."""

    node: str
    home: Path
    options: tuple[str, ...]
    release: Path = ROOT
    """The folder of its program."""
    process: subprocess.Popen[bytes] | None = None
    pid: int = 0
    client: httpx.Client | None = None

    def start(self) -> None:
        """Start it; `wait_ready` must follow."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "modules.yaml").write_text(MODULES)
        (self.home / "ready.json").unlink(missing_ok=True)
        ports = ("--rest-port", "0", "--no-grpc", "--ready-file", "ready.json", "--drain-timeout", "5")
        command = [
            sys.executable,
            str(self.release / "main.py"),
            "--config",
            "modules.yaml",
            *ports,
            *self.options,
        ]
        environ = {**os.environ, "OPERATO_JWT_SECRET": SECRET}
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.home, env=environ, stderr=log, stdout=log)

    def wait_ready(self) -> None:
        wait_for(lambda: (self.home / "ready.json").exists() or not self.running)
        assert self.running, self.log[-3000:]
        ready = json.loads((self.home / "ready.json").read_text())
        self.pid = ready["pid"]
        claims = {"sub": "test", "scope": "admin", "exp": time.time() + 36_000}
        token = jwt.encode(claims, SECRET, algorithm="HS256")
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{ready['rest'][0][1]}",
            headers={"authorization": f"Bearer {token}"},
            timeout=10,
            trust_env=False,
        )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def signal(self, number: int) -> None:
        """Send a signal to the runner itself, not to its watcher; one that was killed has none."""
        if self.client is not None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, its watcher and workers too."""
        if self.running:
            assert self.process is not None
            with suppress(ProcessLookupError):
                os.kill(self.pid or self.process.pid, signal.SIGKILL)
            self.process.wait(60)
        self._close()

    def stop(self) -> int:
        """End it in order; return its exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(60)
        self._close()
        return code

    def _close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    def get(self, path: str) -> Any:
        """Return what it answers, None while it does not."""
        if self.client is None:
            return None
        with suppress(httpx.HTTPError):
            answer = self.client.get(path)
            return answer.json() if answer.status_code == 200 else None
        return None

    def submit(self, module: str, value: Any, **how: Any) -> str | None:
        """Submit an execution; None when it is not known to be accepted."""
        if self.client is None:
            return None
        with suppress(httpx.HTTPError, RuntimeError):  # the client may be closed meanwhile
            answer = self.client.post(
                f"/modules/execute/{module}", json=value, headers={"prefer": "respond-async"}, **how
            )
            if answer.status_code == 202:
                name: str = answer.json()["id"]
                return name
            assert answer.status_code in (429, 503), answer.text
        return None

    def call(self, module: str, value: Any) -> str | None:
        """Call a module and wait; return the id when it succeeded."""
        if self.client is None:
            return None
        with suppress(httpx.HTTPError, RuntimeError):
            answer = self.client.post(f"/modules/execute/{module}", json=value)
            if answer.status_code == 200:
                name: str = answer.json()["id"]
                return name
        return None

    def cancel(self, name: str) -> None:
        if self.client is not None:
            with suppress(httpx.HTTPError, RuntimeError):
                self.client.post(f"/executions/{name}/cancel")


@attrs.define(eq=False)
class Fleet:
    """Runners of one cluster; each reaches the servers by proxies of its own."""

    servers: Servers
    folder: Path
    runners: list[Runner]
    ways: Proxies
    accepted: dict[str, str] = attrs.field(factory=dict)
    """The modules of accepted executions, and of calls that were answered."""
    cancelled: set[str] = attrs.field(factory=set)
    """Executions that a caller asked to cancel."""

    @property
    def calls(self) -> Path:
        return self.folder / "calls"

    def cut_off(self, runner: Runner) -> None:
        """Let nothing pass between a runner and the servers."""
        for pair in self.ways.ports:
            if pair[0] == runner.node:
                self.ways.block(pair)

    def submit(self, runner: Runner, module: str, seconds: float = 0, **value: Any) -> str | None:
        name = runner.submit(module, {"calls": str(self.calls), "seconds": seconds, **value})
        if name is not None:
            self.accepted[name] = module
        return name

    def call(self, runner: Runner) -> str | None:
        """Call a module at a door; return the id when it succeeded."""
        name = runner.call("once", {"calls": str(self.calls), "seconds": 0})
        if name is not None:
            self.accepted[name] = "once"
        return name

    def begun(self, name: str) -> list[int]:
        """Return the attempts whose handlers were called, in order."""
        path = self.calls / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def heal(self) -> None:
        """Make everything whole."""
        self.ways.heal()
        self.servers.heal()
        for runner in self.runners:
            if not runner.running:
                runner.start()
            else:
                runner.signal(signal.SIGCONT)
        for runner in self.runners:
            if runner.client is None:
                runner.wait_ready()

    def ends(self, runner: Runner) -> dict[str, Any]:
        """Return the executions of which a door tells the end."""
        found: dict[str, Any] = {}
        cursor = ""
        while True:
            page = runner.get(f"/executions?limit=500{cursor}")
            if page is None:
                return found
            for each in page["items"]:
                if each["id"] in self.accepted and each["status"] in FINAL:
                    found[each["id"]] = each
            if page.get("cursor") is None:
                return found
            cursor = f"&cursor={page['cursor']}"

    def check(self) -> Counter[str]:
        """Wait until every door tells the same end of every accepted execution, and check each; return the ends."""
        deadline = time.monotonic() + WHOLE_SECONDS
        while True:
            views = [self.ends(runner) for runner in self.runners]
            lacking = [len(self.accepted) - len(view) for view in views]
            if not any(lacking) and views[0] == views[1] == views[2]:
                break
            assert time.monotonic() < deadline, self.explain(views)
            time.sleep(0.2)
        counts: Counter[str] = Counter()
        for name, module in self.accepted.items():
            self.check_one(name, module, views[0][name])
            counts[(views[0][name].get("error") or {}).get("kind") or views[0][name]["status"]] += 1
        return counts

    def check_one(self, name: str, module: str, end: Any) -> None:
        begun = self.begun(name)
        assert len(begun) == len(set(begun)), f"an attempt of {name} ({module}) began twice: {begun}"
        kind = (end.get("error") or {}).get("kind")
        if kind == "cancelled" and name in self.cancelled:
            return
        if module == "once":
            assert len(begun) <= 1, f"{name} began without a policy: {begun}"
            assert kind in (None, "lost"), end
        else:
            assert end["status"] == "succeeded", end
        if kind is None:
            assert end["attempts"] in begun, (end, begun)

    def explain(self, views: list[dict[str, Any]]) -> str:
        lines = []
        for runner, view in zip(self.runners, views, strict=True):
            for name in sorted(set(self.accepted) - set(view))[:5]:
                one = runner.get(f"/executions/{name}") or {}
                shown = {key: one.get(key) for key in ("status", "node", "attempts", "waiting", "error")}
                lines.append(f"{runner.node} has no end of {name} ({self.accepted[name]}): {shown} {self.begun(name)}")
            other = [name for name in view if any(name in each and each[name] != view[name] for each in views)]
            lines += [f"{runner.node}: {view[name]}" for name in other[:2]]
        return "\n".join([*lines, *(f"-- {runner.node}\n{runner.log[-2000:]}" for runner in self.runners)])


class Load:
    """Callers at every door, which go on until the end of the `with` block."""

    def __init__(
        self, fleet: Fleet, *, pause: float = 0.1, modules: tuple[str, ...] = ("once", "again", "few")
    ) -> None:
        self.fleet, self.pause, self.modules = fleet, pause, modules
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(runner,)) for runner in fleet.runners]
        self.accepted = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _call(self, runner: Runner) -> None:
        chance, own = random.Random(runner.node), list[str]()
        while not self._ended.wait(self.pause):
            module, what = chance.choice(self.modules), chance.random()
            if what < 0.05 and own:
                name = chance.choice(own[-10:])
                self.fleet.cancelled.add(name)
                runner.cancel(name)
            elif what < 0.15:
                self.fleet.call(runner)
            elif name := self.fleet.submit(runner, module, chance.choice([0, 0, 0.05, 0.5])):
                own.append(name)
                self.accepted += 1

    def wait(self, count: int) -> None:
        """Wait until so many more are accepted."""
        goal = self.accepted + count
        wait_for(lambda: self.accepted >= goal)


@contextmanager
def fleet(
    servers: Servers, folder: Path, *options: str, name: str | None = None, nodes: tuple[str, ...] = NODES
) -> Iterator[Fleet]:
    """Run three runners, or others, of a cluster of their own."""
    name = name or f"t{secrets.token_hex(4)}"
    (folder / "calls").mkdir(parents=True)
    ways = Proxies()
    runners = []
    try:
        for node in nodes:
            ports = [ways.add((node, server.name), server.port) for server in servers.all]
            urls = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
            given = ("--cluster", urls, "--cluster-name", name, "--node", node, "--redelivery", str(REDELIVERY))
            runners.append(Runner(node, folder / node, (*given, "--max-workers", "4", *options)))
        made = Fleet(servers, folder, runners, ways)
        for runner in runners:
            runner.start()
        for runner in runners:
            runner.wait_ready()
        yield made
    finally:
        for runner in runners:
            if runner.running and runner.pid:
                with suppress(ProcessLookupError):
                    runner.signal(signal.SIGCONT)
            runner.kill()
        ways.close()
