"""One bar of parts: how a whole is divided, such as the time of an execution into phases."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen
from markupsafe import Markup


@frozen
class Part:
    """A part of a whole."""

    name: str
    look: str
    """The end of its class in the style sheet."""
    value: float
    shown: str
    """The value in words, such as `1.2 s`."""


def share(title: str, parts: Sequence[Part]) -> Markup:
    """Return a bar with a list of its parts, which says everything that the bar shows; nothing without a whole."""
    whole = sum(part.value for part in parts)
    if whole <= 0:
        return Markup("")
    drawn, at = [], 0.0
    for part in parts:
        width = part.value / whole * 1000
        if width > 0:
            place = (f"{at:.2f}", f"{max(width, 2):.2f}")
            drawn.append(
                Markup('<rect class="fill-{}" x="{}" y="0" width="{}" height="10"><title>{} {}</title></rect>').format(
                    part.look, *place, part.name, part.shown
                )
            )
        at += width
    keys = [
        Markup('<li><span class="key fill-{}"></span>{} <strong>{}</strong></li>').format(
            part.look, part.name, part.shown
        )
        for part in parts
    ]
    return Markup(
        '<div class="share"><svg viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
        '<ul class="legend" aria-label="{}">{}</ul></div>'
    ).format(Markup("").join(drawn), title, Markup("").join(keys))
