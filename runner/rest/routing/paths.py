"""Finding the operations of a path: a tree of its segments, made from the table of operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, TypeAlias
from urllib.parse import unquote

from attrs import field, frozen

from runner.http import WEBSOCKET
from runner.rest.openapi import Operation

_KNOWN: Final = 1024
"""Paths that are remembered: calls of a module come on one path."""
_KNOWN_BYTES: Final = 256
Match: TypeAlias = tuple[Operation, dict[str, str]]
"""An operation, and the names in the path."""


@frozen
class _Node:
    """The paths that go on after some segments."""

    words: dict[str, _Node] = field(factory=dict)
    """By the next segment."""
    names: list[_Node] = field(factory=list)
    """At most one: the paths whose next segment is a name."""
    operations: list[tuple[Operation, tuple[str, ...]]] = field(factory=list)
    """Those whose path ends here, with the names of the names in it."""


class Paths:
    """The operations of the table by path.

    A path is split at its slashes before its segments are decoded, once: `%2F` is a part of a name and never ends it,
    and `%2565` is the name `%65`. Nothing is skipped or joined, so `//modules` and `/modules/` are other paths.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._root = _Node()
        for operation in operations:
            self._add(operation)
        self._known = lru_cache(_KNOWN)(self._find)

    def _add(self, operation: Operation) -> None:
        node, names = self._root, []
        for segment in operation.path.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment[1:-1])
                if not node.names:
                    node.names.append(_Node())
                node = node.names[0]
            else:
                node = node.words.setdefault(segment, _Node())
        node.operations.append((operation, tuple(names)))

    def find(self, raw_path: bytes) -> tuple[Match, ...]:
        """Return all operations at a path, words before names: `/modules/upload` may also be the module `upload`."""
        return self._known(raw_path) if len(raw_path) <= _KNOWN_BYTES else self._find(raw_path)

    def _find(self, raw_path: bytes) -> tuple[Match, ...]:
        path = raw_path.decode("latin-1")
        if not path.startswith("/"):
            return ()
        segments = path.split("/")[1:]
        if "%" in path:
            segments = [unquote(segment) for segment in segments]
        return tuple(_matches(self._root, segments, 0, ()))


def _matches(node: _Node, segments: list[str], at: int, names: tuple[str, ...]) -> Iterator[Match]:
    if at == len(segments):
        for operation, keys in node.operations:
            yield operation, dict(zip(keys, names, strict=True))
        return
    segment = segments[at]
    if (following := node.words.get(segment)) is not None:
        yield from _matches(following, segments, at + 1, names)
    if segment:
        for following in node.names:
            yield from _matches(following, segments, at + 1, (*names, segment))


def choose(found: Iterable[Match], method: str) -> Match | None:
    """Return the operation for a method; HEAD is that of GET."""
    wanted = "GET" if method == "HEAD" else method
    return next((match for match in found if match[0].method == wanted), None)


def methods(found: Iterable[Match]) -> list[str]:
    """Return the methods of some operations for `Allow`. A websocket is opened by GET."""
    given = {"GET" if operation.method == WEBSOCKET else operation.method for operation, _ in found}
    return sorted(given | ({"HEAD"} if "GET" in given else set()) | {"OPTIONS"})
