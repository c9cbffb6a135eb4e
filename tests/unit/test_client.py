"""Unit: what a client makes of the words of a server, what it shows, and to whom it gives a token."""

from __future__ import annotations

import json
import os
import ssl
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from config.client import Address, ClientSettings
from config.mistakes import ConfigError
from protocol.errors import ErrorKind, RunnerError
from protocol.events import DroppedEvent, OutputEvent, ProgressEvent, StatusEvent
from protocol.model import Status, Stream
from runner.auth.secret import load_or_make_secret
from runner.client import executions as client_executions
from runner.client import local_token
from runner.client.calls import Order
from runner.client.connection import Client, failure_of, segment
from runner.client.events import ANSWER, Begun, decode, end_in, end_of
from runner.client.executions import text_of as shown_execution
from runner.client.local_token import credentials, listens_as
from runner.client.modules import text_of as shown_module
from runner.client.printing import KEPT_BYTES, Printer, dropped_text, progress_text
from runner.client.trouble import lost, root_of, unreachable

HERE = Address("http", "127.0.0.1", 8000)
PROBLEM = {"content-type": "application/problem+json"}


def problem(**fields):
    return json.dumps(fields).encode()


# -- problems ----------------------------------------------------------------------------------------------------------


def test_a_problem_keeps_kind_message_field_and_retry_after():
    body = problem(kind="overloaded", detail="full\x1b[2J", field="name")

    failure = failure_of(HERE, 429, {**PROBLEM, "retry-after": "7"}, body)

    assert (failure.kind, failure.message, failure.field) == (ErrorKind.OVERLOADED, "full [2J", "name")
    assert failure.retry_after == 7


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, problem(title="Not Found", detail="there is no /x"), ErrorKind.NOT_FOUND),
        (405, problem(detail="no"), ErrorKind.BAD_INPUT),
        (401, problem(kind="of a later runner"), ErrorKind.UNAUTHENTICATED),
        (503, problem(detail="later"), ErrorKind.UNAVAILABLE),
        (599, b"not JSON", ErrorKind.INTERNAL),
        (404, b"[" * 10_000, ErrorKind.NOT_FOUND),
    ],
)
def test_a_problem_without_a_kind_takes_it_from_its_status(status, body, kind):
    assert failure_of(HERE, status, PROBLEM, body).kind is kind


def test_an_answer_without_a_problem_document_is_not_from_a_runner():
    failure = failure_of(HERE, 301, {"content-type": "text/html", "location": "https://h/"}, b"<html>")

    assert failure.kind is ErrorKind.UNAVAILABLE
    assert "it answered 301 Moved Permanently with a redirect to https://h/" in failure.message
    assert "OPERATO_URL" in failure.message


def test_the_reason_of_an_error_is_its_root_cause():
    refused = ConnectionRefusedError(111, "Connection refused")
    above = OSError("all attempts to connect failed")
    above.__cause__ = ExceptionGroup("", [refused])
    expired = ssl.SSLCertVerificationError("x")
    expired.verify_code, expired.verify_message = 10, "certificate has expired"

    assert root_of(above) is refused
    text = "no runner answers at http://127.0.0.1:8000 (Connection refused); start one with `operato-runner serve`"
    assert unreachable(HERE, above).failure.message.startswith(text)
    assert "--ca or OPERATO_CA" in unreachable(HERE, expired).failure.message
    assert "(Broken pipe)" in lost(HERE, BrokenPipeError(32, "Broken pipe")).failure.message


def test_a_name_stays_one_segment_of_the_path():
    assert segment("a/../b?c") == "a%2F..%2Fb%3Fc"


# -- messages and ends -------------------------------------------------------------------------------------------------


def test_a_message_is_an_event_or_the_id_of_the_execution():
    output = decode(b'{"type": "output", "seq": 3, "at": 1.0, "stream": "stderr", "text": "x"}')

    assert decode(b'{"type": "execution", "id": "e1"}') == Begun("e1")
    assert output == OutputEvent(3, 1.0, Stream.STDERR, "x")
    assert decode(b'{"type": "weather", "of": "a later runner"}') is None


def test_a_refused_call_is_raised():
    with pytest.raises(RunnerError) as caught:
        decode(problem(type="error", error={"kind": "bad_input", "message": "no", "field": "$.a"}))

    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, "$.a")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"type": "output"}', b'{"type": "output", "seq": "x"}'])
def test_invalid_messages_raise(data):
    with pytest.raises(msgspec.DecodeError):
        decode(data)


def test_the_last_event_is_the_end():
    head = {"seq": 1, "at": 1.0, "status": "failed"}
    failed = decode(problem(type="error", **head, error={"kind": "timeout", "message": "m", "traceback": "t"}))
    succeeded = decode(
        b'{"type": "result", "seq": 1, "at": 1.0, "status": "succeeded", "result": {"a":[1,"\xc3\xa9"]}}'
    )

    assert end_of(failed).failure.kind is ErrorKind.TIMEOUT
    assert end_of(failed).failure.traceback == "t"
    assert end_of(succeeded).result == '{"a":[1,"é"]}'.encode()


