"""The root of the command line and the commands `serve`, `run`, `token`, `config` and `doctor`."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import click

from config.folders import new_data_elsewhere
from config.load import SETTINGS, describe, load_settings
from config.mistakes import ConfigError, did_you_mean
from protocol.errors import ErrorKind, error
from runner.cli.authors import client_commands, rollback, tools
from runner.cli.calls import call, executions, files, logs
from runner.cli.environments import env, nodes, prepare
from runner.cli.keys import key, ui
from runner.cli.modules import modules, push
from runner.cli.options import Root, connection_options, duration, json_option, load, settings_options
from runner.cli.starts import notice_commands, schedules
from runner.status import INTERRUPTED
from runner.terminal import one_line, table
from runner.version import version_of_this
from runner.watch import be_watched

_RUN = {"max_frame", "data_dir", "venv_path", "offline", "grace", "kept_output", "log_format", "log_level"}
"""Settings that matter without a server; the others are accepted, and have no effect."""
_DEV = {"host", "rest_port", "grpc", "grpc_port"}
_TOKEN = {"data_dir", "jwt_secret", "jwt_secret_file", "jwt_issuer", "jwt_audience"}


PROGRAM = "operato-runner"
COMPLETE = "_OPERATO_RUNNER_COMPLETE"
"""The variable by which a shell asks for completions."""


def main() -> None:
    """Run the command line."""
    if sys.version_info[:2] < (3, 11) or not sys.platform.startswith("linux"):
        sys.exit("error: operato-runner needs Python 3.11 or later on Linux")
    try:
        sys.exit(cli.main(prog_name=PROGRAM, complete_var=COMPLETE, standalone_mode=False) or 0)
    except click.ClickException as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except click.Abort:  # Ctrl-C before a command began
        sys.exit(INTERRUPTED)


def show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print the version."""
    if wanted:
        click.echo(f"operato-runner {version_of_this()}")
        ctx.exit()


@click.group(
    cls=Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Print the version."
)
@connection_options(hidden=True)
@settings_options(hidden=True)
@click.pass_context
def cli(ctx: click.Context, /, **_options: Any) -> int:
    """Run Python functions remotely: isolated warm workers over REST and gRPC.

    Without a command, `serve` runs. Settings and connection options may also be given before the command.

    A setting can be given as an option, as a variable OPERATO_<NAME>, or in the section `runner:` of the modules file;
    the first of these takes precedence.
    """
    if ctx.invoked_subcommand is not None:
        return 0
    with serve.make_context("serve", [], ctx) as inner:
        return int(serve.invoke(inner))


_CALLS = (call, logs, executions, files, schedules, notice_commands, client_commands)
for command in (prepare, env, nodes, modules, push, rollback, key, ui, tools, *_CALLS):
    cli.add_command(command)


@cli.command()
@settings_options()
def serve(**options: Any) -> int:
    """Serve the modules of the file until SIGTERM or Ctrl-C.

    After the first signal, running work may finish within --drain-timeout; a second signal ends it at once. SIGHUP
    reloads the modules file.

    Exit code: 0 if all work had ended, 3 if some was cut off, 2 for a mistake in the configuration.
    """
    gc.disable()  # until the server is ready; a tenth of the start would be collections that find next to nothing
    loaded = load(options)
    watcher = be_watched()
    from runner.serve import run_server, surroundings

    return run_server(loaded, surroundings(watcher))


@cli.command()
@click.argument("module", metavar="MODULE|FILE")
@click.argument("data", metavar="[JSON]", default="")
@click.option("--timeout", default=None, metavar="DURATION", help="shorten the module's timeout: 5, 500ms, 2m")
@settings_options(besides=frozenset(SETTINGS) - _RUN)
def run(module: str, data: str, timeout: str | None, **options: Any) -> int:
    """Run one module once, without a server.

    MODULE is the name of a module of the modules file, or a Python file that is a module itself: FILE.py. It is called
    with JSON as its input; `-` reads the input from standard input; the default is null.

    The result goes to standard output; the output of the handler follows on standard error when the call has ended.
    Exit code: 0 for success, else the code of the error kind. Only this module is started, and nothing is recorded.
    """
    loaded = load(options, quiet=True, file=Path(module) if module.endswith(".py") else None)
    names = [spec.name for spec in loaded.modules.modules]
    module = names[0] if module.endswith(".py") else module
    if module not in names:
        text = f"there is no module {module!r:.80}{did_you_mean(module, names)}"
        if Path(module).is_dir():
            text += "; a folder runs as the `path` of a module, or on a server after `push`"
        raise error(ErrorKind.NOT_FOUND, text)
    from runner.serve import run_once, surroundings

    limit = loaded.settings.server.max_frame_bytes
    content = sys.stdin.buffer.read(limit + 1) if data == "-" else os.fsencode(data)
    if len(content) > limit:
        raise error(ErrorKind.TOO_LARGE, f"the input is over {limit} bytes; the limit is `max_frame`", field="$")
    seconds = None if timeout is None else duration(timeout, "--timeout")
    return run_once(loaded, surroundings(be_watched()), module, content, seconds)


