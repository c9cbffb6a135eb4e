"""JSON Schemas of readers: what each reader of a value accepts, for editors.

A reader carries its schema. The schema is at least as wide as the reader: rules between fields, and rules that JSON
Schema cannot express, are left to the reader.
"""

from config.shapes.objects import list_shape, object_shape
from config.shapes.readers import Schema, accepting, bounded, nullable, shape_of, shaped
from config.shapes.values import Values

__all__ = ["Schema", "Values", "accepting", "bounded", "list_shape", "nullable", "object_shape", "shape_of", "shaped"]
