"""Charts over time: stacked columns for counts, lines for durations.

The plot is stretched to the width of the page, so it has no text: axes and legend are HTML around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from attrs import frozen
from markupsafe import Markup

_HEIGHT: Final = 100
_GAP: Final = 0.12
"""The part of a column's place that stays free on each side."""
_LEAST: Final = 1.0
"""The height of the smallest count, which would be invisible beside a large one."""


@frozen
class Series:
    """The values of one thing, one for each point in time; None for a missing value."""

    name: str
    look: str
    """The end of its class in the style sheet, such as the name of a status."""
    values: Sequence[float | None]


@frozen
class Labels:
    """The texts of a chart."""

    title: str
    points: Sequence[str]
    """One for each point in time; the first and the last stand below the plot."""
    time: str
    """The head of the column of times in the table."""
    numbers: str
    """The text that opens the table."""
    summary: str
    """The content of the chart in a sentence, for readers who do not see it."""


def stacked(labels: Labels, series: Sequence[Series], form: Callable[[float], str] = "{:,.0f}".format) -> Markup:
    """Return a chart of columns: the first series at the bottom, the others above it."""
    sums = [sum(each.values[at] or 0 for each in series) for at in range(len(labels.points))]
    top = _ceiling(max(sums, default=0), whole=True)
    columns = [_column(labels, series, at, top, form) for at, total in enumerate(sums) if total]
    return _figure(labels, series, (Markup("").join(columns), top), form)


def _column(labels: Labels, series: Sequence[Series], at: int, top: float, form: Callable[[float], str]) -> Markup:
    parts, y = [], float(_HEIGHT)
    for each in series:
        if value := each.values[at] or 0:
            height = max(value / top * _HEIGHT, _LEAST)
            y -= height
            place = (f"{at + _GAP:.2f}", f"{max(y, 0):.2f}", f"{1 - 2 * _GAP:.2f}", f"{height:.2f}")
            made = Markup('<rect class="fill-{}" x="{}" y="{}" width="{}" height="{}"/>').format(each.look, *place)
            parts.append(made)
    said = ", ".join(f"{form(each.values[at] or 0)} {each.name}" for each in series if each.values[at])
    hit = Markup('<rect class="hit" x="{}" y="0" width="1" height="{}"/>').format(at, _HEIGHT)
    return Markup("<g><title>{}: {}</title>{}{}</g>").format(labels.points[at], said, hit, Markup("").join(parts))


def lines(labels: Labels, series: Sequence[Series], form: Callable[[float], str]) -> Markup:
    """Return a chart of lines, which are open where values are missing; a value alone is a short dash."""
    known = [value for each in series for value in each.values if value is not None]
    top = _ceiling(max(known, default=0.0))
    drawn = [
        Markup('<path class="line line-{}" d="{}"/>').format(each.look, _path(each.values, top)) for each in series
    ]
    hits = []
    for at, point in enumerate(labels.points):
        said = ", ".join(f"{each.name} {form(value)}" for each in series if (value := each.values[at]) is not None)
        if said:
            place = Markup('<rect class="hit" x="{}" y="0" width="1" height="{}"/>').format(at, _HEIGHT)
            hits.append(Markup("<g><title>{}: {}</title>{}</g>").format(point, said, place))
    return _figure(labels, series, (Markup("").join([*drawn, *hits]), top), form)


def _path(values: Sequence[float | None], top: float) -> str:
    steps, follows = [], False
    for at, value in enumerate(values):
        if value is not None:
            y = f"{_HEIGHT - value / top * _HEIGHT:.2f}"
            alone = not follows and (at + 1 == len(values) or values[at + 1] is None)
            steps.append(
                f"M{at + 0.25:.2f} {y}H{at + 0.75:.2f}" if alone else f"{'L' if follows else 'M'}{at + 0.5} {y}"
            )
        follows = value is not None
    return "".join(steps)


def _ceiling(value: float, *, whole: bool = False) -> float:
    """Return the round number at the top of an axis: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 0.1
    found = next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))
    return max(found, 2.0) if whole else found


def _figure(
    labels: Labels, series: Sequence[Series], plot: tuple[Markup, float], form: Callable[[float], str]
) -> Markup:
    drawn, top = plot
    width = max(len(labels.points), 1)
    keys = [Markup('<li><span class="key fill-{}"></span>{}</li>').format(each.look, each.name) for each in series]
    rules = [
        Markup('<line class="rule" x1="0" x2="{}" y1="{}" y2="{}"/>').format(width, y, y) for y in (0, 50, _HEIGHT)
    ]
    return Markup(
        '<figure class="chart"><figcaption><span>{title}</span><ul class="legend">{keys}</ul></figcaption>'
        '<div class="plot"><div class="scale" aria-hidden="true">{scale}</div>'
        '<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="{summary}">'
        "{rules}{drawn}</svg></div>"
        '<div class="span" aria-hidden="true">{span}</div>{table}</figure>'
    ).format(
        title=labels.title,
        keys=Markup("").join(keys),
        scale=Markup("").join(Markup("<span>{}</span>").format(form(each)) for each in (top, top / 2))
        + Markup("<span>0</span>"),
        width=width,
        height=_HEIGHT,
        summary=f"{labels.title}. {labels.summary}",
        rules=Markup("").join(rules),
        drawn=drawn,
        span=Markup("").join(Markup("<span>{}</span>").format(each) for each in _ends(labels.points)),
        table=_table(labels, series, form),
    )


def _ends(points: Sequence[str]) -> Sequence[str]:
    return points if len(points) <= 2 else (points[0], points[len(points) // 2], points[-1])


def _table(labels: Labels, series: Sequence[Series], form: Callable[[float], str]) -> Markup:
    heads = [Markup('<th scope="col">{}</th>').format(name) for name in (labels.time, *(s.name for s in series))]
    rows = [
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            point, Markup("").join(Markup("<td>{}</td>").format(_shown(each.values[at], form)) for each in series)
        )
        for at, point in enumerate(labels.points)
        if any(each.values[at] for each in series)
    ]
    return Markup(
        '<details class="numbers"><summary>{}</summary><div class="scroll" tabindex="0" role="region" aria-label="{}">'
        "<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div></details>"
    ).format(labels.numbers, labels.title, Markup("").join(heads), Markup("").join(rows))


def _shown(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)
