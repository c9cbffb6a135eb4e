"""Charts as SVG, made on the server, each with its numbers as a table. Pure.

Texts are escaped; the result is markup for templates. Colours come from the style sheet, by
class: a drawing has no style of its own.
"""

from runner.ui.drawing.bar import Part, share
from runner.ui.drawing.charts import Labels, Series, lines, stacked

__all__ = ["Labels", "Part", "Series", "lines", "share", "stacked"]
