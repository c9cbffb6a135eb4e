"""Charts as SVG, made on the server, each with its numbers as a table. Pure.

Texts are escaped; what is returned is markup that a template shows as it is. Colours come from the style sheet, by
class: a drawing has no style of its own.
"""

from runner.ui.drawing.charts import Labels, Series, lines, stacked
from runner.ui.drawing.share import Part, share

__all__ = ["Labels", "Part", "Series", "lines", "share", "stacked"]
