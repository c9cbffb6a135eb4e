"""Lists of a runner: read page by page, printed as a table or as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import click
import msgspec

from protocol.views import MAX_PAGE
from runner.client.connection import Client, decode
from runner.terminal import age, printable, show_table

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


class _Node(msgspec.Struct):
    node: str
    this: bool
    release: str
    labels: tuple[str, ...]
    busy: int
    places: int
    running: int
    queued: int
    lag: int
    draining: bool
    started_at: float


class _Cluster(msgspec.Struct):
    node: str | None
    connected: bool | None
    items: tuple[_Node, ...]


async def list_nodes(client: Client, *, as_json: bool) -> int:
    """Print the runners of a cluster; 0, or 1 without a connection to its servers. Raises RunnerError."""
    answer = await client.request("GET", "/nodes")
    found = answer.read(_Cluster)
    if as_json:
        click.echo(answer.body)
        return 0
    if found.node is None:
        click.echo("this runner is in no cluster; the setting `cluster` makes it a part of one", err=True)
        return 0
    heads = ("NODE", "RELEASE", "BUSY", "RUNNING", "QUEUED", "LAG", "UP", "LABELS", "STATE")
    print_table(heads, [_node_row(each) for each in found.items])
    if not found.connected:
        click.echo(f"{found.node} has no connection to the servers of the cluster: this is as it was before", err=True)
        return 1
    return 0


def _node_row(node: _Node) -> tuple[str, ...]:
    state = " ".join(word for word, holds in (("here", node.this), ("draining", node.draining)) if holds)
    up, busy = age(time.time() - node.started_at), f"{node.busy}/{node.places}"
    shown = (node.node, node.release, busy, str(node.running), str(node.queued), str(node.lag), up)
    return tuple(printable(cell) for cell in (*shown, ",".join(node.labels) or "-", state or "-"))
