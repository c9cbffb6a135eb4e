"""Acceptance: the command line as people meet it: what it says, how it ends, and that nobody sees a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

from runner.version import commit_of

ROOT = Path(__file__).resolve().parents[2]
ECHO = 'modules: {m: {env: inline, code: "def handler(input): return input"}}'


@pytest.fixture
def run(tmp_path):
    """Return `run(*arguments)`: the program in an empty folder with a modules file, and how it ended."""

    def go(*arguments, file=ECHO, environ=None, stdin=b""):
        if file is not None:
            (tmp_path / "modules.yaml").write_text(file)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OPERATO_")}
        done = subprocess.run(
            [sys.executable, str(ROOT / "main.py"), *arguments],
            cwd=tmp_path,
            env={**clean, **(environ or {})},
            input=stdin,
            check=False,
            capture_output=True,
            timeout=60,
        )
        done.out, done.err = done.stdout.decode(), done.stderr.decode(errors="replace")
        assert "Traceback" not in done.err
        return done

    return go


def said(done):
    """Return the lines that are errors."""
    return [line for line in done.err.splitlines() if line.lower().startswith("error")]


# -- what is said of the program itself -----------------------------------------------------------------------------


def test_the_version_works_from_source(run):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    commit = commit_of(ROOT)

    assert run("--version").out == f"operato-runner {version}{f' ({commit[:7]})' if commit else ''}\n"


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["serve"],
        ["run"],
        ["token"],
        ["config"],
        ["config", "check"],
        ["doctor"],
        ["prepare"],
        ["env"],
        ["env", "gc"],
        ["call"],
        ["logs"],
        ["executions"],
        ["executions", "list"],
        ["modules"],
        ["modules", "init"],
        ["modules", "push"],
        ["modules", "list"],
        ["modules", "show"],
        ["modules", "versions"],
        ["modules", "activate"],
        ["modules", "rm"],
        ["modules", "log"],
    ],
)
def test_every_command_has_help(run, command):
    done = run(*command, "--help")

    assert done.returncode == 0
    assert "..." not in done.out.split("Commands:")[-1], "a summary is cut off"


def test_help_of_serve_names_every_setting_with_its_default(run):
    text = " ".join(run("serve", "--help").out.split())

    assert "--drain-timeout DURATION how long work that runs may go on after the first signal [30s]" in text
    assert "--rest / --no-rest serve REST [true]" in text


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["sevre"], "there is no command 'sevre'; did you mean 'serve'?"),
        (
            ["frobnicate"],
            "there is no command 'frobnicate'; there are call, config, doctor, env, executions, logs, modules, ",
        ),
        (["config", "chek"], "there is no command 'chek'; did you mean 'check'?"),
        (["modules.yaml"], "there is no command 'modules.yaml'; did you mean `serve --config modules.yaml`?"),
        (["--rest-prot", "5"], "--rest-port"),
    ],
)
def test_what_was_mistyped(run, arguments, hint):
    done = run(*arguments)

    assert done.returncode == 2
    assert hint in done.err


# -- starting that fails: one line, the field and the remedy -----------------------------------------------------------

SECRETS = """
modules:
  a: {env: inline, code: "def handler(input): return 1", secrets: [TOKEN, OTHER]}
  b: {env: inline, code: "def handler(input): return 1", secrets: [TOKEN]}
