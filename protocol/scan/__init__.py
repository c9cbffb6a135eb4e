"""JSON texts of any size, looked at in short steps, so that other threads get their turn between two of them.

A step is one call of C over about 64 KiB, which takes about a millisecond.
"""

from protocol.scan.extent import has_more_values, measure
from protocol.scan.runs import LARGE_BYTES, decoded, members, pieces


class LongCheckError(Exception):
    """A check takes too long for the event loop, and belongs into a thread."""


__all__ = ["LARGE_BYTES", "LongCheckError", "decoded", "has_more_values", "measure", "members", "pieces"]
