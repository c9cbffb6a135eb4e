"""Acceptance: `modules` as people use it, against the real server as a process."""

from __future__ import annotations

import json
import os
import pty
import signal
import zipfile
from pathlib import Path

import pytest

from tests.proxies import Gate
from tests.server_process import Commands, Server, running, url_of, wait_for

FILED = """
modules:
  filed: {env: inline, description: Of the file., code: "def handler(input): return 'filed'"}
"""
ONE = "def handler(input):\n    return 1\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("server")
    with running(home, FILED, "--max-frame", "100KiB") as opened:
        yield opened
        assert opened.stop() == 0


@pytest.fixture
def run(server: Server, tmp_path: Path):
    """Return the program, run in a folder without files of the server; registered modules are deleted at the end."""
    yield Commands(tmp_path, url_of(server), server.token)
    for module in server.client.get("/modules").json()["items"]:
        if module["source"] == "api":
            assert server.client.delete(f"/modules/{module['name']}", params={"force": "true"}).status_code == 204


def done(result: tuple[int, str, str]) -> str:
    """Return the output of a successful command."""
    code, out, err = result
    assert code == 0, err
    return out


def waiting(began: Path, go: Path) -> str:
    """Return a module whose import waits for a file."""
    return f"""import os, time
open({str(began)!r}, "w").close()
while not os.path.exists({str(go)!r}):
    time.sleep(0.01)
{ONE}"""


def version_in(out: str) -> str:
    return out.split()[1]


# -- from nothing to a rollback ----------------------------------------------------------------------------------------


def test_a_module_from_its_first_line_to_its_end(run, tmp_path):
    code, out, err = run("modules", "init", "hello")
    assert (code, out) == (0, "hello: handler.py, module.yaml, README.md\n")
    assert "operato-runner modules push hello" in err

    first = done(run("modules", "push", "hello"))
    one = version_in(first)
    assert first == f"hello  {one}  created, active\n"
    assert done(run("call", "hello", '{"name": "Ada"}')) == '{"message":"Hello, Ada!"}\n'
    assert done(run("modules", "push", "hello")) == f"hello  {one}  unchanged, active\n"

    handler = tmp_path / "hello" / "handler.py"
    handler.write_text(handler.read_text().replace('"Hello"', '"Welcome"'))
    two = version_in(done(run("modules", "push", "hello/")))
    assert two != one
    assert done(run("call", "hello", '{"name": "Ada"}')) == '{"message":"Welcome, Ada!"}\n'

    assert done(run("modules", "activate", "hello", one)) == f"hello  {one}  active\n"
    assert done(run("call", "hello")) == '{"message":"Hello, world!"}\n'
    lines = done(run("modules", "versions", "hello")).splitlines()
    assert [line.split()[:2] for line in lines[1:]][1] == [one, "active"]
    assert lines[1].split()[0] == two

    assert done(run("modules", "rm", "hello", "--version", two, "--yes")) == f"hello  {two}  deleted\n"
    assert done(run("modules", "rm", "hello", "--yes")) == "hello  all versions  deleted\n"
    code, _, err = run("call", "hello")
    assert (code, err) == (3, "error: not_found: there is no module 'hello'\n")

    rows = [line.split()[1:3] for line in done(run("modules", "log", "hello")).splitlines()[1:]]
    assert rows[0] == ["delete", "hello"]
    assert rows[-1] == ["register", "hello"]


def test_init_overwrites_nothing(run, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "module.yaml").write_text("mine")
    code, out, err = run("modules", "init", "m")

    assert (code, out) == (2, "")
    assert err == "error: m: would overwrite module.yaml; nothing was written: choose another folder with --folder\n"
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["module.yaml"]
    assert (tmp_path / "m" / "module.yaml").read_text() == "mine"


def test_init_refuses_an_invalid_name(run, tmp_path):
    code, _, err = run("modules", "init", "../Up")

    assert code == 2
    assert "NAME: " in err
    assert list(tmp_path.iterdir()) == []


# -- pushing -----------------------------------------------------------------------------------------------------------


