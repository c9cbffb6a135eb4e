"""Acceptance: clients that need an asyncio loop of their own, as programs.

`python grpc_clients.py aio|betterproto|health PORT TOKEN` prints one line of JSON. They are not run in pytest, where
trio-asyncio changes asyncio, and where the messages of health and reflection are those of grpclib.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

NAME = {"name": "you"}


async def with_aio(port: int, token: str) -> dict[str, Any]:
    """Call with grpc.aio and the stubs that grpcio-tools made in the current folder."""
    sys.path.insert(0, str(Path.cwd()))
    import executor_pb2 as pb  # noqa: PLC0415
    import executor_pb2_grpc as stubs  # noqa: PLC0415
    import grpc  # noqa: PLC0415

    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        executor = stubs.ExecutorServiceStub(channel)
        request = pb.ExecuteRequest(module_name="hello", input_json=json.dumps(NAME))
        answer = await executor.Execute(request, metadata=metadata)
        events = [e.WhichOneof("event") async for e in executor.ExecuteStream(request, metadata=metadata)]

        async def batch() -> Any:
            yield pb.ExecuteBatchRequest(start=pb.BatchStart(module_name="hello", parallelism=3))
            for number in range(20):
                yield pb.ExecuteBatchRequest(input=pb.BatchInput(id=str(number), input_json=json.dumps(NAME)))

        answers = [a.id async for a in executor.ExecuteBatch(batch(), metadata=metadata)]
        mark = Path("aio").absolute()
        slow = pb.ExecuteRequest(module_name="slow", input_json=json.dumps(str(mark)))
        hanging = executor.Execute(slow, metadata=metadata)
        while not mark.exists():
            await asyncio.sleep(0.02)
        hanging.cancel()
        cancelled = await asyncio.gather(hanging, return_exceptions=True)
    return {
        "result": json.loads(answer.result_json),
        "events": events,
        "answers": sorted(map(int, answers)),
        "cancelled": type(cancelled[0]).__name__,
    }


async def with_betterproto(port: int, token: str) -> dict[str, Any]:
    """Call with grpclib and the messages that are part of the runner."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from grpclib.client import Channel  # noqa: PLC0415
    from grpclib.exceptions import GRPCError  # noqa: PLC0415

    from protocol.rpc.operato.runner import v1  # noqa: PLC0415

    async with Channel("127.0.0.1", port) as channel:
        executor = v1.ExecutorServiceStub(channel, metadata={"authorization": f"Bearer {token}"})
        request = v1.ExecuteRequest(module_name="hello", input_json=json.dumps(NAME))
        answer = await executor.execute(request)
        events = [event async for event in executor.execute_stream(request)]
        modules = v1.ModuleServiceStub(channel, metadata={"authorization": f"Bearer {token}"})
        listed = await modules.list_modules(v1.ListModulesRequest())
        try:
            await executor.execute(v1.ExecuteRequest(module_name="nothing"))
        except GRPCError as problem:
            status = problem.status.name
    return {
        "result": json.loads(answer.result_json),
        "last": events[-1].execution.status.name,
        "modules": sorted(module.name for module in listed.modules),
        "status": status,
    }


async def with_health(port: int, _token: str) -> dict[str, Any]:
    """Check health and describe the services, with grpcio's own packages for both and without a token."""
    import grpc  # noqa: PLC0415
    from google.protobuf.descriptor_pool import DescriptorPool  # noqa: PLC0415
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (  # noqa: PLC0415
        ProtoReflectionDescriptorDatabase,
    )

    name = "operato.runner.v1.ExecutorService"
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
        database = ProtoReflectionDescriptorDatabase(channel)
        service = DescriptorPool(database).FindServiceByName(name)
        return {
            "status": health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status),
            "services": sorted(database.get_services()),
            "methods": [method.name for method in service.methods],
        }


if __name__ == "__main__":
    client = {"aio": with_aio, "betterproto": with_betterproto, "health": with_health}[sys.argv[1]]
    print(json.dumps(asyncio.run(client(int(sys.argv[2]), sys.argv[3]))))
