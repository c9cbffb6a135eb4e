"""The form of API keys: `opk_`, an identifier that lists and logs show, and a secret of 192 bits."""

from __future__ import annotations

import re
from typing import Final

PREFIX: Final = "opk_"
ID: Final = re.compile(r"[0-9a-f]{10}")
KEY: Final = re.compile(r"opk_([0-9a-f]{10})_[0-9a-f]{48}")
SECRET_BYTES: Final = 24
ID_BYTES: Final = 5


def without_secrets(text: str) -> str:
    """Return a text with the identifiers of API keys in place of the keys."""
    return KEY.sub(r"opk_\1_***", text) if PREFIX in text else text
