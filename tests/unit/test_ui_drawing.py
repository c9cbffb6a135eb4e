"""Unit: charts as SVG: what they show, the same in words, and no markup from texts."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from runner.ui.drawing import Labels, Part, Series, lines, share, stacked

HOSTILE = "</title><script>alert(1)</script>\"'&<"


def labels(*points, title="Executions"):
    return Labels(title, points, "Time", "Numbers", "It rises.")


def parsed(markup):
    """Return the tree of a drawing, which is well-formed."""
    return ET.fromstring(str(markup))


def seconds(value):
    return f"{value:g} s"


def test_columns_are_stacked_to_the_sum_of_a_point():
    drawn = parsed(stacked(labels("1", "2"), [Series("good", "succeeded", [6, 0]), Series("bad", "failed", [2, 0])]))
    columns = [(each.get("class"), each.get("y"), each.get("height")) for each in drawn.iter("rect")]

    assert columns == [("hit", "0", "100"), ("fill-succeeded", "40.00", "60.00"), ("fill-failed", "20.00", "20.00")]


def test_a_small_count_beside_a_large_one_is_still_seen():
    drawn = parsed(stacked(labels("1"), [Series("good", "succeeded", [100_000]), Series("bad", "failed", [1])]))

    assert all(float(each.get("height")) >= 1 for each in drawn.iter("rect"))


def test_a_line_is_open_where_a_value_is_missing():
    drawn = parsed(lines(labels(*"12345"), [Series("p50", "a", [1, 2, None, 4, None])], seconds))
    (path,) = drawn.iter("path")

    assert path.get("d") == "M0.5 80.00L1.5 60.00M3.25 20.00H3.75"


@pytest.mark.parametrize(("most", "top"), [(0, "2"), (1, "2"), (3, "5"), (10, "10"), (11, "20"), (999, "1,000")])
def test_the_scale_ends_at_a_round_number(most, top):
    drawn = parsed(stacked(labels("1"), [Series("good", "succeeded", [most])]))

    assert next(drawn.find(".//div[@class='scale']").iter("span")).text == top


def test_the_table_has_the_numbers_of_every_point_that_has_any():
    drawn = parsed(
        lines(labels(*"123"), [Series("p50", "a", [1, None, 3]), Series("p99", "b", [None, None, 5])], seconds)
    )
    rows = [[cell.text for cell in row] for row in drawn.find(".//tbody")]

    assert rows == [["1", "1 s", "-"], ["3", "3 s", "5 s"]]


def test_a_chart_without_points_is_drawn():
    assert parsed(stacked(labels(), [])).find(".//svg") is not None
    assert parsed(lines(labels(), [], seconds)).find(".//svg") is not None


def test_what_is_drawn_has_a_text_for_those_who_do_not_see_it():
    (drawn,) = parsed(stacked(labels("1"), [Series("good", "succeeded", [1])])).iter("svg")

    assert drawn.get("role") == "img"
    assert drawn.get("aria-label") == "Executions. It rises."


def test_parts_fill_the_whole():
    drawn = parsed(share("Phases", [Part("queue", "queue", 1, "1 s"), Part("run", "run", 3, "3 s")]))

    assert [(each.get("x"), each.get("width")) for each in drawn.iter("rect")] == [
        ("0.00", "250.00"),
        ("250.00", "750.00"),
    ]
    assert ["".join(each.itertext()) for each in drawn.iter("li")] == ["queue 1 s", "run 3 s"]


def test_nothing_is_drawn_without_a_whole():
    assert share("Phases", [Part("run", "run", 0, "0 s")]) == ""


def test_hostile_texts_stay_text_and_nothing_has_a_style():
    texts = Labels(HOSTILE, [HOSTILE], HOSTILE, HOSTILE, HOSTILE)
    drawn = [
        stacked(texts, [Series(HOSTILE, HOSTILE, [1])], lambda _: HOSTILE),
        lines(texts, [Series(HOSTILE, HOSTILE, [1])], lambda _: HOSTILE),
        share(HOSTILE, [Part(HOSTILE, HOSTILE, 1, HOSTILE)]),
    ]

    for each in drawn:
        tree = parsed(each)
        assert not [element.tag for element in tree.iter() if element.tag == "script"]
        assert not re.search(r"<script|style=|\son\w+=", str(each).replace("alert", ""))
