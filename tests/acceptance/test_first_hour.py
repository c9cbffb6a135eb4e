"""Acceptance: the first hour of a new user: what the program says by itself, and in the face of mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.program import run_program
from tests.server_process import Server, wait_for

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, str(ROOT / "main.py"))
ECHO = 'modules: {m: {env: inline, code: "def handler(input): return input"}}\n'
CONTAINED = """
  d: {env: docker, requirements: [requests], code: "def handler(input): return input"}
  e: {env: docker, image: "python:3.12", code: "def handler(input): return input"}
"""


def environment(**extra):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OPERATO_")}
    return {**clean, "DOCKER_HOST": "unix:///nowhere/docker.sock", **extra}


def command(home, *arguments, **extra):
    """Run a command in a folder; return its exit code, standard output and standard error."""
    done = run_program(arguments, cwd=home, environ=environment(**extra))
    out, err = done.stdout.decode(), done.stderr.decode()
    assert f'File "{ROOT}' not in err
    return done.returncode, out, err


@pytest.fixture
def server(tmp_path):
    """Return a function that starts a server with a modules file in `tmp_path`."""
    started = []

    def start(file, *options):
        (tmp_path / "modules.yaml").write_text(file)
        started.append(Server(tmp_path, *options, environ=environment()))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.stop()


OWN = "Or this one, in another terminal:"


def log(home):
    return (home / "log").read_text()


def told(running, home, text):
    """Return the lines of the log with a text, of which the first may follow the start; stops the server."""
    wait_for(lambda: text in log(home))
    running.stop()
    return [line for line in log(home).splitlines() if text in line]


def greeting(home):
    """Return the log with the whole of the lines that follow the start."""
    wait_for(lambda: log(home).partition(OWN)[2].count("\n") > 2)
    return log(home)


# -- the start --------------------------------------------------------------------------------


def test_the_start_names_modules_that_cannot_run_here(server, tmp_path):
    running = server(ECHO.replace("}}\n", "},") + CONTAINED.strip().replace("\n", ",") + "}\n")
    answer = running.execute("m", 1)
    (warning,) = told(running, tmp_path, "calls of these modules fail")

    assert answer.status_code == 200
    assert "docker" in warning
    assert re.search(r"modules='?d, e'?", warning)
    assert "no container engine answers at unix:///nowhere/docker.sock" in warning


def test_the_start_names_recipients_that_do_not_exist(server, tmp_path):
    running = server(ECHO.replace("}}\n", ", on_end: [{module: later}]}}\n"))
    (warning,) = told(running, tmp_path, "a notice has no receiver yet")

    assert "on_end[0].module: there is no module 'later' yet" in warning


def test_prepare_without_an_engine_names_the_cause(tmp_path):
    (tmp_path / "modules.yaml").write_text("modules:" + CONTAINED)
    code, _, err = command(tmp_path, "prepare")

    assert code != 0
    for name in "de":
        assert f"error: {name}: unavailable: no container engine answers at unix:///nowhere/docker.sock" in err
    assert "already built" not in err


def test_a_new_data_directory_away_from_the_modules_file_is_announced(tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "data").mkdir(parents=True)
    elsewhere.mkdir()
    (home / "modules.yaml").write_text(ECHO)
    config = str(home / "modules.yaml")
    first = command(elsewhere, "token", "--subject", "me", "--config", config)
    again = command(elsewhere, "token", "--subject", "me", "--config", config)
    at_home = command(home, "token", "--subject", "me")
    given = command(elsewhere, "token", "--subject", "me", "--config", config, "--data-dir", "other")

    assert first[0] == again[0] == at_home[0] == given[0] == 0
    assert f"warning: the data directory {elsewhere}/data is new" in first[2]
    assert f"which has a data directory: {home}/data" in first[2]
    assert again[2] == at_home[2] == given[2] == ""


def test_the_start_announces_it_too(server, tmp_path):
    elsewhere = tmp_path / "sub"
    elsewhere.mkdir()
    (elsewhere / "modules.yaml").write_text(ECHO)
    server(ECHO, "--config", "sub/modules.yaml")

    assert f"the data directory {tmp_path}/data is new" in log(tmp_path)


# -- commands while the modules file has a mistake ---------------------------------------------------------------------

BROKEN = {
    "a field": ECHO.replace("inline", "inlin") + "runner: {jwt_issuer: us}\n",
    "YAML": "modules:\n  m:\n    env inline\n    code: |\n      x\nrunner:\n  jwt_issuer: us\n",
    "YAML after the settings": "# first\nrunner:\n\n  jwt_issuer: us\n# a comment\nmodules:\n  - name: [\n",
    "a secret": "runner: {jwt_issuer: us}\nmodules: {m: {env: inline, code: 'def handler(i, /): ...', secrets: [A]}}\n",
}


@pytest.mark.parametrize("case", BROKEN)
def test_commands_work_while_modules_have_a_mistake(server, tmp_path, case):
    running = server(ECHO + "runner: {jwt_issuer: us}\n")
    (tmp_path / "modules.yaml").write_text(BROKEN[case])
    url = str(running.client.base_url)

    assert command(tmp_path, "call", "m", "5", "--url", url)[:2] == (0, "5\n")
    assert "m " in command(tmp_path, "modules", "list", "--url", url)[1]
    code, token, _ = command(tmp_path, "token", "--subject", "me")
    assert code == 0
    assert command(tmp_path, "call", "m", "6", "--url", url, OPERATO_TOKEN=token.strip())[:2] == (0, "6\n")


def test_settings_that_cannot_be_found_are_a_mistake(tmp_path):
    """A token signed without them would be another one than the server accepts."""
    (tmp_path / "modules.yaml").write_text("{runner: {jwt_issuer: us}, modules: [}")
    code, out, err = command(tmp_path, "token", "--subject", "me")

    assert (code, out) == (2, "")
    assert err.startswith("error: modules.yaml:1: runner: is not valid YAML: the [ in column ")


def test_a_mistake_in_the_settings_has_its_line(tmp_path):
    (tmp_path / "modules.yaml").write_text("modules: [\nrunner:\n  jwt_isuer: us\n")
    code, _, err = command(tmp_path, "token", "--subject", "me")

    assert code == 2
    assert err.startswith("error: modules.yaml:3: runner.jwt_isuer: unknown setting; did you mean 'jwt_issuer'?")


# -- the line that the start prints --------------------------------------------------------------------------------


def test_the_printed_lines_work_as_pasted_in_any_folder(server, tmp_path):
    server("modules: {greet: {env: inline, code: \"def handler(input): return input['name']\"}}\n")
    text = greeting(tmp_path)
    curl, own = text.index("  curl -s"), text.index(OWN)
    lines = {"curl": text[curl:own], "own": text[own:].splitlines()[2]}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    printed = {
        name: subprocess.run(
            line, shell=True, cwd=elsewhere, env=environment(), capture_output=True, check=True, timeout=60
        ).stdout
        for name, line in lines.items()
    }

    assert b'"result":"world"' in printed["curl"]
    assert printed["own"] == b'"world"\n'
    assert list(elsewhere.iterdir()) == []


def test_the_printed_lines_have_an_input_that_the_module_takes(server, tmp_path):
    server("""
