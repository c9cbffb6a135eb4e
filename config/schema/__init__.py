"""JSON Schemas of inputs: their limits, a validator with bounded time, schemas in larger documents, and examples.

Importing this room takes about 50 ms, nearly all of it jsonschema. Reading modules imports it only for a module with a
schema.
"""

from config.schema.embedding import embedded
from config.schema.example import examples
from config.schema.inputs import InputCheck
from config.schema.schema import problems

__all__ = ["InputCheck", "embedded", "examples", "problems"]
