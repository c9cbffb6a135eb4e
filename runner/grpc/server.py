"""The gRPC server: listens, accepts calls until it drains, and ends them."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from functools import partial

import trio

from runner.grpc.call import GrpcLimits, Method
from runner.grpc.connection import Connection
from runner.grpc.door import Door
from runner.grpc.standard import Health
from runner.wire import Budget, Poller, accept_all, listen


async def serve(
    methods: Mapping[str, Method],
    *,
    host: str,
    port: int,
    limits: GrpcLimits,
    budget: Budget,
    draining: trio.Event,
    closed: trio.Event,
    ready: Callable[[], bool],
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `methods` by path, health and reflection until `closed` is set.

    Port 0 takes a free one; `task_status.started` is called with the bound (host, port) pairs. `budget` bounds the
    messages that have not arrived completely, or are not read. Health answers NOT_SERVING while `ready` returns false.

    When `draining` is set, no connection is accepted, health answers NOT_SERVING, and clients are asked to go elsewhere
    (GOAWAY). New calls, and batches that wait for input, are answered UNAVAILABLE; running calls continue. After
    `closed` they have `graceful_seconds`; those that still run then are cancelled and answered UNAVAILABLE.

    Raises OSError when the address cannot be bound.

    **Cancellation** cuts all clients off at once.
    """
    listeners = await listen(host, port)
    services = {path.split("/")[1] for path in methods}
    try:
        async with trio.open_nursery() as nursery:
            poller = Poller()
            nursery.start_soon(poller.run)
            health = Health(services, draining, ready)
            nursery.start_soon(health.follow)
            door = Door({**methods, **health.methods()}, limits, nursery, poller, budget)
            try:
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(accept_all, listeners, partial(_begin, door, tls), door.relieve)
                    task_status.started([listener.socket.getsockname()[:2] for listener in listeners])
                    await draining.wait()
                    accepting.cancel_scope.cancel()
                for listener in listeners:
                    listener.socket.close()
                door.drain()
                await closed.wait()
                await door.finish()
            finally:
                door.abort()
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.socket.close()


def _begin(door: Door, tls: ssl.SSLContext | None, stream: trio.SocketStream) -> None:
    """Serve a client, or close its connection at once if there is no room."""
    client = Connection(door, stream, tls)
    if door.admit(client):
        client.open()
    else:
        stream.socket.close()
