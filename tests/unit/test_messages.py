"""Unit: messages of the guest, and bytes that are exactly one strict JSON value."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import messages
from protocol.messages import MAX_DEPTH, InvalidJsonError, ProtocolError, check_json, decode, nesting

same_each_time = settings(derandomize=True, deadline=None)


def result(value: bytes) -> bytes:
    return b'{"type":"result","id":"x","seconds":1.5,"value":' + value + b"}"


def nested(depth: int) -> bytes:
    return b'[{"a":' * (depth // 2) + b"[]" * (depth % 2) + b"1" * (1 - depth % 2) + b"}]" * (depth // 2)


# -- messages --------------------------------------------------------------------------------------------------------


def test_a_value_passes_through_as_it_was_written():
    message = decode(result(b'{ "b" : [1.0, 1e2 ], "a":"\\u00e9" }'))

    assert isinstance(message, messages.Result)
    assert (message.id, message.seconds, message.children) == ("x", 1.5, False)
    assert bytes(message.value) == b'{ "b" : [1.0, 1e2 ], "a":"\\u00e9" }'


def test_the_order_of_fields_is_free_and_unknown_ones_are_ignored():
    message = decode(b'{"seconds":0,"later":{"x":[1]},"value":null,"id":"x","type":"result"}')

    assert isinstance(message, messages.Result)
    assert message.seconds == 0.0
    assert bytes(message.value) == b"null"


def test_what_was_not_said_has_its_default():
    assert decode(b'{"type":"error","id":"x","kind":"handler_error","message":"no"}') == messages.Error(
        id="x", kind="handler_error", message="no"
    )
    assert decode(b'{"type":"progress","id":"x"}') == messages.Progress(id="x", done=None, total=None, text="")


NOT_MESSAGES = {
    "nothing": b"",
    "not JSON": b"hello",
    "no object": b"[]",
    "no type": b"{}",
    "type is null": b'{"type":null}',
    "type is a number": b'{"type":1}',
    "unknown type": b'{"type":"nope"}',
    "a type of the host": b'{"type":"ping"}',
    "a field is missing": b'{"type":"item","id":"x"}',
    "the id is missing": b'{"type":"result","seconds":1,"value":1}',
    "a field is of another type": b'{"type":"item","id":1,"value":1}',
    "a number is too large": b'{"type":"progress","id":"x","done":1e999}',
    "two messages": b'{"type":"pong"}{"type":"pong"}',
    "two types": b'{"type":"pong","type":"ready"}',
    "cut off": b'{"type":"pong"',
    "a byte order mark": b'\xef\xbb\xbf{"type":"pong"}',
    "UTF-16": '{"type":"pong"}'.encode("utf-16-le"),
    "a value that is NaN": result(b"NaN"),
    "a value that is Infinity": result(b"[-Infinity]"),
    "a value with a trailing comma": result(b"[1,]"),
    "a lone surrogate in a field": b'{"type":"progress","id":"x","text":"\\udc80"}',
    "a lone surrogate in a value": result(b'"\\ud800"'),
    "invalid UTF-8 in a field": b'{"type":"progress","id":"x","text":"\xff"}',
    "invalid UTF-8 in a value": result(b'"\xff"'),
    "invalid UTF-8 in an unknown field": b'{"type":"pong","later":"\xed\xa0\x80"}',
    "endless nesting": b"[" * 1_000_000,
    "endless nesting in a value": result(b"[" * 1_000_000),
    "endless nesting in an unknown field": b'{"type":"pong","later":' + b'{"a":' * 1_000_000,
}


@pytest.mark.parametrize("payload", NOT_MESSAGES.values(), ids=NOT_MESSAGES)
def test_anything_else_is_a_protocol_error(payload):
    with pytest.raises(ProtocolError, match="not a guest message: "):
        decode(payload)


@same_each_time
@given(st.binary())
def test_garbage_gives_nothing_but_protocol_errors(payload):
    with pytest.raises(ProtocolError):
        decode(payload)


@pytest.mark.parametrize("depth", [1, 64, MAX_DEPTH - 1, MAX_DEPTH])
def test_values_up_to_the_greatest_nesting_are_read(depth):
    message = decode(result(nested(depth)))

    assert isinstance(message, messages.Result)
    assert bytes(message.value) == nested(depth)


def test_input_is_the_last_field_of_execute():
    """The guest relies on it if its Python cannot read the input."""
    given = {"id": "x", "attempt": 2, "deadline": 1.5, "input": msgspec.Raw(b'{ "a": 1 }')}
    plain, filed = (messages.encode(messages.Execute(**given, **more)) for more in ({}, {"files": {"f": "/p"}}))

    assert plain == b'{"type":"execute","id":"x","attempt":2,"deadline":1.5,"input":{ "a": 1 }}'
    assert filed == b'{"type":"execute","id":"x","attempt":2,"deadline":1.5,"files":{"f":"/p"},"input":{ "a": 1 }}'


# -- values ----------------------------------------------------------------------------------------------------------

GOOD = [
    b"null", b"true", b"false", b"0", b"-0", b"1E5", b"1e-5", b"1.25", b"1e999", b"-1e999", b"1" * 5000,
    b'""', b'"\\u0000"', b'"\\ud83d\\ude00"', '"\U0001f600 é"'.encode(), b'"\x7f"', b'"\\/\\b\\f\\n\\r\\t\\"\\\\"',
    b"[]", b"{}", b'{"":1}', b'{"a":1,"a":2}', b'[[],[{}],{"a":[]}]',
]  # fmt: skip


@pytest.mark.parametrize("data", GOOD)
def test_one_strict_value_is_taken_as_it_is(data):
    assert bytes(check_json(data)) == data
    assert bytes(check_json(b" \t\r\n" + data + b"\n ")) == data


BAD = {
    b"": "truncated",
    b" ": "truncated",
    b"NaN": r"^\$: NaN is not a JSON number; send null",
    b"[NaN]": r"^\$\[0\]: NaN is not a JSON number",
    b"Infinity": r"^\$: Infinity is not",
    b"-Infinity": r"^\$: -Infinity is not",
    b'{"a":-Infinity}': r"^\$\.a: -Infinity is not a JSON number",
    b'{"a":"NaN","b":[0,{"c":NaN}]}': r"^\$\.b\[1\]\.c: NaN is not a JSON number",
    b"[1,]": "trailing comma",
    b'{"a":1,}': "trailing comma",
    b"1 2": "trailing characters",
    b"{}{}": "trailing characters",
    b"1\0": "trailing characters",
    b"\0": "invalid character",
    b"\xff": "not UTF-8 at byte 0",
    b'"a\xff"': "not UTF-8 at byte 2",
    b'"\xed\xa0\x80"': "not UTF-8 at byte 1",
    b'"\xc3"': "not UTF-8 at byte 1",
    b"\xef\xbb\xbf1": "it begins with a byte order mark; send UTF-8 without one",
    '"x"'.encode("utf-16"): "byte order mark",
    '"x"'.encode("utf-32-le"): "invalid character",
    b"\xc2\xa01": "invalid character",
    b"\x0c1": "invalid character",
    b"nul": "truncated",
    b"nulL": "invalid character",
    b"True": "invalid character",
    b"01": "invalid number",
    b"-01": "invalid number",
    b"-": "invalid character",
    b"+1": "invalid character",
    b".5": "invalid character",
    b"1.": "invalid number",
    b"1e": "invalid number",
    b"1_000": "trailing characters",
    b"0x1": "trailing characters",
    b"'a'": "invalid character",
    b'"a': "truncated",
    b'"\x01"': "invalid character",
    b'"a\nb"': "invalid character",
    b'"\\x41"': "invalid escaped character",
    b'"\\u12"': "JSON is malformed|truncated",
    b'"\\u12g4"': "JSON is malformed|truncated",
    b'"\\ud800"': r"^\$: a lone surrogate, \\ud800, which is one half of a character",
    b'["\\uD83D"]': r"^\$\[0\]: a lone surrogate, \\ud83d",
    b'{"text":"cut \\ud83d","n":1}': r"^\$\.text: a lone surrogate",
    b'"\\ud800\\u0041"': r"^\$: a lone surrogate",
    b'"\\udc00 and more"': r"^\$: a lone surrogate",
    b'[1,[{"\\ud800":1}]]': r"^\$\[1\]\[0\]: a lone surrogate",
    b'["\\ud83d"': "truncated",
    b"{1:2}": "expected",
    b'{"a"}': "expected",
    b'{"a":1 "b":2}': "expected",
    b"[1 2]": "expected",
    b"[": "truncated",
    b"]": "invalid character",
    b"[1}": "expected",
    b"// no\n1": "invalid character",
    b"[1, /* no */ 2]": "invalid character",
}


@pytest.mark.parametrize(("data", "why"), BAD.items(), ids=repr)
def test_anything_else_is_refused_with_the_place(data, why):
    with pytest.raises(InvalidJsonError, match=why) as caught:
        check_json(data)
    path, colon, _ = str(caught.value).partition(": ")
    assert caught.value.path == (path if colon and path.startswith("$") else "$")


def test_in_a_large_text_a_fault_has_the_number_of_its_byte():
    """To find the path would hold up the event loop."""
    with pytest.raises(InvalidJsonError, match=r"byte 200011") as caught:
        check_json(b'["' + b" " * 200_000 + b'","\\ud83d and more"]')
    assert caught.value.path == "$"


def test_the_path_of_a_fault_is_short():
    with pytest.raises(InvalidJsonError) as caught:
        check_json(b'{"%s":' % (b"k" * 2_000) * 20 + b"[NaN]" + b"}" * 20)
    assert len(caught.value.path) == 200


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 5_000, 1_000_000])
def test_deep_nesting_is_refused_at_the_same_depth_everywhere(depth):
    with pytest.raises(InvalidJsonError, match="nested too deeply"):
        check_json(b"[" * depth + b"]" * depth)
    with pytest.raises(InvalidJsonError, match="nested too deeply"):
        check_json(b'{"a":' * depth + b"1" + b"}" * depth)


@pytest.mark.parametrize("call_depth", [0, 300])
def test_the_greatest_nesting_is_taken_also_deep_in_the_stack(call_depth):
    def go(left: int) -> bytes:
        return go(left - 1) if left else bytes(check_json(nested(MAX_DEPTH)))

    assert go(call_depth) == nested(MAX_DEPTH)


numbers = st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@same_each_time
@given(json_values, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_what_the_standard_library_writes_is_taken(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")

    assert json.loads(bytes(check_json(text))) == value


def strictly(text: str):
    """Return the value by the standard library. Raises ValueError, also for the words that it takes beyond JSON."""

    def refuse(word: str):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def encodable(value) -> bool:
    """Return whether all text in the value has a form in UTF-8; the standard library takes lone surrogates."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@st.composite
