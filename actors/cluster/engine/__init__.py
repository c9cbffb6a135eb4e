"""NATS JetStream over one connection: streams, compare-and-set, jobs, questions between runners, stored objects."""

from __future__ import annotations

from actors.cluster.engine.engine import Engine, open_engine
from actors.cluster.engine.messages import (
    AwayError,
    EngineError,
    Extent,
    FullError,
    LeaderlessError,
    OversizeError,
    RefusedError,
    StaleError,
    Stored,
    UnansweredError,
)
from actors.cluster.engine.pulling import PINNED_SECONDS, Consumer, Delivery, Puller
from actors.cluster.engine.reading import Reader
from actors.cluster.engine.streams import Names

__all__ = [
    "PINNED_SECONDS",
    "AwayError",
    "Consumer",
    "Delivery",
    "Engine",
    "EngineError",
    "Extent",
    "FullError",
    "LeaderlessError",
    "Names",
    "OversizeError",
    "Puller",
    "Reader",
    "RefusedError",
    "StaleError",
    "Stored",
    "UnansweredError",
    "open_engine",
]