def test_a_folder_a_file_and_an_archive_without_a_description(run, tmp_path):
    (tmp_path / "square").mkdir()
    (tmp_path / "square" / "handler.py").write_text("from side import f\ndef handler(input): return f(input)\n")
    (tmp_path / "square" / "side.py").write_text("def f(x): return x * x\n")
    (tmp_path / "square" / ".git").mkdir()
    (tmp_path / "square" / ".git" / "big").write_bytes(os.urandom(200 * 1024))  # over the runner's max_frame
    (tmp_path / "cube.py").write_text("def handler(input): return input ** 3\n")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("in/work.py", "def handler(input): return input * 2\n")

    for target, name, value in (("square", "square", 16), ("cube.py", "cube", 64), ("twice.zip", "twice", 8)):
        assert done(run("modules", "push", target)).split()[0] == name
        assert done(run("call", name, "4")) == f"{value}\n"
    assert done(run("modules", "push", "cube.py", "--name", "other")).split()[0] == "other"


def test_the_fields_of_a_module_in_one_file(run, tmp_path):
    text = "env: inline\nversion: 1.10\ntags: [a]\ncode: |\n  def handler(input):\n      return 'of yaml'\n"
    (tmp_path / "said.yaml").write_text(text)

    assert done(run("modules", "push", "said.yaml")) == "said  1.10  created, active\n"
    assert done(run("call", "said")) == '"of yaml"\n'


def test_requirements_in_a_file_beside_the_fields_are_sent_with_them(run, tmp_path):
    (tmp_path / "m.yaml").write_text(
        f"env: venv\nrequirements: r.txt\ncode: |\n  {ONE!s}".replace("\n    ret", "\n      ret")
    )
    (tmp_path / "r.txt").write_text("nothing @ https://127.0.0.1:1/nothing-1-py3-none-any.whl\n")
    code, _, err = run("modules", "push", "m.yaml")

    assert code == 10
    assert "error: environment_failed: " in err
    assert "nothing" in err


def test_mistakes_have_their_place_and_nothing_is_sent(run, server, tmp_path):
    done(run("modules", "init", "m"))
    (tmp_path / "m" / "handler.py").write_text("x = 1\ndef handler(input) return 1\n")
    (tmp_path / "m" / "module.yaml").write_text("name: m\ntiemout: 3\n")
    before = server.client.get("/audit").json()["items"]
    code, out, err = run("modules", "push", "m")

    assert (code, out) == (2, ""), err
    lines = err.splitlines()
    assert lines[0].startswith("error: bad_input: m/module.yaml:2: tiemout: unknown field; did you mean 'timeout'?")
    assert lines[1].startswith("error: bad_input: m/handler.py:2: path: does not compile")
    assert server.client.get("/audit").json()["items"] == before
    # No request is made: there is no server at that address.
    assert run("modules", "push", "m", "--url", "http://127.0.0.1:1")[::2] == (2, err)


def test_with_no_check_the_runner_reports_mistakes(run, tmp_path):
    (tmp_path / "m.py").write_text("def handler(input) return 1\n")
    code, _, err = run("modules", "push", "m.py", "--no-check")

    assert code == 2
    assert "error: bad_input: m.py:1: path: does not compile" in err
    assert run("modules", "push", "m.py", "--no-check", "--url", "http://127.0.0.1:1")[0] == 9


def test_a_module_too_large_for_the_runner(run, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "handler.py").write_text(ONE)
    (tmp_path / "m" / "data").write_bytes(os.urandom(3 * 1024 * 1024))
    code, _, err = run("modules", "push", "m")

    assert code == 7
    assert err.startswith("error: too_large: ")
    assert err.endswith("`max_frame`\n")


# -- activating --------------------------------------------------------------------------------------------------------


def test_a_version_that_waits_for_its_activation(run, tmp_path):
    (tmp_path / "m.py").write_text(ONE)
    done(run("modules", "push", "m.py"))
    (tmp_path / "m.py").write_text(ONE.replace("1", "2"))
    code, out, err = run("modules", "push", "m.py", "--no-activate")
    version = version_in(out)

    assert (code, out) == (0, f"m  {version}  created, not active\n")
    assert f"operato-runner modules activate m {version}" in err
    assert done(run("call", "m")) == "1\n"
    assert done(run("call", "m", "--version", version)) == "2\n"
    assert done(run("modules", "activate", "m", version, "--prepare")) == f"m  {version}  active\n"
    assert done(run("call", "m")) == "2\n"


