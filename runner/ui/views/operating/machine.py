"""Environments and workers of this machine."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from runner.auth import Scope
from runner.ui.visit import Reply, Visit, view

MOST: Final = 200
"""Workers and environments that one page shows."""


@view("GET", "/environments", scope=Scope.MODULES_READ)
async def show(page: Visit) -> Reply:
    """Show the kinds of environment, the workers, and the built environments."""
    machine, reader = page.service.machine, page.principal
    workers, built = machine.workers(reader), await machine.built(reader)
    return page.render(
        "environments.html",
        kinds=machine.kinds(reader),
        workers=workers[:MOST],
        more_workers=len(workers) - MOST,
        built=[(one, path_of(one["key"])) for one in built[:MOST]],
        more_built=len(built) - MOST,
        size_bytes=sum(one["size_bytes"] for one in built),
    )


@view("GET", "/environments/{key}", scope=Scope.MODULES_READ)
async def one(page: Visit) -> Reply:
    """Show why an environment exists, what is in it, and how it was built."""
    found, log, build = await page.service.machine.environment(page.principal, page.path["key"])
    return page.render("environment.html", one=found, log=log.strip(), path=path_of(found["key"]), build=build)


@view("POST", "/environments/{key}/rebuild", scope=Scope.MODULES_WRITE)
async def rebuild(page: Visit) -> Reply:
    """Build an environment again, and show it meanwhile."""
    key = page.path["key"]
    await page.service.machine.rebuild(page.principal, key)
    return page.redirect(path_of(key))


def path_of(key: str) -> str:
    """Return the path of the page of an environment."""
    return f"/environments/{quote(key, safe='')}"


VIEWS = (show, one, rebuild)
