"""Mistakes in configuration with file, line and field, and the files that they are in: text, and YAML with lines.

`wrong` has the mistakes, `document` reads files, `plain` words the mistakes in YAML.
"""

from config.mistakes.document import (
    ABSENT,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_REPEATED,
    MAX_UPLOADED_BYTES,
    Document,
    parse_toml,
    parse_yaml,
    read_text,
)
from config.mistakes.wrong import (
    ConfigError,
    Mistake,
    Where,
    Wrong,
    did_you_mean,
    dotted,
    read_or_none,
    structure_hook,
    unfold,
)

__all__ = [
    "ABSENT",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_REPEATED",
    "MAX_UPLOADED_BYTES",
    "ConfigError",
    "Document",
    "Mistake",
    "Where",
    "Wrong",
    "did_you_mean",
    "dotted",
    "parse_toml",
    "parse_yaml",
    "read_or_none",
    "read_text",
    "structure_hook",
    "unfold",
]
