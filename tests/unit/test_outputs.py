"""Unit: events of an execution become lines, all at once or bit by bit with the same result; windows and search."""

import random

import pytest

from protocol.errors import RunnerError
from protocol.events import DroppedEvent, OutputEvent, ProgressEvent, StatusEvent
from protocol.model import Status, Stream
from runner.api import Lines, Sort
from runner.api.outputs import MAX_LINES, checked_text
from runner.api.outputs.outputs import mistake_in, search_in, window_of

OUT, ERR = Stream.STDOUT, Stream.STDERR


def events(*texts):
    """Return events of output, a text for stdout, (text,) for stderr, others as they are; numbers from 0."""
    made = []
    for text in texts:
        seq = len(made)
        if isinstance(text, str):
            made.append(OutputEvent(seq, 1.0, OUT, text))
        elif isinstance(text, tuple):
            made.append(OutputEvent(seq, 1.0, ERR, *text))
        else:
            made.append(text)
    return made


def shown(lines):
    return [(line.number, *line.spot, line.text) for line in lines]


def test_lines_are_put_together_per_stream():
    found = Lines().all(events("one\ntw", ("error",), "o\nthree\n", (" here\n",), "\nend"))

    assert shown(found) == [
        (1, 0, 0, "one"),
        (2, 0, 1, "two"),
        (3, 1, 0, "error here"),
        (4, 2, 1, "three"),
        (5, 4, 0, ""),
        (6, 4, 1, "end"),
    ]
    assert [line.stream for line in found] == [OUT, OUT, ERR, OUT, OUT, OUT]


def test_a_line_grows_and_keeps_its_spot():
    lines = Lines()
    first = lines.add(OutputEvent(7, 1.0, OUT, "a"))
    lines.settle()
    assert shown(first) == [(1, 7, 0, "a")]
    again = lines.add(OutputEvent(8, 1.0, OUT, "b"))
    lines.settle()
    assert shown(again) == [(1, 7, 0, "ab")]
    assert shown(lines.add(OutputEvent(9, 1.0, OUT, "c\nd"))) == [(1, 7, 0, "abc"), (2, 9, 1, "")]


def test_attempts_and_gaps_end_lines():
    running = StatusEvent(1, 2.0, Status.RUNNING, 2)
    found = Lines().all(events("cut", running, "second\nx", DroppedEvent(5, 3.0, 3, 900), ("last",)))

    assert [(line.sort, line.text, line.attempt, line.cut) for line in found] == [
        (Sort.TEXT, "cut", 1, 0),
        (Sort.ATTEMPT, "", 2, 0),
        (Sort.TEXT, "second", 2, 0),
        (Sort.TEXT, "x", 2, 0),
        (Sort.GAP, "", 2, 900),
        (Sort.TEXT, "last", 2, 0),
    ]
    assert Lines().all(events(StatusEvent(0, 1.0, Status.RUNNING, 1), ProgressEvent(1, 1.0))) == []


def test_a_progress_bar_is_one_line():
    assert [line.text for line in Lines().all(events("10%\r", "20%", "\r", "30%\r", "done\n40\r50\r\n"))] == [
        "done",
        "50",
    ]
    bar = Lines(longest=100)
    for number in range(1000):
        (line,) = bar.add(OutputEvent(number, 1.0, OUT, f"{number:050d}\r"))
    bar.settle()
    assert (line.text, line.cut) == (f"{999:050d}", 0)


def test_a_long_line_is_cut():
    long = Lines(longest=10)
    (first, *_, last) = long.all(events("x" * 25 + "\nshort\n" + "y" * 8, "z" * 7))
    assert (first.text, first.cut) == ("x" * 10, 15)
    assert (last.text, last.cut) == ("yyyyyyyyzz", 5)


def test_bit_by_bit_is_the_same_as_at_once():
    chance = random.Random(5)
    for _ in range(60):
        made = events(
            *(
                text if chance.random() < 0.6 else (text,)
                for text in ("".join(chance.choices("ab\n\r", (6, 2, 2, 1), k=chance.randint(1, 9))) for _ in range(20))
            )
        )
        at_once, kept, steps = Lines().all(made), {}, Lines()
        for event in made:
            for line in steps.add(event):
                kept[line.spot] = line
        steps.settle()

        assert list(kept.values()) == at_once
        assert [line.number for line in at_once] == list(range(1, len(at_once) + 1))
        assert sorted(line.spot for line in at_once) == [line.spot for line in at_once]


MANY = Lines().all(events(*(f"line {n}\n" if n % 2 == 0 else (f"error {n}\n",) for n in range(100))))


@pytest.mark.parametrize(
    ("how", "first", "last", "before", "after"),
    [
        ({}, 1, 10, False, True),
        ({"last": True}, 91, 100, True, False),
        ({"after": (50, 0)}, 51, 60, True, True),
        ({"after": (95, 0)}, 96, 100, True, False),
        ({"before": (50, 0)}, 41, 50, True, True),
        ({"before": (4, 0)}, 1, 4, False, True),
        ({"after": (50, 0), "before": (50, 0)}, 46, 55, True, True),
        ({"after": (1, 0), "before": (1, 0)}, 1, 10, False, True),
        ({"after": (200, 0)}, None, None, True, False),
        ({"stream": ERR, "last": True}, 82, 100, True, False),
    ],
)
def test_windows(how, first, last, before, after):
    found = window_of(MANY, 10, **how)

    numbers = [line.number for line in found.lines]
    assert (numbers[:1], numbers[-1:]) == ([first] if first else [], [last] if last else [])
    assert (found.before, found.after, found.total) == (before, after, 100)


def test_search():
    made = Lines().all(events("\x1b[31mFa\x1b[0mTal\nfatal", DroppedEvent(1, 1.0, 1, 5), ("a FATAL one",), "straße"))

    assert [line.number for line in search_in(made, "fatal").lines] == [1, 2, 4]
    assert [line.number for line in search_in(made, "fatal", ERR).lines] == [4]
    assert search_in(made, "STRASSE".casefold()).count == 1
    everything = search_in(Lines().all(events("no\n" * (MAX_LINES + 5))), "o")
    assert (len(everything.lines), everything.count) == (MAX_LINES, MAX_LINES + 5)


@pytest.mark.parametrize("text", ["", "  ", "x" * 201, "a\nb"])
def test_texts_that_are_not_searched(text):
    with pytest.raises(RunnerError, match="part of one line") as caught:
        checked_text(text)
    assert caught.value.failure.field == "search"


def test_where_the_mistake_is():
    traceback = "Traceback (most recent call last)"
    warned = Lines().all(events("fine\n", ("warning\nlast\n\n",), "more"))
    raised = Lines().all(events((f"{traceback}:\n  x\nE\n{traceback}:\nE\n",), ("after\n",)))

    assert mistake_in(Lines().all(events("fine\n")), failed=True) is None
    assert mistake_in(warned, failed=True) == (1, 1)
    assert mistake_in(warned, failed=False) is None
    assert mistake_in(raised, failed=True) == mistake_in(raised, failed=False) == (0, 3)
