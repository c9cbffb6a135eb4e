"""The work of the command `client generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click

from config.mistakes import did_you_mean
from protocol.errors import ErrorKind, error
from runner.client.connection import Client
from runner.client.lists import collect, read_items
from runner.client.stubs.text import Described, write_stubs

_MOST: Final = 100_000


async def print_stubs(client: Client, names: Sequence[str]) -> int:
    """Print the file for these modules, by default for all. Raises RunnerError."""
    items, _ = await collect(client, "/modules", {}, _MOST, None)
    modules = read_items(client, items, Described)
    known = {module.name: module for module in modules}
    for name in names:
        if name not in known:
            raise error(ErrorKind.NOT_FOUND, f"there is no module {name!r:.80}{did_you_mean(name, list(known))}")
    click.echo(write_stubs([known[name] for name in dict.fromkeys(names)] if names else modules), nl=False)
    return 0
