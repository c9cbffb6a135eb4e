"""Acceptance: nothing outlives the runner: all sorts of processes, ways to start it, kills of runner and watcher."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from environments import proc
from tests.server_process import ROOT, Server, running, wait_for

ZOO = """
import ctypes, json, multiprocessing, os, signal, subprocess, sys, time
SLEEP = [sys.executable, "-S", "-E", "-c", "import time; time.sleep(600)"]
def told(reader):
    text = b""
    while not text.endswith(b"."):
        text += os.read(reader, 20)
    return int(text[:-1])
def forked(work):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            work(writer)
            time.sleep(600)
        os._exit(0)
    os.wait()
    return told(reader)
def say(writer):
    os.write(writer, b"%d." % os.getpid())
def daemon(writer):
    os.chdir("/")
    os.environ.clear()
    for number in (1, 2, 3, 15): signal.signal(number, signal.SIG_IGN)
    say(writer)
    os.closerange(0, 65536)
def renamed(writer):
    ctypes.CDLL(None).prctl(15, b"init", 0, 0, 0)
    say(writer)
def stopped(writer):
    say(writer)
    os.kill(os.getpid(), signal.SIGSTOP)
def subreaper(writer):
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    subprocess.Popen(SLEEP, start_new_session=True)
    say(writer)
def handler(path, /):
    pids = {
        "plain": subprocess.Popen(SLEEP).pid,
        "session": subprocess.Popen(SLEEP, start_new_session=True).pid,
        "group": subprocess.Popen(SLEEP, preexec_fn=os.setpgrp).pid,
        "no environment": subprocess.Popen(SLEEP, start_new_session=True, env={}, cwd="/").pid,
        "closed streams": subprocess.Popen(SLEEP, stdin=-3, stdout=-3, stderr=-3, start_new_session=True).pid,
        "other name": subprocess.Popen(["/lib/systemd/systemd", *SLEEP[1:]], executable=SLEEP[0]).pid,
        "double fork": forked(say),
        "daemon": forked(daemon),
        "renamed": forked(renamed),
        "stopped": forked(stopped),
        "subreaper": forked(subreaper),
    }
    for method in ("spawn", "forkserver", "fork"):
        child = multiprocessing.get_context(method).Process(target=time.sleep, args=(600,))
        child.start()
        pids[method] = child.pid
    with open(path + ".tmp", "w") as file:
        json.dump(pids, file)
    os.rename(path + ".tmp", path)
    os.closerange(3, 65536)
    time.sleep(600)
"""
KINDS = {
    "warm": {"env": "inline"},
    "fork": {"env": "inline", "isolation": "fork"},
    "fresh": {"env": "inline", "isolation": "fresh"},
    "venv": {"env": "venv"},
}
"""Conda workers are started as those of a venv are, by another interpreter."""
HIDDEN = {"no environment", "daemon"}
"""Processes without a trace of the runner, which only a living watcher finds."""


@pytest.fixture
def script(tmp_path: Path) -> str:
    """Return a script as pip writes one for this entry point."""
    file = tmp_path / "operato-runner"
    file.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from runner.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    file.chmod(0o755)
    tmp_path.chmod(0o755)
    return str(file)


ORDINARY = (
    ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
    ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--securebits=+noroot,+noroot_locked"],
)
"""Commands for root to run another one without privileges: as user 65534, or if that user cannot reach this
interpreter, without capabilities."""


@pytest.fixture
def home() -> Iterator[Path]:
    """Return a folder with a long path, of which the runner makes a short one for the sockets of multiprocessing."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    folder = top / ("long" * 25)
    folder.mkdir(mode=0o700)
    yield folder
    for link in links_to(folder):
        link.unlink()
    shutil.rmtree(top, ignore_errors=True)


def links_to(folder: Path) -> list[Path]:
    """Return the short paths of folders in `folder`."""
    links = [link for link in Path("/tmp").glob("operato-*") if link.is_symlink()]
    return [link for link in links if link.readlink().is_relative_to(folder)]


@pytest.fixture(params=["root", "ordinary"])
def user(request: pytest.FixtureRequest, home: Path) -> list[str]:
    """Return a command that runs another one as this user, which owns `home`."""
    if os.geteuid() != 0:
        return [] if request.param == "ordinary" else pytest.skip("it does not run as root")
    if request.param == "root":
        return []
    # By a shell: `setpriv` itself can still reach what the new user cannot.
    probe = ["sh", "-c", 'exec "$0" -c "import trio"', sys.executable]
    command = next(each for each in ORDINARY if not subprocess.run([*each, *probe], check=False).returncode)
    if command is ORDINARY[0]:
        os.chown(home, 65534, 65534)
    return command


