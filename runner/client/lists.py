"""Lists of a runner: read page by page, printed as a table or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import click
import msgspec

from protocol.views import MAX_PAGE
from runner.client.connection import Client, decode
from runner.terminal import printable, show_table

T = TypeVar("T")

MAX_PAGES = 200
"""Most pages read for one list: a page covers a bounded number of rows, and may be empty."""


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    cursor: str | None = None


async def collect(
    client: Client, path: str, filters: Mapping[str, object], limit: int, cursor: str | None
) -> tuple[list[msgspec.Raw], str | None]:
    """Return at most `limit` items of a list, and the next cursor. Raises RunnerError."""
    items: list[msgspec.Raw] = []
    for _ in range(MAX_PAGES):
        query = {**filters, "limit": min(MAX_PAGE, limit - len(items)), "cursor": cursor}
        page = (await client.request("GET", path, query=query)).read(_Page)
        items += page.items
        cursor = page.cursor
        if cursor is None or len(items) >= limit:
            break
    return items, cursor


def read_items(client: Client, items: Iterable[msgspec.Raw], kind: type[T]) -> list[T]:
    """Return the decoded items. Raises RunnerError."""
    return [decode(item, kind, client.address) for item in items]


def print_json(items: Sequence[msgspec.Raw], cursor: str | None) -> None:
    """Print a list as one JSON document, with its items unchanged."""
    click.echo(msgspec.json.encode({"items": items, "cursor": cursor}))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], cursor: str | None = None) -> None:
    """Print a list as a table, and the next cursor."""
    show_table([heads, *rows])
    if cursor is not None:
        click.echo(f"there may be more; continue with --cursor {printable(cursor)}", err=True)
