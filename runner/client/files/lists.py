"""The work of the commands `files list`, `rm` and `gc`."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from runner.client.connection import Client, segment
from runner.client.lists import collect, print_json, print_table, read_items
from runner.terminal import size, time_of


class _Listed(msgspec.Struct):
    id: str
    name: str = ""
    type: str = ""
    size: int = 0
    created_at: float = 0.0


class _Collected(msgspec.Struct):
    files: int
    bytes: int


async def list_files(client: Client, limit: int, cursor: str | None, *, as_json: bool) -> int:
    """Print at most `limit` files, newest first, and the next cursor. Raises RunnerError."""
    items, cursor = await collect(client, "/files", {}, limit, cursor)
    if as_json:
        print_json(items, cursor)
    else:
        rows = [
            (file.id, size(file.size), time_of(file.created_at), file.type, file.name)
            for file in read_items(client, items, _Listed)
        ]
        print_table(("ID", "SIZE", "UPLOADED", "TYPE", "NAME"), rows, cursor)
    return 0


async def remove_files(client: Client, names: Sequence[str]) -> int:
    """Delete files one after another. Raises RunnerError."""
    for name in names:
        await client.request("DELETE", f"/files/{segment(name)}")
    return 0


async def collect_files(client: Client) -> int:
    """Delete the files that no execution uses, and print how many these were. Raises RunnerError."""
    found = (await client.request("POST", "/files/gc")).read(_Collected)
    click.echo(f"{found.files} files deleted, {size(found.bytes)}")
    return 0
