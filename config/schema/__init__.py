"""JSON Schemas of inputs: what they may contain, a validator with bounded time, and schemas in larger documents.

Importing this room takes about 50 ms, nearly all of it jsonschema. Reading modules imports it only for a module with a
schema.
"""

from config.schema.embedding import embedded
from config.schema.inputs import InputCheck
from config.schema.schema import problems

__all__ = ["InputCheck", "embedded", "problems"]
