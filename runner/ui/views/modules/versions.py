"""The versions of a module: comparing, activating and deleting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from config.modules import DESCRIPTIONS
from protocol.errors import Failure, RunnerError
from runner.auth import Scope
from runner.ui.views.modules.shown_code import compare
from runner.ui.views.modules.subject import Subject, condition_of, subject_of
from runner.ui.views.publishing import fields_of
from runner.ui.visit import Reply, Visit, view

Texts: TypeAlias = Mapping[str, str | None]


@view("GET", "/modules/{name}/versions", scope=Scope.MODULES_READ)
async def show(page: Visit) -> Reply:
    """Show the versions, and the difference between two of them."""
    subject = subject_of(page)
    return await _page(subject)


async def _page(subject: Subject, status: int = 200, failure: Failure | None = None) -> Reply:
    page, names = subject.page, [each.ref.version for each in subject.versions]
    new = page.query.get("to") or (names[0] if names else "")
    place = names.index(new) if new in names else 0
    old = page.query.get("from") or (names[place + 1] if place + 1 < len(names) else "")
    both: list[Texts] = []
    if old in names and new in names and old != new:
        both = [await _texts(subject, old), await _texts(subject, new)]
    values = {
        "failure": failure,
        "old": old,
        "new": new,
        "older": lambda version: subject.active in names and names.index(version) > names.index(subject.active),
        "with_code": page.may(Scope.MODULES_WRITE),
    }
    return await page.service.checks.run(partial(_drawn, subject, status, both, values))


def _drawn(subject: Subject, status: int, both: Sequence[Texts], values: Mapping[str, Any]) -> Reply:
    """Return the page. Long differences take some tenths of a second."""
    compared = list(compare(*both)) if both else None
    return subject.render("module_versions.html", "/versions", status, compared=compared, **values)


async def _texts(subject: Subject, version: str) -> Texts:
    """Return the texts of a version by their names: its fields, and with the scope for it its files."""
    page, found = subject.page, dict[str, str | None]()
    if page.may(Scope.MODULES_WRITE):
        files = await page.service.details.code(page.principal, subject.name, version)
        found = {file.name: file.text for file in files}
    module = next(each for each in subject.versions if each.ref.version == version)
    found[DESCRIPTIONS[0]] = await page.service.checks.run(partial(fields_of, module, whole=subject.may_change))
    return found


@view("POST", "/modules/{name}/versions", scope=Scope.MODULES_WRITE)
async def change(page: Visit) -> Reply:
    """Activate or delete a version, or delete the module, if it is still as the form showed it."""
    management, version = page.service.management, page.form.get("version", "")
    try:
        match page.form.get("do"):
            case "activate":
                await management.activate(
                    page.principal, page.path["name"], version, prepare=False, condition=condition_of(page)
                )
            case "delete":
                await management.remove(page.principal, page.path["name"], version, condition=condition_of(page))
            case "delete-module":
                force = page.form.get("force") == "1"
                condition = condition_of(page)
                await management.remove(page.principal, page.path["name"], force=force, condition=condition)
                return page.redirect("/modules", gone=page.path["name"])
    except RunnerError as problem:
        return await _page(subject_of(page), 409, failure=problem.failure)
    return page.redirect(f"/modules/{page.path['name']}/versions")


VIEWS = (show, change)
