"""The door for agents: modules as tools over the Model Context Protocol, by HTTP and by standard input and output.

`Methods` answers the messages over the verbs of every door; it knows neither transport. `Door` is the ASGI application,
`serve_lines` the other one.
"""

from runner.mcp.door import PATH, make_mcp
from runner.mcp.lines import serve_lines

__all__ = ["PATH", "make_mcp", "serve_lines"]
