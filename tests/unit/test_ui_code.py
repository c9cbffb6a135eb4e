"""Unit: code as pages show it: coloured lines that are escaped, and differences of bounded length."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.ui.views.modules.shown_code import COLOURED, MAX_LINES, compare, lines_of

CODE = '"""A\nB"""\n\n\ndef handler(input):\n\treturn f"<b>{input}</b>"\n'


def plain(line) -> str:
    return unescape(re.sub(r"</?span[^>]*>", "", str(line)))


@pytest.mark.parametrize("name", ["a.py", "a.yaml", "a.json", "a.toml", "a.txt", "noend"])
@given(text=st.text("ab:{}[]\"'#\n \t<&>\\=", max_size=60))
@settings(max_examples=15, deadline=None)
def test_lines_have_the_text_of_the_file(name, text):
    shown = lines_of(name, text)

    assert [plain(line) for line in shown] == (text.removesuffix("\n") if text else "").split("\n")[: len(shown)]
    assert len(shown) == text.count("\n") + (not text.endswith("\n") and text != "")


def test_every_line_closes_its_colours():
    shown = lines_of("a.py", CODE)

    assert len(shown) == 6
    assert all(line.count("<span") == line.count("</span>") for line in shown)
    assert 'class="k"' in shown[4]
    assert "<b>" not in "".join(shown)


def test_hidden_characters_are_seen_and_long_files_are_plain():
    assert "\u202e" not in "".join(lines_of("a.py", "x = 1 # \u202e evil\n"))
    assert "<span" not in "".join(lines_of("a.py", "x = 1\n" * COLOURED))


def changes(old, new):
    return [(line.kind, line.old, line.new, line.text) for file in compare(old, new) for line in file.lines]


def test_differences_have_numbers_and_what_is_around():
    old = {"a": "".join(f"line {number}\n" for number in range(1, 21))}
    new = {"a": old["a"].replace("line 10\n", "line ten\n")}
    found = changes(old, new)

    assert found[0] == ("gap", None, None, "")
    assert found[4:6] == [("removed", 10, None, "line 10"), ("added", None, 10, "line ten")]
    assert found[-1] == ("gap", None, None, "")
    assert [line[1:3] for line in found if line[0] == "same"] == [(n, n) for n in (7, 8, 9, 11, 12, 13)]
    assert not list(compare(old, old))


def test_files_that_come_go_or_are_not_text_are_named():
    found = {
        file.name: file for file in compare({"a": "1\n", "b": None, "same": "x"}, {"b": None, "c": "2\n", "same": "x"})
    }

    assert (found["a"].added, found["a"].removed) == (0, 1)
    assert (found["c"].added, found["c"].removed) == (1, 0)
    assert found["b"].note == "binary"
    assert "same" not in found


def test_long_differences_are_not_shown():
    one, two = "".join(f"{n}\n" for n in range(2500)), "".join(f"{-n}\n" for n in range(2500))
    files = [f"{n:02}" for n in range(8)]
    found = list(compare(dict.fromkeys(files, one), dict.fromkeys(files, two)))

    assert sum(len(file.lines) for file in found) <= MAX_LINES
    assert {file.note for file in found} == {"", "large"}
    assert [file.note for file in compare({"a": "1\n" * 4000}, {"a": "2\n"})] == ["large"]
