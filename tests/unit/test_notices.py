"""Unit: recipients of notices as authors write them, loops, addresses, delays, signatures and messages."""

from __future__ import annotations

import base64
import datetime as dt
import itertools
import json
from pathlib import Path
from textwrap import dedent

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from actors.journal.records import LEAST_BYTES, Entry, packed, reduced
from actors.outbox import MAX_VALUE_BYTES, body_of
from actors.starts import delay_after, signature
from config.mistakes import ConfigError
from config.modules import ModuleSpec, spec_from_mapping, spec_to_mapping
from config.modules.on_end import ENDS, MAX_RECIPIENTS, MAX_URL, OnEnd, loop_from, telling
from config.secrets import Secret
from protocol.errors import ErrorKind, Failure
from protocol.model import Approval, Attempt, Execution, Kind, ModuleRef, Recipient, Status, Telling
from runner.outgoing.addresses import Allowed
from tests.modules_file import load_modules

URL = "https://example.org/hook"


def spec(*recipients, **fields) -> ModuleSpec:
    data = {"name": "m", "env": "inline", "code": "handler = print", "on_end": list(recipients), **fields}
    return spec_from_mapping(data, base=None, allow_path=False)


def test_recipients_are_read_and_written_alike():
    found = spec({"url": URL, "when": "failed", "secret": "HOOK"}, {"module": "other"}, secrets=["HOOK"])

    assert found.on_end == (OnEnd(url=URL, when=(Status.FAILED,), secret="HOOK"), OnEnd(module="other", when=ENDS))
    written = json.loads(json.dumps(spec_to_mapping(found)))
    assert written["on_end"] == [{"url": URL, "when": ["failed"], "secret": "HOOK"}, {"module": "other"}]
    assert spec_from_mapping(written, base=None, allow_path=False) == found
    first, second = telling(found.on_end, found.secrets).recipients
    assert (first.url, first.secret, second.module) == (URL, {"env": "OPERATO_SECRET_HOOK"}, "other")
    assert spec().on_end == ()


@pytest.mark.parametrize(
    ("recipients", "message"),
    [
        ("x", "on_end: 'x' is not a list of recipients"),
        ([5], "on_end[0]: is not a mapping"),
        ([{}], "on_end[0]: names no recipient; write {url: https://..., when: [failed]}"),
        ([{"url": URL, "module": "o"}], "on_end[0]: names a URL and a module"),
        ([{"module": "m"}], "on_end[0].module: a module cannot tell itself"),
        ([{"module": "o", "secret": "HOOK"}], "on_end[0].secret: signs notices to a URL; a module needs none"),
        ([{"url": URL, "secret": "HOK"}], "on_end[0].secret: 'HOK' is not in `secrets` of the module; did you mean"),
        ([{"url": URL}, {"url": URL}], "on_end[1].url: is given in on_end[0] too; join their `when`"),
        ([{"url": URL, "when": []}], "on_end[0].when: is empty; name ends: succeeded, failed, cancelled"),
        ([{"url": URL, "when": ["faild"]}], "on_end[0].when[0]: 'faild' is not an end of an execution; did you mean"),
        ([{"url": URL, "when": ["running"]}], "on_end[0].when[0]: 'running' is not an end"),
        ([{"url": URL, "when": [["x"]]}], "on_end[0].when[0]: a list is not an end"),
        ([{"url": URL, "when": ["failed"] * 4}], "on_end[0].when: has 4 entries; there are 3 ends"),
        ([{"module": "m" * 65}], "on_end[0].module: '" + "m" * 56),
        ([{"url": URL, "until": 5}], "on_end[0].until: unknown field"),
        ([{"url": "ftp://example.org"}], "on_end[0].url: 'ftp://example.org' is not a URL of http or https"),
        ([{"url": "https:///x"}], "on_end[0].url: 'https:///x' is not a URL of http or https"),
        ([{"url": "https://h:x/"}], "on_end[0].url: 'https://h:x/' is not a URL"),
        ([{"url": "https://h/a b"}], "on_end[0].url: 'https://h/a b' is not a URL"),
        ([{"url": "https://u:p@h/"}], "on_end[0].url: has a user or a password"),
        ([{"url": "https://h/#x"}], "on_end[0].url: has a part after `#`"),
        ([{"url": "https://h/" + "x" * 500}], "on_end[0].url: has 510 characters; the limit is 500"),
        ([{"module": f"o{n}"} for n in range(5)], "on_end: has 5 recipients; the limit is 4"),
    ],
)
def test_wrong_recipients_name_the_place_and_the_remedy(recipients, message):
    data = {"name": "m", "env": "inline", "code": "handler = print", "secrets": ["HOOK"], "on_end": recipients}
    with pytest.raises(ConfigError) as caught:
        spec_from_mapping(data, base=None, allow_path=False)

    assert any(str(each).startswith(message) for each in caught.value.mistakes), caught.value.mistakes


def test_loops_in_a_file_have_their_lines(tmp_path: Path):
    file = tmp_path / "modules.yaml"
    file.write_text(
        dedent("""\
        modules:
          a:
            {env: inline, code: "handler = print", on_end: [{module: b}]}
          b:
            {env: inline, code: "handler = print", on_end: [{module: c, when: failed}, {module: elsewhere}]}
          c:
            {env: inline, code: "handler = print", on_end: [{module: a}]}
          d:
            {env: inline, code: "handler = print", on_end: [{module: a}]}
        """)
    )
    with pytest.raises(ConfigError) as caught:
        load_modules(file)

    shown = [str(each).replace(f"{tmp_path}/", "") for each in caught.value.mistakes]
    assert len(shown) == 3
    assert shown[0].startswith("modules.yaml:3: a.on_end: is a loop: a tells b tells c tells a; each notice would")