@pytest.mark.parametrize("result", [b"null", b"5", b'"text"', b'{"a":1}'])
def test_the_end_is_read_from_an_execution(result):
    read = msgspec.json.decode(b'{"id":"e","status":"succeeded","error":null,"result":' + result + b"}", type=ANSWER)
    running = msgspec.json.decode(b'{"id":"e","status":"running","result":null}', type=ANSWER)

    assert end_in(read).result == result
    assert end_in(running) is None


@pytest.mark.parametrize("data", [b"{bad", b"nan", b"1 2", b"\xff"])
def test_input_that_is_not_json_is_not_sent(data):
    with pytest.raises(RunnerError) as caught:
        Order("m", data).checked()

    assert caught.value.failure.kind is ErrorKind.BAD_INPUT


# -- output ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(monkeypatch):
    """Return the list of writes, as (descriptor, bytes)."""
    found = []

    async def write(to, data):
        found.append((to, data))

    monkeypatch.setattr("runner.client.printing.write", write)
    return found


def printed(text, seq=0, stream=Stream.STDOUT):
    return OutputEvent(seq, 1.0, stream, text)


async def test_separate_streams_go_to_their_descriptors(written):
    printer = Printer(live=True, apart=True)
    await printer.show(printed("a"))
    await printer.show(printed("b", stream=Stream.STDERR))
    await printer.show(DroppedEvent(9, 1.0, 3, 70))

    assert written == [(1, b"a"), (2, b"b"), (2, b"\n-- dropped: 3 events with 70 bytes were not kept\n")]


async def test_only_a_bounded_part_of_the_last_attempt_is_kept_back(written):
    printer = Printer(live=False, apart=False)
    await printer.show(printed("of the first attempt"))
    await printer.show(StatusEvent(1, 1.0, Status.RUNNING, 2))
    half = KEPT_BYTES // 2
    for letter in "abc":
        await printer.show(printed(letter * half))
    assert written == []
    await printer.flush()

    text = f"-- the first {half} bytes of the output are omitted\n".encode()
    assert written == [(2, text), (2, b"b" * half), (2, b"c" * half)]


def test_text_for_gaps_and_progress():
    assert "restarted" in dropped_text(DroppedEvent(5, 1.0, 1_500_000, 0))
    assert dropped_text(DroppedEvent(5, 1.0, 2, 0)) == "dropped: 2 events with 0 bytes were not kept"
    assert progress_text(ProgressEvent(5, 1.0, 1.0, 4.0, "half way")) == "1/4 half way"
    assert progress_text(ProgressEvent(5, 1.0, text="soon")) == "soon"


@pytest.mark.parametrize(
    ("written", "local"),
    [
        ("today", "2026-03-02T00:00:00"),
        ("Yesterday", "2026-03-01T00:00:00"),
        ("2026-01-31", "2026-01-31T00:00:00"),
        ("2026-01-31 09:30", "2026-01-31T09:30:00"),
    ],
)
def test_a_day_is_one_of_this_machine(monkeypatch, written, local):
    class Now(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 3, 2, 17, 30, tzinfo=tz)

    monkeypatch.setattr(client_executions, "datetime", Now)

    assert float(client_executions.moment(written, "--since")) == datetime.fromisoformat(local).timestamp()


@pytest.mark.parametrize("written", ["last week", "", "2026-13-01", "1.2.3h", "99999-01-01"])
def test_another_text_is_refused_with_the_forms(written):
    with pytest.raises(ConfigError, match=r"--since: .* is not a time; write today, yesterday, 2h \(two hours ago\)"):
        client_executions.moment(written, "--since")


def test_a_time_span_becomes_a_time(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 10_000.0)

    assert float(client_executions.moment("2h", "--since")) == 10_000 - 7200
    assert client_executions.moment("1700000000", "--since") == "1700000000"
    assert client_executions.moment("2026-01-31T09:30:00Z", "--since") == "1769851800.0"
    assert client_executions.moment(None, "--since") is None


def test_a_module_is_shown_in_sections_with_readable_values():
    fields = {
        "name": "hello", "version": "1", "env": "venv", "source": "file", "published_at": 1_795_972_161.0,
        "published_by": None, "handler": "handler", "isolation": "warm", "timeout": 90, "output": 16 * 1024**2,
        "memory": 512 * 10**6, "workers": {"min": 0, "idle": 600, "max_calls": 0}, "tags": ["a", "b"],
        "retry": {"attempts": 2, "backoff": {"initial": 0.5, "factor": 2.0}, "on": ["timeout", "lost"]},
        "requirements": ["numpy", "pandas"], "variables": [], "later": {"x": 1},
    }  # fmt: skip
    assert shown_module(fields, "7") == (
        "name       hello\nversion    1\nenv        venv\nsource     file\npublished  2026-11-29T17:09:21Z\n"
        "revision   7\ntags       a, b\n"
        "\ncode:\n  handler       handler\n  requirements  numpy, pandas\n"
        "\ncalls:\n  isolation  warm\n  workers    min 0, idle 10m, max_calls 0\n"
        "  retry      attempts 2, backoff initial 500ms, factor 2.0, on timeout, lost\n  timeout    90s\n"
        "\nlimits:\n  memory  488.3 MiB\n  output  16 MiB\n"
        '\nlater  {"x": 1}\n'
    )
    assert "  retry  none\n" in shown_module({"name": "m", "retry": {"attempts": 1}}, "7")
    assert "published  2026-11-29T17:09:21Z by ada\n" in shown_module(
        {"name": "m", "published_at": 1_795_972_161.0, "published_by": "ada"}, "7"
    )