modules:
  - name: order
    env: inline
    code: |
      def handler(item: str, amount: int = 2, note: str = "it's"):
          return [item, amount, note]
""")
    text = greeting(tmp_path)
    line = text[text.index(OWN) :].splitlines()[2]
    printed = subprocess.run(line, shell=True, env=environment(), capture_output=True, check=True, timeout=60)

    assert json.loads(printed.stdout) == ["text", 2, "it's"]


# -- the terminal --------------------------------------------------------------------------------


def on_a_terminal(home, *arguments, **extra):
    """Run a command whose output is a terminal; return what it printed."""
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments], cwd=home, env=environment(**extra), stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    seen = b""
    try:
        while data := os.read(leader, 65536):
            seen += data
    except OSError:  # the end of a terminal
        pass
    finally:
        os.close(leader)
    process.wait(60)
    return seen.decode().replace("\r\n", "\n")


def test_a_terminal_has_colours_unless_they_are_off(server, tmp_path):
    running = server(ECHO)
    running.execute("m", 1)
    url = ("--url", str(running.client.base_url))
    terminal = {"TERM": "xterm-256color", "COLUMNS": "40"}
    for arguments in (("executions", "list", *url), ("modules", "list", *url), ("doctor", "--rest-port", "0")):
        coloured = on_a_terminal(tmp_path, *arguments, **terminal)
        plain = on_a_terminal(tmp_path, *arguments, **terminal, NO_COLOR="1")
        piped = command(tmp_path, *arguments)[1]
        without = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()]

        assert "\x1b[3" in coloured or "\x1b[1" in coloured
        assert re.search(r"\x1b\[[0-9;]*3[0-9]", plain) is None
        assert "\x1b" not in piped
        if arguments[0] != "doctor":  # which has numbers that change
            assert without == [line.rstrip() for line in piped.splitlines()]
    as_json = on_a_terminal(tmp_path, "executions", "list", "--json", *url, **terminal)
    assert "\x1b" not in as_json


def test_a_large_upload_has_a_bar_on_a_terminal(server, tmp_path):
    running = server(ECHO, "--max-frame", "16MiB")
    url = ("--url", str(running.client.base_url))
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "handler.py").write_text("def handler(input): return input\n")
    (tmp_path / "big" / "data.bin").write_bytes(os.urandom(3 * 1024 * 1024))
    shown = on_a_terminal(tmp_path, "modules", "push", "big", *url, TERM="xterm", COLUMNS="100")
    piped = command(tmp_path, "modules", "push", "big", *url)

    assert "uploading" in shown
    assert "MiB" in shown
    assert "created, active" in shown
    assert piped[0] == 0
    assert "uploading" not in piped[1] + piped[2]
    assert running.execute("big", 7).json()["result"] == 7


def test_a_handler_that_fails_without_input_gets_a_note_on_a_terminal(server, tmp_path):
    running = server("modules: {m: {env: inline, code: \"def handler(input): return input['a']\"}}\n")
    url = ("--url", str(running.client.base_url))
    note = '-- no input was given, so it was null; an example of one: \'{"name": "Ada"}\''

    assert note in on_a_terminal(tmp_path, "call", "m", *url, TERM="xterm")
    assert note not in on_a_terminal(tmp_path, "call", "m", "{}", *url, TERM="xterm")
    assert note not in command(tmp_path, "call", "m", *url)[2]


def test_an_error_is_red_on_a_terminal(tmp_path):
    assert "\x1b[1;31merror:" in on_a_terminal(tmp_path, "config", "check", TERM="xterm")
    assert "\x1b" not in command(tmp_path, "config", "check")[2]


def test_a_modules_file_without_its_option_is_recognised(tmp_path):
    (tmp_path / "m.yaml").write_text(ECHO)

    assert "did you mean `--config m.yaml`?" in command(tmp_path, "serve", "m.yaml")[2]
    assert "did you mean `serve --config m.yaml`?" in command(tmp_path, "m.yaml")[2]
    assert "did you mean" not in command(tmp_path, "modules", "list", "m.yaml")[2]


# -- completion and help --------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(tmp_path, shell):
    code, script, _ = command(tmp_path, "completion", shell)
    words = {"COMP_WORDS": "operato-runner env w", "COMP_CWORD": "w" if shell == "fish" else "2"}
    found = command(tmp_path, _OPERATO_RUNNER_COMPLETE=f"{shell}_complete", **words)[1]

    assert code == 0
    assert "_OPERATO_RUNNER_COMPLETE" in script
    assert "why" in found


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("env", "list"), {"data-dir", "venv-path", "conda-path", "docker-host"}),
        (("env", "why"), {"data-dir", "venv-path", "conda-path", "docker-host"}),
        (("env", "gc"), {"data-dir", "venv-path", "conda-path", "docker-host"}),
        (
            ("env", "rebuild"),
            {"data-dir", "venv-path", "conda-path", "docker-host", "conda-exe", "offline", "build-ca"}
            | {"docker-base-image", "docker-build-network"},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_help_of_env_shows_the_options_that_matter(tmp_path, arguments, shown):
    text = command(tmp_path, *arguments, "--help")[1]
    own = {"config", "help", "json", "older-than", "keep-bytes", "dry-run"}

    assert set(re.findall(r"--([a-z][a-z-]+)", text)) - own - {"no-offline"} == shown


# -- the page of the routes --------------------------------------------------------------------------------------------

TYPED = """
modules:
  strict:
    env: inline
    input_schema:
      type: object
      required: [name, count]
      properties: {name: {type: string, minLength: 9}, count: {type: integer, exclusiveMinimum: 3}}
    code: "def handler(input): return input"
  hinted:
    env: inline
    code: |
      from typing import Literal, TypedDict
      class Order(TypedDict):
          kind: Literal["a", "b"]
          numbers: list[int]
      def handler(input: Order): return input
  free: {env: inline, code: "def handler(input): return input"}
  odd: {env: inline, input_schema: {type: string, pattern: "^[A-Z]{3}$"}, code: "def handler(input): return input"}
