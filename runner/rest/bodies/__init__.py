"""Bodies of requests as clients send them: compressed, forms, files. Every step is bounded."""

from runner.rest.bodies.encodings import CODINGS, inflating, paid
from runner.rest.bodies.fields import Field, Fields
from runner.rest.bodies.forms import read_form, read_urlencoded
from runner.rest.bodies.inputs import ANY, URLENCODED, UnsupportedType, media_types, read_input
from runner.rest.bodies.part import FORM, FORM_PARTS
from runner.rest.bodies.parts import read_file

__all__ = [
    "ANY",
    "CODINGS",
    "FORM",
    "FORM_PARTS",
    "URLENCODED",
    "Field",
    "Fields",
    "UnsupportedType",
    "inflating",
    "media_types",
    "paid",
    "read_file",
    "read_form",
    "read_input",
    "read_urlencoded",
]
