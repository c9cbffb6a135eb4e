"""Values of in-process handlers as strict JSON, by the definition for all other handlers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from protocol import values

_encode: Final[Callable[..., bytes]] = values.encode_value
_read: Final[Callable[[bytes], Any]] = values.read_json


class BadValueError(ValueError):
    """A value that JSON or Python cannot represent; `path` is its place: `$.rows[3].price`."""

    def __init__(self, path: str, reason: object) -> None:
        self.path = path
        super().__init__(f"{path}: {reason}")


def encode_value(
    value: object,
    *,
    limit: int | None = None,
    root: str = "$",
    store: Callable[[Any, str, str], dict[str, Any]] | None = None,
) -> bytes:
    """Return strict JSON as at most `limit` bytes. Raises BadValueError with the path, from `root`.

    `store` stores a buffer or a binary file, by its name and media type, and returns the object inside of `$file`.
    """
    try:
        return _encode(value, sys.maxsize if limit is None else limit, root, store)
    except values.BadOutput as problem:
        raise BadValueError(problem.path, problem) from None


def decode_input(data: bytes) -> Any:
    """Return an input as the handler gets it. Raises BadValueError for valid JSON that this Python cannot read."""
    try:
        return _read(data)
    except (ValueError, RecursionError, OverflowError) as problem:
        raise BadValueError(getattr(problem, "path", "$"), problem) from None
