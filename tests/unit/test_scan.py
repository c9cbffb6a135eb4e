"""Unit: JSON texts of any size are looked at in steps, with the same findings as at once."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.schema import InputCheck, fit, large
from protocol.messages import MAX_CONTAINERS, InvalidJsonError, check_json
from protocol.scan import LARGE_BYTES, LongCheckError, decoded, has_more_values, measure, pieces

steady = settings(deadline=None, derandomize=True, max_examples=12)
TRICKY = st.text(st.sampled_from('[]{},:"\\a é\n'), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=12,
)
LARGE = st.builds(
    lambda values, pad: [*(values * (1 + LARGE_BYTES // 8))[: LARGE_BYTES // 8], pad],
    st.lists(VALUES, min_size=1, max_size=5),
    VALUES,
)


def depth_of(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


def containers_of(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + sum(map(containers_of, inner))


@steady
@given(LARGE, st.booleans())
def test_a_large_value_is_measured_as_it_is(value, ascii_only):
    data = json.dumps(value, ensure_ascii=ascii_only).encode()

    assert measure(data, len(data), len(data)) == (depth_of(value), containers_of(value))


@pytest.mark.parametrize("shift", range(9))
def test_a_step_may_end_anywhere_in_a_string(shift):
    text = '[{"\\' * 30_000 + "x" * shift + '"]}' * 30_000
    data = json.dumps(["x" * shift, text, {"a": [text]}]).encode()

    assert measure(data, 100, 100) == (3, 3)
    assert not has_more_values(data, 10)


@steady
@given(LARGE, st.booleans())
def test_a_large_value_is_decoded_as_it_is(value, ascii_only):
    for shown in (value, {"a": 1, "b": value}, {str(n): each for n, each in enumerate(value)}, [[value]]):
        assert decoded(json.dumps(shown, ensure_ascii=ascii_only).encode()) == shown


@steady
@given(LARGE)
def test_pieces_are_whole_elements_and_short(value):
    data = json.dumps(value).encode()
    sizes = []

    def read(run):
        sizes.append(len(run))
        return msgspec.json.decode(b"[%b]" % run)

    assert [item for run in pieces(data, read) for item in run] == value
    longest = max(len(json.dumps(each)) for each in value)
    assert max(sizes) <= LARGE_BYTES + longest + 2


def test_values_are_counted_outside_of_strings():
    data = json.dumps([",[{" * 1000, [1, 2, 3], {"a": 1, "b": []}]).encode()

    assert has_more_values(data, 6)
    assert not has_more_values(data, 12)


def test_the_number_of_arrays_and_objects_has_a_limit():
    text = b"[" + b"[]," * (MAX_CONTAINERS - 2) + b"[]]"
    assert len(bytes(check_json(text))) == len(text)
    with pytest.raises(InvalidJsonError, match="more than 2,000,000 arrays and objects"):
        check_json(text[:-1] + b",{}]")


ROW = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"]}
ROWS = {"type": "object", "properties": {"rows": {"type": "array", "items": ROW}}, "required": ["rows"]}
ANY = {"type": "array", "items": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, ROW, {"type": "null"}]}}
NAMED = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "number"}}}
MANY = 60_000


@pytest.mark.parametrize(
    ("schema", "value", "path"),
    [
        ({"type": "array", "items": {"type": "number"}}, [1.5] * MANY, None),
        ({"type": "array", "items": {"type": "number"}}, [1.5] * MANY + ["x"], f"$[{MANY}]"),
        ({"type": "array"}, [[], {}, 1] * MANY, None),
        ({"type": "integer"}, [1] * MANY, "$"),
        (ROWS, {"rows": [{"a": 1, "b": "},{["}] * MANY}, None),
        (ROWS, {"other": [1] * MANY, "rows": [{"a": 1}] * MANY + [{"a": 1, "b": 2}]}, f"$.rows[{MANY}].b"),
        (ROWS, {"rows": [{"a": 1}] * MANY + [{"b": "x"}]}, f"$.rows[{MANY}]"),
        (ROWS, {"rows": {"a": "x" * 4 * MANY}}, "$.rows"),
        (ROWS, {"others": [1] * MANY}, "$"),
        (ANY, [[1] * MANY, {"a": 1}, None, [[2]]], "$[3][0]"),
        (ANY, [{"a": 1, "b": "x" * MANY}] * 5, None),
        (NAMED, {str(n): [n] for n in range(MANY)}, None),
        (NAMED, {str(n): [n] * MANY for n in range(4)} | {"x": ["x"] * MANY}, "$[...][0]"),
    ],
)
def test_a_large_input_fits_or_not_as_a_whole(schema, value, path):
    data = json.dumps(value).encode()
    kind, decoder = fit.decoder(schema)
    assert len(data) > LARGE_BYTES
    if path is None:
        large.check(kind, data)
        decoder.decode(data)
        return
    with pytest.raises(msgspec.ValidationError):
        decoder.decode(data)
    with pytest.raises(large.MismatchError) as caught:
        large.check(kind, data)
    assert caught.value.path == path


def test_a_check_at_once_takes_few_steps_or_is_left_to_a_thread():
    check = InputCheck({"anyOf": [{"type": "string", "maxLength": 3}] * 400 + [{"type": "array"}]})
    value = json.dumps(list(range(10_000))).encode()

    with pytest.raises(LongCheckError):
        check.check(value, quickly=True)
    assert check.check(value) is None
    assert check.check(b'"abc"', quickly=True) is None


def test_an_input_with_very_many_values_is_refused_by_a_slow_check():
    failure = InputCheck({"maxItems": 10}).check(b"[" + b"1," * 600_000 + b"1]")

    assert failure is not None
    assert "more than 500,000 values" in failure.message
