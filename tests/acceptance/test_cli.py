"""Acceptance: the command line: its help, options, messages and exit codes, never with a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

from runner.cli.commands import cli
from runner.version import commit_of
from tests.program import run_program
from tests.server_process import wait_for

ROOT = Path(__file__).resolve().parents[2]
ECHO = 'modules: {m: {env: inline, code: "def handler(input): return input"}}'


@pytest.fixture
def run(tmp_path):
    """Return `run(*arguments)`, which runs the program in an empty folder with a modules file."""

    def go(*arguments, file=ECHO, environ=None, stdin=b""):
        if file is not None:
            (tmp_path / "modules.yaml").write_text(file)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OPERATO_")}
        done = run_program(arguments, cwd=tmp_path, environ={**clean, **(environ or {})}, stdin=stdin)
        done.out, done.err = done.stdout.decode(), done.stderr.decode(errors="replace")
        assert "Traceback" not in done.err
        return done

    return go


def errors(done):
    """Return the error lines."""
    return [line for line in done.err.splitlines() if line.lower().startswith("error")]


# -- version and help --------------------------------------------------------------------------------------------------


def test_the_version_works_from_source(run):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    commit = commit_of(ROOT)

    assert run("--version").out == f"operato-runner {version}{f' ({commit[:7]})' if commit else ''}\n"


def commands(group=cli, path=()):
    """Yield the words of every command and group, the root as ()."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_command_has_help(run, command):
    done = run(*command, "--help")

    assert done.returncode == 0
    assert "..." not in done.out.partition("Commands:")[2], "a summary is cut off"


