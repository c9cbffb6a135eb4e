"""What a worker adds to a module of its author: the module `operato`."""

from protocol.authors.operato import Context, File, Headers, Pairs, Request, Response, context

__all__ = ["Context", "File", "Headers", "Pairs", "Request", "Response", "context"]
