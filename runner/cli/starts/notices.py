"""The group `notices`: list notices of a running server, and send them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from runner.cli.options import Commands, connection_options, list_options, with_client

if TYPE_CHECKING:
    from runner.client import Client

_SCOPES = ("executions:read", "executions:run")


class _Notice(msgspec.Struct):
    id: str
    execution: str
    target: str = ""
    state: str = ""
    attempts: int = 0
    reason: str | None = None
    created_at: float | None = None
    due_at: float | None = None


@click.group("notices", cls=Commands)
def notice_commands() -> None:
    """List and repeat notices about ended executions."""


@notice_commands.command("list")
@click.option("--state", default=None, metavar="STATE", help="pending, delivered or dead")
@click.option("--module", default=None, metavar="NAME", help="only about executions of this module")
@click.option("--execution", default=None, metavar="ID", help="only about this execution")
@list_options(50)
@connection_options()
def list_(
    state: str | None,
    module: str | None,
    execution: str | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """List notices about ended executions, newest first."""
    from runner.client import collect, print_json, print_table, read_items
    from runner.terminal import printable, time_of

    filters = {"state": state, "module": module, "execution": execution}

    async def work(client: Client) -> int:
        items, following = await collect(client, "/notices", filters, limit, cursor)
        if as_json:
            print_json(items, following)
            return 0
        rows = [
            (
                each.id,
                each.state,
                printable(each.target),
                str(each.attempts),
                time_of(each.created_at),
                time_of(each.due_at),
                printable(each.reason or ""),
            )
            for each in read_items(client, items, _Notice)
        ]
        print_table(("ID", "STATE", "TO", "ATTEMPTS", "CREATED", "NEXT", "LAST FAILURE"), rows, following)
        return 0

    return with_client(options, _SCOPES, work)


@notice_commands.command("retry")
@click.argument("identities", metavar="ID...", nargs=-1, required=True)
@connection_options()
def retry(identities: tuple[str, ...], **options: Any) -> int:
    """Send notices again now, and try them for another day.

    Notices that are delivered are refused.
    """
    from runner.client import segment

    async def work(client: Client) -> int:
        for each in identities:
            await client.request("POST", f"/notices/{segment(each)}/retry")
            click.echo(f"{each}  is sent again")
        return 0

    return with_client(options, _SCOPES, work)
