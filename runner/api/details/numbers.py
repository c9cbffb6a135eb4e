"""Spans of time over which numbers are shown."""

from __future__ import annotations

from typing import Final

from attrs import frozen

HOUR: Final = 3600
DAY: Final = 24 * HOUR


@frozen
class Span:
    """The last `seconds`, in steps of `step` seconds."""

    seconds: int
    step: int


SPANS: Final = {"day": Span(DAY, HOUR // 2), "week": Span(7 * DAY, 4 * HOUR), "month": Span(30 * DAY, DAY)}
