"""The group `files`: the files of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from runner.cli.options import Commands, connection_options, list_options, with_client

_READ, _WRITE, _ADMIN = ("files:read",), ("files:write",), ("admin",)


@click.group(cls=Commands)
def files() -> None:
    """Upload, download, list and delete files of a running server."""


@files.command("put")
@click.argument("path", metavar="FILE|-")
@click.option("--name", default=None, metavar="NAME", help="its name on the server  [that of FILE]")
@click.option("--type", "media_type", default=None, metavar="TYPE", help="its media type  [by the name]")
@connection_options()
def put(path: str, name: str | None, media_type: str | None, **options: Any) -> int:
    """Upload FILE, or standard input.

    Prints the object that names it in an input: {"$file": {"id": "sha256:...", ...}}
    """
    from runner.client import put_file

    place = None if path == "-" else Path(path)
    return with_client(options, _WRITE, lambda client: put_file(client, place, name, media_type))


@files.command("get")
@click.argument("identity", metavar="ID")
@click.option("-o", "--output", default=None, metavar="FILE", help="write to this file  [standard output]")
@connection_options()
def get(identity: str, output: str | None, **options: Any) -> int:
    """Download a file.

    With -o, FILE is replaced when the download is complete and its digest is right.
    """
    from runner.client import get_file

    place = None if output is None or output == "-" else Path(output)
    return with_client(options, _READ, lambda client: get_file(client, identity, place))


@files.command("list")
@list_options(50)
@connection_options()
def list_(limit: int, cursor: str | None, as_json: bool, **options: Any) -> int:
    """List files, newest first."""
    from runner.client import list_files

    return with_client(options, _READ, lambda client: list_files(client, limit, cursor, as_json=as_json))


@files.command("rm")
@click.argument("identities", metavar="ID...", nargs=-1, required=True)
@connection_options()
def remove(identities: tuple[str, ...], **options: Any) -> int:
    """Delete files that no execution uses."""
    from runner.client import remove_files

    return with_client(options, _WRITE, lambda client: remove_files(client, identities))


@files.command("gc")
@connection_options()
def gc(**options: Any) -> int:
    """Delete the files now that the server deletes once an hour.

    These are the files that no execution of the history uses and that are older than `file_retention`.
    """
    from runner.client import collect_files

    return with_client(options, _ADMIN, collect_files)
