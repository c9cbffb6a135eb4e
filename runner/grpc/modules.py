"""The verbs of ModuleService and KeyService over gRPC: read the request, call the service, render."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from attrs import frozen

from actors.keys import ApiKey
from actors.registry import Added, Condition
from protocol.rpc.operato.runner import v1
from runner.api import KeyOrder, Publishing, Service
from runner.auth import Principal, Scope
from runner.grpc.call import Call
from runner.grpc.codec import make
from runner.grpc.messages import (
    environment_kind,
    environment_message,
    milliseconds,
    module_message,
    nodes_message,
    page_limit,
    seconds,
    stats_message,
)

Verbs = dict[str, tuple[Callable[[Call, Principal, Any], Awaitable[Any]], type[Any]]]
"""Each verb and the class of its request, by the name of its method."""


@frozen
class ModuleVerbs:
    """The verbs of ModuleService."""

    service: Service

    def verbs(self) -> Verbs:
        """Return the verbs."""
        return {
            "ListModules": (self.list, v1.ListModulesRequest),
            "GetModule": (self.get, v1.GetModuleRequest),
            "ListModuleVersions": (self.versions, v1.ListModuleVersionsRequest),
            "RegisterModule": (self.register, v1.RegisterModuleRequest),
            "PatchModule": (self.patch, v1.PatchModuleRequest),
            "ActivateModule": (self.activate, v1.ActivateModuleRequest),
            "DeleteModule": (self.remove, v1.DeleteModuleRequest),
            "GetModuleStats": (self.stats, v1.GetModuleStatsRequest),
            "ListEnvironments": (self.environments, v1.ListEnvironmentsRequest),
            "ListNodes": (self.nodes, v1.ListNodesRequest),
        }

    async def list(self, _call: Call, who: Principal, request: v1.ListModulesRequest) -> v1.ListModulesResponse:
        """List modules."""
        found, cursor = self.service.modules(
            who,
            envs=[kind for each in request.envs if (kind := environment_kind(each)) is not None],
            tags=request.tags,
            text=request.text or None,
            limit=page_limit(request.limit),
            cursor=request.cursor,
        )
        return make(v1.ListModulesResponse, modules=[module_message(m) for m in found], cursor=cursor or "")

    async def get(self, _call: Call, who: Principal, request: v1.GetModuleRequest) -> v1.GetModuleResponse:
        """Return one module."""
        module = self.service.module(who, Scope.MODULES_READ, request.module_name, request.version or None)
        return make(v1.GetModuleResponse, module=module_message(module))

    async def stats(self, _call: Call, who: Principal, request: v1.GetModuleStatsRequest) -> v1.GetModuleStatsResponse:
        """Return how the executions of a module ended."""
        since, until = seconds(request.since), seconds(request.until)
        return stats_message(await self.service.details.stats(who, request.module_name, since=since, until=until))

    async def environments(
        self, _call: Call, who: Principal, _request: v1.ListEnvironmentsRequest
    ) -> v1.ListEnvironmentsResponse:
        """List the kinds of environment."""
        found = self.service.machine.kinds(who)
        return make(v1.ListEnvironmentsResponse, environments=[environment_message(e) for e in found])

    async def nodes(self, _call: Call, who: Principal, _request: v1.ListNodesRequest) -> v1.ListNodesResponse:
        """List the runners of the cluster."""
        return nodes_message(self.service.machine.nodes(who))

    async def versions(
        self, _call: Call, who: Principal, request: v1.ListModuleVersionsRequest
    ) -> v1.ListModuleVersionsResponse:
        """List the versions of a module."""
        found, registered = self.service.management.versions(who, request.module_name)
        return make(
            v1.ListModuleVersionsResponse,
            versions=[module_message(module) for module in found],
            active=(found[0].ref.version if registered is None else registered.active) or "",
            revision=0 if registered is None else registered.revision,
        )

    async def register(
        self, _call: Call, who: Principal, request: v1.RegisterModuleRequest
    ) -> v1.RegisterModuleResponse:
        """Register a version of a module."""
        how = Publishing(activate=not request.inactive, prepare=request.prepare)
        condition = Condition(revision=request.revision or None, first=request.create)
        written = request.module_json or ("{}" if request.archive else "")
        data = await self.service.checks.description(written.encode(), "module_json")
        if request.archive:
            management = self.service.management
            return _added(await management.upload(who, request.archive, fields=data, how=how, condition=condition))
        return _added(await self.service.management.register(who, data, how=how, condition=condition))

    async def patch(self, _call: Call, who: Principal, request: v1.PatchModuleRequest) -> v1.RegisterModuleResponse:
        """Register a version: the active one with some fields changed."""
        data = await self.service.checks.description(request.patch_json.encode(), "patch_json")
        how = Publishing(activate=not request.inactive, prepare=request.prepare)
        condition = Condition(revision=request.revision or None)
        added = await self.service.management.patch(who, request.module_name, data, how=how, condition=condition)
        return _added(added)

    async def activate(
        self, _call: Call, who: Principal, request: v1.ActivateModuleRequest
    ) -> v1.ActivateModuleResponse:
        """Activate a version."""
        registered, module = await self.service.management.activate(
            who,
            request.module_name,
            request.version,
            prepare=request.prepare,
            condition=Condition(revision=request.revision or None),
        )
        return make(v1.ActivateModuleResponse, module=module_message(module), revision=registered.revision)

    async def remove(self, _call: Call, who: Principal, request: v1.DeleteModuleRequest) -> v1.DeleteModuleResponse:
        """Delete a module or a version."""
        await self.service.management.remove(
            who,
            request.module_name,
            request.version or None,
            force=request.force,
            condition=Condition(revision=request.revision or None),
        )
        return make(v1.DeleteModuleResponse)


@frozen
class KeyVerbs:
    """The verbs of KeyService."""

    service: Service

    def verbs(self) -> Verbs:
        """Return the verbs."""
        return {
            "CreateKey": (self.create, v1.CreateKeyRequest),
            "ListKeys": (self.list, v1.ListKeysRequest),
            "RevokeKey": (self.revoke, v1.RevokeKeyRequest),
        }

    async def create(self, _call: Call, who: Principal, request: v1.CreateKeyRequest) -> v1.CreateKeyResponse:
        """Create a key."""
        modules = tuple(request.modules) or None
        order = KeyOrder(request.name, tuple(request.scopes), modules, request.expires or None)
        key, secret = await self.service.keys.create(who, order)
        return make(v1.CreateKeyResponse, key=_key(key), secret=secret)

    async def list(self, _call: Call, who: Principal, request: v1.ListKeysRequest) -> v1.ListKeysResponse:
        """List keys."""
        found, cursor = await self.service.keys.list(who, limit=page_limit(request.limit), cursor=request.cursor)
        return make(v1.ListKeysResponse, keys=[_key(key) for key in found], cursor=cursor or "")

    async def revoke(self, _call: Call, who: Principal, request: v1.RevokeKeyRequest) -> v1.RevokeKeyResponse:
        """Revoke a key."""
        await self.service.keys.revoke(who, request.id)
        return make(v1.RevokeKeyResponse)


def _key(key: ApiKey) -> v1.Key:
    stored = key.stored
    return make(
        v1.Key,
        id=stored.id,
        name=stored.name,
        scopes=list(stored.scopes),
        modules=list(stored.modules),
        created_at=milliseconds(stored.created_at),
        created_by=stored.created_by,
        expires_at=milliseconds(stored.expires_at),
        used_at=milliseconds(key.used_at),
        revoked_at=milliseconds(stored.revoked_at),
        revoked_by=stored.revoked_by or "",
    )


def _added(added: Added) -> v1.RegisterModuleResponse:
    return make(
        v1.RegisterModuleResponse,
        module=module_message(added.module),
        created=added.created,
        active=added.registered.active == added.module.ref.version,
        revision=added.registered.revision,
    )
