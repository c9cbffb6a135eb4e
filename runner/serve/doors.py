"""The doors of the server, REST and gRPC: made from the settings, opened, and closed after the drain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from config.settings import ServerSettings, Settings
from runner.api import Service
from runner.auth import Verifier
from runner.ports import explaining_bind_errors
from runner.serve.tls import server_context

if TYPE_CHECKING:
    from runner.ui import Ui

_GRACEFUL_SECONDS = 2.0
"""Time to deliver answers that are under way when the doors close."""


@define(eq=False)
class Doors:
    """The doors, with the addresses of the open ones by name."""

    addresses: dict[str, list[tuple[str, int]]] = field(factory=lambda: {"rest": [], "grpc": []})
    ui: Ui | None = None
    """The dashboard, if there is one."""
    _ended: list[trio.Event] = field(factory=list)

    async def open(
        self, nursery: trio.Nursery, name: str, door: Callable[..., Awaitable[None]], host: str, port: int
    ) -> None:
        """Start a door; it passes its addresses to `task_status.started`. Raises OSError that names the remedy."""
        ended = trio.Event()
        self._ended.append(ended)

        async def run(*, task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
            try:
                with explaining_bind_errors(host, port, f"--{name}-port"):
                    await door(task_status=task_status)
            finally:
                ended.set()

        self.addresses[name] = await nursery.start(run)

    async def wait_ended(self) -> None:
        """Wait until all doors are closed."""
        for ended in self._ended:
            await ended.wait()


async def open_doors(
    nursery: trio.Nursery,
    service: Service,
    verifier: Verifier,
    settings: Settings,
    draining: trio.Event,
    closed: trio.Event,
) -> Doors:
    """Open the configured doors: `draining` is set when the drain begins, `closed` when they must close.

    Raises OSError and ConfigError.
    """
    server = settings.server
    doors = Doors()
    if server.rest:
        doors.ui = _dashboard(service, verifier)
        rest = _rest_door(service, verifier, server, doors.ui, closed)
        await doors.open(nursery, "rest", rest, server.host, server.rest_port)
    if server.grpc:
        grpc = _grpc_door(service, verifier, server, draining, closed)
        await doors.open(nursery, "grpc", grpc, server.host, server.grpc_port)
    return doors


# Each door imports its libraries itself: `--no-rest` and `--no-grpc` save their start-up time and memory.


def _dashboard(service: Service, verifier: Verifier) -> Ui | None:
    from runner.ui import make_ui  # noqa: PLC0415

    return make_ui(service, verifier)


def _rest_door(
    service: Service, verifier: Verifier, server: ServerSettings, ui: Ui | None, closed: trio.Event
) -> Callable[..., Awaitable[None]]:
    from runner.http import HttpLimits, serve  # noqa: PLC0415
    from runner.mcp import make_mcp  # noqa: PLC0415
    from runner.rest import HEALTH_PATHS, make_app  # noqa: PLC0415

    limits = HttpLimits(
        keep_alive_seconds=server.keep_alive_seconds,
        body_seconds=server.body_timeout_seconds,
        send_seconds=server.send_timeout_seconds,
        graceful_seconds=_GRACEFUL_SECONDS,
        max_connections=server.max_connections,
        max_body_bytes=server.max_frame_bytes,
        reserved_paths=HEALTH_PATHS,
    )
    return partial(
        serve,
        make_app(service, verifier, ui, make_mcp(service, verifier)),
        host=server.host,
        port=server.rest_port,
        limits=limits,
        budget=service.budget,
        shutdown=closed,
        tls=server_context(server, ["http/1.1"]),
    )


def _grpc_door(
    service: Service, verifier: Verifier, server: ServerSettings, draining: trio.Event, closed: trio.Event
) -> Callable[..., Awaitable[None]]:
    from runner.grpc import GrpcLimits, make_methods, serve  # noqa: PLC0415

    limits = GrpcLimits(
        max_message_bytes=server.max_frame_bytes,
        max_connections=server.max_connections,
        max_calls=server.max_connections,
        message_seconds=server.body_timeout_seconds,
        send_seconds=server.send_timeout_seconds,
        graceful_seconds=_GRACEFUL_SECONDS,
    )
    return partial(
        serve,
        make_methods(service, verifier),
        host=server.host,
        port=server.grpc_port,
        limits=limits,
        budget=service.budget,
        draining=draining,
        closed=closed,
        ready=lambda: service.history.statistics().refusing is None,
        tls=server_context(server, ["h2"]),
    )
