"""The runners of the cluster."""

from __future__ import annotations

import time
from typing import Final

from protocol.errors import ErrorKind, error
from runner.auth import Scope
from runner.ui.visit import Reply, Visit, view


@view("GET", "/nodes", scope=Scope.METRICS_READ)
async def show(page: Visit) -> Reply:
    """Show the runners that are there, with labels, load and lag, and whether their servers are reached."""
    cluster = page.service.machine.nodes(page.principal)
    if cluster["node"] is None:
        text = "this runner is in no cluster; the setting `cluster` makes it a part of one"
        raise error(ErrorKind.NOT_FOUND, text)
    return page.render("nodes.html", cluster=cluster, now=time.time())


VIEWS: Final = (show,)
