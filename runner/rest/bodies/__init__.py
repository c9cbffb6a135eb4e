"""Bodies of requests as clients send them: compressed, or as one file of a form. Every step is bounded."""

from runner.rest.bodies.encodings import CODINGS, inflating
from runner.rest.bodies.multipart import read_file

__all__ = ["CODINGS", "inflating", "read_file"]
