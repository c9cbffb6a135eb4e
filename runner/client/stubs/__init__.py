"""Python text with a typed function for each module of a server, for callers that use `operato-client`."""

from runner.client.stubs.printing import print_stubs
from runner.client.stubs.text import Described, write_stubs

__all__ = ["Described", "print_stubs", "write_stubs"]
