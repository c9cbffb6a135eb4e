"""The command line. What a command needs is imported when it runs: `--help` must not pay for a web server."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click
from attrs import asdict

from config.load import SETTINGS, describe, load_settings, missing_secrets
from config.mistakes import did_you_mean
from protocol.errors import ErrorKind, error
from runner.cli import calls as client_commands
from runner.cli import environments as cli_environments
from runner.cli import modules as cli_modules
from runner.cli.options import Commands, duration, load, settings_options, told
from runner.status import INTERRUPTED
from runner.version import version_of_this

_SCOPES = (
    "separated by spaces, of executions:run executions:read modules:read modules:write metrics:read admin  "
    "[executions:run modules:read]"
)

_RUN = {"max_frame", "data_dir", "venv_path", "offline", "grace", "kept_output", "log_format", "log_level"}
"""Settings that matter without a server; the others are accepted."""


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
        sys.exit(INTERRUPTED)


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


for command in (
    cli_environments.prepare,
    cli_environments.env,
    client_commands.call,
    client_commands.logs,
    client_commands.executions,
    cli_modules.modules,
):
    cli.add_command(command)


@cli.command()
@settings_options()
def serve(**options: Any) -> None:
    """Serve the modules of the file until SIGTERM or Ctrl-C.

    The first signal lets running work end within --drain-timeout, a second one ends at once. SIGHUP reads the file
    again. Exit code: 0 when all work had ended, 3 when some was cut off, 2 for a mistake in the configuration.
    """
    with told():
        loaded = load(options)
        from runner.serve import run_server, surroundings  # noqa: PLC0415

        sys.exit(run_server(loaded, surroundings()))


@cli.command()
@click.argument("module")
@click.argument("data", metavar="[JSON]", default="")
@click.option("--timeout", default=None, metavar="DURATION", help="can only shorten the module's own: 5, 500ms, 2m")
@settings_options(besides=frozenset(SETTINGS) - _RUN)
def run(module: str, data: str, timeout: str | None, **options: Any) -> None:
    """Run one module once, without a server.

    MODULE is called with JSON as its input; `-` reads the input from standard input; without any it is null.

    The result goes to standard output, what the handler printed to standard error once it has ended. The exit code
    tells the kind of failure; 0 is success. Only this module of the file is started, and nothing is recorded.
    """
    with told():
        if options.get("log_level") is None:
            options["log_level"] = "error"
        loaded = load(options)
        names = [spec.name for spec in loaded.modules.modules]
        if module not in names:
            raise error(ErrorKind.NOT_FOUND, f"there is no module {module!r:.80}{did_you_mean(module, names)}")
        from runner.serve import run_once  # noqa: PLC0415

        limit = loaded.settings.server.max_frame_bytes
        content = sys.stdin.buffer.read(limit + 1) if data == "-" else os.fsencode(data)
        if len(content) > limit:
            text = f"the input is over {limit} bytes; the limit is `max_frame`"
            raise error(ErrorKind.TOO_LARGE, text, field="$")
        seconds = None if timeout is None else duration(timeout, "--timeout")
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
        seconds = duration(expires, "--expires")
        loaded = load_settings(options)
        from runner.serve import make_token  # noqa: PLC0415

        click.echo(make_token(loaded.settings, subject, scope.split(), seconds, globs))


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
        loaded = load(options)
        from runner.cli.doctor import State, examine, text_of  # noqa: PLC0415
        from runner.serve import surroundings  # noqa: PLC0415

        findings = examine(loaded, surroundings())
        works = all(finding.state is not State.FAILED for finding in findings)
        if as_json:
            document = {"ok": works, "version": version_of_this(), "findings": [asdict(f) for f in findings]}
            click.echo(json.dumps(document, indent=1))
        else:
            click.echo(f"operato-runner {version_of_this()}\n\n{text_of(findings)}")
        sys.stdout.flush()
        sys.exit(0 if works else 1)
