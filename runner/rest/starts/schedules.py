"""The endpoints of schedules."""

from __future__ import annotations

from typing import Final

from config.timing import local_time
from protocol.views import listed
from runner.api import fields_of
from runner.rest.endpoint import Answer, Request, json_answer, serves


@serves("listSchedules")
async def list_schedules(request: Request) -> Answer:
    """List schedules."""
    found, cursor = request.service.schedules.page(
        request.principal, module=request["module"], limit=request["limit"], cursor=request["cursor"] or ""
    )
    return json_answer({"items": found, "cursor": cursor})


@serves("createSchedule")
async def create(request: Request) -> Answer:
    """Make a schedule."""
    made = await request.service.schedules.create(request.principal, fields_of(await request.body()))
    return json_answer(made, 201, (_location(f"/schedules/{made['id']}"),))


@serves("getSchedule")
async def show(request: Request) -> Answer:
    """Show a schedule."""
    return json_answer(request.service.schedules.get(request.principal, request["id"]))


@serves("changeSchedule")
async def change(request: Request) -> Answer:
    """Change a schedule."""
    changes = fields_of(await request.body())
    return json_answer(await request.service.schedules.change(request.principal, request["id"], changes))


@serves("deleteSchedule")
async def remove(request: Request) -> Answer:
    """Delete a schedule."""
    await request.service.schedules.remove(request.principal, request["id"])
    return Answer(status=204)


@serves("pauseSchedule")
async def pause(request: Request) -> Answer:
    """Pause a schedule."""
    return json_answer(await request.service.schedules.pause(request.principal, request["id"], paused=True))


@serves("resumeSchedule")
async def resume(request: Request) -> Answer:
    """Resume a schedule."""
    return json_answer(await request.service.schedules.pause(request.principal, request["id"], paused=False))


@serves("fireSchedule")
async def fire(request: Request) -> Answer:
    """Run a schedule now."""
    accepted = await request.service.schedules.fire(request.principal, request["id"])
    return json_answer(listed(accepted), 202, (_location(f"/executions/{accepted.id}"),))


@serves("listInstants")
async def next_instants(request: Request) -> Answer:
    """Show the next instants of a schedule."""
    schedule, found = await request.service.schedules.next(request.principal, request["id"], request["count"])
    zone = schedule.spec.timezone
    return json_answer({"timezone": zone, "items": [{"at": at, "local": local_time(at, zone)} for at in found]})


def _location(path: str) -> tuple[bytes, bytes]:
    return b"location", path.encode()


ENDPOINTS: Final = (list_schedules, create, show, change, remove, pause, resume, fire, next_instants)
