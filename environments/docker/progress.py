"""The progress of pulls and builds, as lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import trio
from attrs import define, field

from environments.docker.engine import Api, EngineError

MAX_TEXT = 1 << 20


class Lines:
    """Splits bytes into lines."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Pass the complete lines on."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-MAX_TEXT:]
        for line in lines:
            self._say(line.decode(errors="replace").rstrip("\r"))


@define
class Progress:
    """Follows the pull of an image, in a thread; reports downloads at most once a second."""

    name: str
    say: Callable[[str], None]
    _layers: dict[str, tuple[int, int]] = field(factory=dict, init=False)
    _reported: float = field(default=0.0, init=False)

    def follow(self, api: Api) -> None:
        """Pull the image. Raises EngineError with the engine's message."""
        for event in api.pull(self.name, stream=True, decode=True):
            if "error" in event:
                raise EngineError(str(event["error"]))
            self._note(event)

    def _note(self, event: Mapping[str, Any]) -> None:
        layer, detail = event.get("id"), event.get("progressDetail") or {}
        if layer and event.get("status") == "Downloading":
            self._layers[layer] = (int(detail.get("current") or 0), int(detail.get("total") or 0))
            now = time.monotonic()
            if now - self._reported < 1.0:
                return
            self._reported = now
            done, total = (sum(pair[at] for pair in self._layers.values()) / 1e6 for at in (0, 1))
            self._send(f"pulling {self.name}: {done:.1f} of {total:.1f} MB")
        elif not detail:
            self._send(" ".join(str(event[key]) for key in ("id", "status") if event.get(key)))

    def _send(self, line: str) -> None:
        trio.from_thread.run_sync(self.say, line)
