"""The value that a form begins with: what the schema gives, and empty fields for the rest."""

from __future__ import annotations

from typing import Any

from runner.ui.forms.flat import ABSENT, NotShownError, flatten
from runner.ui.forms.shape import Shape, Widget


def start_of(shape: Shape) -> dict[str, str]:
    """Return what an untouched form posts: defaults are filled in, required parts are there."""
    try:
        return flatten(shape, start_value(shape, required=True))
    except NotShownError:
        return flatten(shape, ABSENT)


def start_value(shape: Shape, *, required: bool) -> Any:
    """Return the value that a part begins with, `ABSENT` for an empty one."""
    default = shape.schema.get("default")
    if default is not None and default != "":
        try:
            flatten(shape, default)
        except NotShownError:
            return ABSENT
        return default
    match shape.widget:
        case Widget.CHOICE if required and len(shape.choices) == 1:
            return shape.choices[0]
        case Widget.LIST if required and not shape.nullable:
            return [None if (each := start_value(shape.item, required=True)) is ABSENT else each] * shape.least
        case Widget.GROUP if required and not shape.fixed and (not shape.nullable or shape.depth == 0):
            parts = {name: start_value(part, required=needed) for name, part, needed in shape.parts}
            return {name: value for name, value in parts.items() if value is not ABSENT}
    return ABSENT
