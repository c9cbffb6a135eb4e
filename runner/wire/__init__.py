"""The parts of a door below its protocol, shared by HTTP and gRPC: limits that count over all of them."""

from runner.wire.budget import Budget

__all__ = ["Budget"]
