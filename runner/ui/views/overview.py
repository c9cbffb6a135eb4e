"""The overview: what runs, what waits, what failed, what comes next, and whether the machine is healthy."""

from __future__ import annotations

from runner.ui.visit import Reply, Visit, view


@view("GET", "/")
async def show(page: Visit) -> Reply:
    """Show the overview."""
    return page.render("overview.html")


VIEWS = (show,)
