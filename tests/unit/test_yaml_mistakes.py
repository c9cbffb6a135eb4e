"""Unit: mistakes in YAML in plain words, with the line to change and the remedy, wherever YAML is read."""

from __future__ import annotations

import random
import re

import pytest
import yaml

from config.mistakes import ConfigError, Mistake, Wrong, parse_yaml
from config.mistakes.plain import explain
from config.mistakes.wrong import MOST_MISTAKES, MOST_TEXT
from config.modules import module_from_archive, read_modules

JARGON = re.compile(
    r"mapping values|block (mapping|collection|end|sequence)|flow (mapping|sequence|node)|simple key|scalar|token|"
    r"while (scanning|parsing)|expected <|could not find|node content|stream|alias|anchor|document start"
)
CODE = "    code: |\n      def handler(input):\n          return input\n"
TOP = "modules:\n  - name: a\n"


def refused_for(text):
    """Return the message about a text and its line."""
    with pytest.raises(Wrong) as caught:
        parse_yaml(text)
    message = caught.value.message
    assert message.startswith("is not valid YAML: ")
    assert not JARGON.search(message)
    return message.removeprefix("is not valid YAML: "), caught.value.line


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        # A colon is missing.
        (TOP + "    timeout 5s\n" + CODE, 3, "this line has no colon after `timeout`; write `timeout: 5s`"),
        (TOP + "    timeout:5s\n" + CODE, 3, "this line has no space after the colon; write `timeout: 5s`"),
        ("modules:\n  - name:a\n" + CODE, 2, "this line has no space after the colon; write `name: a`"),
        ("modules\n  - name: a\n" + CODE, 1, "this line has no colon after `modules`; write `modules:`"),
        (TOP + "    code |\n      def handler(input): return input\n", 3, "write `code: |`"),
        ("modules:\n  -name: a\n   code: x\n", 2, "this line has no space after the dash; write `- name: a`"),
        # Tabs.
        (TOP + "\ttimeout: 5s\n" + CODE, 3, "this line begins with a tab; indent with spaces instead"),
        (TOP + "    timeout:\t5s\n" + CODE, 3, "this line has a tab after `timeout:`; write a space instead"),
        (TOP + "    code: |\n      def handler(input):\n\t  return 1\n", 5, "this line begins with a tab"),
        # Indentation.
        (TOP + "     timeout: 5s\n" + CODE, 3, "this line is indented by 5, so it continues the value of `name`"),
        (TOP + "   timeout: 5s\n" + CODE, 3, "indented by 3 spaces, which fits no line above; indent it by 4 or 2"),
        (TOP + CODE + "     timeout: 3s\n", 6, "indented by 5 spaces, which fits no line above"),
        (TOP + CODE + " runner:\n   rest_port: 1\n", 6, "indented by 1 spaces, which fits no line above"),
        ("modules:\n  a: 1\n  - b\n", 3, "this line is an entry of a list"),
        (
            TOP + "    tags: - x\n" + CODE,
            3,
            "a list cannot begin in the line of its name; write it below, or as [a, b]",
        ),
        # Code is not under `|`.
        (TOP + "    code:\n      import os\n      def handler(input):\n        return 1\n", 3, "write `code: |`"),
        (TOP + "    code: def handler(input): return input\n", 3, "write `code: |` and the text below it, indented"),
        (TOP + "    code: |\n    def handler(input):\n        return 1\n", 4, "indent the lines below `code: |`"),
        (TOP + "    code: |\ndef handler(input):\n    return 1\n", 4, "indent the lines below `code: |` more than"),
        (TOP + "    code: |\n      def handler(input):\n    return 1\n", 5, "indented less than the first line below"),
        (TOP + "    code: | def handler(input): return 1\n", 3, "there is text behind `|`"),
        # Quotes and brackets.
        (TOP + '    description: "hello\n' + CODE, 3, 'the quote " in column 18 is not closed; close it in this line'),
        (TOP + '    description: "hello\n    version: "2"\n' + CODE, 3, 'the quote " in column 18 is not closed'),
        (TOP + "    description: 'it's five'\n" + CODE, 3, "there is text after the closing '; within ' write"),
        (TOP + '    description: "C:\\data"\n' + CODE, 3, "a backslash has a meaning of its own"),
        (TOP + "    requirements: [numpy, pandas\n" + CODE, 3, "the [ in column 19 has no ]; add it, or a comma"),
        (TOP + "    variables: {A: 1\n" + CODE, 3, "the { in column 16 has no }"),
        (TOP + "    tags: ]\n" + CODE, 3, "this line has a ] that closes nothing; remove it"),
        # Values that need quotes.
        (TOP + "    description: mind: the gap\n" + CODE, 3, "`description` has a colon and a space in it; put it in"),
        (TOP + "    description: @home\n" + CODE, 3, "a value cannot begin with @; put it in quotes"),
        (TOP + "    description: %d\n" + CODE, 3, "a value cannot begin with %; put it in quotes"),
        (TOP + "    description: *.py\n" + CODE, 3, "a value cannot begin with *; put it in quotes"),
        (TOP + "    description: *all\n" + CODE, 3, "*all repeats the value marked &all, which does not exist"),
        ("modules: []\n---\nmodules: []\n", 2, "this line begins a second document; remove the line ---"),
    ],
)
def test_a_mistake_names_the_line_to_change_and_the_remedy(text, line, words):
    message, found = refused_for(text)

    assert words in message
    assert found == line


