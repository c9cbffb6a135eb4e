"""Text that agents and people read: without characters that are not seen, or change how others are seen."""

from __future__ import annotations

import unicodedata
from typing import Final

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_KEPT: Final = frozenset("\n\t\u200c\u200d")
"""Lines, and the joiners of letters and pictures."""


def plain(text: str) -> str:
    """Return a text without control characters, directions of writing, and characters that have no form."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(each for each in text if each in _KEPT or unicodedata.category(each) not in _HIDDEN)
