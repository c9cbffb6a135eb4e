"""What a worker adds to a module of its author: the module `operato`, and handlers with parameters of their own."""

from protocol.authors.operato import Context, File, Headers, Pairs, Request, Response, context
from protocol.authors.typed import plan

__all__ = ["Context", "File", "Headers", "Pairs", "Request", "Response", "context", "plan"]