def test_prepared_before_it_is_active(run, tmp_path):
    (tmp_path / "m.py").write_text(f"import nothing_of_that_name\n{ONE}")
    code, out, err = run("modules", "push", "m.py", "--prepare")
    assert (code, out) == (11, "")
    assert "may take minutes" in err
    assert "error: load_failed: " in err
    assert "nothing_of_that_name" in err
    assert run("modules", "show", "m")[0] == 3

    (tmp_path / "m.py").write_text(ONE)
    assert done(run("modules", "push", "m.py", "--prepare")).endswith("created, active\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_push_that_prepares(run, tmp_path, number):
    began, go = tmp_path / "began", tmp_path / "go"
    (tmp_path / "m.py").write_text(waiting(began, go))
    process = run.start("modules", "push", "m.py", "--prepare")
    try:
        wait_for(began.exists)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        go.touch()
        process.kill()

    assert (process.returncode, out) == (130, b"")
    assert b"interrupted; the change may have been made: check with `operato-runner modules versions m`" in err


def test_a_lost_connection_leaves_the_outcome_unknown(run, server, tmp_path):
    began, go = tmp_path / "began", tmp_path / "go"
    (tmp_path / "m.py").write_text(waiting(began, go))
    gate = Gate()
    gate.target = server.ready["rest"][0][1]
    process = Commands(tmp_path, f"http://127.0.0.1:{gate.port}", server.token).start(
        "modules", "push", "m.py", "--prepare"
    )
    try:
        wait_for(began.exists)
        gate.cut()
        _, err = process.communicate(timeout=20)
    finally:
        go.touch()
        process.kill()
        gate.close()

    assert process.returncode == 15
    assert err.decode().splitlines()[-1].startswith("error: lost: the connection to ")
    assert err.endswith(b"the change may have been made: check with `operato-runner modules versions m`\n")


def test_concurrent_changes_are_detected(run, tmp_path):
    (tmp_path / "m.py").write_text(ONE)
    done(run("modules", "push", "m.py"))
    revision = json.loads(done(run("modules", "show", "m", "--json")))["revision"]
    assert f"revision {revision}" in " ".join(done(run("modules", "show", "m")).split())
    (tmp_path / "m.py").write_text(ONE.replace("1", "2"))
    done(run("modules", "push", "m.py", "--if-match", revision))
    (tmp_path / "m.py").write_text(ONE.replace("1", "3"))
    code, out, err = run("modules", "push", "m.py", "--if-match", f'"{revision}"')

    assert (code, out) == (4, "")
    assert err.startswith("error: conflict: module 'm' is at revision ")
    assert f"not at {revision}" in err
    assert done(run("call", "m")) == "2\n"
    assert run("modules", "push", "m.py", "--if-match", "*")[0] == 0
    assert run("modules", "push", "m.py", "--name", "fresh", "--if-match", "*")[0] == 4
    assert run("modules", "push", "m.py", "--if-match", "x\ny")[0] == 2


def test_modules_of_the_file_cannot_be_changed(run, tmp_path):
    (tmp_path / "filed.py").write_text(ONE)

    for command in (("push", "filed.py"), ("rm", "filed", "--yes")):
        code, _, err = run("modules", *command)
        assert code == 4
        assert err.startswith("error: conflict: module 'filed' belongs to the operator's file")


# -- listing -----------------------------------------------------------------------------------------------------------


def test_modules_are_found_by_kind_tags_and_text(run, tmp_path):
    for name, tags in (("a", "[x, y]"), ("b", "[x]")):
        (tmp_path / f"{name}.yaml").write_text(
            f"env: inline\ntags: {tags}\ndescription: Is {name}.\ncode: '{'handler = abs'}'\n"
        )
        done(run("modules", "push", f"{name}.yaml"))

    def names(*options: str) -> list[str]:
        lines = done(run("modules", "list", *options)).splitlines()
        assert lines[0].startswith("NAME ")
        return [line.split()[0] for line in lines[1:]]

    assert names() == ["a", "b", "filed"]
    assert names("--tag", "x") == ["a", "b"]
    assert names("--tag", "x", "--tag", "y") == ["a"]
    assert names("-q", "of the file") == ["filed"]
    assert names("--env", "venv", "--env", "inline", "--limit", "2") == ["a", "b"]
    assert names("--env", "venv") == []
    code, _, err = run("modules", "list", "--limit", "1")
    assert (code, err) == (0, "there may be more; continue with --cursor a\n")
    assert names("--cursor", "a") == ["b", "filed"]
    document = json.loads(done(run("modules", "list", "--json")))
    assert [item["name"] for item in document["items"]] == ["a", "b", "filed"]
    assert document["cursor"] is None


def test_a_module_is_shown_with_its_fields(run, tmp_path):
    text = (
        "env: inline\nversion: v1\ntimeout: 90s\ntags: [x, y]\nvariables: {A: secret-looking}\ncode: 'handler = abs'\n"
    )
    (tmp_path / "m.yaml").write_text(text)
    done(run("modules", "push", "m.yaml"))
    shown = done(run("modules", "show", "m")).splitlines()
    rows = dict(line.split(maxsplit=1) for line in shown if line and not line.endswith(":"))

    assert {name: rows[name] for name in ("name", "version", "env", "source", "timeout", "tags", "variables")} == {
        "name": "m",
        "version": "v1",
        "env": "inline",
        "source": "api",
        "timeout": "90s",
        "tags": "x, y",
        "variables": "A",
    }
    assert rows["published"].endswith(" by test")
    assert run("modules", "show", "m", "--version", "v2")[0] == 3
    items = json.loads(done(run("modules", "versions", "m", "--json")))["items"]
    assert [(item["version"], item["active"]) for item in items] == [("v1", True)]


# -- deleting, and permissions -----------------------------------------------------------------------------------------


def test_deleting_asks_on_a_terminal(run, tmp_path):
    (tmp_path / "m.py").write_text(ONE)
    done(run("modules", "push", "m.py"))
    code, _, err = run("modules", "rm", "m")
    assert code == 2
    assert err.startswith("error: --yes: is required to delete module 'm' with all its versions")

    for answer, code in ((b"n\n", 130), (b"y\n", 0)):
        assert run("call", "m")[:2] == (0, "1\n")
        ours, theirs = pty.openpty()
        try:
            os.write(ours, answer)
            process = run.start("modules", "rm", "m", stdin=theirs)
            _, err = process.communicate(timeout=60)
        finally:
            os.close(ours)
            os.close(theirs)
        assert process.returncode == code
        assert b"delete module 'm' with all its versions? [y/N]" in err
    assert run("call", "m")[0] == 3


def test_a_running_module_is_deleted_only_by_force(run, tmp_path):
    began = tmp_path / "began"
    code = f"import time\ndef handler(input):\n    open({str(began)!r}, 'w').close()\n    time.sleep(600)\n"
    (tmp_path / "m.py").write_text(code)
    done(run("modules", "push", "m.py"))
    identity = done(run("call", "m", "--async")).strip()
    wait_for(began.exists)

    ended, _, err = run("modules", "rm", "m", "--yes")
    assert ended == 4
    assert "with `force`" in err
    assert done(run("modules", "rm", "m", "--yes", "--force")) == "m  all versions  deleted\n"
    assert " cancelled" in done(run("executions", "show", identity))


def test_a_token_without_the_scope_is_refused(run, server, tmp_path):
    (tmp_path / "m.py").write_text(ONE)
    token = Commands(server.home, url_of(server), None)
    given = done(token("token", "--subject", "reader", "--scope", "modules:read", "--config", "modules.yaml")).strip()
    reader = Commands(tmp_path, url_of(server), given)

    assert reader("modules", "list")[0] == 0
    for command in (("push", "m.py"), ("activate", "m", "v"), ("rm", "m", "--yes"), ("log",)):
        code, _, err = reader("modules", *command)
        assert code == 6
        assert err.startswith("error: forbidden: ")
        assert len(err.splitlines()) == 1


def test_beside_the_runner_no_token_is_needed(server, run):
    local = Commands(server.home, url_of(server), None)
    (server.home / "local.py").write_text(ONE)

    assert done(local("modules", "push", "local.py")).startswith("local  ")
    assert "  local" in done(local("modules", "log"))
