"""How pages look: templates, formats of numbers and times, the menu, static files. It knows no request."""

from runner.ui.looks.assets import Asset, Assets
from runner.ui.looks.formatting import duration, size
from runner.ui.looks.menu import ENTRIES, Entry
from runner.ui.looks.templates import Templates

__all__ = ["ENTRIES", "Asset", "Assets", "Entry", "Templates", "duration", "size"]
