"""One task that waits for all connections of a door, in place of a task and a timer for each.

Each socket is registered once with an epoll of our own, and Trio waits for this epoll. So a request costs neither a
registration nor a switch to a reading task, and a connection without a request costs no task at all.
"""

from __future__ import annotations

import select
import time
from typing import Final, Protocol

import trio

GONE: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Events of a client that has closed or reset its side."""
TURN_SECONDS: Final = 0.005
"""After this time the poller lets other tasks run."""
SWEEP_SECONDS: Final = 0.1
"""How often deadlines are looked at."""
MOST_EVENTS: Final = 256


class Watched(Protocol):
    """A connection, for the poller. Its methods never raise."""

    deadline: float
    """Trio time after which `expire` is called; inf: never."""

    def ready(self, events: int) -> bool:
        """Read what has arrived, for a few milliseconds at most; return whether to be called again without an event."""

    def expire(self) -> None:
        """Act on a deadline that has passed."""


class Poller:
    """Tells connections when they can read, and when their deadlines have passed."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        self._again: list[tuple[int, Watched]] = []
        self._first = trio.Event()

    def add(self, descriptor: int, watched: Watched) -> None:
        """Begin to watch a socket."""
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLRDHUP)
        self._watched[descriptor] = watched
        self._first.set()

    def pause(self, descriptor: int) -> None:
        """Tell of the end of the client only."""
        if descriptor in self._watched:
            self._epoll.modify(descriptor, select.EPOLLRDHUP)

    def resume(self, descriptor: int) -> None:
        """Tell of bytes again."""
        if descriptor in self._watched:  # none is after the end of `run`
            self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLRDHUP)

    def remove(self, descriptor: int) -> None:
        """Watch a socket no more. Call it before the socket is closed."""
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep)
                while True:
                    if self._again:
                        await trio.lowlevel.checkpoint()
                    else:
                        await trio.lowlevel.wait_readable(self._epoll.fileno())
                    await self._turn()
        finally:
            self._watched.clear()
            self._epoll.close()

    async def _turn(self) -> None:
        """Serve each connection with an event once."""
        again, self._again = self._again, []
        turn = [(descriptor, watched, 0) for descriptor, watched in again]
        turn += [
            (descriptor, watched, events)
            for descriptor, events in self._epoll.poll(0, MOST_EVENTS)
            if (watched := self._watched.get(descriptor)) is not None
        ]
        begun = time.perf_counter()
        for descriptor, watched, events in turn:
            if self._watched.get(descriptor) is not watched:
                continue  # it was closed meanwhile, and another may have its number
            if watched.ready(events):
                self._again.append((descriptor, watched))
            if time.perf_counter() - begun > TURN_SECONDS:
                await trio.lowlevel.checkpoint()
                begun = time.perf_counter()

    async def _sweep(self) -> None:
        """Let connections act on their deadlines."""
        while True:
            if not self._watched:
                self._first = trio.Event()
                await self._first.wait()
            await trio.sleep(SWEEP_SECONDS)
            now = trio.current_time()
            for watched in [each for each in self._watched.values() if each.deadline <= now]:
                watched.expire()
