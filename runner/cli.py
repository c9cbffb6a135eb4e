"""The command line. What a command needs is imported when it runs: `--help` must not pay for a web server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import click
from attrs import asdict

from config.descriptions import DESCRIPTIONS
from config.load import SETTINGS, Loaded, describe, form_of, load_settings, missing_secrets, shown_default
from config.mistakes import ConfigError, Mistake, Wrong, did_you_mean
from protocol.errors import ErrorKind, RunnerError, error
from runner.version import version_of_this

_SYSTEM = 74
_INTERRUPTED = 130
_SCOPES = (
    "separated by spaces, of executions:run executions:read modules:read modules:write metrics:read admin  "
    "[executions:run modules:read]"
)

_RUN = {"max_frame", "data_dir", "venv_path", "offline", "grace", "kept_output", "log_format", "log_level"}
"""Settings that matter without a server; the others are accepted."""

BUILDING = frozenset(name for name in SETTINGS if name.startswith("docker_")) | {
    *("data_dir", "venv_path", "conda_path", "conda_exe", "offline", "max_builds", "log_format", "log_level")
}
"""Settings that matter for environments alone."""


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


def main() -> None:
    """Run the command line."""
    if sys.version_info[:2] < (3, 11) or not sys.platform.startswith("linux"):
        sys.exit("error: operato-runner needs Python 3.11 or later on Linux")
    arguments = sys.argv[1:]
    known = {*cli.commands, "--help", "-h", "--version"}
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in known):
        arguments = ["serve", *arguments]
    try:
        sys.exit(cli.main(arguments, prog_name="operato-runner", standalone_mode=False) or 0)
    except click.ClickException as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except click.Abort:  # Ctrl-C before a command had begun
        sys.exit(_INTERRUPTED)


def show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print the version."""
    if wanted:
        click.echo(f"operato-runner {version_of_this()}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Print the version."
)
def cli() -> None:
    """Run Python functions remotely: isolated warm workers over REST and gRPC.

    Without a command, `serve` is meant. A setting can be given as an option, as a variable OPERATO_<NAME>, or in the
    section `runner:` of the modules file; what comes first in this order counts.
    """


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
        leaves = list(_leaves(problem))
        if not all(isinstance(leaf, ConfigError | RunnerError | OSError | KeyboardInterrupt) for leaf in leaves):
            raise
        sys.exit(max([_say(leaf) for leaf in leaves], key=lambda code: code != _INTERRUPTED))


def _leaves(problem: BaseException) -> Iterator[BaseException]:
    if isinstance(problem, BaseExceptionGroup):
        for inner in problem.exceptions:
            yield from _leaves(inner)
    else:
        yield problem


def _say(problem: BaseException) -> int:
    """Print what is wrong, one line for each thing; return the exit code."""
    if isinstance(problem, ConfigError):
        for mistake in problem.mistakes:
            click.echo(f"error: {mistake}", err=True)
        return 2
    if isinstance(problem, RunnerError):
        from runner.status import CODES  # noqa: PLC0415

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
    return _INTERRUPTED


def _load(options: dict[str, Any]) -> Loaded:
    from runner.logs import configure_logging  # noqa: PLC0415

    loaded = load_settings(options)
    configure_logging(loaded.settings.log)
    return loaded


