"""The gRPC door: HTTP/2 transport, strict codec, and the verbs of its four services.

The transport (`server`, `connection`, `call`) knows no verbs; the verbs (`executions`, `modules`, `files`, `messages`)
know no library of gRPC. Importing the room takes 0.3 s, so that `runner.serve` does it only when the door is opened.
"""

from runner.grpc.call import GrpcLimits
from runner.grpc.executions import make_methods
from runner.grpc.server import serve

__all__ = ["GrpcLimits", "make_methods", "serve"]
