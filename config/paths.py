"""Paths with names in braces, and the tree of their segments that finds those of a request. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar
from urllib.parse import unquote

T = TypeVar("T")
_REST: Final = "...}"
"""The end of a name that stands for one or more segments, the last one of its path: `{rest...}`."""


class _Node(Generic[T]):
    """The paths that go on after some segments."""

    __slots__ = ("names", "rests", "values", "words")

    def __init__(self) -> None:
        self.words: dict[str, _Node[T]] = {}
        """By the next segment."""
        self.names: list[_Node[T]] = []
        """At most one: the paths whose next segment is a name."""
        self.values: list[tuple[T, tuple[str, ...]]] = []
        """Those of the paths that end here, with their names."""
        self.rests: list[tuple[T, tuple[str, ...]]] = []
        """Those of the paths whose last segment, the next one, is a name of one or more segments."""


class PathTree(Generic[T]):
    """Values by paths such as `/modules/{name}`, `/files/{rest...}`. Finding takes time by segments, not by paths.

    The path of a request is split at its slashes before its segments are decoded, once: `%2F` is a part of a name and
    never ends it, and `%2565` is the name `%65`. Nothing is skipped or joined, so `//modules` and `/modules/` are other
    paths.
    """

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, template: str, value: T) -> None:
        """Add a value; a template may have several."""
        node, names = self._root, list[str]()
        for segment in template.split("/")[1:]:
            if segment.startswith("{"):
                if segment.endswith(_REST):
                    node.rests.append((value, (*names, segment[1 : -len(_REST)])))
                    return
                names.append(segment[1:-1])
                if not node.names:
                    node.names.append(_Node())
                node = node.names[0]
            else:
                node = node.words.setdefault(segment, _Node())
        node.values.append((value, tuple(names)))

    def find(self, path: str) -> Iterator[tuple[T, dict[str, str]]]:
        """Yield all values of a path that is not decoded, with the names in it: words before names."""
        if path.startswith("/"):
            segments = path.split("/")[1:]
            if "%" in path:
                segments = [unquote(segment) for segment in segments]
            yield from _matches(self._root, segments, 0, ())

    def overlapping(self, template: str) -> Iterator[T]:
        """Yield the values of all templates that have a path in common with this one."""
        yield from _overlaps(self._root, template.split("/")[1:], 0)


def _matches(
    node: _Node[T], segments: list[str], at: int, names: tuple[str, ...]
) -> Iterator[tuple[T, dict[str, str]]]:
    if at == len(segments):
        for value, keys in node.values:
            yield value, dict(zip(keys, names, strict=True))
        return
    segment = segments[at]
    if (following := node.words.get(segment)) is not None:
        yield from _matches(following, segments, at + 1, names)
    if segment:
        for following in node.names:
            yield from _matches(following, segments, at + 1, (*names, segment))
        for value, keys in node.rests:
            yield value, dict(zip(keys, (*names, "/".join(segments[at:])), strict=True))


def _overlaps(node: _Node[T], segments: list[str], at: int) -> Iterator[T]:
    if at == len(segments):
        yield from (value for value, _ in node.values)
        return
    segment = segments[at]
    yield from (value for value, _ in node.rests)
    if segment.endswith(_REST):
        for following in (*node.words.values(), *node.names):
            yield from _below(following)
    elif segment.startswith("{"):
        for following in (*node.words.values(), *node.names):
            yield from _overlaps(following, segments, at + 1)
    else:
        for following in (*filter(None, [node.words.get(segment)]), *node.names):
            yield from _overlaps(following, segments, at + 1)


def _below(node: _Node[T]) -> Iterator[T]:
    """Yield all values of a node and of those after it."""
    yield from (value for value, _ in (*node.values, *node.rests))
    for following in (*node.words.values(), *node.names):
        yield from _below(following)
