"""A connection to a running server, and the work of the commands that use it.

`connection` (HTTP), `socket` and `events` reach the server, `local_token` finds the credentials, `trouble` words the
errors. `calls`, `executions` and `modules` do the work of a command and print to the terminal.
"""

from runner.client.calls import Order, follow_call, print_output, submit
from runner.client.connection import MAX_ANSWER_BYTES, Client, run, segment
from runner.client.executions import (
    cancel_executions,
    coming,
    list_executions,
    moment,
    rerun_executions,
    rerun_list,
    show_execution,
)
from runner.client.lists import collect, print_json, print_table, read_items
from runner.client.local_token import credentials
from runner.client.modules import (
    Sent,
    activate,
    list_changes,
    list_modules,
    list_versions,
    push,
    remove,
    show_module,
)

__all__ = [
    "MAX_ANSWER_BYTES",
    "Client",
    "Order",
    "Sent",
    "activate",
    "cancel_executions",
    "collect",
    "coming",
    "credentials",
    "follow_call",
    "list_changes",
    "list_executions",
    "list_modules",
    "list_versions",
    "moment",
    "print_json",
    "print_output",
    "print_table",
    "push",
    "read_items",
    "remove",
    "rerun_executions",
    "rerun_list",
    "run",
    "segment",
    "show_execution",
    "show_module",
    "submit",
]
