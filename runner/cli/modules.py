"""The group `modules`: making modules here, and managing those of a running server."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from config.mistakes import ConfigError, Mistake
from protocol.model import Kind
from runner.cli.options import Commands, connection_options, told, with_client
from runner.status import INTERRUPTED

_READ, _WRITE, _ADMIN = ("modules:read",), ("modules:write",), ("admin",)
_KINDS = click.Choice([kind.value for kind in Kind])
_REVISION = re.compile(r"\*|[0-9]{1,18}")


@click.group(cls=Commands)
def modules() -> None:
    """Make, send and manage modules of a running server."""


@modules.command("init")
@click.argument("name")
@click.option("--env", default=Kind.INLINE.value, type=_KINDS, help="kind of environment  [inline]")
@click.option("--folder", default=None, metavar="DIR", help="where to write it  [./NAME]")
def init(name: str, env: str, folder: str | None) -> None:
    """Write a module to begin with; needs no server.

    Files that are there are left as they are: then nothing is written.
    """
    with told():
        from runner.client import make_starter  # noqa: PLC0415

        place = Path(name if folder is None else folder)
        files = make_starter(name, Kind(env), place)
        click.echo(f"{click.format_filename(place)}: {', '.join(files)}")
        click.echo(f"change handler.py, then: operato-runner modules push {shlex.quote(str(place))}", err=True)
        click.echo(f'and call it: operato-runner call {name} \'{{"name": "Ada"}}\'', err=True)


@modules.command("push")
@click.argument("target", metavar="FOLDER|FILE")
@click.option(
    "--name", default=None, metavar="NAME", help="of the module  [that of its fields, else of the folder or file]"
)
@click.option("--no-activate", is_flag=True, help="make the version only; calls get it when it is activated")
@click.option("--prepare", is_flag=True, help="build its environment and import it first; that may take minutes")
@click.option("--if-match", default=None, metavar="REVISION", help="only if the module is at it, as `show` says; * any")
@click.option("--no-check", is_flag=True, help="leave the check to the runner, whose Python or release is another")
@connection_options
def push(
    target: str,
    name: str | None,
    no_activate: bool,
    prepare: bool,
    if_match: str | None,
    no_check: bool,
    **options: Any,
) -> None:
    """Make a version of a module from files.

    A folder is sent without what is no code (.git, .venv, caches), a .zip as it is, a .py as a module of one file; a
    .yaml has the fields of one module with its code. Mistakes are told with file and line before anything is sent.

    Prints name and version, created or unchanged, active or not.
    """
    with told():
        from runner.client import modules as client_modules  # noqa: PLC0415
        from runner.client import read_module_files  # noqa: PLC0415

        match = _match(if_match)
        sent = read_module_files(Path(target), name, check=not no_check)

    async def work(client: Any) -> int:
        return await client_modules.push(client, sent, activate=not no_activate, prepare=prepare, match=match)

    with_client(options, _WRITE, work)


def _match(revision: str | None) -> str | None:
    if revision is None:
        return None
    given = revision.strip().strip('"')
    if not _REVISION.fullmatch(given):
        text = "is the revision that `operato-runner modules show NAME` tells, a number, or *"
        raise ConfigError([Mistake(text, None, None, "--if-match")])
    return given if given == "*" else f'"{given}"'


def _list_options(function: Any) -> Any:
    """Add what commands that print lists share: `limit`, `cursor`, `json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="print one JSON document instead of a table"),
        click.option("--cursor", default=None, metavar="CURSOR", help="go on where another list ended"),
        click.option(
            "--limit", default=500, type=click.IntRange(1, 100_000), metavar="N", help="at most so many  [500]"
        ),
    ):
        function = option(function)
    return function


@modules.command("list")
@click.option("--env", multiple=True, type=_KINDS, help="of this kind; can be given again")
@click.option("--tag", multiple=True, metavar="TAG", help="with this tag; can be given again for more tags")
@click.option("-q", "text", default=None, metavar="TEXT", help="with this in its name or description")
@_list_options
@connection_options
def list_(
    env: tuple[str, ...],
    tag: tuple[str, ...],
    text: str | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """List the modules that are served."""

    async def work(client: Any) -> int:
        from runner.client import modules as client_modules  # noqa: PLC0415

        filters = {"env": env, "tag": tag, "q": text}
        return await client_modules.listing(client, filters, limit, cursor, as_json=as_json)

    with_client(options, _READ, work)


@modules.command("show")
@click.argument("name")
@click.option("--version", default=None, metavar="VERSION", help="this version  [the active one]")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document instead of text")
@connection_options
def show(name: str, version: str | None, as_json: bool, **options: Any) -> None:
    """Show one module: its fields, revision, who published it.

    Its code, paths and the values of its variables are not told.
    """

    async def work(client: Any) -> int:
        from runner.client import modules as client_modules  # noqa: PLC0415

        return await client_modules.showing(client, name, version, as_json=as_json)

    with_client(options, _READ, work)


@modules.command("versions")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document instead of a table")
@connection_options
def versions(name: str, as_json: bool, **options: Any) -> None:
    """List the versions of a module, the newest first."""

    async def work(client: Any) -> int:
        from runner.client import modules as client_modules  # noqa: PLC0415

        return await client_modules.versions(client, name, as_json=as_json)

    with_client(options, _READ, work)


@modules.command("activate")
@click.argument("name")
@click.argument("version")
@click.option("--prepare", is_flag=True, help="build its environment and import it first; that may take minutes")
@connection_options
def activate(name: str, version: str, prepare: bool, **options: Any) -> None:
    """Let calls get another version, an older one too.

    Calls that run end on the version that they began with.
    """

    async def work(client: Any) -> int:
        from runner.client import modules as client_modules  # noqa: PLC0415

        return await client_modules.activate(client, name, version, prepare=prepare)

    with_client(options, _WRITE, work)


@modules.command("rm")
@click.argument("name")
@click.option("--version", default=None, metavar="VERSION", help="only this one, which is not active")
@click.option("--force", is_flag=True, help="cancel its executions that run or wait")
@click.option("--yes", is_flag=True, help="do not ask; needed where no terminal is")
@connection_options
def remove(name: str, version: str | None, force: bool, yes: bool, **options: Any) -> None:
    """Delete a module, or one of its versions.

    The record of its executions stays.
    """
    what = f"module {name!r} with all its versions" if version is None else f"version {version!r} of module {name!r}"
    with told():
        if not yes and not sys.stdin.isatty():
            raise ConfigError(
                [Mistake(f"is needed to delete {what}: there is no terminal to ask on", None, None, "--yes")]
            )
    if not yes and not click.confirm(f"delete {what}?", err=True):
        click.echo("nothing was deleted", err=True)
        sys.exit(INTERRUPTED)

    async def work(client: Any) -> int:
        from runner.client import modules as client_modules  # noqa: PLC0415

        return await client_modules.remove(client, name, version, force=force)

    with_client(options, _WRITE, work)


@modules.command("log")
@click.argument("name", metavar="[NAME]", default=None, required=False)
@_list_options
@connection_options
def log(name: str | None, limit: int, cursor: str | None, as_json: bool, **options: Any) -> None:
    """Show who changed modules, the newest first.

    Needs the scope admin.
    """

    async def work(client: Any) -> int:
        from runner.client import modules as client_modules  # noqa: PLC0415

        return await client_modules.changes(client, name, limit, cursor, as_json=as_json)

    with_client(options, _ADMIN, work)
