"""The client of an agent, which speaks over standard input and output, and a running server: messages pass through."""

from runner.client.agents.relay import relay_lines

__all__ = ["relay_lines"]
