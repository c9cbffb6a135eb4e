"""The parts of a door below its protocol, shared by HTTP and gRPC: accepting, bytes, and limits over all doors."""

from runner.wire.accepting import accept_all, listen
from runner.wire.budget import Budget
from runner.wire.floods import FloodError, Floods
from runner.wire.output import Output
from runner.wire.poller import GONE, Poller
from runner.wire.wire import PlainWire, Sender, TlsWire, Wire

__all__ = [
    "GONE",
    "Budget",
    "FloodError",
    "Floods",
    "Output",
    "PlainWire",
    "Poller",
    "Sender",
    "TlsWire",
    "Wire",
    "accept_all",
    "listen",
]
