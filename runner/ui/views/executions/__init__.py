"""The pages of executions: the list with its filters, one execution with its output, and what is done with many."""

from runner.ui.views.executions import changes, files, listing, many, output, page

VIEWS = (*listing.VIEWS, *many.VIEWS, *page.VIEWS, *changes.VIEWS, *output.VIEWS, *files.VIEWS)

__all__ = ["VIEWS"]
