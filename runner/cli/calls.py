"""The commands `call` and `logs` and the group `executions`, for a running server."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
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
@click.option(
    "--at", default=None, metavar="TIME", help="with --async: run it then: 2027-01-31T09:30, 2027-01-31T09:30:00Z"
)
@click.option("--delay", default=None, metavar="DURATION", help="with --async: run it after this time: 90, 15m, 2h")
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
    at: str | None,
    delay: str | None,
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
    for option, value in (("--priority", priority), ("--at", at), ("--delay", delay)):
        if value is not None and not asynchronous:
            raise click.UsageError(f"{option} is for asynchronous calls; add --async")
    from runner.client import MAX_ANSWER_BYTES, Order, coming, follow_call, submit

    content = sys.stdin.buffer.read(MAX_ANSWER_BYTES + 1) if data == "-" else os.fsencode(data)
    seconds = None if timeout is None else duration(timeout, "--timeout")
    after = None if delay is None else duration(delay, "--delay")
    terms = {"priority": priority, "run_at": coming(at, "--at"), "delay": after}
    order = Order(name, content, version, seconds, key, terms)
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
    """List, show, cancel and repeat executions of a running server."""


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
    click.option("--unresolved", is_flag=True, help="only failures without a later success of a repetition"),
    click.option(
        "--since",
        default=None,
        metavar="WHEN",
        help="accepted since then: today, yesterday, 2h (two hours ago), 2026-01-31, 2026-01-31T09:30:00Z",
    ),
    click.option("--until", default=None, metavar="WHEN", help="accepted before then"),
)


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters of a list to a command, which gets them as `filters`."""

    @functools.wraps(command)
    def with_filters(**given: Any) -> Any:
        from runner.client import moment

        filters = {"subject": given.pop("caller"), "unresolved": "true" if given.pop("unresolved") else None}
        filters |= {name: given.pop(name) for name in ("module", "version", "status", "error", "schedule", "rerun_of")}
        filters |= {name: moment(given.pop(name), f"--{name}") for name in ("since", "until")}
        return command(filters=filters, **given)

    for option in reversed(_FILTERS):
        with_filters = option(with_filters)
    return with_filters


@executions.command("list")
@_filters
@list_options(50)
@connection_options()
def list_(filters: dict[str, Any], limit: int, cursor: str | None, as_json: bool, **options: Any) -> int:
    """List executions, newest first."""
    from runner.client import list_executions

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


@executions.command("rerun")
@click.argument("identities", metavar="[ID]...", nargs=-1)
@click.option("--with", "wanted", default="same", metavar="VERSION", help="same, active, or the name of one  [same]")
@click.option("--input", "data", default=None, metavar="JSON", help="another input, for executions given by ID")
@click.option("--priority", default=None, type=click.IntRange(MIN_PRIORITY, MAX_PRIORITY), metavar="0-9", help="[same]")
@click.option("--at", default=None, metavar="TIME", help="run it then: 2027-01-31T09:30, 2027-01-31T09:30:00Z")
@click.option("--delay", default=None, metavar="DURATION", help="run it after this time: 90, 15m, 2h")
@click.option("--dry-run", is_flag=True, help="with filters: only tell what would be repeated")
@_filters
@click.option(
    "--limit", default=50, type=click.IntRange(1, 100_000), metavar="N", help="look at N executions at most  [50]"
)
@click.option("--cursor", default=None, metavar="CURSOR", help="continue where the last command ended")
@connection_options()
def rerun(
    identities: tuple[str, ...],
    wanted: str,
    data: str | None,
    priority: int | None,
    at: str | None,
    delay: str | None,
    dry_run: bool,
    filters: dict[str, Any],
    limit: int,
    cursor: str | None,
    **options: Any,
) -> int:
    """Repeat executions that have ended: those with these IDs, or at most --limit of those that the filters find.

    Example: operato-runner executions rerun --unresolved --module report --since 2h --dry-run

    The repetitions are accepted, and run like other asynchronous calls. Prints their IDs. Of a chain of repetitions the
    filters repeat only the last one. The exit code is 1 when one that the filters found was refused.
    """
    filtered = any(value is not None for value in filters.values())
    single = {"--input": data, "--priority": priority, "--at": at, "--delay": delay}
    for option, value in single.items():
        if value is not None and not identities:
            raise click.UsageError(f"{option} is for executions given by ID")
    if identities and (filtered or dry_run):
        raise click.UsageError("give IDs, or filters with --dry-run")
    if not identities and not filtered:
        raise click.UsageError("give IDs, or a filter such as --unresolved: all executions would be repeated")
    from runner.client import coming, rerun_executions, rerun_list

    if not identities:
        return with_client(
            options, _RUN, lambda client: rerun_list(client, filters, limit, cursor, wanted, dry_run=dry_run)
        )
    after = None if delay is None else duration(delay, "--delay")
    terms = {"priority": priority, "run_at": coming(at, "--at"), "delay": after}
    content = None if data is None else os.fsencode(data)
    return with_client(options, _RUN, lambda client: rerun_executions(client, identities, wanted, content, terms))