"""
SERVE = ("serve", "--rest-port", "0")


def test_missing_secrets_are_told_at_the_start_all_of_them(run):
    done = run(*SERVE, file=SECRETS, environ={"OPERATO_SECRET_OTHER": "x"})

    missing = (
        "TOKEN: OPERATO_SECRET_TOKEN is not set in the runner's environment; set it, or take TOKEN out of `secrets`"
    )
    assert done.returncode == 2
    assert said(done) == [f"error: bad_input: {name}.secrets.{missing}" for name in "ab"]


def test_check_tells_secrets_that_are_missing_here_without_failing(run):
    done = run("config", "check", file=SECRETS, environ={"OPERATO_SECRET_OTHER": "x"})

    assert done.returncode == 0
    assert done.out.count("secrets.TOKEN: OPERATO_SECRET_TOKEN is not set") == 2


START = {
    "no key": (
        ["--host", "0.0.0.0"],
        2,
        "host: '0.0.0.0' is no loopback address, and no key for tokens is configured; configure `jwt_secret`",
    ),
    "no address": (
        ["--host", "no-such-host.invalid", "--jwt-secret", "s" * 32],
        74,
        "'no-such-host.invalid' is no address of this machine; change --host",
    ),
    "no name": (["--host", "a" * 100, "--jwt-secret", "s" * 32], 74, "is no address of this machine; change --host"),
    "short secret": (["--jwt-secret", "short"], 2, "`jwt_secret` needs at least 32 bytes"),
    "no secret file": (["--jwt-secret-file", "none"], 2, "jwt_secret_file: "),
    "two secrets": (
        ["--jwt-secret-file", "modules.yaml", "--jwt-secret", "s" * 32],
        2,
        "jwt_secret_file: give `jwt_secret` or `jwt_secret_file`, not both",
    ),
    "no key file": (["--jwt-public-key-file", "none.pem"], 2, "jwt_public_key_file: "),
    "key file is a folder": (["--jwt-public-key-file", "."], 2, "cannot be read: Is a directory"),
    "no key in the file": (["--jwt-public-key-file", "modules.yaml"], 2, "`jwt_public_key_file` is not a public key"),
    "no URL": (["--jwt-jwks-url", "file:///etc/passwd"], 2, "`jwt_jwks_url` cannot be used"),
    "data is a file": (["--data-dir", "modules.yaml"], 9, "change `data_dir`"),
    "ready file": (["--ready-file", "none/ready"], 74, "`ready_file` "),
    "range": (["--rest-port", "65536"], 2, "--rest-port: 65536 is out of range; it must be from 0 to 65535"),
    "config is empty": (["--config", ""], 2, "--config: is empty"),
    "config is absent": (["--config", "none.yaml"], 2, "none.yaml: there is no such file"),
}


@pytest.mark.parametrize("case", START)
def test_a_start_that_fails_is_one_line_with_the_remedy(run, case):
    options, code, text = START[case]

    done = run(*SERVE, *options)

    assert done.returncode == code
    (line,) = said(done)
    assert text in line


def test_a_port_in_use(run):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        done = run("serve", "--rest-port", str(port))

    assert done.returncode == 74
    assert said(done) == [
        f"error: port {port} of 127.0.0.1 is in use; choose another one with --rest-port, or 0 for a free one"
    ]


def test_code_that_cannot_be_published(run, tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "main.py").write_text("handler = print")
    os.mkfifo(tmp_path / "jobs" / "pipe")

    done = run(*SERVE, file="modules: {m: {env: inline, path: jobs}}")

    assert done.returncode == 2
    assert "pipe is not a regular file; take it out" in said(done)[0]


def test_interrupts_while_starting_are_no_errors(tmp_path):
    """Ctrl-C while a command starts ends it, with the exit code of an interrupt or of an orderly end."""
    (tmp_path / "modules.yaml").write_text(ECHO)
    command = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), *SERVE]
    for sign in (b"runner.logs", b"runner.http", b"quart_trio", b"ready "):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
        seen = b""
        while sign not in seen and (line := process.stderr.readline()):
            seen = line
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        process.stderr.close()
        assert process.wait(30) in (130, 0), rest[-2000:]
        assert b"Traceback" not in rest


# -- run and token -----------------------------------------------------------------------------------------------------

RUN = {
    "value": (["m", '{"a": [1, "é"]}'], 0, '{"a":[1,"é"]}\n'),
    "nothing": (["m"], 0, "null\n"),
    "standard input": (["m", "-"], 0, "[1]\n"),
    "not JSON": (["m", "{bad"], 2, "bad_input"),
    "not text": (["m", b"\xff"], 2, "not UTF-8"),
    "no such module": (["mm"], 3, "there is no module 'mm'; did you mean 'm'?"),
    "negative timeout": (["m", "--timeout=-1"], 2, "--timeout: '-1' is not a duration"),
    "no timeout": (["m", "--timeout", "nan"], 2, "--timeout: 'nan' is not a duration"),
    "timeout of zero": (["m", "--timeout", "0"], 2, "--timeout: must be above 0"),
    "too large": (["m", '"' + "x" * 2000 + '"', "--max-frame", "1KiB"], 7, "the limit is `max_frame`"),
}


@pytest.mark.parametrize("case", RUN)
def test_run(run, case):
    arguments, code, text = RUN[case]

    done = run("run", *arguments, stdin=b" [1] ")

    assert done.returncode == code
    assert text == done.out if code == 0 else text in said(done)[0]


def test_run_needs_the_secrets_of_its_module_only(run):
    file = SECRETS + "  c: {env: inline, code: 'def handler(input): return 3'}\n"

    assert run("run", "c", file=file).out == "3\n"
    assert run("run", "b", file=file).returncode == 2


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    file = "modules:\n" + "".join(
        f"  m{n}: {{env: inline, code: handler = print, description: {'d' * 200}}}\n" for n in range(2000)
    )
    (tmp_path / "modules.yaml").write_text(file)
    command = [sys.executable, str(ROOT / "main.py"), "config", "check"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    said_ = process.stderr.read()
    process.stderr.close()

    assert process.wait(30) != 0
    assert said_ == b""


TOKEN = {
    "good": (["--expires", "30d", "--scope", "admin", "--module", "a*"], 0, ""),
    "no time": (["--expires", "nan"], 2, "--expires: 'nan' is not a duration"),
    "far": (["--expires", "99999999d"], 2, "before the year 10000"),
    "scope": (["--scope", "all"], 2, "unknown scope all; there are admin, executions:read"),
    "no text": (["--module", b"\xff"], 2, "must be text in UTF-8"),
    "public key": (["--config", "public.yaml"], 9, "whoever holds the private key"),
}


@pytest.mark.parametrize("case", TOKEN)
def test_token(run, tmp_path, case):
    options, code, text = TOKEN[case]
    (tmp_path / "public.yaml").write_text("runner: {jwt_jwks_url: 'https://127.0.0.1/keys'}\nmodules: []")

    done = run("token", "--subject", "me", *options)

    assert done.returncode == code
    if code == 0:
        assert done.out.count(".") == 2
    else:
        assert text in said(done)[0]


def test_check_shows_no_control_characters(run):
    file = 'modules: {m: {env: inline, code: handler = print, description: "\\e[31mred\\a\\nmore"}}'

    assert run("config", "check", file=file).out.splitlines()[-1].isprintable()


# -- doctor ------------------------------------------------------------------------------------------------------------


def findings(done):
    return {(f["topic"], f["name"]): f for f in json.loads(done.out)["findings"]}


def test_doctor_says_what_can_work(run, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    done = run("doctor", "--json", "--rest-port", "0")
    found = findings(done)

    assert (done.returncode, json.loads(done.out)["ok"]) == (0, True)
    assert found["environments", "inline"]["state"] == "ok"
    assert "used by 1 of 1 modules" in found["environments", "inline"]["says"]
    assert ": held by " in found["limits", "memory"]["says"]
    assert found["limits", "memory"]["says"].startswith("inline, venv")
    assert {name for topic, name in found if topic == "tools"} >= {"uv", "python", "python 3.8", "python 3.13"}
    assert found["folders", "data_dir"]["state"] == "ok"
    assert "GiB are free" in found["folders", "data_dir"]["says"]
    assert found["ports", "rest_port"]["says"] == "a free one is taken"
    assert {path.name for path in tmp_path.iterdir()} - set(before) == {"modules.yaml"}, "something was left behind"


def test_doctor_as_text_has_the_same(run):
    done = run("doctor", "--rest-port", "0")

    for word in ("environments", "limits", "tools", "folders", "ports", "inline", "processes"):
        assert word in done.out


def test_doctor_fails_for_what_the_file_asks_for_and_cannot_have(run, tmp_path):
    (tmp_path / "plain").write_text("")
    file = """
