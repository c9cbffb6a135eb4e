"""The servers of a cluster as `doctor` asks them: their greeting, and their monitoring ports."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import msgspec
import trio
from attrs import frozen

ASK_SECONDS: Final = 5.0
NO_CONNECTION: Final = "no connection"
_MOST_BYTES: Final = 64 * 1024
_PIECE_BYTES: Final = 4096
_GREETING: Final = b"INFO "


@frozen
class Greeting:
    """The first line of a server, before any sign-in."""

    version: str
    jetstream: bool
    max_payload: int


@frozen
class Monitored:
    """The answer of a monitoring port. `storage` is taken of `max_storage` bytes; `offset` its clock less this one."""

    name: str
    synced: bool
    sync_seconds: float
    storage: int
    max_storage: int
    offset: float
    doubt: float
    """Seconds by which the offset may be wrong: half of the time that the question took."""


async def greet(server: str) -> Greeting | str:
    """Return the greeting of a server, or the reason for its absence."""
    parts = urlsplit(server)
    line = b""
    try:
        with trio.fail_after(ASK_SECONDS):
            async with await trio.open_tcp_stream(parts.hostname or "", parts.port or 0) as stream:
                while b"\n" not in line and len(line) < _MOST_BYTES:
                    piece = await stream.receive_some(_PIECE_BYTES)
                    if not piece:
                        break
                    line += piece
    except OSError as problem:
        return f"{NO_CONNECTION}: {problem.strerror or problem}"
    except trio.TooSlowError:
        return f"no greeting within {ASK_SECONDS:g} s"
    if not line.startswith(_GREETING):
        return "this is no NATS server"
    try:
        found = msgspec.json.decode(line[len(_GREETING) :].split(b"\r\n")[0])
    except msgspec.DecodeError:
        return "this is no NATS server"
    return Greeting(str(found.get("version", "")), bool(found.get("jetstream")), int(found.get("max_payload", 0)))


async def monitor(address: str) -> Monitored | str:
    """Return what the monitoring port of a server tells about JetStream, or why it tells nothing."""
    try:
        async with httpx.AsyncClient(timeout=ASK_SECONDS, trust_env=False) as client:
            names = (await client.get(f"{address.rstrip('/')}/varz")).raise_for_status().json()
            began, at = time.monotonic(), time.time()
            found = (await client.get(f"{address.rstrip('/')}/jsz")).raise_for_status().json()
            taken = time.monotonic() - began
    except (httpx.HTTPError, ValueError) as problem:
        return str(problem) or type(problem).__name__
    config = found.get("config")
    if not isinstance(config, Mapping) or not config:
        return "JetStream is off"
    return Monitored(
        str(names.get("server_name", address)),
        bool(config.get("sync_always")),
        float(config.get("sync_interval", 0)) / 1e9,
        int(found.get("storage", 0)),
        int(config.get("max_storage", 0)),
        seconds_of(found["now"]) - at - taken / 2,
        taken / 2,
    )


def seconds_of(text: Any) -> float:
    """Return the time that a server wrote, which has nanoseconds, in seconds since the epoch. Raises ValueError."""
    whole, _, rest = str(text).partition(".")
    fraction = rest.rstrip("Z")
    return datetime.fromisoformat(f"{whole.rstrip('Z')}+00:00").timestamp() + float(f"0.{fraction or 0}")
