"""How large the fields of a module can be: far above real modules, and small enough to be read in a moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from config.mistakes import Wrong
from config.modules.endpoints import MAX_ENDPOINTS

MAX_ENTRIES: Final[Mapping[str, int]] = {
    "tags": 64,
    "channels": 64,
    "calls_modules": 64,
    "variables": 1000,
    "endpoints": MAX_ENDPOINTS,
    **dict.fromkeys(("requirements", "constraints", "dependencies"), 5000),
}
"""Entries of lists and mappings; the readers of secrets and schemas have limits of their own."""
MAX_TEXT: Final = 64 * 1024
"""Characters of a text, and of one within a list or mapping."""
_ANY_TEXT: Final = ("code", "requirements", "constraints", "dependencies")
"""Texts that may be as long as the body or file that contains them."""
_MAX_FIELDS: Final = 100


def oversized(data: Mapping[str, Any]) -> Iterator[Wrong]:
    """Yield the fields that are too large, without a look at what is in them."""
    if len(data) > _MAX_FIELDS:
        yield Wrong(f"has {len(data):,} fields; a module has at most {_MAX_FIELDS}", allowed=f"at most {_MAX_FIELDS}")
        return
    for name, value in data.items():
        most = MAX_ENTRIES.get(name)
        if isinstance(value, str):
            if len(value) > MAX_TEXT and name not in _ANY_TEXT:
                yield _long(value, (name,))
        elif most is not None and isinstance(value, (list, tuple, Mapping)):
            if len(value) > most:
                yield Wrong(f"has {len(value):,} entries; the limit is {most:,}", (name,), allowed=f"at most {most:,}")
                continue
            for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
                if isinstance(inner, str) and len(inner) > MAX_TEXT:
                    yield _long(inner, (name, key))


def _long(text: str, where: tuple[str | int, ...]) -> Wrong:
    return Wrong(f"has {len(text):,} characters; the limit is {MAX_TEXT:,}", where, allowed=f"at most {MAX_TEXT:,}")
