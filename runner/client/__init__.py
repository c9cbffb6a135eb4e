"""A connection to a running server, and the work of the commands that use it.

`connection` (HTTP), `socket` and `events` reach the server, `local_token` finds the credentials, `trouble` words the
errors. `calls`, `executions`, `files` and `modules` do the work of a command and print to the terminal.
"""

from runner.client.agents import relay_lines
from runner.client.calls import Order, follow_call, print_output, submit
from runner.client.connection import MAX_ANSWER_BYTES, Client, run, segment
from runner.client.executions import (
    cancel_executions,
    coming,
    decide_executions,
    list_executions,
    moment,
    rerun_executions,
    rerun_list,
    show_execution,
)
from runner.client.files import Form, Part, Raw, collect_files, get_file, get_result, list_files, put_file, remove_files
from runner.client.lists import collect, list_nodes, print_json, print_table, read_items
from runner.client.local_token import credentials
from runner.client.modules import (
    Sent,
    activate,
    list_changes,
    list_modules,
    list_versions,
    push,
    remove,
    rollback,
    show_module,
)
from runner.client.stubs import print_stubs

__all__ = [
    "MAX_ANSWER_BYTES",
    "Client",
    "Form",
    "Order",
    "Part",
    "Raw",
    "Sent",
    "activate",
    "cancel_executions",
    "collect",
    "collect_files",
    "coming",
    "credentials",
    "decide_executions",
    "follow_call",
    "get_file",
    "get_result",
    "list_changes",
    "list_executions",
    "list_files",
    "list_modules",
    "list_nodes",
    "list_versions",
    "moment",
    "print_json",
    "print_output",
    "print_stubs",
    "print_table",
    "push",
    "put_file",
    "read_items",
    "relay_lines",
    "remove",
    "remove_files",
    "rerun_executions",
    "rerun_list",
    "rollback",
    "run",
    "segment",
    "show_execution",
    "show_module",
    "submit",
]
