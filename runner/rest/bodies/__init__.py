"""Bodies of requests as clients send them: compressed, or as one file of a form. Every step is bounded."""

from runner.rest.bodies.encodings import CODINGS, inflating, paid
from runner.rest.bodies.parts import read_file

__all__ = ["CODINGS", "inflating", "paid", "read_file"]
