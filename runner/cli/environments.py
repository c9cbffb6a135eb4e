"""The commands for environments: `prepare` and the group `env`. The work itself is imported when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from config.load import SETTINGS
from runner.cli.options import Commands, duration, load, parsed, settings_options, told

_BUILDING = frozenset(name for name in SETTINGS if name.startswith("docker_")) | {
    *("data_dir", "venv_path", "conda_path", "conda_exe", "offline", "max_builds", "log_format", "log_level")
}
"""Settings that matter for environments alone."""


@click.command()
@click.argument("modules", metavar="[MODULES]", nargs=-1)
@settings_options(besides=frozenset(SETTINGS) - _BUILDING)
def prepare(modules: tuple[str, ...], **options: Any) -> None:
    """Build environments now, without a server.

    Without MODULES those of all of the file. What is there already is left as it is.

    Progress goes to standard error, what became of each module to standard output. The exit code is that of the first
    failure; 0 when all are ready.
    """
    _with_environments(options, lambda commands: commands.preparation(modules))


@click.group(cls=Commands)
def env() -> None:
    """Look at environments; remove or rebuild them."""


@env.command("list")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document instead of a table")
@settings_options(besides=frozenset(SETTINGS) - _BUILDING)
def env_list(as_json: bool, **options: Any) -> None:
    """Show every environment and who uses it.

    With size, age and last use; modules without a key are named. Nothing is built, locked or pulled.
    """
    _with_environments(options, lambda commands: commands.listing(as_json=as_json))


@env.command("why")
@click.argument("what", metavar="KEY|MODULE")
@settings_options(besides=frozenset(SETTINGS) - _BUILDING)
def env_why(what: str, **options: Any) -> None:
    """Say why an environment is there.

    What it is made of, where its build log is, who uses it, and why it stays or would go.
    """
    _with_environments(options, lambda commands: commands.explanation(what))


@env.command("gc")
@click.option("--older-than", default="30d", metavar="DURATION", help="how long ago the last use must be  [30d]")
@click.option("--keep-bytes", default=None, metavar="SIZE", help="remove more, oldest use first, until all fit in this")
@click.option("--dry-run", is_flag=True, help="say what would be removed, and remove nothing")
@settings_options(besides=frozenset(SETTINGS) - _BUILDING)
def env_gc(older_than: str, keep_bytes: str | None, dry_run: bool, **options: Any) -> None:
    """Remove what no module of the file uses.

    One that a process uses is never removed, whatever its modules file says: folders of environments may be shared.
    """

    def work(commands: Any) -> Any:
        size = None if keep_bytes is None else int(parsed(keep_bytes, "--keep-bytes", "size"))
        return commands.collection(duration(older_than, "--older-than"), size, dry_run=dry_run)

    _with_environments(options, work)


@env.command("rebuild")
@click.argument("what", metavar="KEY|MODULE")
@settings_options(besides=frozenset(SETTINGS) - _BUILDING)
def env_rebuild(what: str, **options: Any) -> None:
    """Build an environment anew.

    It is put in place of the one that is there, unless somebody uses that: then it is said who does.
    """
    _with_environments(options, lambda commands: commands.rebuilding(what))


def _with_environments(options: dict[str, Any], work: Callable[[Any], Any]) -> None:
    """Run what `work` makes of the commands; without a wish, only errors are logged."""
    with told():
        options["log_level"] = options.get("log_level") or "error"
        loaded = load(options)
        from runner.cli import env as env_commands  # noqa: PLC0415
        from runner.serve import surroundings  # noqa: PLC0415

        sys.exit(env_commands.run(loaded, surroundings(), work(env_commands)))
