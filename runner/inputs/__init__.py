"""Inputs as clients send them, at every door: forms, texts and bytes become the JSON of an input, files are stored."""

from runner.inputs.fields import Field, Fields
from runner.inputs.forms import INLINE_BYTES, is_json, read_form, read_pairs, read_raw, read_urlencoded, text_in
from runner.inputs.inputs import ANY, URLENCODED, UnsupportedType, WholeBody, media_types, read_input
from runner.inputs.part import FORM, FORM_PARTS, Content, Head
from runner.inputs.parts import read_file, read_parts

__all__ = [
    "ANY",
    "FORM",
    "FORM_PARTS",
    "INLINE_BYTES",
    "URLENCODED",
    "Content",
    "Field",
    "Fields",
    "Head",
    "UnsupportedType",
    "WholeBody",
    "is_json",
    "media_types",
    "read_file",
    "read_form",
    "read_input",
    "read_pairs",
    "read_parts",
    "read_raw",
    "read_urlencoded",
    "text_in",
]
