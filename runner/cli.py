"""The command line. What a command needs is imported when it runs: `--help` must not pay for a web server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from config.load import SETTINGS, Loaded, default_of, describe, load_settings
from config.mistakes import ConfigError
from protocol.errors import RunnerError

_UNITS = {"_seconds": "seconds", "_bytes": "bytes"}


def main() -> None:
    """Run the command line."""
    if sys.version_info[:2] < (3, 11) or not sys.platform.startswith("linux"):
        sys.exit("error: operato-runner needs Python 3.11 or later on Linux")
    arguments = sys.argv[1:]
    known = {*cli.commands, "--help", "-h", "--version"}
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in known):
        arguments = ["serve", *arguments]
    cli.main(arguments, prog_name="operato-runner")


def _version() -> str:
    try:
        return version("operato-runner")
    except PackageNotFoundError:
        return "from source"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(_version(), prog_name="operato-runner")
def cli() -> None:
    """Run Python functions remotely: isolated warm workers over REST.

    Without a command, `serve` is meant.
    """


def settings_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add `--config` and one option for every setting, by its flat name."""
    for setting in reversed(list(SETTINGS.values())):
        name = setting.name.replace("_", "-")
        leaf = setting.attribute
        default = default_of(setting)
        unit = next((text for suffix, text in _UNITS.items() if leaf.name.endswith(suffix)), "")
        shown = f"default {leaf.default if isinstance(leaf.default, Path) else default}" if default is not None else ""
        text = ", ".join(part for part in (unit, shown, f"${setting.variable}") if part)
        if isinstance(default, bool):
            add = click.option(f"--{name}/--no-{name}", setting.name, default=None, help=text)
        else:
            add = click.option(f"--{name}", setting.name, default=None, help=text)
        function = add(function)
    return click.option("--config", default=None, help="modules file, default modules.yaml, $OPERATO_CONFIG")(function)


@contextmanager
def told() -> Iterator[None]:
    """Turn what a user can mend into one message and an exit code; bugs keep their traceback."""
    try:
        yield
    except ConfigError as problem:
        for mistake in problem.mistakes:
            click.echo(f"error: {mistake}", err=True)
        sys.exit(2)
    except (RunnerError, OSError) as problem:
        _end(problem)
    except BaseExceptionGroup as group:
        ours, rest = group.split((RunnerError, OSError))
        if rest is not None or ours is None:
            raise
        _end(_leaf(ours))


def _leaf(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _end(problem: BaseException) -> None:
    from runner.status import CODES  # noqa: PLC0415

    if isinstance(problem, RunnerError):
        click.echo(f"error: {problem.failure.kind}: {problem.failure.message}", err=True)
        sys.exit(CODES[problem.failure.kind].exit)
    click.echo(f"error: {problem}", err=True)
    sys.exit(74)


def _load(options: dict[str, Any]) -> Loaded:
    from runner.logs import configure_logging  # noqa: PLC0415

    loaded = load_settings(options)
    configure_logging(loaded.settings.log)
    return loaded


@cli.command()
@settings_options
def serve(**options: Any) -> None:
    """Serve the modules of the file until SIGTERM or Ctrl-C.

    The first signal lets running work end within --drain-timeout, a second one ends at once. SIGHUP reads the file
    again. Exit code: 0 when all work had ended, 3 when some was cut off, 2 for a mistake in the configuration.
    """
    with told():
        loaded = _load(options)
        from runner.main import run_server, surroundings  # noqa: PLC0415

        sys.exit(run_server(loaded, surroundings()))


@cli.command()
@click.argument("module")
@click.argument("data", metavar="[JSON]", default="")
@click.option("--timeout", type=float, default=None, help="seconds; can only shorten the module's own")
@settings_options
def run(module: str, data: str, timeout: float | None, **options: Any) -> None:
    """Run MODULE once without a server, with JSON (or `-`: standard input) as its input.

    The result goes to standard output, what the handler prints to standard error. The exit code tells the kind of
    failure; 0 is success.
    """
    with told():
        if options.get("log_level") is None:
            options["log_level"] = "error"
        loaded = _load(options)
        from runner.main import run_once  # noqa: PLC0415

        text = sys.stdin.read() if data == "-" else data
        sys.exit(run_once(loaded, module, text.encode(), timeout))


@cli.command()
@click.option("--subject", required=True, help="who the token is for (claim sub)")
@click.option("--scope", default="executions:run modules:read", show_default=True, help="space-separated scopes")
@click.option("--expires", default="1h", show_default=True, help="how long it is good: 90s, 30m, 1h, 30d")
@click.option("--module", "globs", multiple=True, help="only these modules (glob; can be given again)")
@settings_options
def token(subject: str, scope: str, expires: str, globs: tuple[str, ...], **options: Any) -> None:
    """Print a token signed with the runner's own secret."""
    with told():
        loaded = load_settings(options)
        from runner.main import make_token  # noqa: PLC0415

        click.echo(make_token(loaded.settings, subject, scope.split(), _duration(expires), globs))


def _duration(text: str) -> float:
    from config.mistakes import Mistake, Wrong  # noqa: PLC0415
    from config.units import duration  # noqa: PLC0415

    days = text[:-1] if text.endswith("d") else ""
    try:
        seconds = float(days) * 86400 if days.replace(".", "", 1).isdigit() else duration(text)
    except Wrong as wrong:
        raise ConfigError([Mistake(wrong.message, None, None, "--expires", wrong.allowed)]) from None
    if seconds <= 0:
        raise ConfigError([Mistake("must be above 0", None, None, "--expires", "90s, 30m, 1h, 30d")])
    return seconds


@cli.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@settings_options
def check(**options: Any) -> None:
    """Read settings and modules; print every value with its source, or all mistakes."""
    with told():
        loaded = load_settings(options)
        rows = describe(loaded)
        width, middle = max(len(name) for name, _, _ in rows), max(len(value) for _, value, _ in rows)
        for name, value, source in rows:
            click.echo(f"{name:<{width}}  {value:<{middle}}  {source}")
        click.echo(f"\n{len(loaded.modules.modules)} modules:")
        for spec in loaded.modules.modules:
            click.echo(f"  {spec.name}  ({spec.env}, {spec.isolation})  {spec.description}")
