"""The way out of a connection whose protocol keeps its own queue: no task while the kernel takes the bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from runner.wire.wire import Wire

WRITES: Final = 4
"""At most this many writes before other tasks run: the protocol makes the bytes, and TLS encrypts them."""


class Output:
    """Writes the bytes that a protocol has ready; a task continues while the kernel has no room, and ends then."""

    def __init__(
        self,
        wire: Wire,
        nursery: trio.Nursery,
        seconds: float,
        ready: Callable[[], bytes],
        failed: Callable[[Exception], None],
    ) -> None:
        """Take bytes from `ready` until it returns none.

        Call `failed` with an error of the wire or of `ready`, or a TimeoutError when the client accepts nothing for
        `seconds`; `failed` closes this output.
        """
        self.blocked = False
        """Whether bytes wait for room in the kernel."""
        self._wire = wire
        self._nursery = nursery
        self._seconds = seconds
        self._ready = ready
        self._failed = failed
        self._unsent = b""
        self._closed = False

    def push(self) -> None:
        """Send what is ready. Never waits, never raises."""
        if not (self.blocked or self._closed or self._flush()):
            self.blocked = True
            self._nursery.start_soon(self._pump)

    def send_last(self, data: bytes) -> None:
        """Send a last word if it can leave at once. Raises OSError."""
        if not self._unsent:
            self._wire.send_now(data)

    def close(self) -> None:
        """Send nothing more. Close the socket afterwards, which ends the task."""
        self._closed = True

    def _flush(self) -> bool:
        """Write some of what is ready; return whether that was all."""
        try:
            for _ in range(WRITES):
                if not (self._unsent or self._wire.pending):
                    self._unsent = self._ready()
                    if not self._unsent:
                        return True
                self._unsent = self._unsent[self._wire.send_now(self._unsent) :]
                if self._unsent or self._wire.pending:
                    return self._closed
        except Exception as problem:  # noqa: BLE001  (the owner tells errors apart)
            self._failed(problem)
        return self._closed

    async def _pump(self) -> None:
        while not self._closed:
            with trio.move_on_after(self._seconds) as scope:
                try:
                    await self._wire.wait_writable()
                except trio.ClosedResourceError:
                    break
            if scope.cancelled_caught:
                self._failed(TimeoutError("the client reads nothing"))
            elif self._flush():
                break
        self.blocked = False