GOOD = (
    'modules:\n  - name: a\n    tags: [x, "y"]\n    variables: {A: 1}\n    description: it\n'
    + CODE
    + "runner:\n  rest_port: 1\n"
)


def refusal(text):
    try:
        parse_yaml(text)
    except Wrong as wrong:
        return wrong
    return None


@pytest.mark.parametrize("inserted", ["", "\t", ":", '"', "'", "[", "}", "*", "- ", "\n", "|", "%", "&", "? ", "! "])
def test_every_mistake_is_explained_without_the_words_of_the_parser(inserted):
    """Each place of a file in turn gets a character too many or too few."""
    texts = [GOOD[:at] + inserted + GOOD[at + (not inserted) :] for at in range(len(GOOD))]
    refused = [wrong for text in texts if (wrong := refusal(text)) is not None]

    assert refused
    assert [wrong.message for wrong in refused if JARGON.search(wrong.message) or wrong.line is None] == []
    if inserted not in {"? ", "! ", "|", "\n", "&", "*"}:  # rare accidents
        assert [wrong.message for wrong in refused if "cannot be read; check" in wrong.message] == []


def test_an_error_of_the_parser_without_a_place_is_worded_too():
    error = yaml.MarkedYAMLError(problem="unheard of")

    assert explain("a: 1", error) == (
        "this line cannot be read; check indentation, colons, quotes and brackets, here and in the line above",
        None,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- name: a\n  env: inline\n", "contains a list where a mapping with `modules:` is expected; write `modules:`"),
        ("modules:\n  name: a\n  code: x\n", "write `- ` before the first one: a list of modules"),
        ("rest_port: 1\nmodules: []\n", "write settings below `runner:`"),
        ("timeout: 1\nmodules: []\n", "a field of a module belongs below `modules:`"),
        ("modules: {a: {variables: [A: 1]}}\n", "write lines `NAME: value` without dashes"),
        ("modules: []\nmodules: []\n", "is given twice, first in line 1"),
    ],
)
def test_a_list_or_mapping_in_the_wrong_place_has_its_remedy(tmp_path, text, words):
    file = tmp_path / "modules.yaml"
    file.write_text(text)

    assert any(words in str(mistake) for mistake in read_modules(file)[1])


def test_the_description_of_an_upload_is_explained_alike():
    with pytest.raises(ConfigError) as caught:
        module_from_archive({"module.yaml": b"name: a\ntimeout 5s\nenv: inline\n", "handler.py": b""})

    assert str(caught.value) == (
        "module.yaml:2: is not valid YAML: this line has no colon after `timeout`; write `timeout: 5s`"
    )


