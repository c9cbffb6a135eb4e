"""The face of the room."""

from runner.api.batch import MAX_PARALLELISM, Batch, Input
from runner.api.described import NOT_SHOWN, module_fields, parse_description
from runner.api.management import Publishing
from runner.api.service import Service

__all__ = [
    "MAX_PARALLELISM",
    "NOT_SHOWN",
    "Batch",
    "Input",
    "Publishing",
    "Service",
    "module_fields",
    "parse_description",
]
