"""Inputs and results as pages show them: trees, tables, texts and files, of bounded size; pictures by their content."""

from runner.ui.results.values import (
    MAX_PARSED,
    SIGNATURE_BYTES,
    NamedFile,
    Node,
    Shown,
    Table,
    picture_type,
    pretty,
    shown,
)

__all__ = ["MAX_PARSED", "SIGNATURE_BYTES", "NamedFile", "Node", "Shown", "Table", "picture_type", "pretty", "shown"]
