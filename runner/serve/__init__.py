"""The server process: signals, actors, doors, drain and exit code; and one call without a server.

`server` runs the only event loop, `doors` opens REST and gRPC, `tls` makes their TLS context, `reload` publishes the
modules file again, `once` makes the call of the command `run`.
"""

from runner.serve.once import run_once
from runner.serve.server import make_verifier, run_server, surroundings
from runner.serve.tls import server_context

__all__ = ["make_verifier", "run_once", "run_server", "server_context", "surroundings"]