# -- a token signed with the runner's own secret -----------------------------------------------------------------------

TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0
   1: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0
   2: 00000000000000000000000001000000:1F41 00000000000000000000000000000000:0000 0A 0:0 00:0 0  1001  0 1 1 0
   3: 0100007F:1F42 0100007F:1F40 01 00000000:00000000 00:00000000 00000000  1000        0 1 1 0
"""


@pytest.mark.parametrize(
    ("port", "users", "belongs"),
    [
        (8000, {0, 1000}, True),
        (8000, {0, 1001}, False),
        (8001, {0, 1000}, False),
        (8002, {1000}, False),
        (1, {0}, False),
    ],
)
def test_whether_a_port_belongs_to_these_users(port, users, belongs):
    assert listens_as(TABLE, port, users) is belongs


def table_of(port, uid):
    return f"0: 0100007F:{port:04X} 00000000:0000 0A 0:0 00:0 0 {uid} 0 1 1 0\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Change to the folder of a runner with a secret; its port belongs to this user."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("OPERATO_")]:
        monkeypatch.delenv(name)
    Path("modules.yaml").write_text("modules: []\n")
    load_or_make_secret(tmp_path / "data")
    monkeypatch.setattr(local_token, "_sockets", lambda: table_of(8000, os.geteuid()))
    return tmp_path


def credentials_for(host="127.0.0.1", token=None):
    return credentials(ClientSettings(Address("http", host, 8000), token), ["executions:run"])


def test_a_token_is_signed_on_the_machine_of_the_runner(home):
    assert credentials_for().token().count(".") == 2
    assert "has another secret" in credentials_for().remedy
    assert "run the command in the folder of that runner, or with its OPERATO_DATA_DIR" in credentials_for().remedy


def test_a_mistake_in_the_settings_is_the_cause_that_there_is_no_token(home):
    Path("modules.yaml").write_text("runner:\n  jwt_isuer: us\n")
    given = credentials_for()
    client = Client(Address("http", "127.0.0.1", 8000), given, None, None)

    message = client._refusal(401, PROBLEM, problem(kind="unauthenticated", detail="no token")).message
    assert message.startswith("there is no token: no secret of a runner was found here: modules.yaml:2: runner.jwt")
    assert "; set OPERATO_TOKEN; `operato-runner token" in message


def test_a_given_token_is_used(home):
    assert credentials_for(token="given").token() == "given"


def test_no_token_is_signed_if_another_user_listens(home, monkeypatch):
    monkeypatch.setattr(local_token, "_sockets", lambda: table_of(8000, os.geteuid() + 12345))

    assert credentials_for().token() is None
    assert "port 8000 does not belong to a runner of this user" in credentials_for().cause


def test_no_token_leaves_the_machine(home):
    assert credentials_for("runner.example").token() is None
    assert "only for a runner on this machine" in credentials_for("runner.example").cause


def test_no_secret_is_made(home):
    secret = home / "data" / "jwt-secret"
    secret.unlink()

    assert credentials_for().token() is None
    assert f"there is no secret in {home / 'data'}" in credentials_for().cause
    assert not secret.exists()


def test_a_secret_that_others_may_read_is_not_used(home):
    (home / "data" / "jwt-secret").chmod(0o644)

    assert credentials_for().token() is None
    assert "others may read the secret" in credentials_for().cause


@pytest.mark.parametrize("file", ["runner: 5", "runner: {jwt_jwks_url: 'https://127.0.0.1/keys'}\nmodules: []"])
def test_a_configuration_that_cannot_sign_is_not_an_error(home, file):
    Path("modules.yaml").write_text(file)

    assert credentials_for().token() is None
    assert "`operato-runner token --subject NAME --scope" in credentials_for().remedy


def test_a_summary_shows_sizes_in_place_of_values() -> None:
    item = {"id": "e", "module": "m", "version": "1", "status": "succeeded", "record": "summary", "finished_at": 1.0}
    item |= {"input_bytes": 5, "result_bytes": None, "output_bytes": 7}
    shown = [line.split(maxsplit=1) for line in shown_execution(item).splitlines()]
    assert [row for row in shown if row[0] in ("input", "result", "output")] == [
        ["input", "5 bytes, not recorded"],
        ["output", "7 bytes, not recorded"],
    ]
    running = shown_execution({**item, "finished_at": None, "input": msgspec.Raw(b"[1]")})
    assert "input     [1]" in running
