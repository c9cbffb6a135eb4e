"""The two services that every gRPC server has: health and reflection, with the messages of grpclib."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.health.v1 import health_pb2
from grpclib.reflection.service import ServerReflection

from runner.grpc.call import Call, Method
from runner.grpc.codec import POOL

_HEALTH = "grpc.health.v1.Health"
LOOK_SECONDS: Final = 1.0
"""How often watchers learn whether the runner is ready."""


class Health:
    """grpc.health.v1 and reflection: every service is as ready as the runner."""

    def __init__(self, services: Iterable[str], draining: trio.Event, ready: Callable[[], bool]) -> None:
        """Serve for these services; not ready are those of a runner that drains, or for which `ready` is false."""
        self._services = {*services, _HEALTH}
        self._draining = draining
        self._ready = ready
        self._serving = True
        self._changed = trio.Event()

    def methods(self) -> dict[str, Method]:
        """Return the methods, by path."""
        request = health_pb2.HealthCheckRequest
        return {
            f"/{_HEALTH}/Check": Method(self._check, request, work=False),
            f"/{_HEALTH}/Watch": Method(self._watch, request, work=False),
            **_reflection(self._services),
        }

    async def follow(self) -> None:
        """Tell watchers of every change until the drain."""
        while not self._draining.is_set():
            self._note(serving=self._ready())
            with trio.move_on_after(LOOK_SECONDS):
                await self._draining.wait()
        self._note(serving=False)

    def _note(self, *, serving: bool) -> None:
        if serving is not self._serving:
            self._serving = serving
            self._changed.set()
            self._changed = trio.Event()

    async def _check(self, call: Call) -> Any:
        await self._known(call)
        return _response(serving=self._ready() and not self._draining.is_set())

    async def _watch(self, call: Call) -> None:
        try:
            await self._known(call)
        except GRPCError:
            unknown = health_pb2.HealthCheckResponse.ServingStatus.SERVICE_UNKNOWN
            await call.send(health_pb2.HealthCheckResponse(status=unknown))
            await trio.sleep_forever()
        while True:  # until the client or the runner ends the call
            changed = self._changed
            await call.send(_response(serving=self._serving))
            await changed.wait()

    async def _known(self, call: Call) -> None:
        """Read the request. Raises GRPCError for a service that is not served."""
        request = await call.receive()
        if request is None or request.service not in {"", *self._services}:
            raise GRPCError(Status.NOT_FOUND, "there is no such service")


def _response(*, serving: bool) -> Any:
    status = health_pb2.HealthCheckResponse.ServingStatus
    return health_pb2.HealthCheckResponse(status=status.SERVING if serving else status.NOT_SERVING)


class _Named:
    """A service in the form that grpclib's reflection expects."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __mapping__(self) -> dict[str, Any]:
        return {f"/{self.name}/": None}


def _reflection(names: Iterable[str]) -> dict[str, Method]:
    """Return the methods of server reflection, v1 and v1alpha, over the descriptors that were made from the .proto."""
    POOL.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
    named = [_Named(name) for name in sorted(names)]
    return {
        path: Method(handler.func, handler.request_type, work=False)
        for service in ServerReflection.extend(named, pool=POOL)[len(named) :]
        for path, handler in service.__mapping__().items()
    }
