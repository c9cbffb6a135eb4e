"""The editor of modules, and uploads: both are checked and published as archives."""

from runner.ui.views.publishing.drafts import fields_of
from runner.ui.views.publishing.editing import VIEWS

__all__ = ["VIEWS", "fields_of"]
