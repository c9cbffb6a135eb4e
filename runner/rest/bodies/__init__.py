"""`Content-Encoding`: bodies of requests as clients send them compressed. Every step is bounded."""

from runner.rest.bodies.encodings import CODINGS, inflating, paid

__all__ = ["CODINGS", "inflating", "paid"]
