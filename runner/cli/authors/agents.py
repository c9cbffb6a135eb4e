"""The command `mcp`: tools for the client of an agent on this machine, over standard input and output."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from config.client import VARIABLES
from config.load import SETTINGS, load_client_settings
from protocol.errors import ErrorKind, RunnerError
from runner.cli.options import Command, connection_options, load, settings_options, with_client
from runner.watch import be_watched

_SCOPES: Final = ("executions:run", "executions:read")
_DEFAULT: Final = "http://127.0.0.1:8000"


@click.command("mcp", cls=Command)
@click.option("--local", is_flag=True, help="run the modules of the modules file, without a server")
@connection_options()
@settings_options(hidden=True)
def tools(local: bool, **options: Any) -> int:
    """Offer modules as tools to an agent, over standard input and output.

    The client of the agent starts this command, and speaks the Model Context Protocol with it. A running server does
    the work; if none answers at the default address, the modules of the modules file run here, as with --local, and
    nothing is recorded.

    The server itself serves the same at its path /mcp, for clients that connect over HTTP.
    """
    connection = {name: options.pop(name) for name in VARIABLES}
    if not local:
        from runner.client import relay_lines

        try:
            return with_client(connection, _SCOPES, relay_lines)
        except RunnerError as problem:
            default = str(load_client_settings(connection).address) == _DEFAULT
            if problem.failure.kind is not ErrorKind.UNAVAILABLE or not default:
                raise
            sys.stderr.write(f"{problem.failure.message}\nserving the modules of the modules file instead\n")
    from runner.serve import run_tools, surroundings

    loaded = load({name: options.get(name) for name in ("config", *SETTINGS)}, quiet=True)
    return run_tools(loaded, surroundings(be_watched()))
