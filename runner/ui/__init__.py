"""The dashboard at `/ui/`: pages for people, made by the runner from what `runner.api` answers to their reader.

`app` is the application in front, which imports the rest at the first request; `serving` finds a view, its reader and
the answer to a failure; `visit` is what views are written against; `framework` is the part that quart serves.
"""

from runner.ui.app import Ui, make_ui

__all__ = ["Ui", "make_ui"]