def nearly_json(draw):
    """Return JSON with a few characters put in, left out or exchanged, or characters of JSON in any order."""
    alphabet = st.sampled_from(
        '[]{},:"\\/ \n\t0123456789.-+eEntfuralsNIy\x00\x01\x7fé\ud83d'.replace("\ud83d", "\U0001f600")
    )
    if draw(st.booleans()):
        return draw(st.text(alphabet, max_size=12))
    text = list(json.dumps(draw(json_values), ensure_ascii=draw(st.booleans())))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(text)))
        text[place : place + draw(st.integers(0, 1))] = draw(st.text(alphabet, max_size=2))
    return "".join(text)


@same_each_time
@given(nearly_json())
def test_the_same_texts_are_valid_as_for_the_standard_library(text):
    try:
        value = strictly(text)
    except ValueError:
        value, valid = None, False
    else:
        valid = encodable(value)
    if valid:
        assert strictly(bytes(check_json(text.encode())).decode()) == value
    else:
        with pytest.raises(InvalidJsonError):
            check_json(text.encode("utf-8", "surrogatepass"))


@same_each_time
@given(st.binary(max_size=30))
def test_any_bytes_are_a_value_or_refused(data):
    try:
        value = check_json(data)
    except InvalidJsonError:
        return
    strictly(bytes(value).decode())


