"""The group `modules`: write a module, and manage the modules of a running server."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from config.mistakes import ConfigError, Mistake
from protocol.model import Kind
from runner.cli.options import Commands, connection_options, json_option, list_options, with_client
from runner.status import INTERRUPTED

_READ, _WRITE, _ADMIN = ("modules:read",), ("modules:write", "modules:admin"), ("admin",)
_KINDS = click.Choice([kind.value for kind in Kind])
_REVISION = re.compile(r"\*|[0-9]{1,18}")
_prepare = click.option(
    "--prepare", is_flag=True, help="first build its environment and import it; this may take minutes"
)


@click.group(cls=Commands)
def modules() -> None:
    """Write, push and manage modules of a running server."""


@modules.command("init")
@click.argument("name", metavar="[NAME]", default=None, required=False)
@click.option("--env", default=None, type=_KINDS, help="kind of environment  [inline]")
@click.option("--folder", default=None, metavar="DIR", help="folder to write to  [./NAME]")
@click.option("--from", "script", default=None, metavar="FILE", help="make a module of one file from this script")
@click.option(
    "--function", default=None, metavar="NAME", help="with --from: call this one  [handler, main or the only one]"
)
def init(name: str | None, env: str | None, folder: str | None, script: str | None, function: str | None) -> int:
    """Write the files of a new module, without a server.

    With --from, the script is copied, with a block of comments that makes it a module: its packages, as far as its
    imports tell, and the function to call. NAME is then that of the script.

    If one of the files exists, nothing is written.
    """
    if script is not None:
        if env is not None:
            raise click.UsageError("--env is for a starter; the packages of a script decide its environment")
        from runner.cli.authors import write_script

        return write_script(Path(script), name, function, folder)
    if function is not None:
        raise click.UsageError("--function is a function of the script in --from")
    if name is None:
        raise click.UsageError("Missing argument 'NAME'.")
    from runner.cli.module_files import make_starter

    place = Path(name if folder is None else folder)
    files = make_starter(name, Kind(env or Kind.INLINE), place)
    click.echo(f"{click.format_filename(place)}: {', '.join(files)}")
    click.echo(f"edit handler.py, then: operato-runner modules push {shlex.quote(str(place))}", err=True)
    click.echo(f'and call it: operato-runner call {name} \'{{"name": "Ada"}}\'', err=True)
    return 0


@modules.command("push")
@click.argument("target", metavar="FOLDER|FILE")
@click.option(
    "--name", default=None, metavar="NAME", help="name of the module  [from its fields, else its folder or file]"
)
@click.option("--no-activate", is_flag=True, help="create the version without activating it")
@_prepare
@click.option(
    "--if-match", default=None, metavar="REVISION", help="fail unless the module is at this revision; see `show`"
)
@click.option(
    "--no-check", is_flag=True, help="let only the runner check it (its Python or release differs from this one)"
)
@connection_options()
def push(
    target: str,
    name: str | None,
    no_activate: bool,
    prepare: bool,
    if_match: str | None,
    no_check: bool,
    **options: Any,
) -> int:
    """Create a version of a module from files.

    A folder is sent without files that are not code (.git, .venv, caches); a .zip is sent as it is, a .py as a module
    of one file; a .yaml has the fields of one module and its code. Mistakes are reported with file and line before
    anything is sent.

    --if-match * means any revision: the module must exist.

    Prints name and version, created or unchanged, active or not.
    """
    match = _match(if_match)
    from runner.cli.module_files import read_module_files
    from runner.client import push as push_module

    sent = read_module_files(Path(target), name, check=not no_check)
    return with_client(
        options,
        _WRITE,
        lambda client: push_module(client, sent, activate=not no_activate, prepare=prepare, match=match),
    )


def _match(revision: str | None) -> str | None:
    """Return the value of `If-Match`. Raises ConfigError."""
    if revision is None:
        return None
    given = revision.strip().strip('"')
    if not _REVISION.fullmatch(given):
        text = "must be a number, the revision in `operato-runner modules show NAME`, or *"
        raise ConfigError([Mistake(text, None, None, "--if-match")])
    return given if given == "*" else f'"{given}"'


@modules.command("list")
@click.option("--env", multiple=True, type=_KINDS, help="only of this kind of environment; repeatable")
@click.option(
    "--tag", multiple=True, metavar="TAG", help="only with this tag; repeatable, a module must have all of them"
)
@click.option("-q", "text", default=None, metavar="TEXT", help="only with this text in the name or description")
@list_options(500)
@connection_options()
def list_(
    env: tuple[str, ...],
    tag: tuple[str, ...],
    text: str | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """List the modules that are served."""
    from runner.client import list_modules

    filters = {"env": env, "tag": tag, "q": text}
    return with_client(options, _READ, lambda client: list_modules(client, filters, limit, cursor, as_json=as_json))


@modules.command("show")
@click.argument("name")
@click.option("--version", default=None, metavar="VERSION", help="show this version  [the active version]")
@json_option("text")
@connection_options()
def show(name: str, version: str | None, as_json: bool, **options: Any) -> int:
    """Show one module: its fields, revision and publisher.

    Code, paths and the values of variables are not shown.
    """
    from runner.client import show_module

    return with_client(options, _READ, lambda client: show_module(client, name, version, as_json=as_json))


@modules.command("versions")
@click.argument("name")
@json_option("a table")
@connection_options()
def versions(name: str, as_json: bool, **options: Any) -> int:
    """List the versions of a module, newest first."""
    from runner.client import list_versions

    return with_client(options, _READ, lambda client: list_versions(client, name, as_json=as_json))


@modules.command("activate")
@click.argument("name")
@click.argument("version")
@_prepare
@connection_options()
def activate(name: str, version: str, prepare: bool, **options: Any) -> int:
    """Activate a version, newer or older.

    The active version serves the calls that name no version. Running calls end on the version they began with.
    """
    from runner.client import activate as activate_version

    return with_client(options, _WRITE, lambda client: activate_version(client, name, version, prepare=prepare))


@modules.command("rm")
@click.argument("name")
@click.option("--version", default=None, metavar="VERSION", help="delete only this version; it must not be active")
@click.option("--force", is_flag=True, help="cancel its queued and running executions")
@click.option("--yes", is_flag=True, help="do not ask; required without a terminal")
@connection_options()
def remove(name: str, version: str | None, force: bool, yes: bool, **options: Any) -> int:
    """Delete a module, or one of its versions.

    The records of its executions stay.
    """
    what = f"module {name!r} with all its versions" if version is None else f"version {version!r} of module {name!r}"
    if not yes and not sys.stdin.isatty():
        text = f"is required to delete {what}: there is no terminal to ask on"
        raise ConfigError([Mistake(text, None, None, "--yes")])
    if not yes and not click.confirm(f"delete {what}?", err=True):
        click.echo("nothing was deleted", err=True)
        return INTERRUPTED
    from runner.client import remove as remove_module

    return with_client(options, _WRITE, lambda client: remove_module(client, name, version, force=force))


@modules.command("log")
@click.argument("name", metavar="[NAME]", default=None, required=False)
@list_options(500)
@connection_options()
def log(name: str | None, limit: int, cursor: str | None, as_json: bool, **options: Any) -> int:
    """List who changed modules, newest first.

    Needs the scope admin.
    """
    from runner.client import list_changes

    return with_client(options, _ADMIN, lambda client: list_changes(client, name, limit, cursor, as_json=as_json))
