"""The group `client`, Python text for callers, and the command `rollback`."""

from __future__ import annotations

from typing import Any

import click

from runner.cli.options import Command, Commands, connection_options, with_client

_READ, _WRITE = ("modules:read",), ("modules:read", "modules:write", "modules:admin")


@click.command(cls=Command)
@click.argument("name")
@click.option("--to", "wanted", default=None, metavar="VERSION", help="this version  [the one published before]")
@click.option("--prepare", is_flag=True, help="first build its environment and import it; this may take minutes")
@click.option("--dry-run", is_flag=True, help="only print what would be activated")
@connection_options()
def rollback(name: str, wanted: str | None, prepare: bool, dry_run: bool, **options: Any) -> int:
    """Activate the version before.

    It is the version that was published before the active one. Prints which version replaces which, and the command
    that leads back. If somebody else changes the module at the same time, nothing is activated, and the exit code is 4.

    Running calls end on the version they began with.
    """
    from runner.client import rollback as work

    return with_client(options, _WRITE, lambda client: work(client, name, wanted, prepare=prepare, dry_run=dry_run))


@click.group("client", cls=Commands)
def client_commands() -> None:
    """Write typed Python functions that call a server."""


@client_commands.command("generate")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@connection_options()
def generate(names: tuple[str, ...], **options: Any) -> int:
    """Print typed functions for modules.

    The Python file has two for each module, or for those named.

    Example: operato-runner client generate > stubs.py

    NAME(client, ...) is for operato.Client, NAME_async(client, ...) for operato.AsyncClient, of the distribution
    operato-client. Types come from the input schemas and from the hints of handlers.
    """
    from runner.client import print_stubs

    return with_client(options, _READ, lambda client: print_stubs(client, names))