runner: {data_dir: plain, tls_certificate_file: plain, tls_key_file: absent}
modules:
  d: {env: docker, image: x}
  v: {env: venv, code: "handler = print", python: "3.2"}
  s: {env: inline, code: "handler = print", secrets: [NOT_THERE]}
"""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = str(server.getsockname()[1])
        done = run("doctor", "--json", "--rest-port", port, file=file)
    found = findings(done)

    assert done.returncode == 1
    assert json.loads(done.out)["ok"] is False
    failed = {name for (_, name), finding in found.items() if finding["state"] == "failed"}
    assert failed >= {"python 3.2", "data_dir", "tls"}
    assert f"tls_key_file: {tmp_path / 'absent'} cannot be read" in found["ports", "tls"]["says"]
    assert found["tools", "python 3.2"]["remedy"] == "install it, or change `python`"
    assert found["environments", "docker"]["state"] in ("failed", "ok")
    assert (found["ports", "rest_port"]["state"], "in use" in found["ports", "rest_port"]["says"]) == ("note", True)
    assert "OPERATO_SECRET_NOT_THERE" in found["secrets", "s.secrets"]["says"]


@pytest.mark.parametrize(
    ("options", "state", "says"),
    [
        ([], "ok", "none is configured; the first start makes "),
        (["--host", "0.0.0.0"], "failed", "no key for tokens is configured; configure `jwt_secret`"),
        (["--host", "0.0.0.0", "--jwt-secret", "s" * 32], "ok", "`jwt_secret` can be used"),
        (["--jwt-secret", "short"], "failed", "`jwt_secret` needs at least 32 bytes"),
        (["--jwt-public-key-file", "none.pem"], "failed", "cannot be read: No such file"),
        (["--data-dir", "open"], "failed", "others may read the secret"),
        (["--data-dir", "closed"], "ok", "the runner's own, "),
    ],
)
def test_doctor_looks_at_the_key_of_tokens(run, tmp_path, options, state, says):
    for name, mode in (("open", 0o644), ("closed", 0o600)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "jwt-secret").write_text("s" * 64)
        (tmp_path / name / "jwt-secret").chmod(mode)

    done = run("doctor", "--json", "--rest-port", "0", "--grpc-port", "0", *options)
    finding = findings(done)["secrets", "key of tokens"]

    assert (finding["state"], done.returncode) == (state, 0 if state == "ok" else 1)
    assert says in finding["says"]
    assert not (tmp_path / "data").exists(), "the doctor makes no secret"


def test_doctor_of_a_file_with_mistakes(run):
    assert run("doctor", file="modules: 5").returncode == 2


def test_doctor_without_uv(run, tmp_path):
    """A venv module needs it. The program that is found is not one."""
    fake = tmp_path / "site" / "uv"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("def find_uv_bin(): raise FileNotFoundError\n")
    environ = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/nowhere"}

    done = run("doctor", "--json", file="modules: {v: {env: venv, code: 'handler = print'}}", environ=environ)

    found = findings(done)
    assert done.returncode == 1
    assert found["environments", "venv"]["state"] == "failed"
    assert found["tools", "uv"]["says"] == "not found"


def test_doctor_leaves_a_running_server_alone(run, tmp_path):
    run("config", "check")
    log = (tmp_path / "log").open("wb")
    command = [sys.executable, str(ROOT / "main.py"), *SERVE, "--ready-file", "ready"]
    server = subprocess.Popen(command, cwd=tmp_path, stderr=log)
    try:
        while not (tmp_path / "ready").exists():
            assert server.poll() is None, (tmp_path / "log").read_text()
        port = json.loads((tmp_path / "ready").read_text())["rest"][0][1]
        done = run("doctor", "--json", "--rest-port", str(port))
        assert done.returncode == 0
        assert "in use" in findings(done)["ports", "rest_port"]["says"]
        assert server.poll() is None
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        log.close()
    shutil.rmtree(tmp_path / "data")
