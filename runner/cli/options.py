"""Shared by all commands: options, the values in them, and errors as one line with an exit code."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from config import units
from config.client import VARIABLES
from config.descriptions import DESCRIPTIONS
from config.folders import load_script
from config.load import SETTINGS, Loaded, form_of, load_client_settings, load_settings, shown_default
from config.mistakes import ConfigError, Mistake, Wrong, did_you_mean
from protocol.errors import RunnerError
from runner.groups import leaves
from runner.status import CODES, INTERRUPTED
from runner.terminal import show_line

if TYPE_CHECKING:
    from runner.client import Client

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., object])

_SYSTEM = 74
"""Exit code for an error of the operating system, as EX_IOERR of sysexits.h."""
_ELSEWHERE = "; name the server with --url, and where its secret is with OPERATO_DATA_DIR or OPERATO_CONFIG"


class Command(click.Command):
    """A command that also takes the options given before its name; those after its name win."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context with the earlier options as defaults. Raises UsageError for one not of this command."""
        given: dict[str, Any] = {} if parent is None else parent.find_root().obj or {}  # None while completing
        own = {parameter.name for parameter in self.params}
        foreign = [
            f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
            for name, value in given.items()
            if name not in own
        ]
        if foreign:
            path = "" if parent is None else parent.command_path.partition(" ")[2]
            text = f"`{f'{path} {info_name}'.strip()}` does not take {', '.join(foreign)}"
            raise click.UsageError(text + (_ELSEWHERE if "url" in own else ""), parent)
        return super().make_context(info_name, args, parent=parent, default_map=given, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; a modules file without `--config` gets a hint."""
        file = next((each for each in args if each.endswith((".yaml", ".yml"))), None)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as problem:
            if file is None or "unexpected extra" not in problem.message or "config" not in ctx.params:
                raise
            raise click.UsageError(f"{problem.message}; did you mean `--config {file}`?", ctx) from None


class Commands(click.Group):
    """A group that suggests the command that was probably meant."""

    command_class = Command
    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, or fail with a suggestion."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            hint = did_you_mean(name, self.commands)
            if name.endswith((".yaml", ".yml")):
                hint = f"; did you mean `serve --config {name}`?"
            ctx.fail(f"there is no command {name!r}{hint or '; there are ' + ', '.join(sorted(self.commands))}")
        return super().resolve_command(ctx, args)


class Root(Commands):
    """The whole command line. Its options are those of settings and connections, for the command that follows."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; report what a user can correct as one line and an exit code."""
        ctx.obj = {name: value for name, value in ctx.params.items() if value is not None}
        with reporting_errors():
            result = super().invoke(ctx)
            sys.stdout.flush()
        return result


def settings_options(*, besides: Container[str] = (), hidden: bool = False) -> Callable[[Function], Function]:
    """Add `--config` and an option for every setting. The help omits those in `besides`, and with `hidden` all."""

    def add(function: Function) -> Function:
        for setting in reversed(list(SETTINGS.values())):
            name, form, default = setting.name.replace("_", "-"), form_of(setting), shown_default(setting)
            shown = "" if default is None else f"  [{default}]"
            option = click.option(
                f"--{name}" if form else f"--{name}/--no-{name}",
                setting.name,
                default=None,
                metavar=form or None,
                hidden=hidden or setting.name in besides,
                help=DESCRIPTIONS.get(setting.name, "") + shown,
            )
            function = option(function)
        text = "modules file; also OPERATO_CONFIG  [modules.yaml]"
        return click.option("--config", default=None, metavar="PATH", hidden=hidden, help=text)(function)

    return add


_CONNECTION = {
    "url": ("URL", "URL of the runner; also OPERATO_URL  [http://127.0.0.1:8000]"),
    "token": ("TOKEN", "token of the caller; OPERATO_TOKEN is safer, as other users can see options"),
    "ca": ("FILE", "PEM file of the CA that signed the runner's certificate; also OPERATO_CA  [the system's CAs]"),
    "cert": ("FILE", "PEM file of the client certificate, if the runner requires one; also OPERATO_CERT"),
    "cert_key": ("FILE", "PEM file of its private key; also OPERATO_CERT_KEY  [in the file of --cert]"),
}


def connection_options(*, hidden: bool = False) -> Callable[[Function], Function]:
    """Add the options of commands that connect to a running server; with `hidden` the help omits them."""

    def add(function: Function) -> Function:
        for name in reversed(list(VARIABLES)):
            metavar, text = _CONNECTION[name]
            option = click.option(
                f"--{name.replace('_', '-')}", default=None, metavar=metavar, hidden=hidden, help=text
            )
            function = option(function)
        return function

    return add


def list_options(default: int) -> Callable[[Function], Function]:
    """Add the options of commands that list items of a running server: `limit`, `cursor` and `as_json`."""

    def add(function: Function) -> Function:
        function = json_option("a table")(function)
        function = click.option("--cursor", default=None, metavar="CURSOR", help="continue where a list ended")(
            function
        )
        text = f"list at most N items  [{default}]"
        return click.option("--limit", default=default, type=click.IntRange(1, 100_000), metavar="N", help=text)(
            function
        )

    return add


_FILTERS = (
    click.option("--module", default=None, metavar="NAME", help="only of this module"),
    click.option("--version", default=None, metavar="VERSION", help="only of this version"),
    click.option(
        "--status", default=None, metavar="STATUS", help="scheduled, queued, running, succeeded, failed or cancelled"
    ),
    click.option(
        "--error", default=None, metavar="KIND", help="only failures of this kind, such as timeout or handler_error"
    ),
    click.option("--caller", default=None, metavar="SUBJECT", help="only of this caller (the subject of its token)"),
    click.option("--schedule", default=None, metavar="NAME", help="only those that this schedule started"),
    click.option("--rerun-of", default=None, metavar="ID", help="only repetitions of this execution"),
    click.option("--parent", default=None, metavar="ID", help="only those that the handler of this execution called"),
    click.option(
        "--root", default=None, metavar="ID", help="only those that this execution led to, calls within calls"
    ),
    click.option("--node", default=None, metavar="NAME", help="only those of this runner of a cluster"),
    click.option("--text", default=None, metavar="TEXT", help="only with this text in output or error message"),
    click.option("--unresolved", is_flag=True, help="only failures without a later success of a repetition"),
    click.option(
        "--since",
        default=None,
        metavar="WHEN",
        help="accepted since then: today, yesterday, 2h (two hours ago), 2026-01-31, 2026-01-31T09:30:00Z",
    ),
    click.option("--until", default=None, metavar="WHEN", help="accepted before then"),
)


_PLAIN_FILTERS = ("module", "version", "status", "error", "schedule", "rerun_of", "parent", "root", "node", "text")


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters of a list to a command, which gets them as `filters`."""

    @functools.wraps(command)
    def with_filters(**given: Any) -> Any:
        from runner.client import moment

        filters = {"subject": given.pop("caller"), "unresolved": "true" if given.pop("unresolved") else None}
        filters |= {name: given.pop(name) for name in _PLAIN_FILTERS}
        filters |= {name: moment(given.pop(name), f"--{name}") for name in ("since", "until")}
        return command(filters=filters, **given)

    for option in reversed(_FILTERS):
        with_filters = option(with_filters)
    return with_filters


def json_option(instead_of: str) -> Callable[[Function], Function]:
    """Add `--json` as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=f"print one JSON document instead of {instead_of}")


