"""Requests of the runner to others: messages that are posted to addresses that authors of modules chose.

`posting` gives the function that posts notices. It imports its library at the first message: few send any.
"""

from runner.outgoing.late import posting

__all__ = ["posting"]