LOADED = """
import json, sys
from runner.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["operato-runner", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, arguments
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
SERVER = {"quart", "hypercorn", "grpclib", "betterproto", "sqlalchemy", "docker", "jsonschema", "trio", "httpx", "rich"}


def test_version_help_and_token_do_not_import_the_server(tmp_path):
    """Their speed depends on it: each takes at most 0.3 s on a quiet machine."""
    arguments = [["--version"], *([*command, "--help"] for command in commands()), ["token", "--subject", "me"]]
    (tmp_path / "modules.yaml").write_text(ECHO)
    command = [sys.executable, "-c", LOADED, json.dumps(arguments)]
    out = subprocess.check_output(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)

    assert SERVER & set(json.loads(out.splitlines()[-1])) == set()


def test_the_doors_import_their_libraries_only_if_served(tmp_path):
    """Those of the other door stay out."""
    (tmp_path / "modules.yaml").write_text(ECHO)
    for option, without, with_ in (("--no-rest", b"hypercorn", b"grpclib"), ("--no-grpc", b"grpclib", b"hypercorn")):
        command = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), *PORTS, option]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
        seen = b""
        for line in process.stderr:
            seen += line
            if b"ready " in line:
                process.send_signal(signal.SIGTERM)
        process.stderr.close()
        assert process.wait(30) == 0
        assert re.search(rb"\| +" + with_ + rb"\b", seen)
        assert not re.search(rb"\| +" + without + rb"\b", seen)


def test_help_of_serve_names_every_setting_with_its_default(run):
    text = " ".join(run("serve", "--help").out.split())

    assert "--drain-timeout DURATION how long running work may continue after the first signal [30s]" in text
    assert "--rest / --no-rest serve REST [true]" in text


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["sevre"], "there is no command 'sevre'; did you mean 'serve'?"),
        (
            ["frobnicate"],
            "there is no command 'frobnicate'; there are call, client, completion, config, dev, doctor, env, ",
        ),
        (["config", "chek"], "there is no command 'chek'; did you mean 'check'?"),
        (["modules.yaml"], "there is no command 'modules.yaml'; did you mean `serve --config modules.yaml`?"),
        (["--rest-prot", "5"], "--rest-port"),
    ],
)
def test_mistyped_commands_and_options(run, arguments, hint):
    done = run(*arguments)

    assert done.returncode == 2
    assert hint in done.err


# -- options before the command ----------------------------------------------------------------------------------------


def shown(done, name):
    """Return value and source of a setting as `config check` prints them."""
    return next(line.split(None, 1)[1] for line in done.out.splitlines() if line.split()[:1] == [name])


def test_settings_before_a_command_apply_to_it(run, tmp_path):
    (tmp_path / "mine.yaml").write_text(ECHO)
    options = ["--config=mine.yaml", "--rest-port=8080", "--grpc-port=50052", "--venv-path=./v", "--no-grpc"]
    done = run(*options, "config", "check")

    assert done.returncode == 0
    assert shown(done, "config").split() == [str(tmp_path / "mine.yaml"), "command", "line"]
    assert shown(done, "rest_port").split() == ["8080", "command", "line"]
    assert shown(done, "grpc_port").split() == ["50052", "command", "line"]
    assert shown(done, "venv_path").split() == [str(tmp_path / "v"), "command", "line"]
    assert shown(done, "grpc").split() == ["false", "command", "line"]


def test_settings_after_the_command_win(run):
    done = run("--rest-port", "1", "--no-rest", "config", "check", "--rest-port", "2", "--rest")

    assert shown(done, "rest_port").startswith("2 ")
    assert shown(done, "rest").startswith("true ")


def test_settings_before_other_commands(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("modules: {n: {env: inline, code: 'def handler(input): return 5'}}")

    assert run("--config", "mine.yaml", "run", "n").out == "5\n"
    assert run("--config", "mine.yaml", "--data-dir", "d", "token", "--subject", "me").out.count(".") == 2
    assert (tmp_path / "d" / "jwt-secret").exists()
    assert run("--config", "mine.yaml", "--data-dir", "d", "doctor", "--json").returncode == 0
    assert "n: " not in run("--config", "mine.yaml", "env", "list").err


ELSEWHERE = "; name the server with --url, and where its secret is with OPERATO_DATA_DIR or OPERATO_CONFIG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "modules.yaml", "modules", "list"], "`modules list` does not take --config" + ELSEWHERE),
        (["--rest-port", "1", "--no-grpc", "call", "m"], "`call` does not take --rest-port, --no-grpc" + ELSEWHERE),
        (["--data-dir", "d", "modules", "init", "new"], "`modules init` does not take --data-dir"),
        (["--url", "http://127.0.0.1:1", "run", "m"], "`run` does not take --url"),
        (["--cert-key", "x"], "`serve` does not take --cert-key"),
    ],
)
def test_an_option_before_a_command_that_does_not_take_it(run, tmp_path, arguments, message):
    done = run(*arguments)

    assert done.returncode == 2
    assert errors(done) == [f"Error: {message}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["modules.yaml"]


def test_connection_options_before_a_command_apply_to_it(run):
    done = run("--url", "http://127.0.0.1:1", "call", "m")

    assert done.returncode == 9
    assert "no runner answers at http://127.0.0.1:1 " in errors(done)[0]


def test_names_of_options_mean_the_same_before_and_after_a_command():
    """An option before the command applies by its name, so no command has one of that name and another meaning."""
    outside = {parameter.name: parameter.opts for parameter in cli.params if parameter.expose_value}
    for group in commands():
        command = cli
        for word in group:
            command = command.commands[word]
        for parameter in command.params:
            assert parameter.opts == outside.get(parameter.name, parameter.opts), (group, parameter.name)


@pytest.mark.parametrize(
    ("options", "doors"),
    [([], {"rest", "grpc"}), (["--no-rest"], {"grpc"}), (["--no-grpc"], {"rest"}), (["--no-rest", "--no-grpc"], set())],
)
def test_without_a_command_it_serves(tmp_path, options, doors):
    (tmp_path / "mine.yaml").write_text(ECHO)
    settings = ["--config=mine.yaml", "--rest-port=0", "--grpc-port=0", "--venv-path=./v", "--ready-file=ready"]
    command = [sys.executable, str(ROOT / "main.py"), *settings, *options]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stderr=log)
    try:
        wait_for(lambda: (tmp_path / "ready").exists() or server.poll() is not None)
        ready = json.loads((tmp_path / "ready").read_text())
        assert {name for name in ("rest", "grpc") if ready[name]} == doors
        warned = "nothing can be called: `rest` and `grpc` are both off" in (tmp_path / "log").read_text()
        assert warned is not bool(doors)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


# -- starting that fails: one line, the field and the remedy -----------------------------------------------------------

SECRETS = """
modules:
  a: {env: inline, code: "def handler(input): return 1", secrets: [TOKEN, OTHER]}
  b: {env: inline, code: "def handler(input): return 1", secrets: [TOKEN]}