@cli.command()
@click.argument("file", metavar="FILE")
@settings_options(besides=frozenset(SETTINGS) - _RUN - _DEV)
def dev(file: str, **options: Any) -> int:
    """Serve one Python file while you edit it.

    FILE is a module: its block `# /// script` has its packages and fields (PEP 723). Each change is served at once;
    with a mistake in it, the mistake is shown and the last good version keeps serving. Each call is printed with its
    output, its times and its error. Nothing is recorded; Ctrl-C ends it.

    Serves REST only, unless --grpc is given.
    """
    gc.disable()
    for name, value in (("grpc", False), ("drain_timeout", "1s"), ("log_level", "error")):
        options[name] = value if options[name] is None else options[name]
    loaded = load(options, file=Path(file))
    watcher = be_watched()
    from runner.serve import Dev, run_server, surroundings

    return run_server(loaded, surroundings(watcher), Dev(Path(file)))


@cli.command()
@click.option("--subject", required=True, metavar="NAME", help="the caller (claim `sub`)")
@click.option(
    "--scope",
    default="executions:run modules:read",
    metavar="SCOPES",
    help="permissions, separated by spaces: executions:run executions:read modules:read modules:write "
    "modules:admin executions:approve files:read files:write metrics:read admin  [executions:run modules:read]",
)
@click.option("--expires", default="1h", metavar="DURATION", help="how long the token is valid: 90s, 30m, 30d  [1h]")
@click.option("--module", "globs", multiple=True, metavar="GLOB", help="allow only these modules; repeatable  [all]")
@settings_options(besides=frozenset(SETTINGS) - _TOKEN)
def token(subject: str, scope: str, expires: str, globs: tuple[str, ...], **options: Any) -> int:
    """Print a token for a caller.

    It is signed with `jwt_secret`, or with the runner's own secret in the data directory, which is made if missing. Of
    the modules file only the section `runner:` is read, so mistakes in modules do not matter.

    A runner that verifies tokens with a public key or a JWKS URL cannot sign tokens; sign them with the private key.
    """
    seconds = duration(expires, "--expires")
    loaded = load_settings(options, modules=False)
    if warning := new_data_elsewhere(loaded):
        click.echo(f"warning: {warning}", err=True)
    from runner.auth import issue_token

    click.echo(issue_token(loaded.settings, subject, scope.split(), seconds, globs))
    return 0


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print a script that completes commands and options in a shell.

    For bash, put into ~/.bashrc: eval "$(operato-runner completion bash)"

    For zsh, put into ~/.zshrc: eval "$(operato-runner completion zsh)"

    For fish: operato-runner completion fish > ~/.config/fish/completions/operato-runner.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"there is no completion for {shell}")
    click.echo(found(cli, {}, PROGRAM, COMPLETE).source())
    return 0


@cli.group()
def config() -> None:
    """Check and describe the configuration."""


@config.command()
@settings_options()
def check(**options: Any) -> int:
    """Print every setting with its source, or all mistakes.

    All mistakes in settings and modules are printed at once, with file, line and field: the same that `serve` refuses,
    secrets without a value included. Nothing is started, built or written.

    Exit code: 0 without mistakes, else 2.
    """
    loaded = load_settings(options)
    import trio

    from config.modules import crowding
    from runner.cli.module_files import not_read
    from runner.serve import open_endpoints, registered, start_mistakes, surroundings, unknown_recipients

    if mistakes := trio.run(start_mistakes, loaded, surroundings()):
        raise ConfigError(mistakes)
    for spec in loaded.modules.modules:
        crowded = crowding(spec, loaded.settings.executor.max_workers)
        for text in (*open_endpoints(spec), *([crowded] if crowded else [])):
            click.echo(f"warning: {spec.name}: {text}", err=True)
        for text in not_read(spec, spec.path):
            click.echo(f"note: {text}", err=True)
    known = {spec.name for spec in loaded.modules.modules} | registered(loaded.settings.store.data_dir)
    for name, text in unknown_recipients(loaded.modules.modules, known):
        click.echo(f"warning: {name}: {text}", err=True)
    click.echo(table(describe(loaded)))
    click.echo(f"{len(loaded.modules.modules)} modules:")
    for spec in loaded.modules.modules:
        description = one_line(" ".join(spec.description.split()))
        click.echo(f"  {spec.name}  ({spec.env}, {spec.isolation})  {description}".rstrip())
    return 0


@config.command()
def schema() -> int:
    """Print the JSON Schema of modules.yaml, for editors.

    Example: operato-runner config schema > modules.schema.json

    Name the file in the first line of modules.yaml: # yaml-language-server: $schema=modules.schema.json
    """
    import msgspec

    from runner.cli.authors import modules_schema

    click.echo(msgspec.json.format(msgspec.json.encode(modules_schema()), indent=1))
    return 0


@cli.command()
@json_option("text")
@settings_options()
def doctor(as_json: bool, **options: Any) -> int:
    """Check what this machine can run, and how to fix the rest.

    Checks the kinds of environment, the enforcement of limits, uv and the Python versions, folders, ports and secrets,
    each with a remedy where something is missing. Nothing is left behind, and a running server is not disturbed.

    Exit code: 0 if everything in the modules file can work here, 1 if not, 2 for a mistake in the configuration.
    """
    loaded = load(options, quiet=True)
    from runner.cli.doctor import document_of, examine, print_findings, works
    from runner.serve import surroundings

    findings = examine(loaded, surroundings())
    if as_json:
        click.echo(document_of(findings))
    else:
        print_findings(findings)
    return 0 if works(findings) else 1
