"""The face of the room."""

from config.schema.embedding import embedded
from config.schema.keywords import MAX_STEPS, TooManyStepsError
from config.schema.schema import mismatch, problems, validator

__all__ = ["MAX_STEPS", "TooManyStepsError", "embedded", "mismatch", "problems", "validator"]
