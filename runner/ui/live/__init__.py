"""What is live in a page: its output in lines, and the server-sent events that it follows."""

from runner.ui.live.following import failed, progress_fields, send_news
from runner.ui.live.lines import (
    MAX_SHOWN,
    ShownLine,
    fields_of,
    key_of,
    shown_line,
    some_of,
    spot_of,
    stream_of,
    window_fields,
)

__all__ = [
    "MAX_SHOWN",
    "ShownLine",
    "failed",
    "fields_of",
    "key_of",
    "progress_fields",
    "send_news",
    "shown_line",
    "some_of",
    "spot_of",
    "stream_of",
    "window_fields",
]
