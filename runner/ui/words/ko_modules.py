"""Korean: modules."""

from typing import Final

MODULES: Final[dict[str, str]] = {}
