"""Requests to a runner: settings, retries and errors once, over httpx in a thread or in an event loop.

The code above is written once, as coroutines. With `SyncTransport` they never wait, so `drive` runs one to its end;
with `AsyncTransport` they wait in the event loop of the caller.
"""

from operato.connection.link import ANSWER_SECONDS, MAX_ANSWER_BYTES, Link, segment
from operato.connection.settings import Settings, Token, read_settings
from operato.connection.transport import AsyncTransport, Reply, SyncTransport, Transport, Upload, drive

__all__ = [
    "ANSWER_SECONDS",
    "MAX_ANSWER_BYTES",
    "AsyncTransport",
    "Link",
    "Reply",
    "Settings",
    "SyncTransport",
    "Token",
    "Transport",
    "Upload",
    "drive",
    "read_settings",
    "segment",
]
