"""Accepting connections, for as long as the door is open: a lack of descriptors slows it down and never ends it."""

from __future__ import annotations

import errno
import os
import socket as stdlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NoReturn

import structlog
import trio
from trio import socket

KEEP_ALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""The kernel notices after two minutes that a client has vanished (seconds, seconds, probes)."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""The machine or the process cannot have one more connection."""
PAUSE_SECONDS: Final = (0.05, 1.0)
"""The pause after a connection could not be accepted; it doubles from the first to the second number, and is the first
again after two that could."""
LOG_SECONDS: Final = 60.0
"""A lack of descriptors is logged once in this time."""

MOST_AT_ONCE: Final = 32
"""Connections that are accepted in one turn of the event loop: while that is busy, a flood of them must not let others
wait long."""

log = structlog.get_logger("runner.wire")


async def listen(host: str, port: int) -> list[trio.SocketListener]:
    """Return listeners on all addresses of `host`; port 0 takes a free one. The caller closes them. Raises OSError."""
    listeners = await trio.open_tcp_listeners(port, host=host)
    for listener in listeners:
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # connections inherit these options
        for option, value in KEEP_ALIVE:
            listener.socket.setsockopt(socket.IPPROTO_TCP, option, value)
    return listeners


def waiting(listener: trio.SocketListener) -> Iterator[trio.SocketStream]:
    """Yield connections that wait in the kernel, some at most, and none when one cannot be accepted."""
    with suppress(OSError), stdlib.socket(fileno=os.dup(listener.socket.fileno())) as shared:
        shared.setblocking(False)
        for _ in range(MOST_AT_ONCE - 1):
            accepted, _ = shared.accept()  # an error ends this: none waits, or the next wait shows the reason
            yield trio.SocketStream(socket.from_stdlib_socket(accepted))


async def accept_all(
    listeners: Sequence[trio.SocketListener],
    begin: Callable[[trio.SocketStream], None],
    relieve: Callable[[], object],
    more: Callable[[trio.SocketListener], Iterable[trio.SocketStream]] = waiting,
) -> NoReturn:
    """Call `begin`, which owns the stream from then on, for each connection, until cancelled.

    Without descriptors accepting pauses, and `relieve` is called, which may close a connection; this is one line in the
    log for a period. `more` returns connections that need not be waited for.
    """
    logged_at = -LOG_SECONDS

    async def accept(listener: trio.SocketListener) -> None:
        nonlocal logged_at
        pause, longest = PAUSE_SECONDS
        lacking = False
        while True:
            try:
                stream = await listener.accept()
            except OSError as problem:
                if problem.errno not in EXHAUSTED:
                    raise
                if trio.current_time() - logged_at >= LOG_SECONDS:
                    logged_at = trio.current_time()
                    log.warning("cannot accept connections; raise the limit of open files", why=str(problem))
                await trio.sleep(pause)  # connections that were just accepted have this time to begin a request
                pause, lacking = min(2 * pause, longest), True
                relieve()
            else:
                pause, lacking = pause if lacking else PAUSE_SECONDS[0], False
                begin(stream)
                for another in more(listener):
                    begin(another)

    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(accept, listener)
    raise AssertionError("a listener stopped accepting without an error")
