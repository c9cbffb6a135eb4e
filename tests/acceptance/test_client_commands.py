"""Acceptance: `call`, `logs` and `executions` as people use them, against the real server as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.proxies import Gate
from tests.server_process import ROOT, Commands, Server, ended, running, url_of, wait_for

MODULES = """
modules:
  - name: echo
    env: inline
    concurrency: 2
    code: |
      import sys
      def handler(input):
          print("to out")
          print("to err", file=sys.stderr)
          return input
  - name: bad
    env: inline
    code: |
      def handler(input):
          print("no end of line", end="")
          raise KeyError("x")
  - name: strict
    env: inline
    input_schema: {type: object}
    code: "def handler(input): return input"
  - name: waits
    env: inline
    concurrency: 4
    timeout: 60s
    code: &waits |
      import os, subprocess, time
      def handler(input, context):
          # A session of its own would outlive a runner that is killed.
          child = subprocess.Popen(["sleep", "600"], start_new_session="killed" not in input)
          with open(input["here"] + ".pids", "w") as file:
              file.write(f"{os.getpid()} {child.pid}")
          number = 0
          print(context.attempt, "begun", flush=True)
          while not os.path.exists(input["here"] + ".go"):
              print(context.attempt, number, flush=True)
              number += 1
              time.sleep(0.01)
          child.kill()
          child.wait()
          return "done"
  - name: again
    env: inline
    timeout: 60s
    retry: {attempts: 100, on: [lost]}
    code: *waits
