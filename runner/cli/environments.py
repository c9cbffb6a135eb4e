"""The command `prepare` and the group `env` for the environments of this machine, and `nodes` for other machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from config.load import SETTINGS
from runner.cli.options import (
    Command,
    Commands,
    connection_options,
    duration,
    json_option,
    load,
    settings_options,
    size,
    with_client,
)

if TYPE_CHECKING:
    from runner.cli.survey import Work

_STORES = {"data_dir", "venv_path", "conda_path", "docker_host"}
_BUILDS = _STORES | {"conda_exe", "offline", "build_ca", "docker_base_image", "docker_build_network"}
# Other settings are accepted too, and not in the help.
_of_stores = settings_options(besides=frozenset(SETTINGS) - _STORES)
_of_builds = settings_options(besides=frozenset(SETTINGS) - _BUILDS)


@click.command(cls=Command)
@click.argument("modules", metavar="[MODULES]", nargs=-1)
@settings_options(besides=frozenset(SETTINGS) - _BUILDS - {"max_builds"})
def prepare(modules: tuple[str, ...], **options: Any) -> int:
    """Build environments now, without a server.

    Builds the environments of MODULES, by default of all modules in the file. Existing environments are kept.

    Progress goes to standard error, one line for each module to standard output. Exit code: 0 if all environments are
    ready, else the code of the first failure.
    """
    from runner.cli.building import preparation

    return _with_environments(options, preparation(modules))


@click.group(cls=Commands)
def env() -> None:
    """List, explain, remove and rebuild environments."""


@env.command("list")
@json_option("a table")
@_of_stores
def list_(as_json: bool, **options: Any) -> int:
    """List every environment and the modules that use it.

    Shows size, age and last use, and the modules without an environment. Nothing is built, locked or pulled.
    """
    from runner.cli.survey import listing

    return _with_environments(options, listing(as_json=as_json))


@env.command("why")
@click.argument("wanted", metavar="KEY|MODULE")
@_of_stores
def why(wanted: str, **options: Any) -> int:
    """Explain why an environment exists.

    Shows its contents, build log and users, and whether `gc` would remove it.
    """
    from runner.cli.survey import explanation

    return _with_environments(options, explanation(wanted))


@env.command("gc")
@click.option("--older-than", default="30d", metavar="DURATION", help="remove if last used longer ago than this  [30d]")
@click.option(
    "--keep-bytes", default=None, metavar="SIZE", help="also remove the least recently used beyond this total"
)
@click.option("--dry-run", is_flag=True, help="only print what would be removed")
@_of_stores
def gc(older_than: str, keep_bytes: str | None, dry_run: bool, **options: Any) -> int:
    """Remove environments that no module of the file uses.

    An environment that a process uses is never removed, even if this modules file does not name it: runners may share a
    directory of environments.
    """
    from environments.store import Rules
    from runner.cli.survey import collection

    kept = None if keep_bytes is None else size(keep_bytes, "--keep-bytes")
    rules = Rules(duration(older_than, "--older-than"), kept)
    return _with_environments(options, collection(rules, dry_run=dry_run))


@env.command("rebuild")
@click.argument("wanted", metavar="KEY|MODULE")
@_of_builds
def rebuild(wanted: str, **options: Any) -> int:
    """Build an environment again.

    The new one replaces the existing one, unless a process uses that; then the processes and modules are named.
    """
    from runner.cli.building import rebuilding

    return _with_environments(options, rebuilding(wanted))


def _with_environments(options: dict[str, Any], work: Work) -> int:
    """Do `work` with the environments of this machine; return its exit code. Raises RunnerError and OSError."""
    loaded = load(options, quiet=True)
    import trio

    from actors.system import open_environments
    from runner.serve import surroundings

    async def inside() -> int:
        async with open_environments(loaded.settings, surroundings()) as kinds:
            return await work(loaded, kinds)

    return trio.run(inside)


@click.command(cls=Command)
@json_option("a table")
@connection_options()
def nodes(as_json: bool, **options: Any) -> int:
    """List the runners of the cluster of a running server.

    `here` marks the runner that answers, `draining` one that takes no more work. LAG counts executions of which the
    runner does not have the latest state yet.
    """
    from runner.client import list_nodes as work

    return with_client(options, ("metrics:read",), lambda client: work(client, as_json=as_json))