def test_an_environment_file_is_explained_alike(tmp_path):
    (tmp_path / "environment.yml").write_text("channels: [a]\ndependencies\n  - numpy\n")
    file = tmp_path / "modules.yaml"
    file.write_text("modules: [{name: a, env: conda, dependencies: environment.yml, code: 'def handler(i, /): ...'}]")

    assert any(
        "environment.yml:2: is not valid YAML: this line has no colon after `dependencies`" in str(mistake)
        for mistake in read_modules(file)[1]
    )


# -- values that YAML reads as others ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"), [("010", 10), ("0o10", "0o10"), ("1:30", "1:30"), ("1_000", 1000), ("-07", -7), ("0x10", 16)]
)
def test_numbers_are_read_as_they_are_written(written, value):
    assert parse_yaml(f"a: {written}").value == {"a": value}


def test_yes_and_no_in_a_schema_are_told():
    document = parse_yaml("input_schema: {enum: [yes, no, true, 'off']}\nreload: yes")

    assert [(wrong.where, wrong.line) for wrong in document.wrongs] == [
        (("input_schema", "enum", 0), 1),
        (("input_schema", "enum", 1), 1),
    ]
    assert "yes means true in YAML; put it in quotes" in document.wrongs[0].message
    assert document.value["reload"] is True


PARTS = [
    *"a:[]{}'\"|# \t?%1~@\n\x85\u2028\ufeffé",
    "b: ",
    "- ",
    "\n  ",
    "\n    ",
    "|\n",
    ">\n",
    "&x ",
    "*x",
    "!!str ",
    "!t ",
]
PARTS += ["? ", "---", "...", "<<: ", "0x1f", "yes", "null", "1:30", "\\n", "\r\n", ", ", "name: ", "code: |\n  x\n"]
PARTS += ["a: b\n", "1.5", "|-\n  z\n", "2001-01-01"]


def read_by(parser, text, monkeypatch):
    """Return all that is known of a text that this parser reads, the one in Python where it is None."""
    monkeypatch.setattr("config.mistakes.document._FAST", parser)
    try:
        found = parse_yaml(text)
    except Wrong as wrong:
        return str(wrong), wrong.line
    return found.value, found.lines, found.texts, found.blocks, [(str(w), w.where, w.line) for w in found.wrongs]


@pytest.mark.parametrize("seed", range(4))
def test_the_parser_in_c_reads_the_same(seed, monkeypatch):
    chosen = random.Random(seed)
    for _ in range(500):
        text = "".join(chosen.choices(PARTS, k=chosen.randint(1, 12)))
        assert read_by(yaml.CSafeLoader, text, monkeypatch) == read_by(None, text, monkeypatch), repr(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 20_000 + "]" * 20_000, "- " * 50_000 + "x", "{a: " * 20_000])
def test_very_deep_nesting_is_refused(text):
    """The parser in C alone would end the process."""
    with pytest.raises(Wrong, match="nested"):
        parse_yaml(text)


def test_a_byte_order_mark_before_an_open_bracket():
    message, line = refused_for("\ufeff[a")
    assert (message.partition(";")[0], line) == ("this line cannot be read", 1)


def test_very_many_mistakes_are_bounded_and_counted():
    text = "name: a\nenv: inline\ntags:\n" + "- !x y\n" * 9000
    with pytest.raises(ConfigError) as caught:
        module_from_archive({"module.yaml": text.encode(), "main.py": b"def handler(input): return 1"})
    *shown, last = str(caught.value).splitlines()
    assert len(shown) == MOST_MISTAKES
    assert last == f"{9000 - MOST_MISTAKES} more mistakes are not shown"


def test_the_text_of_mistakes_is_bounded():
    error = ConfigError(Mistake("x" * 30_000, None, None, "y" * 30_000) for _ in range(100_000))
    assert len(str(error)) < 3 * MOST_TEXT
    assert "more mistakes are not shown" in str(error)