@cli.command()
@settings_options()
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
@click.option("--timeout", default=None, metavar="DURATION", help="can only shorten the module's own: 5, 500ms, 2m")
@settings_options(besides=frozenset(SETTINGS) - _RUN)
def run(module: str, data: str, timeout: str | None, **options: Any) -> None:
    """Run one module without a server: MODULE, with JSON as its input.

    `-` reads the input from standard input; without any it is null.

    The result goes to standard output, what the handler printed to standard error once it has ended. The exit code
    tells the kind of failure; 0 is success. Only this module of the file is started, and nothing is recorded.
    """
    with told():
        if options.get("log_level") is None:
            options["log_level"] = "error"
        loaded = _load(options)
        names = [spec.name for spec in loaded.modules.modules]
        if module not in names:
            raise error(ErrorKind.NOT_FOUND, f"there is no module {module!r:.80}{did_you_mean(module, names)}")
        from runner.main import run_once  # noqa: PLC0415

        limit = loaded.settings.server.max_frame_bytes
        content = sys.stdin.buffer.read(limit + 1) if data == "-" else os.fsencode(data)
        if len(content) > limit:
            text = f"the input is over {limit} bytes; the limit is `max_frame`"
            raise error(ErrorKind.TOO_LARGE, text, field="$")
        seconds = None if timeout is None else _duration(timeout, "--timeout")
        sys.exit(run_once(loaded, module, content, seconds))


@cli.command()
@click.option("--subject", required=True, metavar="NAME", help="who the token is for (claim `sub`)")
@click.option("--scope", default="executions:run modules:read", metavar="SCOPES", help=_SCOPES)
@click.option("--expires", default="1h", metavar="DURATION", help="how long it is good: 90s, 30m, 1h, 30d  [1h]")
@click.option("--module", "globs", multiple=True, metavar="GLOB", help="only these modules; can be given again")
@settings_options(besides=frozenset(SETTINGS) - {"data_dir", "jwt_secret", "jwt_issuer", "jwt_audience"})
def token(subject: str, scope: str, expires: str, globs: tuple[str, ...], **options: Any) -> None:
    """Print a token for callers.

    It is signed with `jwt_secret`, or with the runner's own secret in the data directory, which is made when needed.

    A runner that verifies tokens by a public key or a JWKS URL cannot sign any: who holds the private key does.
    """
    with told():
        seconds = _duration(expires, "--expires")
        loaded = load_settings(options)
        from runner.main import make_token  # noqa: PLC0415

        click.echo(make_token(loaded.settings, subject, scope.split(), seconds, globs))


@cli.command()
@click.argument("modules", metavar="[MODULES]", nargs=-1)
@settings_options(besides=frozenset(SETTINGS) - BUILDING)
def prepare(modules: tuple[str, ...], **options: Any) -> None:
    """Build environments now, without a server.

    Without MODULES those of all of the file. What is there already is left as it is.

    Progress goes to standard error, what became of each module to standard output. The exit code is that of the first
    failure; 0 when all are ready.
    """
    _with_environments(options, lambda commands: commands.preparation(modules))


@cli.group(cls=Commands)
def env() -> None:
    """Look at environments; remove or rebuild them."""


@env.command("list")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document instead of a table")
@settings_options(besides=frozenset(SETTINGS) - BUILDING)
def env_list(as_json: bool, **options: Any) -> None:
    """Show every environment and who uses it.

    With size, age and last use; modules without a key are named. Nothing is built, locked or pulled.
    """
    _with_environments(options, lambda commands: commands.listing(as_json=as_json))


@env.command("why")
@click.argument("what", metavar="KEY|MODULE")
@settings_options(besides=frozenset(SETTINGS) - BUILDING)
def env_why(what: str, **options: Any) -> None:
    """Say why an environment is there.

    What it is made of, where its build log is, who uses it, and why it stays or would go.
    """
    _with_environments(options, lambda commands: commands.explanation(what))


@env.command("gc")
@click.option("--older-than", default="30d", metavar="DURATION", help="how long ago the last use must be  [30d]")
@click.option("--keep-bytes", default=None, metavar="SIZE", help="remove more, oldest use first, until all fit in this")
@click.option("--dry-run", is_flag=True, help="say what would be removed, and remove nothing")
@settings_options(besides=frozenset(SETTINGS) - BUILDING)
def env_gc(older_than: str, keep_bytes: str | None, dry_run: bool, **options: Any) -> None:
    """Remove what no module of the file uses.

    One that a process uses is never removed, whatever its modules file says: folders of environments may be shared.
    """

    def work(commands: Any) -> Any:
        size = None if keep_bytes is None else int(_parsed(keep_bytes, "--keep-bytes", "size"))
        return commands.collection(_duration(older_than, "--older-than"), size, dry_run=dry_run)

    _with_environments(options, work)


