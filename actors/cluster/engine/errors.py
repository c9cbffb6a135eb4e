"""Failures of the engine that its users decide about; none of them is shown to a caller as it is."""

from __future__ import annotations


class EngineError(Exception):
    """Any failure of the engine."""


class StaleError(EngineError):
    """The subject has a later message than expected: nothing was stored."""


class AwayError(EngineError):
    """No answer: the connection or the leader is away. A publish may be stored or not; see `Engine.publish`."""


class RefusedError(EngineError):
    """The engine refused for another reason, which the text names: nothing was stored."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code
        """The engine's own number of the error, or 0."""


class UnansweredError(EngineError):
    """Nobody serves the subject, or the one who answered went away."""
