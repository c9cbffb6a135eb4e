"""The table of all REST operations: the routes, their parameters and the OpenAPI document are made from it.

A new route is one `Operation` here, or in `executions.py`, `files.py`, `modules.py`, `keys.py` or `starts/`, and one
function that `serves` its name.
"""

from __future__ import annotations

from typing import Final

from attrs import evolve

from config.settings import ServerSettings
from protocol.errors import ErrorKind
from runner.api import ShownCluster
from runner.auth import Scope
from runner.rest.openapi import shapes
from runner.rest.openapi.executions import EXECUTIONS
from runner.rest.openapi.files import FILES
from runner.rest.openapi.keys import KEYS
from runner.rest.openapi.modules import MODULES
from runner.rest.openapi.operation import JSON, Header, Operation, Response
from runner.rest.openapi.parameters import Parameter, text
from runner.rest.openapi.starts import NOTICES, SCHEDULES

_TEXT: Final = {"type": "string"}

ENVIRONMENTS: Final = Operation(
    "GET",
    "/environments",
    "listEnvironments",
    "Show the kinds of environment, how each enforces limits, and their workers",
    (Response(200, "All kinds.", {JSON: shapes.Environments}),),
    Scope.MODULES_READ,
    tag="server",
)
BUILT: Final = Operation(
    "GET",
    "/environments/built",
    "listBuiltEnvironments",
    "List the built environments with their sizes and the modules that use them",
    (Response(200, "All of them, the largest first.", {JSON: shapes.BuiltEnvironments}),),
    Scope.MODULES_READ,
    text="A caller with some modules only gets the environments of these.",
    tag="server",
)
WORKERS: Final = Operation(
    "GET",
    "/workers",
    "listWorkers",
    "List the workers, with state, memory and calls",
    (Response(200, "All workers of the caller's modules, by module.", {JSON: shapes.Workers}),),
    Scope.MODULES_READ,
    tag="server",
)
NODES: Final = Operation(
    "GET",
    "/nodes",
    "listNodes",
    "List the runners of the cluster, with labels, load and lag",
    (Response(200, "The runners that are there, by name; none outside of a cluster.", {JSON: ShownCluster}),),
    Scope.METRICS_READ,
    tag="server",
)
HEALTH: Final = Operation(
    "GET",
    "/healthz",
    "getHealth",
    "Check that the process answers",
    (Response(200, "It does.", {JSON: shapes.Healthy}),),
    tag="server",
    any_query=True,
)
READINESS: Final = Operation(
    "GET",
    "/readyz",
    "getReadiness",
    "Check that the runner accepts work",
    (Response(200, "It does.", {JSON: shapes.Ready}),),
    refused=(ErrorKind.SHUTDOWN,),
    tag="server",
    any_query=True,
)
METRICS: Final = Operation(
    "GET",
    "/metrics",
    "getMetrics",
    "Show the metrics of the runner",
    (Response(200, "In a format of Prometheus.", {"text/plain": _TEXT, "application/openmetrics-text": _TEXT}),),
    Scope.METRICS_READ,
    tag="server",
)
DOCUMENT: Final = Operation(
    "GET",
    "/openapi.json",
    "getDocument",
    "Show this document",
    (Response(200, "OpenAPI 3.1.", {JSON: {"type": "object"}}),),
    token=True,
    text="With a token that allows `executions:run` and `modules:read`, each of its modules has a path of its own.",
    tag="server",
)
DOCS: Final = Operation(
    "GET",
    "/docs",
    "getDocs",
    "Show this document as a page",
    (Response(200, "A page that loads nothing from other servers.", {"text/html": _TEXT}),),
    tag="server",
)

INDEX: Final = Operation(
    "GET",
    "/",
    "getIndex",
    "Show where to go from here",
    (
        Response(200, "Links to other routes.", {JSON: shapes.Index}),
        Response(
            307,
            "For browsers: the dashboard, without it the page of this document.",
            headers=(Header("Location", "The page."),),
        ),
    ),
    parameters=(Parameter("Accept", "`text/html`: lead to a page.", text(), "header"),),
    tag="server",
    any_query=True,
)

OPERATIONS: Final[tuple[Operation, ...]] = (
    *EXECUTIONS,
    *MODULES,
    *FILES,
    *SCHEDULES,
    *KEYS,
    *NOTICES,
    *(ENVIRONMENTS, BUILT, WORKERS, NODES, HEALTH, READINESS, METRICS, DOCUMENT, DOCS, INDEX),
)
"""In the order of the document."""


def served(settings: ServerSettings) -> tuple[Operation, ...]:
    """Return the operations that are served with these settings: metrics may need a token, be open, or be off."""
    metrics = evolve(METRICS, scope=None, token=False) if settings.metrics == "open" else METRICS
    shown = (metrics if operation is METRICS else operation for operation in OPERATIONS)
    return tuple(operation for operation in shown if operation is not METRICS or settings.metrics != "off")
