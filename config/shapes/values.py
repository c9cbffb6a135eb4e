"""The schemas of plain values, as people write them."""

from __future__ import annotations

from typing import ClassVar, Final

from config.shapes.readers import Schema, nullable

_AMOUNT: Final = r"^\s*[0-9]{1,30}(\.[0-9]{1,30})?\s*"
_NAME: Final = "^(?![Oo][Pp][Ee][Rr][Aa][Tt][Oo]_)[A-Za-z_][A-Za-z0-9_]*$"


class Values:
    """One schema for each form of value."""

    TEXT: ClassVar[Schema] = {"type": "string"}
    FILLED: ClassVar[Schema] = {"type": "string", "pattern": r"\S"}
    FLAG: ClassVar[Schema] = {"type": "boolean"}
    WHOLE: ClassVar[Schema] = {"type": "integer"}
    NUMBER: ClassVar[Schema] = {"type": "number"}
    DURATION: ClassVar[Schema] = {"anyOf": [NUMBER, {"type": "string", "pattern": rf"{_AMOUNT}(ms|s|m|h|d)?\s*$"}]}
    SIZE: ClassVar[Schema] = {"anyOf": [WHOLE, {"type": "string", "pattern": rf"{_AMOUNT}([kKmMgGtT][iI]?)?[bB]?\s*$"}]}
    WORDS: ClassVar[Schema] = nullable({"anyOf": [{"type": "array", "items": TEXT}, TEXT]})
    VARIABLE_NAME: ClassVar[Schema] = {"type": "string", "pattern": _NAME}
    VARIABLES: ClassVar[Schema] = nullable(
        {
            "type": "object",
            "propertyNames": {"pattern": _NAME},
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        }
    )
