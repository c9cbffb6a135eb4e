"""Unit: cursors and module globs of lists."""

import base64
from fnmatch import fnmatchcase

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import sqlite
from actors.history import queries
from actors.history.queries import Query
from protocol.errors import ErrorKind, RunnerError


@given(st.floats(allow_nan=False, allow_infinity=False), st.text())
def test_a_cursor_comes_back_as_it_was(created_at, name):
    cursor = queries._cursor(created_at, name)

    assert queries._read_cursor(cursor) == (created_at, name)
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_any_text_is_a_cursor_or_is_refused(text):
    try:
        read = queries._read_cursor(text)
    except RunnerError as problem:
        read = (problem.failure.kind, problem.failure.field)

    assert read == (ErrorKind.BAD_INPUT, "cursor") or [type(part) for part in read] == [float, str]


@pytest.mark.parametrize(
    ("until", "cursor", "bound"),
    [
        (None, None, None),
        (5.0, None, (5.0, "")),
        (None, (4.0, "x"), (4.0, "x")),
        (5.0, (4.0, "x"), (4.0, "x")),
        (4.0, (4.0, "x"), (4.0, "")),
    ],
)
def test_the_page_begins_at_the_earlier_of_both_bounds(until, cursor, bound):
    query = Query(until=until, cursor=None if cursor is None else queries._cursor(*cursor))

    assert queries._upper_bound(query) == bound


@given(st.text("ab*?[]!-", max_size=6), st.lists(st.text("ab*?[]!-^", max_size=6), max_size=3))
def test_globs_match_as_in_tokens(module, globs):
    wanted = any(fnmatchcase(module, glob) for glob in globs)

    assert sqlite.module_matches(module, globs) is wanted
    assert sqlite._module_matches(module, msgspec.json.encode(globs).decode()) is wanted