"""


def test_the_example_of_each_module_fits_its_schema(server):
    running = server(TYPED)
    paths = running.client.get("/openapi.json").json()["paths"]
    contents = {
        name: paths[f"/modules/execute/{name}"]["post"]["requestBody"]["content"]["application/json"]
        for name in ("strict", "hinted", "free", "odd")
    }

    for name in ("strict", "hinted"):
        assert running.execute(name, contents[name]["example"]).status_code == 200
    assert "example" not in contents["free"]
    assert "example" not in contents["odd"]


def test_a_body_that_is_no_submission_gets_an_example(server):
    running = server(ECHO)
    for body in ("{}", "5", '{"modul": "m"}', "{"):
        refused = running.client.post("/executions", content=body)

        assert refused.status_code == 400
        assert "the body cannot be read: " in refused.json()["detail"]
        assert 'write {"module": "NAME", "input": ...}' in refused.json()["detail"]


# -- the program after `make run` --------------------------------------------------------------------------------------


def test_make_puts_the_program_beside_its_python(tmp_path):
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    made = ["make", "-s", f"VENV={tmp_path}/venv", f"{programs}/operato-runner"]
    subprocess.run(made, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (tmp_path / "modules.yaml").write_text(ECHO)
    ran = subprocess.run(
        [programs / "operato-runner", "run", "m", '{"a": "b c"}'],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        check=True,
        timeout=60,
    )

    assert ran.stdout == b'{"a":"b c"}\n'
