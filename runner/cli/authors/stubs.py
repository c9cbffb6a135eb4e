"""The group `client`: Python text for callers."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.options import Commands, connection_options, with_client

_READ = ("modules:read",)


@click.group("client", cls=Commands)
def client_commands() -> None:
    """Write typed Python functions that call a server."""


@client_commands.command("generate")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@connection_options()
def generate(names: tuple[str, ...], **options: Any) -> int:
    """Print a Python file with two typed functions for each module, or for those named.

    Example: operato-runner client generate > stubs.py

    NAME(client, ...) is for operato.Client, NAME_async(client, ...) for operato.AsyncClient, of the distribution
    operato-client. Types come from the input schemas and from the hints of handlers.
    """
    from runner.client import print_stubs

    return with_client(options, _READ, lambda client: print_stubs(client, names))
