"""JSON Schemas of inputs: what they may contain, a validator with bounded time, and schemas in larger documents.

Importing this room takes about 50 ms, nearly all of it jsonschema. Reading modules imports it only for a module with a
schema.
"""

from config.schema.embedding import embedded
from config.schema.keywords import MAX_STEPS, TooManyStepsError
from config.schema.schema import mismatch, problems, validator

__all__ = ["MAX_STEPS", "TooManyStepsError", "embedded", "mismatch", "problems", "validator"]
