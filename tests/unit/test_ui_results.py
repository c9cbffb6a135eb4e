"""Unit: inputs and results as pages show them: of bounded size, with everything that is left out counted."""

import json

import pytest

from runner.ui.results import MAX_PARSED, picture_type, pretty, shown


def dumped(value):
    return json.dumps(value, ensure_ascii=False).encode()


def test_a_tree_has_the_sorts_of_its_values():
    tree = shown(dumped({"a": [1, 2.5, True, None, "text"], "empty": {}})).tree

    assert (tree.sort, tree.size) == ("object", 2)
    numbers = tree.items[0]
    assert (numbers.key, numbers.sort) == ("a", "array")
    assert [(item.sort, item.text) for item in numbers.items] == [
        ("number", "1"),
        ("number", "2.5"),
        ("word", "true"),
        ("word", "null"),
        ("text", "text"),
    ]
    assert (tree.items[1].sort, tree.items[1].size, tree.items[1].left) == ("object", 0, 0)


def test_nothing_is_hidden_in_texts_and_keys():
    tree = shown(dumped({"k\u202e": "\x00\u2066x"})).tree
    assert (tree.items[0].key, tree.items[0].text) == ("k[U+202E]", "␀[U+2066]x")


def nodes(node):
    return 1 + sum(map(nodes, node.items))


@pytest.mark.parametrize(
    "value",
    [
        list(range(10_000)),
        {str(n): [n] * 100 for n in range(1000)},
        json.loads("[" * 300 + "]" * 300),
        ["x" * 100_000] * 5,
        {"k" * 10_000: 1},
        [[{"a": [1, 2, [3]]}] * 200] * 20,
    ],
    ids=["long", "wide", "deep", "text", "key", "nested"],
)
def test_a_tree_is_small_and_counts_what_it_leaves_out(value):
    found = shown(dumped(value))
    assert nodes(found.tree) <= 301

    def check(node):
        if node.sort in ("object", "array"):
            assert node.size == len(node.items) + node.left
        assert len(node.text) <= 700
        assert len(node.key or "") <= 101
        for item in node.items:
            check(item)

    check(found.tree)


def test_large_json_shows_its_beginning():
    found = shown(b'"' + b"\x1bx" * MAX_PARSED + b'"')
    assert (found.tree, found.table, found.text) == (None, None, None)
    assert found.beginning.startswith('"␛x')
    assert len(found.beginning) == 2000


def test_a_long_text_is_shown_as_it_is():
    found = shown(dumped("first\nsecond"))
    assert (found.text.text, found.text.left) == ("first\nsecond", 0)
    cut = shown(dumped("x" * 10_000)).text
    assert (len(cut.text), cut.left) == (8000, 2000)
    assert shown(dumped("short")).tree.text == "short"


def test_flat_objects_become_a_table():
    found = shown(dumped([{"name": "a", "n": 1}, {"name": "b<i>", "more": None}, *[{"n": n} for n in range(98)]])).table
    assert (found.columns, found.numeric, found.total) == (("name", "n", "more"), (False, True, False), 100)
    assert len(found.rows) == 50
    assert [cell and cell.text for cell in found.rows[1]] == ["b<i>", None, "null"]
    wide = shown(dumped([dict.fromkeys(map(str, range(30)), 1)] * 2)).table
    assert (len(wide.columns), wide.more_columns) == (12, 18)


@pytest.mark.parametrize(
    "value", [[], [{"a": 1}], [{"a": [1]}, {"a": 2}], [{}, {}], [1, 2], {"a": {"b": 1}}, [{"a": 1}, 5]]
)
def test_what_is_no_table(value):
    found = shown(dumped(value))
    assert found.table is None
    assert found.tree is not None


def test_files_are_found_wherever_they_are():
    one = {"$file": {"id": "sha256:1", "name": "a\u202e.png", "type": "image/png; x", "size": 5}}
    two = {"$file": {"id": "sha256:2", "type": "text/html"}}
    found = shown(dumped({"deep": [[one], {"x": two}], "again": one, "no": {"$file": {"name": "x"}, "more": 1}}))

    assert [(file.id, file.name, file.type, file.size, file.picture) for file in found.files] == [
        ("sha256:1", "a\u202e.png", "image/png", 5, True),
        ("sha256:2", "file", "text/html", None, False),
    ]
    assert [item.sort for item in found.tree.items[0].items[0].items] == ["file"]
    many = shown(dumped([{"$file": {"id": str(n), "type": "image/png"}} for n in range(60)]))
    assert (len(many.files), many.more_files, sum(file.picture for file in many.files)) == (50, True, 8)


def test_an_input_to_edit():
    assert pretty(b'{"a":[1]}', 100) == '{\n  "a": [\n    1\n  ]\n}'
    assert pretty(b'"' + b"x" * 100 + b'"', 100) is None


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n" + b"x" * 8, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x00\x00\x00\x00WAVE", None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", None),
        (b"<html>", None),
        (b"", None),
        (b"BM", None),
    ],
)
def test_pictures_are_known_by_their_content(beginning, kind):
    assert picture_type(beginning) == kind
