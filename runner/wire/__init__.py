"""The parts of a door below its protocol, shared by HTTP and gRPC: bytes, plain or by TLS, and limits over all doors."""

from runner.wire.budget import Budget
from runner.wire.wire import PlainWire, Sender, TlsWire, Wire

__all__ = ["Budget", "PlainWire", "Sender", "TlsWire", "Wire"]
