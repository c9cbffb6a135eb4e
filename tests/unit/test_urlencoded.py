"""Unit: urlencoded forms are read as the standard library reads them, in steps."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import RunnerError
from runner.inputs import forms, read_urlencoded
from runner.inputs.fields import Fields

PIECES = st.sampled_from(["a", "%", "%4", "%41", "%C3%A9", "+", "=", "%%", "é", "&", "%zz"])


@given(st.lists(PIECES, max_size=40).map("".join), st.integers(3, 9))
def test_the_values_are_those_of_the_standard_library(text, step):
    expected: list[tuple[str, str]] | None = None
    with suppress(UnicodeDecodeError):
        expected = parse_qsl(f"n={text}", keep_blank_values=True, errors="strict")
    found: list[tuple[str, str]] | None = None
    with pytest.MonkeyPatch.context() as patch, suppress(RunnerError):
        patch.setattr(forms, "_STEP", step)
        found = forms.read_pairs(f"n={text}".encode())

    assert found == expected


def test_a_form_becomes_an_object():
    assert read_urlencoded(b"a=1&b=%41+x", Fields(None, lists=True)) == {"a": "1", "b": "A x"}
