"""Unit: generated messages to bytes and back, equal to google.protobuf and betterproto over the whole .proto."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import betterproto
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.rpc.operato.runner import v1
from runner.grpc.codec import MalformedError, decode, encode, make

ROOT = Path(__file__).resolve().parents[2]
PROTO = (ROOT / "protocol" / "executor.proto").read_text()
FILES = FileDescriptorSet.FromString((ROOT / "protocol" / "rpc" / "executor.binpb").read_bytes()).file
POOL = DescriptorPool()
for file in FILES:
    POOL.Add(file)
NAMES = [message.name for message in FILES[0].message_type]
LABELS = {1: "double", 3: "int64", 5: "int32", 8: "bool", 9: "string", 11: "message", 12: "bytes", 14: "enum"}
"""The types of fields in the API, by their numbers in descriptors."""


def google_class(name: str) -> Any:
    return GetMessageClass(POOL.FindMessageTypeByName(f"operato.runner.v1.{name}"))


def values(field: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for the values of a field, in the form of google's messages."""
    kinds: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
        # A negative zero is sent by google and omitted here: no field of the API needs one.
        "double": lambda: st.floats(allow_nan=False).filter(lambda x: x != 0 or math.copysign(1, x) > 0),
        "int64": lambda: st.integers(-(2**63), 2**63 - 1),
        "int32": lambda: st.integers(-(2**31), 2**31 - 1),
        "bool": st.booleans,
        "string": lambda: st.text(st.characters(exclude_categories=["Cs"])),
        "bytes": st.binary,
        "enum": lambda: st.sampled_from([value.number for value in field.enum_type.values]),
        "message": lambda: messages(field.message_type.name),
    }
    value = kinds[LABELS[field.type]]()
    return st.lists(value, max_size=3) if field.is_repeated else value


def messages(name: str) -> st.SearchStrategy[Any]:
    """Return a strategy for google's messages of one class, with any of their fields set."""
    descriptor = POOL.FindMessageTypeByName(f"operato.runner.v1.{name}")
    cls = google_class(name)
    optional = {field.name: values(field) for field in descriptor.fields}
    return st.fixed_dictionaries({}, optional=optional).map(lambda fields: cls(**fields))


@st.composite
def any_message(draw: st.DrawFn) -> tuple[Any, Any]:
    name = draw(st.sampled_from(NAMES))
    return getattr(v1, name), draw(messages(name))


@given(any_message())
def test_messages_of_google_are_read_and_written_the_same(pair: tuple[Any, Any]) -> None:
    cls, google = pair
    data = google.SerializeToString()
    message = decode(cls, data)

    assert type(google).FromString(encode(message)) == google
    assert message == cls.FromString(data), "betterproto reads it the same"
    assert bytes(message) == encode(message), "betterproto writes it the same"


@given(any_message())
def test_a_message_that_is_cut_off_is_malformed_or_another_message(pair: tuple[Any, Any]) -> None:
    cls, google = pair
    data = google.SerializeToString()
    for end in range(len(data)):
        try:
            ours: Any = decode(cls, data[:end])
        except MalformedError:
            ours = None
        try:
            theirs: Any = type(google).FromString(data[:end])
        except DecodeError:
            theirs = None
        assert (ours is None) == (theirs is None)
        assert ours is None or type(google).FromString(encode(ours)) == theirs


@given(st.sampled_from(NAMES), st.binary(max_size=60))
@example("ExecuteRequest", b"\xb1\x80\x80\x80\x10" + bytes(8))
@example("ExecuteRequest", b"\xb1\x80\x80\x80\x80\x00" + bytes(8))
@example("ExecuteRequest", b"\xb1\x80\x80\x80\x00" + bytes(8))
def test_garbage_is_read_as_google_reads_it(name: str, data: bytes) -> None:
    cls = google_class(name)
    try:
        theirs: Any = cls.FromString(data)
    except DecodeError:
        theirs = None
    try:
        ours: Any = decode(getattr(v1, name), data)
    except MalformedError:
        ours = None
    assert (ours is None) == (theirs is None)
    if theirs is not None:
        assert cls.FromString(encode(ours)).ListFields() == without_unknown(theirs).ListFields()


def without_unknown(message: Any) -> Any:
    message.DiscardUnknownFields()
    return message


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x0a", "corrupt"),
        (b"\x0a\x05abc", "corrupt"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "corrupt"),
        (b"\x0a\x01\xff", "UTF-8"),
        (b"\x21\x00", "corrupt"),
        (b"\x0b\x14", "corrupt"),
        (b"\x02\x00", "corrupt"),
    ],
)
def test_malformed_messages_raise_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(MalformedError, match=f"ExecuteRequest.*{why}"):
        decode(v1.ExecuteRequest, data)


def test_fields_of_another_wire_type_and_unknown_fields_are_ignored() -> None:
    """In betterproto the number becomes the text."""
    message = decode(v1.ExecuteRequest, b"\x08\x05" + b"\x12\x011" + b"\xf8\x07\x01" + b"\xfa\x07\x02ab\x0b\x0c")

    assert (message.module_name, message.input_json) == ("", "1")


def test_the_last_member_of_a_oneof_counts() -> None:
    both = bytes(v1.ExecuteBatchRequest(start=v1.BatchStart())) + bytes(v1.ExecuteBatchRequest(input=v1.BatchInput()))

    assert betterproto.which_one_of(decode(v1.ExecuteBatchRequest, both), "message")[0] == "input"


def test_a_made_message_equals_a_constructed_one() -> None:
    made = make(v1.ProgressEvent, done=0.0, text="x")

    assert made == v1.ProgressEvent(done=0.0, text="x")
    assert (made.done, made.total) == (0.0, None)
    with pytest.raises(TypeError, match="no field 'colour'"):
        make(v1.ProgressEvent, colour="red")


def test_lists_of_two_messages_are_two_lists() -> None:
    first, second = decode(v1.Module, b""), decode(v1.Module, b"")
    first.tags.append("x")

    assert second.tags == []


# The .proto itself


def fields() -> list[tuple[str, Any]]:
    return [(message.name, field) for message in FILES[0].message_type for field in message.field]


def test_fields_have_plain_types_only() -> None:
    """Timestamp, Duration, Struct and maps are read or written wrongly by betterproto."""
    assert {field.type for _, field in fields()} <= LABELS.keys()
    assert all(field.type_name.startswith(".operato.runner.v1.") for _, field in fields() if field.type_name)


def test_no_field_hides_a_method_of_its_message() -> None:
    """A field `load` does: betterproto then cannot read the message."""
    assert [f"{name}.{field.name}" for name, field in fields() if hasattr(betterproto.Message, field.name)] == []


def test_everything_has_a_comment() -> None:
    lines = PROTO.splitlines()
    bare = [
        line
        for above, line in pairwise(lines)
        if re.match(r"\s*(optional |repeated )?\w+(\.\w+)* \w+ = \d+;|\s*(rpc|message|enum|service|[A-Z_]+ =) ", line)
        and not above.lstrip().startswith("//")
        and "oneof" not in above
    ]

    assert bare == []


def test_the_names_that_clients_use_stay() -> None:
    names = {f"{name}.{field.name}": (field.number, LABELS[field.type]) for name, field in fields()}

    assert names["ExecuteRequest.module_name"] == (1, "string")
    assert names["ExecuteRequest.input_json"] == (2, "string")
    assert names["ExecuteResponse.result_json"] == (1, "string")