"""
ALL = "admin"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("server")
    with running(home, MODULES, "--max-frame", "100KiB") as opened:
        yield opened
        assert opened.stop() == 0


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Commands:
    """Return the program, run in a folder without files of the server."""
    return Commands(tmp_path, url_of(server), server.token)


def alive(pids: str) -> list[str]:
    """Return the running processes among these; a zombie is not running."""
    found = []
    for pid in pids.split():
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        if state != "Z":
            found.append(pid)
    return found


def begun(here: Path) -> str:
    """Wait for a call of `waits` to run; return its processes."""
    pids = here.with_name(here.name + ".pids")
    wait_for(lambda: pids.exists() and pids.read_text().count(" ") == 1 and pids.read_text()[-1:].isdigit())
    return pids.read_text()


def rows_of(text: str) -> list[list[str]]:
    return [line.split(maxsplit=1) for line in text.splitlines()]


def release(here: Path) -> None:
    here.with_name(here.name + ".go").touch()


# -- call --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--follow"], ["--key", "k1"], ["--key", "k2", "--follow"]])
def test_a_call(run, options):
    code, out, err = run("call", "echo", '{"a": [1, "é"]}', *options)

    assert (code, out) == (0, '{"a":[1,"é"]}\n')
    assert sorted(err.splitlines()) == ["to err", "to out"]  # two pipes have no order


@pytest.mark.parametrize(
    ("arguments", "result"), [(["echo"], "null\n"), (["echo", "-"], '"text"\n'), (["echo", ' "text"\n'], '"text"\n')]
)
def test_sources_of_the_input(run, arguments, result):
    assert run("call", *arguments, stdin=b' "text" ')[:2] == (0, result)


@pytest.mark.parametrize("options", [[], ["--follow"], ["--key", "k3"]])
def test_a_handler_that_raises(run, options):
    code, out, err = run("call", "bad", *options)

    assert (code, out) == (1, "")
    assert err.startswith("no end of line\nTraceback (most recent call last):\n")
    assert err.endswith("KeyError: 'x'\nerror: handler_error: 'x'\n")
    assert err.count("\nerror: ") == 1


REFUSED = {
    "no such module": (["call", "ehco"], 3, "error: not_found: there is no module 'ehco'; did you mean echo?"),
    "no such version": (["call", "echo", "--version", "9"], 3, "error: not_found: "),
    "odd name": (["call", "../echo?x"], 3, "error: not_found: "),
    "not JSON": (["call", "echo", "{bad"], 2, "error: bad_input: the input is not JSON"),
    "no quotes": (
        ["call", "echo", "{name: 5}"],
        2,
        """; write '{"name": "Ada"}', and text as '"Ada"'""",
    ),
    "no input": (
        ["call", "strict"],
        2,
        """; an example of one: '{"name": "Ada"}'; `operato-runner modules show strict` shows the schema of its""",
    ),
    "no duration": (["call", "echo", "--timeout", "soon"], 2, "error: --timeout: 'soon' is not a duration"),
    "no text": (["call", b"\xff", "--version", b"\xff"], 2, "error: bad_input: the path is not UTF-8"),
    "key of spaces": (["call", "echo", "--key", " "], 2, "error: bad_input: an idempotency key has 1 to 255"),
    "odd key": (["call", "echo", "--key", "ключ"], 2, "error: bad_input: an idempotency key has 1 to 255"),
    "too large": (["call", "echo", "-"], 7, "error: too_large: the input is too large for the runner"),
    "too large with a key": (["call", "echo", "-", "--key", "k4"], 7, "error: too_large: "),
    "too large, not waited for": (["call", "echo", "-", "--async"], 7, "error: too_large: "),
    "no such execution": (["logs", "none"], 3, "error: not_found: there is no execution 'none'"),
    "no such one to follow": (["logs", "-f", "none"], 3, "error: not_found: there is no execution 'none'"),
    "nothing to show": (["executions", "show", "none"], 3, "error: not_found: there is no execution 'none'"),
    "nothing to cancel": (["executions", "cancel", "none"], 3, "error: not_found: there is no execution 'none'"),
    "no status": (["executions", "list", "--status", "x"], 2, "error: bad_input: status must be one of queued"),
    "no time": (["executions", "list", "--since", "x"], 2, "error: --since: 'x' is not a time; write today, "),
    "no file": (["call", "echo", "--url", "https://localhost:1", "--ca", "x.pem"], 2, "x.pem cannot be used: No such"),
    "no runner": (["call", "echo", "--url", "http://127.0.0.1:1"], 9, "error: unavailable: no runner answers at http"),
    "no host": (["logs", "x", "--url", "http://none.invalid"], 9, "no runner answers at http://none.invalid ("),
    "odd host": (["call", "echo", "--url", "http://a..b"], 9, "no runner answers at http://a..b (there is no such"),
    "odd host, listed": (["executions", "list", "--url", "http://a..b"], 9, "no runner answers at http://a..b ("),
    "long host": (["executions", "list", "--url", "http://" + "a" * 100], 9, "no runner answers at http://aaaa"),
    "long host, called": (["logs", "-f", "x", "--url", "http://" + "a" * 100], 9, "no runner answers at http://aaaa"),
    "no TLS": (["call", "echo", "--url", "https://127.0.0.1:{port}"], 9, "error: unavailable: TLS with https://127"),
    "no URL": (["logs", "x", "--url", "127.0.0.1"], 2, "error: --url: '127.0.0.1' is not the URL of a runner"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_and_an_exit_code(run, server, case):
    arguments, code, text = REFUSED[case]
    port = str(server.ready["rest"][0][1])

    found = run(
        *(a.replace("{port}", port) if isinstance(a, str) else a for a in arguments), stdin=b'"' + b"x" * 200_000 + b'"'
    )

    assert (found[0], found[1]) == (code, "")
    assert text in found[2]
    assert found[2].count("\n") == 1, found[2]


def test_a_time_limit(run, tmp_path):
    code, _, err = run("call", "waits", json.dumps({"here": str(tmp_path / "t")}), "--timeout", "300ms")

    assert code == 124
    assert err.splitlines()[-1].startswith("error: timeout: ")
    assert alive((tmp_path / "t.pids").read_text()) == []


def test_output_is_shown_while_it_runs(run, tmp_path):
    here = tmp_path / "live"
    process = run.start("call", "waits", json.dumps({"here": str(here)}), "--follow")

    assert process.stderr.readline() == b"1 begun\n"
    assert process.stderr.readline() == b"1 0\n"
    assert process.poll() is None
    release(here)
    code, out, _ = ended(process)
    assert (code, out) == (0, '"done"\n')


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [[], ["--follow"], ["--key", "k"]])
def test_an_interrupt_ends_the_execution_on_the_server(run, tmp_path, options, number):
    here = tmp_path / "cut"
    if "--key" in options:
        options = [*options[:-1], f"k-{number}"]
    process = run.start("call", "waits", json.dumps({"here": str(here)}), *options)
    pids = begun(here)
    process.send_signal(number)
    code, out, err = ended(process)

    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("error: cancelled: ")
    assert alive(pids) == []
    listed = json.loads(run("executions", "list", "--module", "waits", "--limit", "1", "--json")[1])
    assert listed["items"][0]["status"] == "cancelled"


def test_a_call_with_a_lost_connection_names_the_execution(run, server, tmp_path):
    gate = Gate()
    gate.target = server.ready["rest"][0][1]
    try:
        here = tmp_path / "lost"
        url = f"http://127.0.0.1:{gate.port}"
        process = run.start("call", "waits", json.dumps({"here": str(here)}), "--follow", "--url", url)
        begun(here)
        process.stderr.readline()
        gate.cut()
        code, out, err = ended(process)
    finally:
        gate.close()

    last = err.splitlines()[-1]
    assert (code, out) == (15, "")
    assert last.startswith(f"error: lost: the connection to {url} was lost (")
    identity = last.rpartition("show ")[2].rstrip("`")
    assert f"execution {identity} may still run: `operato-runner executions show {identity}`" in last
    assert ["id", identity] in rows_of(run("executions", "show", identity)[1])


def test_a_closed_pipe_ends_the_call(run, tmp_path):
    here = tmp_path / "enough"
    process = run.start("call", "waits", json.dumps({"here": str(here)}), "--follow")
    process.stderr.readline()
    process.stderr.close()
    code = process.wait(60)
    process.stdout.close()

    assert code == 74
    pids = begun(here)
    wait_for(lambda: alive(pids) == [])


# -- asynchronous calls ------------------------------------------------------------------------------------------------


def accepted(run: Commands, *arguments: str) -> str:
    code, out, err = run("call", *arguments, "--async")
    assert (code, err) == (0, "")
    return out.strip()


def test_logs_are_the_unchanged_output(run):
    identity = accepted(run, "echo", "5")

    assert run("logs", "-f", identity) == (0, "to out\n", "to err\n")
    assert run("logs", identity) == (0, "to out\n", "to err\n")
    assert run("logs", identity, "--from", "1000") == (0, "", "")
    assert run("logs", "-f", identity, "--from", "1000") == (0, "", "")


def test_following_logs_end_with_the_code_of_the_execution(run):
    identity = accepted(run, "bad")
    code, out, err = run("logs", "--follow", identity)

    assert (code, out) == (1, "no end of line")
    assert err.endswith("error: handler_error: 'x'\n")
    assert run("logs", "-f", identity, "--from", "1000")[0] == 1
    assert run("logs", identity) == (0, "no end of line", "")


def test_interrupted_logs_do_not_stop_the_execution(run, tmp_path):
    here = tmp_path / "alone"
    identity = accepted(run, "waits", json.dumps({"here": str(here)}))
    process = run.start("logs", "-f", identity)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)

    assert ended(process)[::2] == (130, "")
    assert json.loads(run("executions", "show", identity, "--json")[1])["status"] == "running"
    release(here)
    assert run("logs", "-f", identity)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_logs_continue_after_a_restart_without_gap_or_repetition(tmp_path, number):
    here = tmp_path / "again"
    gate = Gate()
    try:
        with running(tmp_path, MODULES) as first:
            gate.target = first.ready["rest"][0][1]
            run = Commands(tmp_path, f"http://127.0.0.1:{gate.port}", first.token)
            identity = accepted(run, "again", json.dumps({"here": str(here), "killed": True}))
            process = run.start("logs", "-f", identity)
            while process.stdout.readline() != b"1 20\n":
                pass
            first.stop(number)
        here.with_name("again.pids").unlink()
        with running(tmp_path, MODULES) as second:
            gate.target = second.ready["rest"][0][1]
            begun(here)
            while not (line := process.stdout.readline()).startswith(b"2 "):
                assert line.startswith(b"1 "), line
            release(here)
            out, err, code = process.stdout.read().decode(), process.stderr.read().decode(), process.wait(60)
            full = run("logs", identity)[1].splitlines()
    finally:
        gate.close()
    process.stdout.close()
    process.stderr.close()

    after = out.splitlines()
    assert (code, line) == (0, b"2 begun\n")
    assert after == [f"2 {n}" for n in range(len(after))]
    assert len(full) == len(set(full)), "something was printed twice"
    assert err == "-- the runner was restarted here; some of the output may be missing\n"


# -- executions --------------------------------------------------------------------------------------------------------


def test_executions_are_listed_shown_and_cancelled(run, tmp_path):
    here = tmp_path / "listed"
    identity = accepted(run, "waits", json.dumps({"here": str(here)}), "--key", "of-the-list")
    pids = begun(here)

    rows = run("executions", "list", "--module", "waits", "--status", "running", "--since", "5m", "--caller", "test")[1]
    assert rows.splitlines()[0].split()[:3] == ["ID", "MODULE", "STATUS"]
    assert [row.split()[0] for row in rows.splitlines()[1:]] == [identity]
    text = run("executions", "show", identity)[1]
    assert ["status", "running"] in rows_of(text)
    assert ["key", "of-the-list"] in rows_of(text)
    assert str(here) in text
    assert run("executions", "cancel", identity, identity) == (0, f"{identity}  cancelled\n" * 2, "")
    assert alive(pids) == []
    assert json.loads(run("executions", "show", identity, "--json")[1])["error"]["kind"] == "cancelled"


def test_lists_have_filters_and_a_cursor(run, server):
    made = [server.execute("bad", number).json() for number in range(3)]
    newest = [item["id"] for item in reversed(made)]
    common = ("executions", "list", "--module", "bad", "--version", made[0]["version"], "--json")

    failed = json.loads(run(*common, "--error", "handler_error", "--status", "failed", "--limit", "2")[1])
    rest = json.loads(run(*common, "--limit", "600", "--cursor", failed["cursor"])[1])

    assert [item["id"] for item in failed["items"]] == newest[:2]
    assert rest["items"][0]["id"] == newest[2]
    assert rest["cursor"] is None
    assert json.loads(run(*common, "--error", "timeout")[1]) == {"items": [], "cursor": None}
    assert json.loads(run(*common, "--until", "2001-01-01T00:00:00Z")[1])["items"] == []
    assert json.loads(run(*common, "--caller", "unknown")[1])["items"] == []
    message = json.loads(run("executions", "show", made[0]["id"], "--json")[1])["error"]["message"]
    assert [each["id"] for each in json.loads(run(*common, "--text", message.upper())[1])["items"]]
    assert json.loads(run(*common, "--text", "nothing prints this")[1])["items"] == []
    assert "there may be more; continue with --cursor " in run("executions", "list", "--limit", "1")[2]


def test_executions_run_later_and_again(run, tmp_path):
    def shown(identity):
        return json.loads(run("executions", "show", identity, "--json")[1])

    code, out, _ = run("call", "echo", "1", "--async", "--at", "2031-01-31T09:30:00Z", "--priority", "7")
    later = shown(out.strip())
    assert (code, later["status"], later["run_at"], later["priority"]) == (0, "scheduled", 1_927_618_200.0, 7)
    listed = run("executions", "list", "--status", "scheduled")[1]
    assert later["id"] in listed
    text = run("executions", "show", later["id"])[1]
    assert ["priority", "7"] in rows_of(text)
    assert run("executions", "cancel", later["id"])[1] == f"{later['id']}  cancelled\n"
    soon = run("call", "echo", "2", "--async", "--delay", "10ms")[1].strip()
    wait_for(lambda: shown(soon)["status"] == "succeeded")

    again = run("executions", "rerun", soon, "--input", "3", "--with", "active", "--priority", "2")[1].strip()
    wait_for(lambda: shown(again)["status"] == "succeeded")
    assert (shown(again)["result"], shown(again)["rerun_of"]) == (3, soon)
    assert ["repeated", "by", again] in [row.split() for row in run("executions", "show", soon)[1].splitlines()]
    code, out, _ = run("executions", "rerun", "--rerun-of", soon, "--dry-run")
    assert (code, "would be repeated" in out, again in out) == (0, True, True)
    code, out, _ = run("executions", "rerun", "--rerun-of", soon)
    assert (code, out.split()[0]) == (0, again)
    wait_for(lambda: len(shown(again)["reruns"]) == 1)
    code, out, _ = run("executions", "rerun", "--rerun-of", soon, "--with", "nothing")
    assert (code, "not repeated: it was repeated later" in out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("call", "echo", "1", "--at", "2031-01-31"), "--at is for asynchronous calls; add --async"),
        (("call", "echo", "1", "--async", "--at", "soon"), "'soon' is not a time; write 2027-01-31"),
        (("call", "echo", "1", "--async", "--delay", "1h", "--at", "2031-01-31"), "give `run_at` or `delay`, not both"),
        (("executions", "rerun"), "give IDs, or a filter such as --unresolved"),
        (("executions", "rerun", "x", "--dry-run"), "give IDs, or filters with --dry-run"),
        (("executions", "rerun", "--unresolved", "--input", "1"), "--input is for executions given by ID"),
        (("executions", "rerun", "x"), "there is no execution 'x'"),
    ],
)
def test_times_and_repetitions_that_make_no_sense(run, arguments, message):
    code, _, err = run(*arguments)
    assert code != 0
    assert message in err


# -- tokens and TLS ----------------------------------------------------------------------------------------------------


def test_on_the_machine_of_the_runner_no_token_is_needed(server, tmp_path):
    at_home = Commands(server.home, url_of(server), None)
    elsewhere = Commands(tmp_path, url_of(server), None)
    before = sorted(path.name for path in (server.home / "data").iterdir())

    assert at_home("call", "echo", "1")[:2] == (0, "1\n")
    listed = json.loads(at_home("executions", "list", "--limit", "1", "--json")[1])
    assert listed["items"][0]["subject"] == "local"
    code, _, err = elsewhere("call", "echo", "1")
    assert code == 5
    assert err.startswith("error: unauthenticated: there is no token: ")
    assert 'set OPERATO_TOKEN; `operato-runner token --subject NAME --scope "executions:run executions:read"`' in err
    assert sorted(path.name for path in (server.home / "data").iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_never_printed(run, server):
    token = server.token[:-8] + "AAAAAAAA"
    code, out, err = run("call", "echo", "1", "--token", token)

    assert code == 5
    assert "set another token in OPERATO_TOKEN" in err
    assert token not in out + err


def test_a_token_without_the_scope(run, server):
    main = [sys.executable, str(ROOT / "main.py"), "token", "--subject", "me", "--scope", "executions:run"]
    run.environ["OPERATO_TOKEN"] = subprocess.check_output(main, cwd=server.home, text=True)

    assert run("call", "echo", "1", "--key", "only-run")[:2] == (0, "1\n")
    code, _, err = run("executions", "list")
    assert code == 6
    assert err == "error: forbidden: the token lacks the scope 'executions:read' (claim `scope`)\n"


def test_a_client_certificate(tmp_path):
    authority = Authority(tmp_path)
    signed, mine = authority.sign("server"), authority.sign("mine")
    both = tmp_path / "both.pem"
    both.write_text(mine.certificate.read_text() + mine.key.read_text())
    tls = ("--tls-certificate-file", str(signed.certificate), "--tls-key-file", str(signed.key), "--no-grpc")
    with running(tmp_path, MODULES, *tls, "--tls-client-ca-file", str(authority.file)) as opened:
        run = Commands(tmp_path, url_of(opened, "https"), opened.token)
        run.environ["OPERATO_CA"] = str(authority.file)
        without = run("executions", "list")
        shown = ("--cert", str(mine.certificate), "--cert-key", str(mine.key))
        found = [run("call", "echo", "1", *shown), run("call", "echo", "1", "--follow", *shown)]
        found.append(run("executions", "list", *shown))
        run.environ["OPERATO_CERT"] = str(both)
        found.append(run("executions", "list"))
        assert opened.stop() == 0

    assert without[0] in (9, 15)
    assert without[2].count("\n") == 1
    assert [each[0] for each in found] == [0, 0, 0, 0]


def test_tls(tmp_path):
    authority = Authority(tmp_path)
    signed = authority.sign("server")
    tls = ("--tls-certificate-file", str(signed.certificate), "--tls-key-file", str(signed.key), "--no-grpc")
    with running(tmp_path, MODULES, *tls) as opened:
        run = Commands(tmp_path, url_of(opened, "https"), opened.token)
        untrusted, listed = run("call", "echo", "1"), run("executions", "list")
        run.environ["OPERATO_CA"] = str(authority.file)
        identity = accepted(run, "echo", "2")
        trusted = [run("call", "echo", "1", "--follow"), run("logs", "-f", identity), run("logs", identity)]
        in_the_clear = run("call", "echo", "1", "--url", url_of(opened))
        assert opened.stop() == 0

    for found in (untrusted, listed):
        assert found[0] == 9
        assert "is not trusted" in found[2]
        assert "name the PEM file of the CA that signed it with --ca or OPERATO_CA" in found[2]
    assert [found[0] for found in trusted] == [0, 0, 0]
    assert trusted[1:] == [(0, "to out\n", "to err\n")] * 2
    assert in_the_clear[0] in (9, 15)
    assert in_the_clear[2].count("\n") == 1
