"""A part of a form, as its parser finds it: its head, then its content."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from attrs import frozen

Piece = Callable[[], Awaitable[tuple[bytes, bool]]]
"""Returns the next bytes of a body, and whether more follow."""
FORM: Final = "multipart/form-data"
FORM_PARTS: Final = ("file", "archive")
"""Names of the part of a form with one file."""
STEP: Final = 16 * 1024
"""The most bytes that are parsed at once."""


@frozen
class Head:
    """The beginning of a part."""

    name: str | None
    filename: str | None
    """None: the part is a field. Empty: a browser sends so the file input of a form that is empty."""
    type: str


@frozen
class Content:
    """The next bytes of the part that began last."""

    data: bytes
    last: bool