def with_client(
    options: dict[str, Any],
    scopes: Sequence[str],
    work: Callable[[Client], Awaitable[int]],
    seconds: float | None = None,
) -> int:
    """Run `work` with a connection as `options` describe it; return its exit code.

    `scopes` are those that the command needs: for the token signed with the secret of a local runner, and for the hint
    that names a missing token. `seconds` is how long such a token is valid, if not for a minute.
    """
    from runner.client import credentials, run

    settings = load_client_settings(options)
    found = credentials(settings, scopes) if seconds is None else credentials(settings, scopes, seconds)
    return run(settings, found, work)


def load(options: dict[str, Any], *, quiet: bool = False, file: Path | None = None) -> Loaded:
    """Return settings and modules, and set up logging; `quiet` logs only errors by default. Raises ConfigError.

    With `file`, that Python file is the only module.
    """
    from runner.logs import configure_logging

    if quiet:
        options = {**options, "log_level": options.get("log_level") or "error"}
    loaded = load_settings(options) if file is None else load_script(options, file)
    configure_logging(loaded.settings.log)
    return loaded


def size(text: str, option: str) -> int:
    """Return a size in bytes. Raises ConfigError."""
    return _read(units.size, text, option)


def duration(text: str, option: str) -> float:
    """Return a duration above zero in seconds. Raises ConfigError."""
    seconds = _read(units.duration, text, option)
    if seconds <= 0:
        raise ConfigError([Mistake("must be above 0; write 90s, 30m, 1h, 30d", None, None, option)])
    return seconds


def _read(reader: Callable[[Any], T], text: str, option: str) -> T:
    try:
        return reader(text)
    except Wrong as wrong:
        raise ConfigError([Mistake(wrong.message, None, None, option, wrong.allowed)]) from None


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Print an error that a user can correct as one line and exit with its code; a bug keeps its traceback."""
    try:
        yield
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as problem:
        found = list(leaves(problem))
        if not all(isinstance(leaf, ConfigError | RunnerError | OSError | KeyboardInterrupt) for leaf in found):
            raise
        sys.exit(max([_report(leaf) for leaf in found], key=lambda code: code != INTERRUPTED))


def _report(problem: BaseException) -> int:
    """Print an error, one line for each mistake; return the exit code."""
    if isinstance(problem, ConfigError):
        for mistake in problem.mistakes:
            _print_error(str(mistake))
        return 2
    if isinstance(problem, RunnerError):
        failure = problem.failure
        if failure.traceback:
            click.echo(failure.traceback.rstrip("\n"), err=True)
        for line in failure.message.splitlines() or [""]:
            _print_error(f"{failure.kind}: {line}")
        return CODES[failure.kind].exit
    if isinstance(problem, BrokenPipeError):  # the reader of standard output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SYSTEM
    if isinstance(problem, OSError):
        where = "" if problem.filename is None else f": {problem.filename}"
        _print_error(f"{problem.strerror or problem}{where}")
        return _SYSTEM
    return INTERRUPTED


def _print_error(text: str) -> None:
    show_line(("error:", "bold red"), (f" {text}", ""), err=True)
