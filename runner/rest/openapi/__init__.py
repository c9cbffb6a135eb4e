"""The table of REST operations, and the OpenAPI document and page that are made from it."""

from runner.rest.openapi.document import Documents
from runner.rest.openapi.operation import EVENTS, JSON, Operation
from runner.rest.openapi.operations import OPERATIONS, served
from runner.rest.openapi.page import page
from runner.rest.openapi.shapes import Order, Problem

__all__ = ["EVENTS", "JSON", "OPERATIONS", "Documents", "Operation", "Order", "Problem", "page", "served"]