"""
PORTS = ("--rest-port", "0", "--grpc-port", "0")
SERVE = ("serve", *PORTS)


def test_all_missing_secrets_are_reported_at_the_start(run):
    done = run(*SERVE, file=SECRETS, environ={"OPERATO_SECRET_OTHER": "x"})

    missing = (
        "TOKEN: OPERATO_SECRET_TOKEN is not set in the runner's environment; set it, or remove TOKEN from `secrets`"
    )
    assert done.returncode == 2
    assert errors(done) == [f"error: {name}.secrets.{missing}" for name in "ab"]


REFUSED = {
    "secrets": (SECRETS, {}),
    "a key that is too short": ("runner: {jwt_secret: short}\n", {}),
    "a file without a secret": ("runner: {jwt_secret_file: /dev/null}\n", {}),
    "a public key that does not exist": ("runner: {jwt_public_key_file: key.pem}\n", {}),
    "no key for other machines": ("runner: {host: 0.0.0.0}\n", {}),
    "no certificate": ("runner: {tls_certificate_file: cert.pem, tls_key_file: key.pem}\n", {}),
    "several": (SECRETS + "runner: {host: 0.0.0.0, tls_certificate_file: c.pem, tls_key_file: k.pem}\n", {}),
    "a field": ("modules: {a: {env: inlin, code: 'def handler(i, /): ...'}}\n", {}),
    "a variable": ("modules: []\n", {"OPERATO_PORT": "1"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_check_refuses_what_serve_refuses(run, case):
    file, environ = REFUSED[case]
    checked, served = (run(*args, file=file, environ=environ) for args in (("config", "check"), SERVE))

    assert checked.returncode == served.returncode == 2
    assert errors(checked) == errors(served) != []


START = {
    "no key": (
        ["--host", "0.0.0.0"],
        2,
        "host: '0.0.0.0' is not a loopback address, and no key for tokens is configured; configure `jwt_secret`",
    ),
    "no address": (
        ["--host", "no-such-host.invalid", "--jwt-secret", "s" * 32],
        74,
        "'no-such-host.invalid' is not an address of this machine; change --host",
    ),
    "no name": (
        ["--host", "a" * 100, "--jwt-secret", "s" * 32],
        74,
        "is not an address of this machine; change --host",
    ),
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
    "config is absent": (["--config", "none.yaml"], 2, "none.yaml: does not exist"),
}


@pytest.mark.parametrize("case", START)
def test_a_start_that_fails_is_one_line_with_the_remedy(run, case):
    options, code, text = START[case]

    done = run(*SERVE, *options)

    assert done.returncode == code
    (line,) = errors(done)
    assert text in line


def test_a_port_in_use(run):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        done = run("serve", "--rest-port", str(port))

    assert done.returncode == 74
    assert errors(done) == [
        f"error: port {port} of 127.0.0.1 is in use; choose another with --rest-port, or 0 for a free one"
    ]


def test_code_that_cannot_be_published(run, tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "main.py").write_text("handler = print")
    os.mkfifo(tmp_path / "jobs" / "pipe")

    done = run(*SERVE, file="modules: {m: {env: inline, path: jobs}}")

    assert done.returncode == 2
    assert "pipe is not a regular file; take it out" in errors(done)[0]


def test_interrupts_while_starting_are_not_errors(tmp_path):
    """Ctrl-C while a command starts ends it, with the exit code of an interrupt or of an orderly end."""
    (tmp_path / "modules.yaml").write_text(ECHO)
    command = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), *SERVE]
    for sign in (b"runner.logs", b"runner.http", b"runner.rest", b"ready "):
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
    assert text == done.out if code == 0 else text in errors(done)[0]


def test_run_needs_the_secrets_of_its_module_only(run):
    file = SECRETS + "  c: {env: inline, code: 'def handler(input): return 3'}\n"

    assert run("run", "c", file=file).out == "3\n"
    assert run("run", "b", file=file).returncode == 2


def test_run_asks_no_person(run):
    assert run("run", "m", "3", file=ECHO.replace("{m: {", "{m: {tool: {confirm: true}, ")).out == "3\n"


def test_a_closed_pipe_is_not_an_error(tmp_path):
    file = "modules:\n" + "".join(
        f"  m{n}: {{env: inline, code: handler = print, description: {'d' * 200}}}\n" for n in range(2000)
    )
    (tmp_path / "modules.yaml").write_text(file)
    command = [sys.executable, str(ROOT / "main.py"), "config", "check"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    printed = process.stderr.read()
    process.stderr.close()

    assert process.wait(30) == 74
    assert printed == b""


TOKEN = {
    "good": (["--expires", "30d", "--scope", "admin", "--module", "a*"], 0, ""),
    "no time": (["--expires", "nan"], 2, "--expires: 'nan' is not a duration"),
    "far": (["--expires", "99999999d"], 2, "before the year 10000"),
    "scope": (["--scope", "all"], 2, "unknown scope all; there are admin, executions:approve, executions:read"),
    "no text": (["--module", b"\xff"], 2, "must be text in UTF-8"),
    "public key": (["--config", "public.yaml"], 9, "sign them with the private key"),
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
        assert text in errors(done)[0]


def test_check_shows_no_control_characters(run):
    file = 'modules: {m: {env: inline, code: handler = print, description: "\\e[31mred\\a\\nmore"}}'

    assert run("config", "check", file=file).out.splitlines()[-1].isprintable()


def test_a_module_that_is_told_and_does_not_exist_is_a_warning(run, tmp_path):
    file = """