def depth_of(value) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


tricky = st.text(st.sampled_from('[]{}"\\a\n'), max_size=6)


@same_each_time
@given(
    st.recursive(tricky, lambda i: st.lists(i, max_size=3) | st.dictionaries(tricky, i, max_size=3), max_leaves=15),
    st.sampled_from([None, 1]),
)
def test_nesting_counts_brackets_outside_of_strings(value, indent):
    assert nesting(json.dumps(value, indent=indent).encode()) == depth_of(value)


def test_brackets_in_strings_are_not_nesting():
    data = json.dumps(["[" * 10_000, '\\"[{' * 10_000, "\\"]).encode()

    assert bytes(check_json(data)) == data


def test_wide_values_are_not_deep():
    data = b"[" + b",".join([b'[{"a":[]}]'] * 10_000) + b"]"

    assert nesting(data) == 4
    assert bytes(check_json(data)) == data


def test_numbers_beyond_a_double_are_json_and_pass():
    """A Python handler gets `inf`, as SPEC.md states."""
    assert math.isinf(json.loads(bytes(check_json(b"1e999"))))


@pytest.mark.parametrize("size", [-1, 2**63, 10**30])
def test_a_size_that_no_record_can_hold_is_no_message(size):
    for head in (b'{"type":"result","value":1', b'{"type":"error","kind":"a","message":"b"'):
        with pytest.raises(ProtocolError):
            decode(b'%s,"id":"x","seconds":1,"peak_memory":%d}' % (head, size))


def test_a_guest_that_sends_more_containers_than_it_may_is_cut_off_before_they_are_read():
    def sent(value):
        return b'{"type":"result","id":"e","seconds":1.0,"stays":[],"killed":[],"value":%b}' % value

    most = b"[" + b",".join([b"[]"] * (messages.MAX_CONTAINERS - 1)) + b"]"
    assert bytes(messages.decode(sent(most)).value) == most
    with pytest.raises(messages.ProtocolError, match="arrays and objects"):
        messages.decode(sent(b"[" + b",".join([b"[]"] * (messages.MAX_CONTAINERS + 100)) + b"]"))
    text = b'"' + b"[{" * messages.MAX_CONTAINERS + b'"'
    assert bytes(messages.decode(sent(text)).value) == text
