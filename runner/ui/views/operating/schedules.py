"""Schedules: when modules run by themselves. List, make, change, pause, resume, start now, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from config.timing import Misfire, Overlap, local_time
from protocol.errors import ErrorKind, Failure, RunnerError
from runner.api import ShownSchedule
from runner.auth import Scope
from runner.ui.refusals import status_of
from runner.ui.views.operating.filters import PAGE, filters
from runner.ui.views.operating.schedule_form import EMPTY, from_form, to_form
from runner.ui.visit import Reply, Visit, view

NEXT: Final = 10
"""Instants that a page shows."""
_MINE: Final = (ErrorKind.BAD_INPUT, ErrorKind.CONFLICT, ErrorKind.NOT_FOUND, ErrorKind.OVERLOADED)
"""Failures that the form itself can show."""
_CHOICES: Final = {"overlaps": tuple(Overlap), "misfires": tuple(Misfire)}


@view("GET", "/schedules", scope=Scope.SCHEDULES_READ)
async def show(page: Visit) -> Reply:
    """Show the schedules, by identifier."""
    given = filters(page, "module")
    found, cursor = page.service.schedules.page(
        page.principal, module=given["module"] or None, limit=PAGE, cursor=page.query.get("cursor", "")
    )
    schedules = [(each, path_of(each["id"])) for each in found]
    return page.render("schedules.html", schedules=schedules, filters=given, cursor=cursor)


@view("GET", "/schedules/new", scope=Scope.SCHEDULES_WRITE)
async def blank(page: Visit) -> Reply:
    """Show the form for another schedule."""
    return _form(page, {**EMPTY, "module": page.query.get("module", "")})


@view("POST", "/schedules/new", scope=Scope.SCHEDULES_WRITE)
async def create(page: Visit) -> Reply:
    """Make a schedule, and show it."""
    given = {name: page.form.get(name, "") for name in EMPTY}
    try:
        fields = {name: value for name, value in from_form(given).items() if value is not None or name == "input"}
        made = await page.service.schedules.create(page.principal, fields)
    except RunnerError as problem:
        return _form_again(page, given, problem)
    return page.redirect(path_of(made["id"]))


@view("GET", "/schedules/{id}", scope=Scope.SCHEDULES_READ)
async def one(page: Visit) -> Reply:
    """Show a schedule with its next instants."""
    name = page.path["id"]
    schedule, instants = await page.service.schedules.next(page.principal, name, NEXT)
    found = page.service.schedules.get(page.principal, name)
    zone = schedule.spec.timezone
    following = [(at, local_time(at, zone)) for at in instants]
    return page.render(
        "schedule.html", schedule=found, following=following, path=path_of(name), input=to_form(found)["input"]
    )


@view("GET", "/schedules/{id}/edit", scope=Scope.SCHEDULES_WRITE)
async def edit(page: Visit) -> Reply:
    """Show the form with a schedule."""
    found = page.service.schedules.get(page.principal, page.path["id"])
    return _form(page, to_form(found), found)


@view("POST", "/schedules/{id}/edit", scope=Scope.SCHEDULES_WRITE)
async def change(page: Visit) -> Reply:
    """Change a schedule, and show it."""
    name = page.path["id"]
    given = {**{each: page.form.get(each, "") for each in EMPTY}, "name": ""}
    try:
        changed = await page.service.schedules.change(page.principal, name, from_form(given))
    except RunnerError as problem:
        return _form_again(page, given, problem, page.service.schedules.get(page.principal, name))
    return page.redirect(path_of(changed["id"]))


@view("POST", "/schedules/{id}/pause", scope=Scope.SCHEDULES_WRITE)
async def pause(page: Visit) -> Reply:
    """Start no more of its instants."""
    return await _pause(page, paused=True)


@view("POST", "/schedules/{id}/resume", scope=Scope.SCHEDULES_WRITE)
async def resume(page: Visit) -> Reply:
    """Start its instants again."""
    return await _pause(page, paused=False)


@view("POST", "/schedules/{id}/fire", scope=Scope.SCHEDULES_WRITE)
async def fire(page: Visit) -> Reply:
    """Run it now, and show the execution, or the schedule to a reader that sees no executions."""
    name = page.path["id"]
    started = await page.service.schedules.fire(page.principal, name)
    return page.redirect(f"/executions/{started.id}" if page.may(Scope.EXECUTIONS_READ) else path_of(name))


@view("POST", "/schedules/{id}/delete", scope=Scope.SCHEDULES_WRITE)
async def delete(page: Visit) -> Reply:
    """Delete a schedule; its executions stay."""
    await page.service.schedules.remove(page.principal, page.path["id"])
    return page.redirect("/schedules")


def path_of(name: str) -> str:
    """Return the path of the page of a schedule."""
    return f"/schedules/{quote(name, safe='')}"


async def _pause(page: Visit, *, paused: bool) -> Reply:
    name = page.path["id"]
    await page.service.schedules.pause(page.principal, name, paused=paused)
    back = "/schedules" if page.form.get("from") == "list" else path_of(name)
    return page.redirect(back)


def _form(
    page: Visit,
    given: Mapping[str, str],
    schedule: ShownSchedule | None = None,
    *,
    status: int = 200,
    wrong: Failure | None = None,
) -> Reply:
    values: dict[str, Any] = {"given": given, "schedule": schedule, "wrong": wrong, **_CHOICES}
    path = None if schedule is None else path_of(schedule["id"])
    return page.render("schedule_form.html", status, path=path, **values)


def _form_again(
    page: Visit, given: Mapping[str, str], problem: RunnerError, schedule: ShownSchedule | None = None
) -> Reply:
    """Return the form with what was typed and the mistake. Raises RunnerError for other failures."""
    wrong = problem.failure
    if wrong.kind not in _MINE:
        raise problem
    return _form(page, given, schedule, status=status_of(wrong), wrong=wrong)


VIEWS = (show, blank, create, one, edit, change, pause, resume, fire, delete)
