"""The output of an execution in lines: parts of it, and a search over all of it."""

from runner.api.outputs.lines import MAX_LINE, Line, Lines, Sort, Spot
from runner.api.outputs.outputs import MAX_LINES, MAX_SEARCHED, Look, Matches, Outputs, Window, checked_text

__all__ = [
    "MAX_LINE",
    "MAX_LINES",
    "MAX_SEARCHED",
    "Line",
    "Lines",
    "Look",
    "Matches",
    "Outputs",
    "Sort",
    "Spot",
    "Window",
    "checked_text",
]
