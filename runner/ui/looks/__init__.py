"""How pages look: templates, formats of numbers and times, the menu, static files. It knows no request."""

from runner.ui.looks.assets import Asset, Assets
from runner.ui.looks.formatting import clock as as_clock
from runner.ui.looks.formatting import duration as as_duration
from runner.ui.looks.formatting import number as as_number
from runner.ui.looks.formatting import percent as as_percent
from runner.ui.looks.formatting import size as as_size
from runner.ui.looks.menu import ENTRIES, Entry
from runner.ui.looks.templates import Templates

__all__ = [
    "ENTRIES",
    "Asset",
    "Assets",
    "Entry",
    "Templates",
    "as_clock",
    "as_duration",
    "as_number",
    "as_percent",
    "as_size",
]
