"""Finding the operations of a path, by the tree of the paths in the table of operations."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, TypeAlias

from config.paths import PathTree
from runner.http import WEBSOCKET
from runner.rest.openapi import Operation

_KNOWN: Final = 1024
"""Paths that are remembered: calls of a module come on one path."""
_KNOWN_BYTES: Final = 256
Match: TypeAlias = tuple[Operation, dict[str, str]]
"""An operation, and the names in the path."""


class Paths:
    """The operations of the table by path, as `PathTree` reads it."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._tree: PathTree[Operation] = PathTree()
        for operation in operations:
            self._tree.add(operation.path, operation)
        self._known = lru_cache(_KNOWN)(self._find)

    def find(self, raw_path: bytes) -> tuple[Match, ...]:
        """Return all operations at a path, words before names: `/modules/upload` may also be the module `upload`."""
        return self._known(raw_path) if len(raw_path) <= _KNOWN_BYTES else self._find(raw_path)

    def _find(self, raw_path: bytes) -> tuple[Match, ...]:
        return tuple(self._tree.find(raw_path.decode("latin-1")))


def choose(found: Iterable[Match], method: str) -> Match | None:
    """Return the operation for a method; HEAD is that of GET."""
    wanted = "GET" if method == "HEAD" else method
    return next((match for match in found if match[0].method == wanted), None)


def methods(found: Iterable[Match]) -> list[str]:
    """Return the methods of some operations for `Allow`. A websocket is opened by GET."""
    given = {"GET" if operation.method == WEBSOCKET else operation.method for operation, _ in found}
    return sorted(given | ({"HEAD"} if "GET" in given else set()) | {"OPTIONS"})