def modules_of(*kinds: str) -> str:
    return json.dumps({"modules": [{"name": name, "code": ZOO, "timeout": "60s", **KINDS[name]} for name in kinds]})


@contextmanager
def zoo(server: Server, home: Path, *kinds: str) -> Iterator[dict[int, str]]:
    """Call each module, and yield all processes below the server by pid, with their names in the zoo."""
    threads: list[threading.Thread] = []
    answers: list[str] = []
    for kind in kinds:

        def call(kind: str = kind) -> None:
            with suppress(httpx.HTTPError):  # it is cut off
                answers.append(server.execute(kind, str(home / kind)).text)

        threads.append(threading.Thread(target=call))
        threads[-1].start()
    notes = [home / kind for kind in kinds]
    wait_for(lambda: answers or all(note.exists() for note in notes), 100)
    assert answers == []
    names: dict[int, str] = {}
    for note in notes:
        names |= {pid: f"{note.name}: {name}" for name, pid in json.loads(note.read_text()).items()}
    found = {pid: names.get(pid, proc.name(pid)) for pid in proc.descendants(server.ready["pid"])}
    try:
        assert names.keys() <= found.keys()
        yield found
    finally:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join()


def living(found: dict[int, str]) -> dict[int, str]:
    return {pid: name for pid, name in found.items() if proc.alive(pid)}


@pytest.mark.parametrize("how", ["main.py", "module", "script"])
def test_nothing_outlives_the_runner(how: str, user: list[str], home: Path, script: str) -> None:
    argv = {"main.py": [str(ROOT / "main.py")], "module": ["-m", "runner"], "script": [script]}[how]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": str(ROOT)}
    kinds = [*KINDS] if how == "main.py" else ["warm"]
    with (
        running(home, modules_of(*kinds), program=[*user, sys.executable, *argv], environ=environ) as server,
        zoo(server, home, *kinds) as found,
    ):
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL

        # The watcher ends after all others, so this is no matter of time.
        assert living(found) == {}


def test_nothing_outlives_the_watcher(home: Path) -> None:
    """The runner ends its workers, and then itself, as if it was killed."""
    with running(home, modules_of("warm", "fork"), real=True) as server, zoo(server, home, "warm", "fork") as found:
        with ended(server.ready["pid"]) as wait_ended:
            os.kill(server.process.pid, signal.SIGKILL)
            wait_ended()
        server.stop(None)

        assert living(found) == {}


def test_executions_of_a_runner_whose_watcher_is_killed_are_lost(tmp_path: Path) -> None:
    """Their workers die while the runner still lives, which is no crash of a worker."""
    with running(tmp_path, SLOW.replace("0.5", "600"), real=True) as server:
        begun = [tmp_path / f"begun{number}" for number in range(4)]
        ids = [
            server.client.post("/executions", json={"module": "slow", "input": str(path)}).json()["id"]
            for path in begun
        ]
        wait_for(lambda: all(path.exists() for path in begun))
        with ended(server.ready["pid"]) as wait_ended:
            os.kill(server.process.pid, signal.SIGKILL)
            wait_ended()
        server.stop(None)

    with running(tmp_path, SLOW, real=True) as server:
        found = [server.client.get(f"/executions/{name}").json()["error"]["kind"] for name in ids]
        assert found == ["lost"] * len(ids)
        assert server.stop() == 0


def test_the_next_runner_kills_the_processes_of_one_that_was_killed_with_its_watcher(home: Path) -> None:
    copies = home / "data" / ".backup-4711"
    with running(home, modules_of("warm", "fork"), real=True) as server, zoo(server, home, "warm", "fork") as found:
        os.kill(server.process.pid, signal.SIGSTOP)  # it sees nothing any more
        with ended(server.ready["pid"]) as wait_ended:
            os.kill(server.ready["pid"], signal.SIGKILL)
            wait_ended()
        os.kill(server.process.pid, signal.SIGKILL)
        server.stop(None)
        assert any("session" in name for name in living(found).values()), "there is nothing to show"
        (left,) = (home / "data" / "work").iterdir()
        (link,) = links_to(home)
        copies.mkdir()
        (copies / "history.db").write_text("half")

        with running(home, modules_of("warm"), real=True) as following:
            assert not left.exists()
            assert not link.is_symlink()
            assert not copies.exists()
            assert all(any(hidden in name for hidden in HIDDEN) for name in living(found).values()), living(found)
            assert "killed processes that a dead runner left" in (home / "log").read_text()
            assert following.stop() == 0
        assert links_to(home) == []


