"""The memory of the server process: what large requests leave behind goes back to the system.

The garbage collector counts objects, not bytes. A failed call or a closed connection is a few objects that refer to
each other, and one of them may be a body of many MiB: too few for a collection of all generations. So growth asks for
one. Small requests leave no growth, and pay nothing.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

import trio
from attrs import define, field

from environments import proc

_GROWTH_BYTES = 32 * 1024 * 1024
_LOOK_SECONDS = 1.0
_SHARE = 0.01
"""At most this part of the time goes to collections: each holds up the event loop."""


def _resident() -> int:
    return proc.resident_bytes(os.getpid())


@define(eq=False)
class Heap:
    """Collects garbage and gives free memory back whenever the process has grown."""

    resident: Callable[[], int] = _resident
    _low: int = field(init=False)
    """The least memory since the last collection."""

    def __attrs_post_init__(self) -> None:
        self._low = self.resident()

    async def run(self) -> None:
        """Look at the memory every second, until cancelled."""
        while True:
            began = time.perf_counter()
            await self.tend()
            await trio.sleep(max(_LOOK_SECONDS, (time.perf_counter() - began) / _SHARE))

    async def tend(self) -> None:
        """Free what nothing uses if the process has grown."""
        now = self.resident()
        self._low = min(self._low, now)
        if now < self._low + _GROWTH_BYTES:
            return
        gc.collect()
        await trio.to_thread.run_sync(proc.trim_memory)
        self._low = self.resident()
