"""Unit: output for terminals is read without its escape sequences, and shown with nothing hidden."""

import pytest

from protocol.terminal import last_written, plain, styled, visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing", "nothing"),
        ("\x1b[1;31mred\x1b[0m and \x1b[Kmore", "red and more"),
        ("\x1b]0;a title\x07shown", "shown"),
        ("\x1b]8;;https://x.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;without an end\nthe next line", "\nthe next line"),
        ("\x1bPhidden\x1b\\shown", "shown"),
        ("\x1b[31", "31"),
        ("\x9b1mbold", "bold"),
        ("sp\x1b[31mlit", "split"),
        ("\x1b(Bcharset", "charset"),
    ],
)
def test_plain(text, expected):
    assert plain(text) == expected


def test_no_text_takes_long():
    for part in ("\x1b", "\x1b[", "\x1b]", "\x1b[0", "\x1bP", "\x9b;", "\x1b[;;;;"):
        assert len(plain(part * 100_000)) <= 400_000
        styled(part * 10_000 + "m")


def test_a_long_text_is_read_in_steps():
    parts = ["\x1b[31mred\x1b[0m ", "\x1b]0;title\x1b\\", "plain ", "\x1b]8;;x\x07link"]
    text = "".join(parts[n * n % 4] + "x" * (n % 97) for n in range(20_000))
    assert len(text) > 10 * 64 * 1024
    assert plain(text) == "".join(plain(parts[n * n % 4]) + "x" * (n % 97) for n in range(20_000))
    assert plain("y" * 200_000 + "\x1b[m" + "z" * 200_000) == "y" * 200_000 + "z" * 200_000


def test_what_cannot_be_seen_has_a_sign():
    assert visible("a\tb\n") == "a\tb\n"
    assert visible("\x00\x1b\x7f\r") == "␀␛␡␍"
    assert visible("user\u202egnp.exe\u2066\u200f\x85") == "user[U+202E]gnp.exe[U+2066][U+200F][U+0085]"
    assert visible("한국어 ü 🙂") == "한국어 ü 🙂"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("as it is", "as it is"),
        ("10%\r20%\r", "20%"),
        ("10%\r20%", "20%"),
        ("dos\r", "dos"),
        ("\r", ""),
        ("a\r\rb", "b"),
    ],
)
def test_a_line_that_is_written_again(line, expected):
    assert last_written(line) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("<b>", [("", "<b>")]),
        ("\x1b[31mred\x1b[0m.", [("c1", "red"), ("", ".")]),
        (
            "\x1b[1;4;92mall\x1b[22mless\x1b[24;39mnone",
            [("bold underline c10", "all"), ("underline c10", "less"), ("", "none")],
        ),
        ("\x1b[38;5;3mfew\x1b[38;5;200msame\x1b[38;2;1;2;3msame", [("c3", "few"), ("c3", "same"), ("c3", "same")]),
        ("\x1b[48;5;1;30mno background", [("c0", "no background")]),
        ("\x1b[mreset\x1b[2Kerase\x1b[?25l", [("", "reset"), ("", "erase")]),
        ("\x1b[2m\x1b[3mx\x1b[23my", [("dim italic", "x"), ("dim", "y")]),
        ("a\x1b[999;31mb", [("", "a"), ("c1", "b")]),
        ("\x1b[31m\x00\u202e", [("c1", "␀[U+202E]")]),
        ("\x1b[38mx\x1b[38;5mx\x1b[31;38;5;9;1mz", [("", "x"), ("", "x"), ("c9 bold", "z")]),
    ],
)
def test_styles(text, expected):
    assert styled(text) == expected
