"""The face of the room."""

from runner.rest.openapi.document import Documents
from runner.rest.openapi.operation import JSON, PROBLEM, Operation
from runner.rest.openapi.operations import BATCH, LINES, METRICS
from runner.rest.openapi.page import page
from runner.rest.openapi.shapes import Order, Problem

__all__ = [
    "BATCH",
    "JSON",
    "LINES",
    "METRICS",
    "PROBLEM",
    "Documents",
    "Operation",
    "Order",
    "Problem",
    "page",
]
