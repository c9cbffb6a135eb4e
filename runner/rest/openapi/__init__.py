"""The table of REST operations, the types of their JSON, and the OpenAPI document and page that are made from both."""

from runner.rest.openapi.document import Documents
from runner.rest.openapi.executions import EXECUTE, LINES
from runner.rest.openapi.modules import ARCHIVES
from runner.rest.openapi.operation import EVENTS, JSON, Operation
from runner.rest.openapi.operations import OPERATIONS, served
from runner.rest.openapi.page import docs_page
from runner.rest.openapi.parameters import TERMS
from runner.rest.openapi.shapes import (
    CancelledExecution,
    CancelledPage,
    Change,
    Decision,
    Key,
    Order,
    Preparation,
    Repeated,
    RepeatedPage,
    Repetition,
    Repetitions,
    Stats,
    Versions,
)
from runner.rest.openapi.starts import NoticeShape

__all__ = [
    "ARCHIVES",
    "EVENTS",
    "EXECUTE",
    "JSON",
    "LINES",
    "OPERATIONS",
    "TERMS",
    "CancelledExecution",
    "CancelledPage",
    "Change",
    "Decision",
    "Documents",
    "Key",
    "NoticeShape",
    "Operation",
    "Order",
    "Preparation",
    "Repeated",
    "RepeatedPage",
    "Repetition",
    "Repetitions",
    "Stats",
    "Versions",
    "docs_page",
    "served",
]
