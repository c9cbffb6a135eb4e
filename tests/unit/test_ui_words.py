"""Unit: every text of the dashboard has a Korean one, with the same names in braces, and none is left over."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import Environment, nodes

from runner.ui import words
from runner.ui.looks import ENTRIES
from runner.ui.refusals import TITLES
from runner.ui.views.operating.audit import ACTIONS
from runner.ui.views.operating.keys import SCOPES
from runner.ui.views.operating.notices import STATES
from runner.ui.words.words import KO

UI = Path(words.__file__).parents[1]
TEMPLATES = sorted((UI / "templates").glob("*.html"))
SOURCES = sorted(UI.rglob("*.py"))


def in_template(text: str) -> Iterator[str]:
    """Yield the texts that a template translates."""
    for call in Environment(autoescape=True).parse(text).find_all(nodes.Call):
        given = [each.value for each in call.args if isinstance(each, nodes.Const)]
        match call.node:
            case nodes.Name(name="t") if given:
                yield given[0]
            case nodes.Getattr(node=nodes.Name(name="t"), attr="plural"):
                yield given[-1]


def in_source(tree: ast.AST) -> Iterator[str]:
    """Yield the texts that a view translates, by `t` or `page.words`."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            given = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            match call.func:
                case ast.Name(id="t") | ast.Attribute(attr="words") if given:
                    yield given[0]
                case ast.Attribute(value=ast.Name(id="t") | ast.Attribute(attr="words"), attr="plural"):
                    yield given[-1]


def used() -> set[str]:
    found = {text for path in TEMPLATES for text in in_template(path.read_text())}
    found |= {text for path in SOURCES for text in in_source(ast.parse(path.read_text()))}
    found |= {text for each in (TITLES, ACTIONS, STATES, SCOPES) for text in each.values()}
    return found | {entry.text for entry in ENTRIES}


def names(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def test_every_text_is_translated_and_no_translation_is_left_over() -> None:
    assert sorted(used() - KO.keys()) == []
    assert sorted(KO.keys() - used()) == []


@pytest.mark.parametrize("text", sorted(KO), ids=lambda text: text[:40])
def test_a_translation_has_the_values_of_its_text_and_no_markup(text: str) -> None:
    assert names(KO[text]) == names(text)
    assert not set("<>&") & set(KO[text])
    assert KO[text] != text or not re.search(r"[a-z]{3}", text) or text == "API"


def test_texts_are_chosen_by_number_and_language() -> None:
    english, korean = words.of("en"), words.of("ko")
    assert [english.plural(n, "in {n} module", "in {n} modules") for n in (0, 1, 2000)] == [
        "in 0 modules",
        "in 1 module",
        "in 2,000 modules",
    ]
    assert korean.plural(1, "in {n} module", "in {n} modules") == "모듈 1개에서"
    assert english("All {n}", n="{x} <b>") == "All {x} <b>"
    assert korean("no such text") == "no such text"


@pytest.mark.parametrize(
    ("chosen", "accepted", "language"),
    [
        ("", "", "en"),
        ("", "ko-KR,ko;q=0.9,en-US;q=0.8", "ko"),
        ("", "en;q=0.5, ko;q=0.7", "ko"),
        ("", "fr, ko;q=0", "en"),
        ("", "fr;q=1, de", "en"),
        ("en", "ko", "en"),
        ("xx", "ko", "ko"),
        ("", "ko;q=nan, en;q=x", "en"),
        ("", "," * 100_000, "en"),
    ],
)
def test_the_language_is_the_chosen_or_the_accepted_one(chosen: str, accepted: str, language: str) -> None:
    assert words.choose(chosen, accepted).language == language
