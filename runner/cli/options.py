"""What all commands share: options made from the settings, values that people write, and what is said of a failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from config.descriptions import DESCRIPTIONS
from config.load import SETTINGS, Loaded, form_of, load_client_settings, load_settings, shown_default
from config.mistakes import ConfigError, Mistake, Wrong, did_you_mean
from protocol.errors import RunnerError
from runner.groups import leaves
from runner.status import INTERRUPTED

_SYSTEM = 74


class Commands(click.Group):
    """A group that says which command may have been meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, or end with its name and one that is near."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            hint = did_you_mean(name, self.commands)
            if name.endswith((".yaml", ".yml")):
                hint = f"; did you mean `serve --config {name}`?"
            ctx.fail(f"there is no command {name!r}{hint or '; there are ' + ', '.join(sorted(self.commands))}")
        return super().resolve_command(ctx, args)


def settings_options(*, besides: Container[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add `--config` and one option for every setting, by its flat name; the help leaves out those of `besides`."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for setting in reversed(list(SETTINGS.values())):
            name, form, default = setting.name.replace("_", "-"), form_of(setting), shown_default(setting)
            shown = "" if default is None else f"  [{default}]"
            option = click.option(
                f"--{name}" if form else f"--{name}/--no-{name}",
                setting.name,
                default=None,
                metavar=form or None,
                hidden=setting.name in besides,
                help=DESCRIPTIONS.get(setting.name, "") + shown,
            )
            function = option(function)
        text = "modules file, also OPERATO_CONFIG  [modules.yaml]"
        return click.option("--config", default=None, metavar="PATH", help=text)(function)

    return add


@contextmanager
def told() -> Iterator[None]:
    """Turn what a user can mend into one message and an exit code; bugs keep their traceback."""
    try:
        yield
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as problem:
        found = list(leaves(problem))
        if not all(isinstance(leaf, ConfigError | RunnerError | OSError | KeyboardInterrupt) for leaf in found):
            raise
        sys.exit(max([_say(leaf) for leaf in found], key=lambda code: code != INTERRUPTED))


def _say(problem: BaseException) -> int:
    """Print what is wrong, one line for each thing; return the exit code."""
    if isinstance(problem, ConfigError):
        for mistake in problem.mistakes:
            click.echo(f"error: {mistake}", err=True)
        return 2
    if isinstance(problem, RunnerError):
        from runner.status import CODES  # noqa: PLC0415

        if problem.failure.traceback:
            click.echo(problem.failure.traceback.rstrip("\n"), err=True)
        for line in problem.failure.message.splitlines() or [""]:
            click.echo(f"error: {problem.failure.kind}: {line}", err=True)
        return CODES[problem.failure.kind].exit
    if isinstance(problem, BrokenPipeError):  # whoever read this has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SYSTEM
    if isinstance(problem, OSError):
        where = "" if problem.filename is None else f": {problem.filename}"
        click.echo(f"error: {problem.strerror or problem}{where}", err=True)
        return _SYSTEM
    return INTERRUPTED


def connection_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the commands that speak to a running server, by the names of `config.client.VARIABLES`."""
    for name, metavar, text in reversed(_CONNECTION):
        function = click.option(f"--{name}", default=None, metavar=metavar, help=text)(function)
    return function


_CONNECTION = (
    ("url", "URL", "where the runner is, also OPERATO_URL  [http://127.0.0.1:8000]"),
    ("token", "TOKEN", "who calls; better given as OPERATO_TOKEN, which others do not see"),
    ("ca", "FILE", "PEM of who signed its certificate, also OPERATO_CA  [those that this machine trusts]"),
    ("cert", "FILE", "PEM of a certificate to show, where it asks for one, also OPERATO_CERT"),
    ("cert-key", "FILE", "PEM of its key, also OPERATO_CERT_KEY  [in the file of --cert]"),
)


def with_client(options: dict[str, Any], scopes: Sequence[str], work: Callable[[Any], Awaitable[int]]) -> None:
    """Run `work` with a `runner.client.Client` and end with its exit code; `options` are those of the connection.

    `scopes` are what the command needs: of a token that is made of a local runner's own secret, and in what is said
    where a token is missing.
    """
    with told():
        settings = load_client_settings(options)
        from runner.client import credentials, run  # noqa: PLC0415  (a connection takes 0.2 s to import)

        sys.exit(run(settings, credentials(settings, scopes), work))


def load(options: dict[str, Any]) -> Loaded:
    """Return the settings and modules of this run, with logging set up as they say. Raises ConfigError."""
    from runner.logs import configure_logging  # noqa: PLC0415

    loaded = load_settings(options)
    configure_logging(loaded.settings.log)
    return loaded


def parsed(text: str, option: str, kind: str) -> float:
    """Return a duration in seconds or a size in bytes. Raises ConfigError."""
    from config import units  # noqa: PLC0415

    try:
        return float(getattr(units, kind)(text))
    except Wrong as wrong:
        raise ConfigError([Mistake(wrong.message, None, None, option, wrong.allowed)]) from None


def duration(text: str, option: str) -> float:
    """Return a duration above zero in seconds. Raises ConfigError."""
    seconds = parsed(text, option, "duration")
    if seconds <= 0:
        raise ConfigError([Mistake("must be above 0; write 90s, 30m, 1h, 30d", None, None, option)])
    return seconds
