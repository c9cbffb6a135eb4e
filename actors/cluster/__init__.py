"""Many runners as one: what they share by NATS JetStream. Only a runner with the setting `cluster` imports it."""

from __future__ import annotations

from actors.cluster.engine import Engine, open_engine

__all__ = ["Engine", "open_engine"]
