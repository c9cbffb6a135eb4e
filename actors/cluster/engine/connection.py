"""The connection to the engine as the runner's loop sees it.

Both loops hand over in batches: one wake-up of the other loop serves all messages that are ready.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from actors.cluster.engine.link import Access, Handle, Hooks, Server, Side, Subscription
from actors.cluster.engine.messages import AwayError

log: Any = structlog.get_logger("runner.cluster")

MAX_QUEUED_BYTES: Final = 16 * 1024 * 1024
"""Data that waits for the thread; senders wait beyond it."""
_PIECE: Final = 256
"""Messages that are handled before others of the loop have their turn."""
_MAX_PAYLOAD: Final = 1024 * 1024


class Connection:
    """The connection as seen from the runner's loop. All methods belong to that loop."""

    def __init__(self, access: Access, trouble: Callable[[str], None]) -> None:
        self.server: Server | None = None
        """None while there is no connection."""
        self.problem = ""
        """Why the last attempt to connect failed."""
        self.max_payload = _MAX_PAYLOAD
        """In bytes; of the last connection."""
        self.losses: set[Callable[[], None]] = set()
        """Called when a connection is lost, before `changed`."""
        self.changed: set[Callable[[], None]] = set()
        """Called when the connection comes and when it goes."""
        self._epoch = 0
        self._put = 0
        self._arrived: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._woken = False
        self._room = trio.lowlevel.ParkingLot()
        self._whole = trio.Event()
        self._ended = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        hooks = Hooks(self._connected, self._lost, self._failed, trouble, self._roomy)
        self._side = Side(access, self._arrive, hooks)
        self._thread = threading.Thread(target=self._side.run, args=(self._end,), name="cluster link")

    def start(self) -> None:
        """Start the thread, which connects and stays connected. `close` ends it."""
        self._thread.start()

    async def close(self) -> None:
        """Give up the connection and end the thread, in a bounded time even if the server is stopped."""
        with trio.CancelScope(shield=True):  # bounded by the limits of the thread
            self._side.stop()
            await self._ended.wait()
        self._thread.join()

    async def wait_connected(self) -> None:
        """Wait for a connection."""
        await self._whole.wait()

    def post(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Hand a message over. Raises `AwayError` without a connection, or where too much waits already."""
        if self.server is None:
            raise AwayError(self.problem or "there is no connection to the cluster's servers")
        if self._put - self._side.sent > MAX_QUEUED_BYTES:
            raise AwayError("too much waits to be sent to the cluster's servers")
        self._put += len(data)
        self._side.do((self._epoch, subject, data, reply, headers))

    async def room(self) -> None:
        """Wait until there is room for a message."""
        while self._put - self._side.sent > MAX_QUEUED_BYTES // 2 and self.server is not None:
            self._side.awaited = True
            if self._put - self._side.sent > MAX_QUEUED_BYTES // 2:
                await self._room.park()

    def subscribe(self, subject: str, handle: Handle, *, limit: int = 65536) -> Subscription:
        """Have the messages of a subject handled on this loop, over all connections, until `unsubscribe`."""
        subscription = Subscription(subject, handle, limit)
        self._side.do(("+", subscription))
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription. Messages that are on their way are still handled."""
        self._side.do(("-", subscription))

    # What the thread has for this loop.

    def _arrive(self, handle: Callable[[Any], None], argument: Any) -> None:
        """Hand something to the runner's loop, from the thread."""
        self._arrived.append((handle, argument))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._take)

    def _take(self) -> None:
        self._woken = False  # first: what arrives from now on wakes again
        arrived = self._arrived
        for _ in range(_PIECE):
            if not arrived:
                return
            handle, argument = arrived.popleft()
            try:
                handle(argument)
            except Exception:
                log.exception("a message from the cluster was not handled")
        if arrived and not self._woken:
            self._woken = True
            self._token.run_sync_soon(self._take)

    def _connected(self, at: tuple[int, Server]) -> None:
        self._epoch, self.server = at
        self.max_payload = at[1].max_payload
        self.problem = ""
        self._whole.set()
        self._change()

    def _lost(self, problem: str) -> None:
        self.server = None
        self.problem = problem
        self._room.unpark_all()
        self._whole = trio.Event()
        for hook in list(self.losses):
            hook()
        self._change()

    def _change(self) -> None:
        for hook in list(self.changed):
            hook()

    def _failed(self, problem: str) -> None:
        self.problem = problem

    def _roomy(self, _: None) -> None:
        self._room.unpark_all()

    def _end(self) -> None:
        """Tell that the thread ends, from the thread."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._ended.set)
