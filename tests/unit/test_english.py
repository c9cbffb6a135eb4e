"""Unit: plain English: phrases that readers stumble over are in no code, test or document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("runner", "actors", "environments", "config", "protocol", "packaging", "tests", "docs")
GENERATED = ROOT / "protocol" / "rpc"
FILES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    if path.suffix in {".md", ".py"} and path != Path(__file__) and not path.is_relative_to(GENERATED)
)
PHRASES = (
    r"\b[Ww]hoever\b",
    r"\b[Ww]hatever\b",
    r"\b[Ww]ho (may|asks|has|can|wants|is|does|looks|prints|calls|comes|reads)\b",
    r"\b(is|are|was|were|be|been) (told|said|held)\b",
    r"\b[Ww]hat (is|was|has|may) [a-z]+(ed|en)?\b.* (is|are|has|goes|stays)\b",
    r"\b[Ww]hat (was|is) (answered|accepted|asked|told|said|given|written|kept|meant)\b",
    r"\bthe one that\b.*\bthe one that\b",
    r"\b[Ww]here it cannot be\b",
    r"\b[Nn]obody\b(?![\":/-])",  # the word, not the user of that name
    r"\bwithout a word\b",
    r"\bsays so\b",
    r"\bknows of no\b",
    r"\bis none\b",
    r"\bcomes to\b",
    r"\bgoes on\b",
)
"""Relative clauses in the place of nouns, and vague verbs. Write a noun, an active verb, and the subject first."""
HARD = re.compile("|".join(PHRASES))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_no_phrase_of_hard_english(path):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (match := HARD.search(line))
    ]

    assert not found, "\n".join(found)
