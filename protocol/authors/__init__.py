"""What a worker adds to a module of its author: the module `operato`, and handlers with parameters of their own."""

from protocol.authors.calling import Answers, Calls
from protocol.authors.operato import CallError, Context, File, Headers, Pairs, Request, Response, context
from protocol.authors.typed import plan

__all__ = [
    "Answers",
    "CallError",
    "Calls",
    "Context",
    "File",
    "Headers",
    "Pairs",
    "Request",
    "Response",
    "context",
    "plan",
]
