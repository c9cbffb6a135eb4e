"""The commands against a running server: `call`, `logs` and the group `executions`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from runner.cli.options import Commands, connection_options, duration, with_client

_RUN = ("executions:run", "executions:read")


@click.command()
@click.argument("name")
@click.argument("data", metavar="[JSON]", default="")
@click.option("--follow", is_flag=True, help="show what the handler prints while it runs, of all attempts")
@click.option("--async", "asynchronous", is_flag=True, help="print the id of the execution, and do not wait for it")
@click.option("--version", default=None, metavar="VERSION", help="of the module  [the active one]")
@click.option("--timeout", default=None, metavar="DURATION", help="can only shorten the module's own: 5, 500ms, 2m")
@click.option("--key", default=None, metavar="KEY", help="idempotency key: the same call again is the same execution")
@connection_options
def call(
    name: str,
    data: str,
    follow: bool,
    asynchronous: bool,
    version: str | None,
    timeout: str | None,
    key: str | None,
    **options: Any,
) -> None:
    """Call a module of a running server: NAME, with JSON as input.

    `-` reads the input from standard input; without any it is null.

    The result goes to standard output as one line of JSON, what the handler printed on either stream to standard
    error. Ctrl-C ends the execution on the server. The exit code tells the kind of failure; 0 is success.

    With --key the call is accepted first and goes on when this command is cut off, but for Ctrl-C; with --follow it
    then needs the scope executions:read.
    """
    if follow and asynchronous:
        raise click.UsageError("--follow and --async exclude each other; `logs -f ID` follows one that was accepted")

    async def work(client: Any) -> int:
        from runner.client import MAX_ANSWER_BYTES  # noqa: PLC0415
        from runner.client import calls as client_calls  # noqa: PLC0415

        content = sys.stdin.buffer.read(MAX_ANSWER_BYTES + 1) if data == "-" else os.fsencode(data)
        seconds = None if timeout is None else duration(timeout, "--timeout")
        order = client_calls.Order(name, content, version, seconds, key)
        if asynchronous:
            return await client_calls.submit(client, order)
        return await client_calls.call(client, order, live=follow)

    with_client(options, _RUN, work)


@click.command()
@click.argument("identity", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="go on until the execution ends, and end as it does")
@click.option(
    "--from", "start", default=0, type=click.IntRange(min=0), metavar="N", help="number of the first event  [0]"
)
@connection_options
def logs(identity: str, follow: bool, start: int, **options: Any) -> None:
    """Print what an execution of a running server printed.

    What the handler wrote to standard output goes there, what it wrote to standard error likewise, of all attempts in
    order. Lines that begin with -- say what was not kept.

    With -f, a lost connection is made again, for a minute at most, and nothing comes twice. The exit code is then that
    of the end of the execution. Ctrl-C leaves the execution alone.
    """

    async def work(client: Any) -> int:
        from runner.client import calls as client_calls  # noqa: PLC0415

        return await client_calls.logs(client, identity, start, following=follow)

    with_client(options, _RUN, work)


@click.group(cls=Commands)
def executions() -> None:
    """List, show and cancel executions of a running server."""


@executions.command("list")
@click.option("--module", default=None, metavar="NAME", help="of this module")
@click.option("--version", default=None, metavar="VERSION", help="of this version")
@click.option("--status", default=None, metavar="STATUS", help="queued, running, succeeded, failed or cancelled")
@click.option("--error", default=None, metavar="KIND", help="that failed so: timeout, handler_error and other kinds")
@click.option("--caller", default=None, metavar="SUBJECT", help="of this subject of tokens")
@click.option(
    "--since", default=None, metavar="WHEN", help="accepted from then on: 2026-01-31T09:30:00Z, or 2h ago as 2h"
)
@click.option("--until", default=None, metavar="WHEN", help="accepted before then")
@click.option("--limit", default=50, type=click.IntRange(1, 100_000), metavar="N", help="at most so many  [50]")
@click.option("--cursor", default=None, metavar="CURSOR", help="go on where another list ended")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document instead of a table")
@connection_options
def list_(
    module: str | None,
    version: str | None,
    status: str | None,
    error: str | None,
    caller: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """List executions, the newest first."""

    async def work(client: Any) -> int:
        from runner.client import executions as client_executions  # noqa: PLC0415

        filters = {"module": module, "version": version, "status": status, "error": error, "subject": caller}
        filters |= {"since": client_executions.moment(since), "until": client_executions.moment(until)}
        return await client_executions.listing(client, filters, limit, cursor, as_json=as_json)

    with_client(options, _RUN, work)


@executions.command("show")
@click.argument("identity", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document instead of text")
@connection_options
def show(identity: str, as_json: bool, **options: Any) -> None:
    """Show one execution: state, times, input, result, error."""

    async def work(client: Any) -> int:
        from runner.client import executions as client_executions  # noqa: PLC0415

        return await client_executions.showing(client, identity, as_json=as_json)

    with_client(options, _RUN, work)


@executions.command("cancel")
@click.argument("identities", metavar="ID", nargs=-1, required=True)
@connection_options
def cancel(identities: tuple[str, ...], **options: Any) -> None:
    """End executions; ready when their processes are gone.

    One that has ended is left as it is. Prints each with its state.
    """

    async def work(client: Any) -> int:
        from runner.client import executions as client_executions  # noqa: PLC0415

        return await client_executions.cancelling(client, identities)

    with_client(options, _RUN, work)
