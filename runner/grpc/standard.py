"""The two services that every gRPC server has: health and reflection, with the messages of grpclib."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.health.v1 import health_pb2
from grpclib.reflection.service import ServerReflection

from runner.grpc.call import Call, Method
from runner.grpc.codec import POOL

_HEALTH = "grpc.health.v1.Health"


def standard_methods(services: Iterable[str], draining: trio.Event) -> dict[str, Method]:
    """Return the methods of health and reflection for a server of these services."""
    health = _Health(draining, {*services, _HEALTH})
    return {**health.methods(), **_reflection(health.services)}


class _Health:
    """grpc.health.v1: every service is as ready as the runner."""

    def __init__(self, draining: trio.Event, services: set[str]) -> None:
        self.services = services
        self._draining = draining

    def methods(self) -> dict[str, Method]:
        request = health_pb2.HealthCheckRequest
        return {
            f"/{_HEALTH}/Check": Method(self._check, request, work=False),
            f"/{_HEALTH}/Watch": Method(self._watch, request, work=False),
        }

    async def _check(self, call: Call) -> Any:
        request = await call.receive()
        if request is None or request.service not in {"", *self.services}:
            raise GRPCError(Status.NOT_FOUND, "there is no such service")
        return self._response()

    async def _watch(self, call: Call) -> None:
        request = await call.receive()
        if request is None or request.service not in {"", *self.services}:
            unknown = health_pb2.HealthCheckResponse.ServingStatus.SERVICE_UNKNOWN
            await call.send(health_pb2.HealthCheckResponse(status=unknown))
        else:
            await call.send(self._response())
            if not self._draining.is_set():
                await self._draining.wait()
                await call.send(self._response())
        await trio.sleep_forever()  # until the client or the runner ends the call

    def _response(self) -> Any:
        status = health_pb2.HealthCheckResponse.ServingStatus
        return health_pb2.HealthCheckResponse(status=status.NOT_SERVING if self._draining.is_set() else status.SERVING)


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
