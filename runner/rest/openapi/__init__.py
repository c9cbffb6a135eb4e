"""The face of the room."""

from runner.rest.openapi.document import Documents
from runner.rest.openapi.operation import JSON, PROBLEM, Operation
from runner.rest.openapi.operations import BATCH, LINES, METRICS
from runner.rest.openapi.page import page
from runner.rest.openapi.parameters import DEFAULT_PAGE, MAX_PAGE
from runner.rest.openapi.shapes import Order, Problem

__all__ = [
    "BATCH",
    "DEFAULT_PAGE",
    "JSON",
    "LINES",
    "MAX_PAGE",
    "METRICS",
    "PROBLEM",
    "Documents",
    "Operation",
    "Order",
    "Problem",
    "page",
]
