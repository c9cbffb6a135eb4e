"""Unit: the messages of the Model Context Protocol: read, checked against headers, made of modules and events."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from config.modules import ModuleSpec, ToolPolicy
from protocol.events import OutputEvent, ProgressEvent, StatusEvent
from protocol.model import Kind, Status, Stream
from runner.mcp.forms import (
    MAX_FILES,
    Client,
    Notes,
    RpcError,
    check_headers,
    contents,
    error_message,
    failed,
    files_in,
    input_of,
    is_modern,
    legacy_version,
    read_call,
    read_params,
    response,
    shown_result,
    tool_of,
    via_of,
)
from runner.mcp.forms.tools import takes_object

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


def request(method="tools/call", *, identity=1, meta=META, **params):
    given = {**params, **({} if meta is None else {"_meta": meta})}
    return json.dumps({"jsonrpc": "2.0", "id": identity, "method": method, "params": given}).encode()


def headers(method="tools/call", name="echo", version="2026-07-28"):
    given = {b"mcp-protocol-version": version, b"mcp-method": method, b"mcp-name": name}
    return {field: value.encode() for field, value in given.items() if value is not None}


# -- JSON-RPC --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", -32700, "not JSON"),
        (b"{", -32700, "not JSON"),
        (b"\xff\xfe", -32700, "not JSON"),
        (b" [" + request() + b"]", -32600, "batches"),
        (b"[" * 100_000, -32600, "batches"),
        (b'{"a":' * 100_000, -32700, "not JSON"),
        (b"1", -32600, "no JSON-RPC message"),
        (b"null", -32600, "no JSON-RPC message"),
        (b'{"id":1,"method":"ping"}', -32600, "jsonrpc"),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600, "jsonrpc"),
        (b'{"jsonrpc":"2.0","id":1}', -32600, "no `method`"),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', -32600, "no `method`"),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600, "`id`"),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600, "id"),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600, "id"),
        (request(identity="x" * 257), -32600, "`id`"),
        (request(identity=2**70), -32600, "id"),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600, "method"),
    ],
)
def test_what_is_no_message_is_refused(body, code, words):
    with pytest.raises(RpcError) as caught:
        read_call(body)

    assert (caught.value.code, caught.value.status) == (code, 400)
    assert words in caught.value.message
    assert len(caught.value.message) < 500


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_body_is_a_message_or_refused(body):
    try:
        call = read_call(body)
    except RpcError:
        return
    assert isinstance(call.method, str)


@pytest.mark.parametrize(
    "params",
    [[], 1, {"name": 1}, {"_meta": 1}, {"_meta": {"progressToken": 1.5}}, {"_meta": {"progressToken": "x" * 300}}],
)
def test_wrong_parameters_are_refused(params):
    call = read_call(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "m", "params": params}).encode())

    with pytest.raises(RpcError) as caught:
        read_params(call)
    assert caught.value.code == -32602


def test_messages_are_one_line_each():
    raw = msgspec.Raw(b'{"a":\n[1,\r\n2]}')

    assert b"\n" not in response(1, {"value": raw})
    assert json.loads(response("é", {"value": raw})) == {
        "jsonrpc": "2.0",
        "id": "é",
        "result": {"value": {"a": [1, 2]}},
    }
    assert json.loads(error_message(None, RpcError(5, "no"))) == {
        "jsonrpc": "2.0",
        "error": {"code": 5, "message": "no"},
    }


# -- revisions -------------------------------------------------------------------------------------------------------


def checked(body, fields):
    call = read_call(body)
    params = read_params(call)
    assert is_modern(params, fields or {})
    check_headers(call, params, fields)


@pytest.mark.parametrize("name", ["echo", "=?base64?ZWNobw==?="])
def test_headers_that_repeat_the_body_pass(name):
    checked(request(name="echo"), headers(name=name))
    checked(request("server/discover"), headers("server/discover", None))
    checked(request(name="echo"), None)


@pytest.mark.parametrize(
    ("body", "fields", "code"),
    [
        (request(name="echo"), headers(name="other"), -32020),
        (request(name="echo"), headers(name=None), -32020),
        (request(name="echo"), headers(name="=?base64?!?="), -32020),
        (request(name="echo"), headers(name="=?base64?gICA?="), -32020),
        (request(name="echo"), headers(method="tools/list"), -32020),
        (request(name="echo"), headers(method=None), -32020),
        (request(name="echo"), headers(version=None), -32020),
        (request(name="echo"), headers(version="2025-11-25"), -32020),
        (request(name="echo", meta=None), headers(), -32602),
        (request(name="echo", meta={"io.modelcontextprotocol/protocolVersion": "2026-07-28"}), headers(), -32602),
        (
            request(name="echo", meta={**META, "io.modelcontextprotocol/protocolVersion": "2999-01-01"}),
            headers(version="2999-01-01"),
            -32022,
        ),
        (
            request(name="echo", meta={**META, "io.modelcontextprotocol/protocolVersion": "2025-11-25"}),
            headers(version="2025-11-25"),
            -32022,
        ),
    ],
)
def test_headers_and_revision_are_checked(body, fields, code):
    with pytest.raises(RpcError) as caught:
        checked(body, fields)

    assert (caught.value.code, caught.value.status) == (code, 400)
    if code == -32022:
        assert "2026-07-28" in caught.value.data["supported"]


def test_older_revisions_are_known_by_their_header():
    for version in (b"2025-11-25", b"2025-06-18", b"2025-03-26"):
        legacy_version({b"mcp-protocol-version": version})
    legacy_version({})
    with pytest.raises(RpcError):
        legacy_version({b"mcp-protocol-version": b"1999-01-01"})


@pytest.mark.parametrize(
    ("client", "via"),
    [
        (None, "mcp"),
        (Client("", "1"), "mcp"),
        (Client("Desk App", "1.2"), "mcp Desk App/1.2"),
        (Client("desk"), "mcp desk"),
        (Client("a\x1b[31m\u202eb\n", "1\x00"), "mcp a[31mb/1"),
        (Client("x" * 9999, "9" * 9999), f"mcp {'x' * 80}/{'9' * 40}"),
    ],
)
def test_the_record_of_a_client_is_short_and_plain(client, via):
    assert via_of(client) == via


# -- tools -----------------------------------------------------------------------------------------------------------


def module(schema=None, output=None, **fields):
    spec = ModuleSpec("m", Kind.INLINE, code="", **fields)
    return SimpleNamespace(spec=spec, input_schema=schema, output_schema=output)


def test_a_tool_has_the_hints_of_its_module():
    policy = ToolPolicy(title="A tool", read_only=True, idempotent=True)
    tool = tool_of(module(description="Does it.", tool=policy), legacy=False)

    assert tool == {
        "name": "m",
        "title": "A tool",
        "description": "Does it.",
        "inputSchema": {"type": "object"},
        "annotations": {"readOnlyHint": True, "idempotentHint": True},
    }
    assert tool_of(module(), legacy=False)["annotations"]["destructiveHint"] is True


def test_a_tool_that_people_approve_says_so():
    assert "A person must approve" in tool_of(module(tool=ToolPolicy(confirm=True)), legacy=False)["description"]


def test_descriptions_have_no_hidden_characters_and_a_length():
    hidden = "a\x1b[2J\u202eb\u200b\U000e0041\x00\x9b\nc" + "x" * 70_000

    shown = tool_of(module(description=hidden), legacy=False)["description"]
    assert shown.startswith("a[2Jb\nc")
    assert len(shown) == 8192


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "takes"),
    [
        ({}, True),
        (OBJECT, True),
        ({"type": ["object", "null"]}, True),
        ({"type": "string"}, False),
        ({"type": ["array", "null"]}, False),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, True),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, False),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array"}}}, False),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}}, True),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, True),
        ({"enum": ["a", 1]}, False),
        ({"const": {"a": 1}}, True),
        ({"properties": {}}, True),
    ],
)
def test_an_input_that_is_no_object_is_one_argument(schema, takes):
    tool = tool_of(module(schema), legacy=False)["inputSchema"]

    assert takes_object(schema) is takes
    assert tool["type"] == "object"
    if takes:
        assert input_of(module(schema), msgspec.Raw(b'{"a":1}')) == b'{"a":1}'
        return
    assert tool["required"] == ["input"]
    assert tool.get("$defs") == schema.get("$defs")
    assert input_of(module(schema), msgspec.Raw(b'{"input": [1, 2]}')) == b"[1, 2]"
    for wrong in (b"{}", b'{"input":1,"b":2}', b'{"a":1}'):
        with pytest.raises(RpcError):
            input_of(module(schema), msgspec.Raw(wrong))


@pytest.mark.parametrize("arguments", [b"[]", b"1", b"null", b'"{}"'])
def test_arguments_are_an_object(arguments):
    with pytest.raises(RpcError):
        input_of(module(), msgspec.Raw(arguments))
    assert input_of(module(), msgspec.UNSET) == b"{}"


def test_schemas_ask_for_no_headers():
    schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}

    assert tool_of(module(schema), legacy=False)["inputSchema"]["properties"] == {"region": {"type": "string"}}


def test_older_clients_get_schemas_of_objects_only():
    for schema, shown in (({"type": "array"}, False), ({"type": "object"}, True)):
        assert "outputSchema" in tool_of(module(output=schema), legacy=False)
        assert ("outputSchema" in tool_of(module(output=schema), legacy=True)) is shown


# -- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "typed", "legacy", "structured"),
    [
        ({"a": 1}, False, True, True),
        ([1], False, True, False),
        ([1], False, False, True),
        ("text", False, False, False),
        ("text", True, False, True),
        (None, True, False, True),
        (3, False, False, False),
    ],
)
def test_a_result_is_text_and_value(value, typed, legacy, structured):
    data = json.dumps(value).encode()
    shown = shown_result(data, value, typed=typed, legacy=legacy)

    assert shown["content"][0]["text"] == (value if isinstance(value, str) else json.dumps(value))
    assert ("structuredContent" in shown) is structured


def test_a_failure_is_an_error_of_the_tool():
    failure = {"kind": "handler_error", "message": "no", "field": None, "traceback": "Traceback ..."}

    assert failed(failure, traceback=False)["content"][0]["text"] == "handler_error: no"
    assert failed(failure, traceback=True)["content"][0]["text"].endswith("Traceback ...")
    long = failed({**failure, "message": "é" * 100_000}, traceback=False)
    assert (len(long["content"][0]["text"].encode()) < 70_000, long["isError"]) == (True, True)


def test_files_are_found_in_their_order_and_bounded():
    file = {"$file": {"id": "sha256:0", "name": "a"}}

    assert files_in([{"b": file}, {"c": [{"$file": {"id": "sha256:1"}}]}]) == [file["$file"], {"id": "sha256:1"}]
    assert files_in({"$file": {"id": 1}, "x": {"$file": "no"}}) == []
    assert len(files_in([file] * 1000)) == MAX_FILES
    assert files_in([[]] * 100_000 + [file]) == []


def test_contents_are_text_where_they_can_be():
    assert contents("u", "text/plain; charset=utf-8", b"a")["text"] == "a"
    assert contents("u", "application/problem+json", b"{}")["text"] == "{}"
    assert contents("u", "text/plain", b"\xff")["blob"] == "/w=="
    assert contents("u", "image/png", b"a")["blob"] == "YQ=="


# -- notifications ---------------------------------------------------------------------------------------------------


def progress(done, total=None, text=""):
    return ProgressEvent(0, 0.0, done, total, text)


def sent(notes):
    return [json.loads(each)["params"] for each in notes.take()]


def test_progress_rises_with_each_notification():
    notes, numbers = Notes("t", None), []
    for event in (
        progress(1, 10),
        progress(1, 10),
        progress(None, None, "text"),
        progress(5, 10),
        progress(3),
        progress(9),
    ):
        notes.add(event)
        numbers += [each["progress"] for each in sent(notes)]

    assert numbers == sorted(set(numbers))
    assert (numbers[0], numbers[-1]) == (1, 9)


@example([(1.7976931348623157e308, None, ""), (None, None, "x")])
@given(st.lists(st.tuples(st.none() | st.floats(), st.none() | st.floats(), st.text(max_size=5)), max_size=30))
def test_any_progress_makes_rising_finite_numbers(reported):
    notes, numbers = Notes(1, None), []
    for done, total, text in reported:
        notes.add(progress(done, total, text))
        for params in sent(notes):
            numbers.append(params["progress"])
            assert math.isfinite(params.get("total", 0))

    assert all(math.isfinite(each) for each in numbers)
    assert all(first < second for first, second in pairwise(numbers))


def test_of_many_events_few_notifications_are_made():
    notes = Notes("t", "debug")
    for number in range(1000):
        notes.add(progress(number, 1000))
        notes.add(OutputEvent(number, 0.0, Stream.STDOUT, "x" * 10))
    notes.add(OutputEvent(0, 0.0, Stream.STDERR, "y"))
    found = sent(notes)

    assert [each.get("logger") for each in found] == ["stdout", "stderr", None]
    assert found[2]["progress"] == 999
    assert not notes.pending


def test_output_asks_to_be_taken():
    notes = Notes(None, "info")
    for _ in range(17):
        notes.add(OutputEvent(0, 0.0, Stream.STDOUT, "x" * 4096))

    assert notes.full
    notes.take()
    assert not notes.full


def test_why_a_call_waits_is_a_progress():
    notes = Notes("t", None)
    notes.add(StatusEvent(0, 0.0, Status.QUEUED, 0, "waits for approval"))

    assert [each["message"] for each in sent(notes)] == ["waits for approval"]


def test_nothing_is_made_unasked():
    notes = Notes(None, None)
    notes.add(progress(1))
    notes.add(OutputEvent(0, 0.0, Stream.STDERR, "x"))
    notes.add(StatusEvent(0, 0.0, Status.QUEUED, 0, "waits"))

    assert not notes.pending