@env.command("rebuild")
@click.argument("what", metavar="KEY|MODULE")
@settings_options(besides=frozenset(SETTINGS) - BUILDING)
def env_rebuild(what: str, **options: Any) -> None:
    """Build an environment anew.

    It is put in place of the one that is there, unless somebody uses that: then it is said who does.
    """
    _with_environments(options, lambda commands: commands.rebuilding(what))


def _with_environments(options: dict[str, Any], work: Callable[[Any], Any]) -> None:
    """Run what `work` makes of the commands; without a wish, only errors are logged."""
    with told():
        options["log_level"] = options.get("log_level") or "error"
        loaded = _load(options)
        from runner import env_commands  # noqa: PLC0415
        from runner.main import surroundings  # noqa: PLC0415

        sys.exit(env_commands.run(loaded, surroundings(), work(env_commands)))


def _parsed(text: str, option: str, kind: str) -> float:
    """Return a duration in seconds or a size in bytes. Raises ConfigError."""
    from config import units  # noqa: PLC0415

    try:
        return float(getattr(units, kind)(text))
    except Wrong as wrong:
        raise ConfigError([Mistake(wrong.message, None, None, option, wrong.allowed)]) from None


def _duration(text: str, option: str) -> float:
    seconds = _parsed(text, option, "duration")
    if seconds <= 0:
        raise ConfigError([Mistake("must be above 0; write 90s, 30m, 1h, 30d", None, None, option)])
    return seconds


@cli.group(cls=Commands)
def config() -> None:
    """Look at the configuration."""


@config.command()
@settings_options()
def check(**options: Any) -> None:
    """Print every setting with its source, or all mistakes.

    Mistakes of settings and modules are told at once, with file, line and field.

    Nothing is started, built or written. Exit code: 0 when there is no mistake, else 2.
    """
    with told():
        loaded = load_settings(options)
        rows = describe(loaded)
        width, middle = max(len(name) for name, _, _ in rows), max(len(value) for _, value, _ in rows)
        for name, value, source in rows:
            click.echo(f"{name:<{width}}  {value:<{middle}}  {source}")
        click.echo(f"\n{len(loaded.modules.modules)} modules:")
        for spec in loaded.modules.modules:
            said = "".join(c if c.isprintable() else " " for c in " ".join(spec.description.split()))
            click.echo(f"  {spec.name}  ({spec.env}, {spec.isolation})  {said}".rstrip())
            for mistake in missing_secrets(spec.secrets):  # that of the server may have them
                click.echo(f"    secrets.{mistake}")
        sys.stdout.flush()


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON document instead of text")
@settings_options()
def doctor(as_json: bool, **options: Any) -> None:
    """Say what this machine can do for the modules.

    Looks at the kinds of environment, at how limits are held, at uv and the Pythons, folders, ports and secrets; where
    something is missing, the remedy is told. Nothing is left behind, and a runner that is running is not disturbed.
    Exit code: 0 when what the modules file asks for can work here, 1 when not, 2 for a mistake in the configuration.
    """
    with told():
        if options.get("log_level") is None:
            options["log_level"] = "error"
        loaded = _load(options)
        from runner.doctor import State, examine, text_of  # noqa: PLC0415
        from runner.main import surroundings  # noqa: PLC0415

        findings = examine(loaded, surroundings())
        works = all(finding.state is not State.FAILED for finding in findings)
        if as_json:
            document = {"ok": works, "version": version_of_this(), "findings": [asdict(f) for f in findings]}
            click.echo(json.dumps(document, indent=1))
        else:
            click.echo(f"operato-runner {version_of_this()}\n\n{text_of(findings)}")
        sys.stdout.flush()
        sys.exit(0 if works else 1)
