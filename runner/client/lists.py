"""Lists that a runner gives page by page, and how they are shown to people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import click
import msgspec

from protocol.pages import MAX_PAGE
from runner.client.connection import Client, printable
from runner.client.trouble import not_a_runner

T = TypeVar("T")

MAX_PAGES = 200
"""Pages that one list looks at; each looks at a bounded number of rows, and may be empty."""


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    cursor: str | None = None


async def collect(
    client: Client, path: str, filters: Mapping[str, object], limit: int, cursor: str | None
) -> tuple[list[msgspec.Raw], str | None]:
    """Return at most `limit` items of a route's list, and the cursor to go on with. Raises RunnerError."""
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
    """Return the items as values. Raises RunnerError when they are not what a runner says."""
    try:
        return [msgspec.json.decode(item, type=kind) for item in items]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise not_a_runner(client.address, "its answer cannot be read") from None


def print_json(items: Sequence[msgspec.Raw], cursor: str | None) -> None:
    """Print a list as one document, its items as they came."""
    click.echo(msgspec.json.encode({"items": items, "cursor": cursor}))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], cursor: str | None = None) -> None:
    """Print a list for people, and where to go on."""
    click.echo(table([heads, *rows]), nl=False)
    if cursor is not None:
        click.echo(f"there may be more: --cursor {printable(cursor)}", err=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines, each with as many cells as the first, one under the other."""
    shown = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in shown) for at in range(len(shown[0]))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in shown)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def one_line(text: str) -> str:
    """Return text without what would steer a terminal, on one line."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def time_of(seconds: float | None) -> str:
    """Return a time in seconds since 1970 as people read it, in UTC."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
