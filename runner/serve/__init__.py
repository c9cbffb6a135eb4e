"""The server process: signals, actors, doors, drain and exit code; and one call without a server.

`server` runs the only event loop, `doors` opens REST and gRPC, `tls` makes their TLS context, `checks` finds mistakes
before the start, `reload` publishes the modules file again, `heap` gives memory back, `once` makes the
call of the command `run`, `dev` prints the calls of the command `dev`, `tools` serves those of the command `mcp`.
"""

from runner.serve.checks import (
    cluster_mistakes,
    key_mistakes,
    make_verifier,
    makes_secret,
    open_endpoints,
    registered,
    secret_mistakes,
    start_mistakes,
    unknown_recipients,
)
from runner.serve.dev import Dev
from runner.serve.once import run_once
from runner.serve.server import run_server, surroundings
from runner.serve.tls import server_context
from runner.serve.tools import run_tools

__all__ = [
    "Dev",
    "cluster_mistakes",
    "key_mistakes",
    "make_verifier",
    "makes_secret",
    "open_endpoints",
    "registered",
    "run_once",
    "run_server",
    "run_tools",
    "secret_mistakes",
    "server_context",
    "start_mistakes",
    "surroundings",
    "unknown_recipients",
]
