"""Unit: urlencoded forms are read as the standard library reads them, in steps."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.inputs import forms, read_urlencoded
from runner.inputs.fields import Fields

PIECES = st.sampled_from(["a", "%", "%4", "%41", "%C3%A9", "+", "=", "%%", "é", "&", "%zz"])


@given(st.lists(PIECES, max_size=40).map("".join), st.integers(3, 9))
def test_the_values_are_those_of_the_standard_library(text, step):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "_STEP", step)
        pairs = forms.read_pairs(f"n={text}".encode())

    assert pairs == parse_qsl(f"n={text}", keep_blank_values=True)


def test_a_form_becomes_an_object():
    assert read_urlencoded(b"a=1&b=%41+x", Fields(None, lists=True)) == {"a": "1", "b": "A x"}
