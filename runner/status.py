"""`ErrorKind` -> HTTP status, gRPC status, websocket close code and exit code: one table for all of them."""

from __future__ import annotations

from attrs import frozen

from protocol.errors import ErrorKind

INTERRUPTED = 130
"""Exit code of a command ended by Ctrl-C."""


@frozen
class Codes:
    """The codes of one error kind. `grpc` is the name of a gRPC status."""

    http: int
    grpc: str
    websocket: int
    exit: int


CODES: dict[ErrorKind, Codes] = {
    ErrorKind.BAD_INPUT: Codes(400, "INVALID_ARGUMENT", 4400, 2),
    ErrorKind.NOT_FOUND: Codes(404, "NOT_FOUND", 4404, 3),
    ErrorKind.CONFLICT: Codes(409, "ALREADY_EXISTS", 4409, 4),
    ErrorKind.UNAUTHENTICATED: Codes(401, "UNAUTHENTICATED", 4401, 5),
    ErrorKind.FORBIDDEN: Codes(403, "PERMISSION_DENIED", 4403, 6),
    ErrorKind.TOO_LARGE: Codes(413, "RESOURCE_EXHAUSTED", 1009, 7),
    ErrorKind.OVERLOADED: Codes(429, "RESOURCE_EXHAUSTED", 1013, 8),
    ErrorKind.UNAVAILABLE: Codes(503, "UNAVAILABLE", 1013, 9),
    ErrorKind.ENVIRONMENT_FAILED: Codes(424, "FAILED_PRECONDITION", 4424, 10),
    ErrorKind.LOAD_FAILED: Codes(424, "FAILED_PRECONDITION", 4424, 11),
    ErrorKind.HANDLER_ERROR: Codes(500, "ABORTED", 4500, 1),
    ErrorKind.BAD_OUTPUT: Codes(502, "INTERNAL", 4502, 12),
    ErrorKind.TIMEOUT: Codes(504, "DEADLINE_EXCEEDED", 4504, 124),
    ErrorKind.CANCELLED: Codes(499, "CANCELLED", 4499, 130),
    ErrorKind.OUT_OF_MEMORY: Codes(507, "RESOURCE_EXHAUSTED", 4507, 137),
    ErrorKind.OUTPUT_LIMIT: Codes(507, "RESOURCE_EXHAUSTED", 4507, 13),
    ErrorKind.OUT_OF_STORAGE: Codes(507, "RESOURCE_EXHAUSTED", 4507, 17),
    ErrorKind.WORKER_CRASHED: Codes(502, "INTERNAL", 4502, 14),
    ErrorKind.LOST: Codes(502, "ABORTED", 4502, 15),
    ErrorKind.SHUTDOWN: Codes(503, "UNAVAILABLE", 1012, 16),
    ErrorKind.INTERNAL: Codes(500, "INTERNAL", 1011, 70),
}
