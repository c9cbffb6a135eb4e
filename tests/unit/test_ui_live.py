"""Unit: messages of a page that follows an execution, and lines as pages show them."""

import json

import msgspec
import pytest

from actors.events import LeftEvent
from protocol.events import (
    ChildEvent,
    DroppedEvent,
    ErrorEvent,
    ItemEvent,
    OutputEvent,
    ProgressEvent,
    ResultEvent,
    StatusEvent,
)
from protocol.model import Status, Stream
from runner.api import MAX_LINE, Lines, Window
from runner.ui.live import MAX_SHOWN, key_of, shown_line, some_of, spot_of, stream_of
from runner.ui.live.following import Feed


def read(message):
    """Return the number and the content of a message."""
    fields = dict(line.split(": ", 1) for line in message.decode().strip().split("\n"))
    assert fields["event"] == "news"
    return int(fields["id"]), json.loads(fields["data"])


def output(seq, text, stream=Stream.STDOUT):
    return OutputEvent(seq, 1.0, stream, text)


def test_lines_come_once_and_grow_in_place():
    feed = Feed(0)
    seq, told = read(feed.message([StatusEvent(0, 1.0, Status.RUNNING, 1), output(1, "one\ntw")]))
    assert (seq, told["changed"]) == (1, True)
    assert [(line["k"], line["n"], line["p"]) for line in told["lines"]] == [
        ("1.0", 1, [["", "one"]]),
        ("1.1", 2, [["", "tw"]]),
    ]
    _, told = read(feed.message([output(2, "o\nthree\n")]))
    assert [(line["k"], line["p"]) for line in told["lines"]] == [("1.1", [["", "two"]]), ("2.1", [["", "three"]])]
    assert "changed" not in told


def test_a_page_that_connects_again_hears_what_it_has_missed():
    events = [output(n, f"line {n}\nrest ") for n in range(10)]
    whole, parts = Feed(0), Feed(6)
    for event in events[:6]:
        whole.message([event])
        assert parts.message([event]) == b""
    assert parts.message(events[6:]) == whole.message(events[6:])
    assert Feed(10).message(events) == b""
    assert Feed(3).message(events[2:4]) != b""


def test_much_output_is_told_by_its_last_lines():
    _, told = read(Feed(0).message([output(0, "x\n" * 1000)]))
    assert (len(told["lines"]), told["skipped"]) == (400, 600)
    assert told["lines"][-1]["n"] == 1000


@pytest.mark.parametrize(
    "last",
    [
        ResultEvent(3, 1.0, Status.SUCCEEDED, msgspec.Raw(b"1")),
        ErrorEvent(3, 1.0, Status.FAILED, msgspec.Raw(b"{}")),
        LeftEvent(3, "x", 10**6),
    ],
)
def test_what_else_is_told(last):
    events = [
        ItemEvent(0, 1.0, msgspec.Raw(b"1")),
        ChildEvent(1, 1.0, "id", "module"),
        ProgressEvent(2, 1.0, 1, 4, "a\u202eb"),
        last,
    ]
    seq, told = read(Feed(0).message(events))
    assert (seq, told["ended"], told["items"], told["changed"]) == (3, True, 1, True)
    assert told["progress"] == {"done": 1, "total": 4, "text": "a[U+202E]b"}


def test_gaps_and_attempts_are_lines():
    events = [output(0, "cut"), DroppedEvent(5, 1.0, 5, 900), StatusEvent(6, 1.0, Status.RUNNING, 2)]
    _, told = read(Feed(0).message(events))
    assert [(line["o"], line["c"], line["a"]) for line in told["lines"]] == [
        ("text", 0, 1),
        ("gap", 900, 1),
        ("attempt", 0, 2),
    ]


def test_a_shown_line_is_short_and_hides_nothing():
    (line,) = Lines().all([output(0, "\x1b[31m<b>\x1b[0m\x00" + "x" * 10_000, Stream.STDERR)])
    found = shown_line(line)
    assert found.parts[0] == ("c1", "<b>")
    assert found.parts[1][1].startswith("␀x")
    assert found.stream == "stderr"
    assert found.cut == len(line.text) - MAX_LINE
    (many,) = Lines().all([output(0, "\x1b[31mx\x1b[0my" * 300)])
    assert len(shown_line(many).parts) == 200
    assert shown_line(many).cut > 0


def test_a_page_shows_as_many_lines_as_are_quickly_loaded():
    lines = tuple(Lines().all([output(0, ("x" * 500 + "\n") * MAX_SHOWN)]))
    window = Window(lines, len(lines), before=False, after=False, next_seq=1)
    first, last = some_of(window, last=False), some_of(window, last=True)
    assert len(first) == len(last) < 20
    assert (first[0].number, last[-1].number) == (1, MAX_SHOWN)
    huge = Window(tuple(Lines().all([output(0, "y" * 100_000)])), 1, before=False, after=False, next_seq=1)
    assert len(some_of(huge, last=True)) == 1


@pytest.mark.parametrize("key", [None, "", "1", "a.b", "1.2.3", "-1.0", "1.", "٣.1", "9" * 30 + ".0"])
def test_keys_that_are_none(key):
    assert spot_of(key) is None


def test_keys_and_streams():
    assert spot_of(key_of((12, 3))) == (12, 3)
    assert (stream_of("stderr"), stream_of("x"), stream_of(None)) == (Stream.STDERR, None, None)