@given(st.dictionaries(st.integers(0, 7), st.lists(st.integers(0, 7), max_size=4)), st.integers(0, 7))
def test_a_loop_is_found_exactly_where_there_is_one(arrows, start):
    reached, waiting = set(), list(arrows.get(start, ()))
    while waiting:
        if (each := waiting.pop()) not in reached:
            reached.add(each)
            waiting += arrows.get(each, ())

    way = loop_from(str(start), lambda name: [OnEnd(module=str(each)) for each in arrows.get(int(name), ())])

    assert bool(way) == (start in reached)
    assert all(int(after) in arrows[int(before)] for before, after in itertools.pairwise(way))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "224.0.0.1", "239.1.1.1", "255.255.255.255", "198.18.0.1", "240.0.0.1"),
        *("fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "ff0e::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:1::"),
        *("::127.0.0.1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "fec0::1", "4000::1"),
    ],
)
def test_addresses_that_are_not_public_are_refused(address):
    assert Allowed().refusal(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(address):
    assert Allowed().refusal(address) is None


def test_the_operator_allows_networks_and_hosts():
    allowed = Allowed.of(["10.1.0.0/16", "::1", "hooks.internal", "*.example.org"])

    assert allowed.refusal("10.1.2.3") is None
    assert allowed.refusal("::ffff:10.1.2.3") is None
    assert allowed.refusal("::1") is None
    assert allowed.refusal("10.2.0.1") == "a private address"
    assert [allowed.host(name) for name in ("Hooks.Internal.", "a.example.org", "example.org", "x.internal")] == [
        True,
        True,
        False,
        False,
    ]


def test_delays_double_up_to_an_hour_and_vary_by_a_fifth():
    assert [delay_after(number, 0.5) for number in (1, 2, 3, 4)] == [5, 10, 20, 40]
    assert delay_after(1000, 0.5) == 3600
    assert (delay_after(1, 0.0), delay_after(1, 1.0)) == (4, 6)


@given(st.binary(min_size=1, max_size=64), st.text(max_size=200))
def test_signatures_are_those_of_the_official_library(key, text):
    secret, now = "whsec_" + base64.b64encode(key).decode(), dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    body = text.encode("utf-8", "replace")

    ours = signature(secret, "msg_1", int(now.timestamp()), body)

    assert ours == standardwebhooks.Webhook(secret).sign("msg_1", now, body.decode())


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!", "not base64"])
def test_a_secret_that_is_not_base64_is_no_key(secret):
    with pytest.raises(ValueError, match="base64"):
        signature(secret, "msg_1", 1, b"")


def test_recipients_fit_into_the_place_of_an_end_in_the_journal():
    longest = Recipient(
        ENDS, "https://example.org/" + "x" * (MAX_URL - 20), None, {"env": "OPERATO_SECRET_" + "X" * 60}
    )
    deep = replace(longest, secret={"file": "/" + "x" * 4000})
    text = "\U0001f600" * 5000
    ended = Execution(
        id="e" * 36,
        module=ModuleRef("m" * 64, "v" * 64),
        env=Kind.INLINE,
        status=Status.FAILED,
        created_at=1.0,
        input=b"x" * 1000,
        result=b"x" * 1000,
        subject=text,
        idempotency_key=text[:255],
        failure=Failure(ErrorKind.HANDLER_ERROR, text, traceback=text),
        approval=Approval(approved=False, by=text, at=1.0, reason=text),
        on_end=Telling((longest,) * MAX_RECIPIENTS),
    )

    assert reduced(Entry(1, ended)).execution.on_end == ended.on_end
    assert len(packed(reduced(Entry(1, ended)))) < LEAST_BYTES
    shortened = reduced(Entry(1, replace(ended, on_end=Telling((longest, deep))))).execution.on_end
    assert shortened == Telling((longest,))


def test_a_message_is_bounded():
    large = b'"' + b"x" * 100_000 + b'"'
    failure = Failure(ErrorKind.HANDLER_ERROR, "m" * 100_000, traceback="t" * 100_000 + "the end")
    execution = Execution(
        id="e",
        module=ModuleRef("m", "1"),
        env=Kind.INLINE,
        status=Status.FAILED,
        created_at=1.0,
        finished_at=2.0,
        input=large,
        result=large,
        failure=failure,
        failed_attempts=tuple(Attempt(n, 1.0, 2.0, failure) for n in range(1, 4)),
    )
    body = body_of(execution)
    data = json.loads(body)["data"]

    assert len(body) < 4 * MAX_VALUE_BYTES
    assert data["input"]["$dropped"]["bytes"] == len(large)
    assert data["failed_attempts"] == []
    assert data["error"]["traceback"].endswith("the end")
    small = json.loads(body_of(replace(execution, input=b'{"a":1}', result=b"[2]", failed_attempts=())))
    assert (small["timestamp"], small["data"]["input"], small["data"]["result"]) == (
        "1970-01-01T00:00:02.000Z",
        {"a": 1},
        [2],
    )
    assert telling((), {"X": Secret(env="X")}).recipients == ()
