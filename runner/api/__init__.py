"""The face of the room."""

from runner.api.batch import MAX_PARALLELISM, Batch, Input
from runner.api.management import Publishing
from runner.api.service import Service

__all__ = ["MAX_PARALLELISM", "Batch", "Input", "Publishing", "Service"]
