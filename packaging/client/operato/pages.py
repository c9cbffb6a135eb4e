"""Lists of the runner, read page by page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from operato.connection import Link
from operato.streams import AsyncStream

T = TypeVar("T")

_PAGE = 100


def pages(
    link: Link, path: str, filters: Mapping[str, Any], limit: int | None, made: Callable[[dict[str, Any]], T]
) -> AsyncStream[T]:
    """Yield at most `limit` items of a list; the next page is asked for when the last one was read."""
    pages = _Pages(link, path, filters, limit, made)
    return AsyncStream(pages.take, pages.close)


class _Pages:
    def __init__(
        self,
        link: Link,
        path: str,
        filters: Mapping[str, Any],
        limit: int | None,
        made: Callable[[dict[str, Any]], Any],
    ) -> None:
        self._link = link
        self._path = path
        self._filters = filters
        self._left = limit
        self._made = made
        self._items: list[dict[str, Any]] = []
        self._cursor: Any = None
        self._asked = False

    async def take(self) -> Any:
        """Return the next item, None after the last one. A page may be empty and still have a cursor."""
        if self._left == 0:
            return None
        while not self._items:
            if self._asked and self._cursor is None:
                return None
            most = _PAGE if self._left is None else min(_PAGE, self._left)
            page = await self._link.json(
                "GET", self._path, query={**self._filters, "limit": most, "cursor": self._cursor}
            )
            self._items, self._cursor, self._asked = page["items"][::-1], page.get("cursor"), True
        if self._left is not None:
            self._left -= 1
        return self._made(self._items.pop())

    async def close(self) -> None:
        """End the list; it has no connection of its own."""
        self._items, self._cursor, self._asked = [], None, True
