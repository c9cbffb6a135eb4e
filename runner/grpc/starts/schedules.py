"""The verbs of ScheduleService over gRPC. No gRPC library."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from attrs import frozen

from protocol.rpc.operato.runner import v1
from runner.api import MAX_NEXT, Service, ShownSchedule, fields_of
from runner.auth import Principal
from runner.grpc.call import Call
from runner.grpc.codec import make
from runner.grpc.messages import execution_message, milliseconds, page_limit


@frozen
class ScheduleVerbs:
    """The verbs of ScheduleService."""

    service: Service

    def verbs(self) -> dict[str, tuple[Callable[[Call, Principal, Any], Awaitable[Any]], type[Any]]]:
        """Return each verb and the class of its request, by the name of its method."""
        return {
            "ListSchedules": (self.list, v1.ListSchedulesRequest),
            "GetSchedule": (self.get, v1.GetScheduleRequest),
            "CreateSchedule": (self.create, v1.CreateScheduleRequest),
            "PatchSchedule": (self.patch, v1.PatchScheduleRequest),
            "DeleteSchedule": (self.remove, v1.DeleteScheduleRequest),
            "PauseSchedule": (self.pause, v1.PauseScheduleRequest),
            "FireSchedule": (self.fire, v1.FireScheduleRequest),
        }

    async def list(self, _call: Call, who: Principal, request: v1.ListSchedulesRequest) -> v1.ListSchedulesResponse:
        """List schedules."""
        found, cursor = self.service.schedules.page(
            who, module=request.module_name or None, limit=page_limit(request.limit), cursor=request.cursor
        )
        return make(v1.ListSchedulesResponse, schedules=[_message(each) for each in found], cursor=cursor or "")

    async def get(self, _call: Call, who: Principal, request: v1.GetScheduleRequest) -> v1.GetScheduleResponse:
        """Return a schedule and its next instants."""
        shown = self.service.schedules.get(who, request.id)
        count = max(0, min(request.count, MAX_NEXT))
        instants = (await self.service.schedules.next(who, request.id, count))[1]
        return make(v1.GetScheduleResponse, schedule=_message(shown), next=[milliseconds(each) for each in instants])

    async def create(self, _call: Call, who: Principal, request: v1.CreateScheduleRequest) -> v1.ScheduleResponse:
        """Make a schedule."""
        fields = fields_of(request.schedule_json.encode(), "schedule_json")
        return make(v1.ScheduleResponse, schedule=_message(await self.service.schedules.create(who, fields)))

    async def patch(self, _call: Call, who: Principal, request: v1.PatchScheduleRequest) -> v1.ScheduleResponse:
        """Change a schedule."""
        changes = fields_of(request.patch_json.encode(), "patch_json")
        shown = await self.service.schedules.change(who, request.id, changes)
        return make(v1.ScheduleResponse, schedule=_message(shown))

    async def remove(self, _call: Call, who: Principal, request: v1.DeleteScheduleRequest) -> v1.DeleteScheduleResponse:
        """Delete a schedule."""
        await self.service.schedules.remove(who, request.id)
        return make(v1.DeleteScheduleResponse)

    async def pause(self, _call: Call, who: Principal, request: v1.PauseScheduleRequest) -> v1.ScheduleResponse:
        """Pause or resume a schedule."""
        shown = await self.service.schedules.pause(who, request.id, paused=not request.resume)
        return make(v1.ScheduleResponse, schedule=_message(shown))

    async def fire(self, _call: Call, who: Principal, request: v1.FireScheduleRequest) -> v1.FireScheduleResponse:
        """Run a schedule now."""
        accepted = await self.service.schedules.fire(who, request.id)
        return make(v1.FireScheduleResponse, execution=execution_message(accepted))


def _message(shown: ShownSchedule) -> v1.Schedule:
    last = shown["last"]
    return make(
        v1.Schedule,
        id=shown["id"],
        module_name=shown["module"],
        next_at=milliseconds(shown["next"]),
        paused=shown["paused"],
        last_execution="" if last is None else last["execution"],
        schedule_json=msgspec.json.encode(shown).decode(),
    )
