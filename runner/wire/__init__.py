"""The parts of a door below its protocol, shared by HTTP and gRPC: accepting, bytes, and limits over all doors."""

from runner.wire.accepting import accept_all, listen
from runner.wire.budget import LARGE_BYTES, Budget, Share
from runner.wire.floods import FloodError, Floods
from runner.wire.notes import Notes
from runner.wire.output import Output
from runner.wire.poller import GONE, Poller
from runner.wire.silence import Silence
from runner.wire.wire import PlainWire, Sender, TlsWire, Wire

__all__ = [
    "GONE",
    "LARGE_BYTES",
    "Budget",
    "FloodError",
    "Floods",
    "Notes",
    "Output",
    "PlainWire",
    "Poller",
    "Sender",
    "Share",
    "Silence",
    "TlsWire",
    "Wire",
    "accept_all",
    "listen",
]