def test_the_processes_of_a_living_runner_are_spared(home: Path) -> None:
    """A command with the same data directory removes only what has no holder."""
    with running(home, modules_of("warm"), real=True) as server, zoo(server, home, "warm") as found:
        done = subprocess.run(
            [sys.executable, ROOT / "main.py", "doctor"], cwd=home, check=False, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stdout
        assert living(found) == found
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL


@contextmanager
def ended(pid: int) -> Iterator[Any]:
    """Yield a function that waits until a process has ended."""
    pidfd = os.pidfd_open(pid)
    try:
        yield lambda: select.select([pidfd], [], [], 60)[0] or pytest.fail("it lives")
    finally:
        os.close(pidfd)


SLOW = """
modules:
  - name: slow
    env: inline
    code: |
      import pathlib, time
      def handler(input):
          pathlib.Path(input).write_text("begun")
          time.sleep(0.5)
          return "whole"
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_service_drains_once(tmp_path: Path, number: int) -> None:
    """The runner gets it twice then, and a second signal would end it at once."""
    with running(tmp_path, SLOW, "--drain-timeout", "20", real=True) as server:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(server.execute("slow", str(tmp_path / "begun"))))
        thread.start()
        wait_for((tmp_path / "begun").exists)
        for pid in (server.process.pid, server.ready["pid"]):
            os.kill(pid, number)
        thread.join()
        assert answers[0].json()["result"] == "whole"
        assert server.stop(None) == 0


def test_the_watcher_ends_as_the_runner_does(tmp_path: Path) -> None:
    with running(tmp_path, SLOW, real=True) as server:
        os.kill(server.ready["pid"], signal.SIGABRT)

        assert server.stop(None) == -signal.SIGABRT


def test_the_watcher_is_small(tmp_path: Path) -> None:
    with running(tmp_path, SLOW, real=True) as server:
        assert proc.name(server.process.pid) == "operato-watcher"
        assert proc.children(server.process.pid) == [server.ready["pid"]]
        assert proc.resident_bytes(server.process.pid) < 10e6
        assert server.stop() == 0


def test_the_terminal_stops_continues_and_ends_it(tmp_path: Path) -> None:
    (tmp_path / "modules.yaml").write_text(SLOW)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        ports = ["--rest-port", "0", "--no-grpc", "--ready-file", "ready.json"]
        os.execv(sys.executable, [sys.executable, str(ROOT / "main.py"), *ports])
    try:
        wait_for((tmp_path / "ready.json").exists)
        ready = json.loads((tmp_path / "ready.json").read_text())
        url = f"http://127.0.0.1:{ready['rest'][0][1]}/healthz"
        os.write(terminal, b"\x1a")  # Ctrl-Z
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        wait_for(lambda: proc._stat(ready["pid"])[0] == b"T")
        os.kill(pid, signal.SIGCONT)  # `fg`
        assert httpx.get(url, trust_env=False, timeout=30).status_code == 200
        os.write(terminal, b"\x03")  # Ctrl-C
        with suppress(OSError):  # the end of a terminal
            while os.read(terminal, 65536):
                pass
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(terminal)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_call_without_a_server_leaves_nothing(home: Path) -> None:
    (home / "modules.yaml").write_text(modules_of("warm"))
    argv = [sys.executable, str(ROOT / "main.py"), "run", "warm", json.dumps(str(home / "warm"))]
    with subprocess.Popen(argv, cwd=home) as command:
        wait_for((home / "warm").exists)
        (runner,) = proc.children(command.pid)
        found = proc.descendants(runner)
        assert set(json.loads((home / "warm").read_text()).values()) <= set(found)
        os.kill(runner, signal.SIGKILL)

        assert command.wait(60) == -signal.SIGKILL
        assert [pid for pid in found if proc.alive(pid)] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a process namespace")
def test_process_1_reaps_and_passes_signals_on(tmp_path: Path) -> None:
    (tmp_path / "modules.yaml").write_text(SLOW)
    ports = ["--rest-port", "0", "--no-grpc", "--ready-file", "ready.json"]
    argv = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, str(ROOT / "main.py"), *ports]
    with subprocess.Popen(argv, cwd=tmp_path) as outside:
        wait_for(lambda: (tmp_path / "ready.json").exists() or outside.poll() is not None)
        if outside.poll() is not None:
            pytest.skip("this machine has no process namespaces")
        (first,) = proc.children(outside.pid)
        (runner,) = proc.children(first)
        orphan = ["nsenter", "-t", str(first), "-p", "-m", "sh", "-c", "(sleep 0.01; true) & exit 0"]
        subprocess.run(orphan, check=True)
        wait_for(lambda: proc.children(first) == [runner])
        os.kill(first, signal.SIGTERM)

        assert outside.wait(60) == 0
