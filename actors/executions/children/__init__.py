"""Calls of modules by handlers: what is allowed, and the executions that a running handler waits for."""

from actors.executions.children.children import Begun, Children, Open, Parent, Reply, Turn
from actors.executions.children.nesting import Nesting, waits_for
from actors.executions.children.rules import MAX_DEPTH, check_allowed, child_of, reach_of

__all__ = [
    "MAX_DEPTH",
    "Begun",
    "Children",
    "Nesting",
    "Open",
    "Parent",
    "Reply",
    "Turn",
    "check_allowed",
    "child_of",
    "reach_of",
    "waits_for",
]
