"""The size of a page: the same limits for every list, whichever way it is read."""

from __future__ import annotations

from typing import Final

MAX_PAGE: Final = 500
DEFAULT_PAGE: Final = 50