modules:
  a: {env: inline, code: "handler = print", on_end: [{module: b}, {module: absent}, {module: registered}]}
  b: {env: inline, code: "handler = print"}
"""
    (tmp_path / "data").mkdir()
    with closing(sqlite3.connect(tmp_path / "data" / "modules.db")) as link:
        link.execute("create table modules (name text, active text)")
        link.execute("insert into modules values ('registered', '1')")
        link.commit()
    done = run("--data-dir", "data", "config", "check", file=file)
    warnings = [line for line in done.err.splitlines() if line.startswith("warning")]
    text = "there is no module 'absent' yet; its notices wait a day for it, then they are dead"
    assert (done.returncode, warnings) == (0, [f"warning: a: on_end[1].module: {text}"])


# -- doctor ------------------------------------------------------------------------------------------------------------


def findings(done):
    return {(f["topic"], f["name"]): f for f in json.loads(done.out)["findings"]}


def test_doctor_of_a_file_that_works(run, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    done = run("doctor", "--json", "--rest-port", "0")
    found = findings(done)

    assert (done.returncode, json.loads(done.out)["ok"]) == (0, True)
    assert found["environments", "inline"]["state"] == "ok"
    assert "used by 1 of 1 modules" in found["environments", "inline"]["says"]
    assert ": enforced by " in found["limits", "memory"]["says"]
    assert found["limits", "memory"]["says"].startswith("inline, venv")
    assert {name for topic, name in found if topic == "tools"} >= {"uv", "python", f"python 3.{sys.version_info.minor}"}
    assert found["folders", "data_dir"]["state"] == "ok"
    assert "GiB free" in found["folders", "data_dir"]["says"]
    assert found["folders", "files"]["says"] == "0 stored files take 0 B of 20.0 GiB"
    assert found["ports", "rest_port"]["says"] == "a free port is picked at the start"
    assert {path.name for path in tmp_path.iterdir()} - set(before) == {"modules.yaml"}, "something was left behind"


def test_doctor_counts_notices_that_were_not_sent(run, tmp_path):
    done = run("doctor", "--json", "--rest-port", "0")
    assert findings(done)["notices", "unsent"]["says"] == "0 wait, 0 are dead"

    with closing(sqlite3.connect(tmp_path / "history.db")) as link:
        link.execute("create table notices (state text)")
        link.executemany("insert into notices values (?)", [("dead",), ("delivered",), ("pending",), ("dead",)])
        link.commit()
    done = run("--data-dir", ".", "doctor", "--json", "--rest-port", "0")
    finding = findings(done)["notices", "unsent"]
    assert (finding["state"], finding["says"]) == ("note", "1 wait, 2 are dead")
    assert "notices list --state dead" in finding["remedy"]


def test_doctor_as_text(run):
    done = run("doctor", "--rest-port", "0")

    for word in ("environments", "limits", "tools", "folders", "ports", "inline", "processes"):
        assert word in done.out


def test_doctor_fails_for_modules_that_cannot_work(run, tmp_path):
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
        ([], "ok", "not configured; the first start makes "),
        (["--host", "0.0.0.0"], "failed", "no key for tokens is configured; configure `jwt_secret`"),
        (["--host", "0.0.0.0", "--jwt-secret", "s" * 32], "ok", "`jwt_secret` is usable"),
        (["--jwt-secret", "short"], "failed", "`jwt_secret` needs at least 32 bytes"),
        (["--jwt-public-key-file", "none.pem"], "failed", "cannot be read: No such file"),
        (["--data-dir", "open"], "failed", "others may read the secret"),
        (["--data-dir", "closed"], "ok", "the runner's own secret "),
    ],
)
def test_doctor_checks_the_key_for_tokens(run, tmp_path, options, state, says):
    for name, mode in (("open", 0o644), ("closed", 0o600)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "jwt-secret").write_text("s" * 64)
        (tmp_path / name / "jwt-secret").chmod(mode)

    done = run("doctor", "--json", "--rest-port", "0", "--grpc-port", "0", *options)
    finding = findings(done)["secrets", "key for tokens"]

    assert (finding["state"], done.returncode) == (state, 0 if state == "ok" else 1)
    assert says in finding["says"]
    assert not (tmp_path / "data").exists(), "the doctor made a secret"


def test_doctor_of_a_file_with_mistakes(run):
    assert run("doctor", file="modules: 5").returncode == 2


def test_doctor_without_uv(run, tmp_path):
    """A venv module needs uv; the module `uv` found here has no program."""
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
