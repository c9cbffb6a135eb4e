"""The commands `call` and `logs` and the group `executions`, for a running server."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from protocol.model import MAX_PRIORITY, MIN_PRIORITY
from runner.cli.options import (
    Command,
    Commands,
    connection_options,
    duration,
    json_option,
    list_options,
    with_client,
)

_RUN = ("executions:run", "executions:read")


@click.command(cls=Command)
@click.argument("name")
@click.argument("data", metavar="[JSON]", default="")
@click.option("--follow", is_flag=True, help="show the output of all attempts while the handler runs")
@click.option("--async", "asynchronous", is_flag=True, help="print the id of the execution, and do not wait for it")
@click.option("--version", default=None, metavar="VERSION", help="call this version  [the active version]")
@click.option("--timeout", default=None, metavar="DURATION", help="shorten the module's timeout: 5, 500ms, 2m")
@click.option(
    "--key", default=None, metavar="KEY", help="idempotency key: repeating the call returns the same execution"
)
@click.option(
    "--priority",
    default=None,
    type=click.IntRange(MIN_PRIORITY, MAX_PRIORITY),
    metavar="0-9",
    help="with --async: of the queued calls of a module, the highest runs first  [5]",
)
@connection_options()
def call(
    name: str,
    data: str,
    follow: bool,
    asynchronous: bool,
    version: str | None,
    timeout: str | None,
    key: str | None,
    priority: int | None,
    **options: Any,
) -> int:
    """Call a module of a running server: NAME, with JSON as input.

    Example: operato-runner call greet '{"name": "Ada"}'

    `-` reads the input from standard input; the default is null.

    The result goes to standard output as one line of JSON, the output of the handler (both streams) to standard error.
    Ctrl-C cancels the execution on the server. Exit code: 0 for success, else the code of the error kind.

    With --key the call is accepted first, so it continues if this command is cut off (but not after Ctrl-C); together
    with --follow it needs the scope executions:read.
    """
    if follow and asynchronous:
        raise click.UsageError("--follow and --async exclude each other; `logs -f ID` follows an accepted execution")
    if priority is not None and not asynchronous:
        raise click.UsageError("--priority is for asynchronous calls; add --async")
    from runner.client import MAX_ANSWER_BYTES, Order, follow_call, submit

    content = sys.stdin.buffer.read(MAX_ANSWER_BYTES + 1) if data == "-" else os.fsencode(data)
    seconds = None if timeout is None else duration(timeout, "--timeout")
    order = Order(name, content, version, seconds, key, priority)
    if asynchronous:
        return with_client(options, _RUN, lambda client: submit(client, order))
    return with_client(options, _RUN, lambda client: follow_call(client, order, live=follow))


@click.command(cls=Command)
@click.argument("identity", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="continue until the execution ends, with its exit code")
@click.option(
    "--from", "start", default=0, type=click.IntRange(min=0), metavar="N", help="start at event number N  [0]"
)
@connection_options()
def logs(identity: str, follow: bool, start: int, **options: Any) -> int:
    """Print the output of an execution of a running server.

    Standard output and standard error of the handler go to the same streams here, for all attempts in order. Lines that
    begin with -- mark output that was not kept.

    With -f, a lost connection is reopened for up to a minute, without gaps or repetitions, and the exit code is that of
    the execution. Ctrl-C does not stop the execution.
    """
    from runner.client import print_output

    return with_client(options, _RUN, lambda client: print_output(client, identity, start, following=follow))


@click.group(cls=Commands)
def executions() -> None:
    """List, show and cancel executions of a running server."""


@executions.command("list")
@click.option("--module", default=None, metavar="NAME", help="only of this module")
@click.option("--version", default=None, metavar="VERSION", help="only of this version")
@click.option(
    "--status", default=None, metavar="STATUS", help="scheduled, queued, running, succeeded, failed or cancelled"
)
@click.option(
    "--error", default=None, metavar="KIND", help="only failures of this kind, such as timeout or handler_error"
)
@click.option("--caller", default=None, metavar="SUBJECT", help="only of this caller (the subject of its token)")
@click.option("--schedule", default=None, metavar="NAME", help="only those that this schedule started")
@click.option("--rerun-of", default=None, metavar="ID", help="only repetitions of this execution")
@click.option("--unresolved", is_flag=True, help="only failures without a later success of a repetition")
@click.option(
    "--since",
    default=None,
    metavar="WHEN",
    help="accepted since then: today, yesterday, 2h (two hours ago), 2026-01-31, 2026-01-31T09:30:00Z",
)
@click.option("--until", default=None, metavar="WHEN", help="accepted before then")
@list_options(50)
@connection_options()
def list_(
    module: str | None,
    version: str | None,
    status: str | None,
    error: str | None,
    caller: str | None,
    schedule: str | None,
    rerun_of: str | None,
    unresolved: bool,
    since: str | None,
    until: str | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """List executions, newest first."""
    from runner.client import list_executions, moment

    filters = {"module": module, "version": version, "status": status, "error": error, "subject": caller}
    filters |= {"schedule": schedule, "rerun_of": rerun_of, "unresolved": "true" if unresolved else None}
    filters |= {"since": moment(since, "--since"), "until": moment(until, "--until")}
    return with_client(options, _RUN, lambda client: list_executions(client, filters, limit, cursor, as_json=as_json))


@executions.command("show")
@click.argument("identity", metavar="ID")
@json_option("text")
@connection_options()
def show(identity: str, as_json: bool, **options: Any) -> int:
    """Show one execution: state, times, input, result, error."""
    from runner.client import show_execution

    return with_client(options, _RUN, lambda client: show_execution(client, identity, as_json=as_json))


@executions.command("cancel")
@click.argument("identities", metavar="ID...", nargs=-1, required=True)
@connection_options()
def cancel(identities: tuple[str, ...], **options: Any) -> int:
    """Cancel executions and wait until their processes have ended.

    Prints the state of each. An execution that has ended is not changed.
    """
    from runner.client import cancel_executions

    return with_client(options, _RUN, lambda client: cancel_executions(client, identities))
