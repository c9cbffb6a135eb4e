"""The gRPC server: listens, accepts calls until it drains, and ends them."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack

import trio

from runner.grpc.call import GrpcLimits, Method
from runner.grpc.connection import BACKLOG, accept, open_asyncio
from runner.grpc.door import Door
from runner.grpc.standard import standard_methods


async def serve(
    methods: Mapping[str, Method],
    *,
    host: str,
    port: int,
    limits: GrpcLimits,
    draining: trio.Event,
    closed: trio.Event,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `methods` by path, health and reflection until `closed` is set.

    Port 0 takes a free one; `task_status.started` is called with the bound (host, port) pairs.

    When `draining` is set, no connection is accepted, health answers NOT_SERVING, and clients are asked to go elsewhere
    (GOAWAY). New calls, and batches that wait for input, are answered UNAVAILABLE; running calls continue. After
    `closed` they have `graceful_seconds`; those that still run then are cancelled and answered UNAVAILABLE.

    Raises OSError when the address cannot be bound.

    **Cancellation** cuts all clients off at once.
    """
    async with AsyncExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(fileno=listener.socket.detach()))
            for listener in await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
        ]
        addresses = [sock.getsockname()[:2] for sock in sockets]
        loop = await stack.enter_async_context(open_asyncio())
        async with trio.open_nursery() as nursery:
            services = {path.split("/")[1] for path in methods}
            door = Door({**methods, **standard_methods(services, draining)}, limits, nursery)
            stop_accepting = await accept(loop, door, sockets, tls)
            try:
                task_status.started(addresses)
                await draining.wait()
                stop_accepting()
                door.drain()
                await closed.wait()
                await door.finish()
            finally:
                stop_accepting()
                door.abort()
                nursery.cancel_scope.cancel()
