"""The verbs that look into modules: their files, and how their executions ended over time."""

from runner.api.details.code import CodeFile
from runner.api.details.details import Details
from runner.api.details.numbers import SPANS, Span

__all__ = ["SPANS", "CodeFile", "Details", "Span"]
