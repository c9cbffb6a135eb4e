"""Forms for JSON: a JSON Schema becomes fields, and what a browser posts becomes JSON again. Pure.

`Shape` is the schema as a form sees it. `flatten` returns the controls that a browser would post for a value,
`fields_of` the fields to draw for posted controls, `read` their value. So `read` returns every value that `flatten`
takes; other values are written as JSON by hand.
"""

from runner.ui.forms.changes import added, removed
from runner.ui.forms.fields import Choice, Field, fields_of
from runner.ui.forms.flat import NotShownError, Posted, flatten
from runner.ui.forms.reading import Reading, read
from runner.ui.forms.shape import Shape, Widget, shape_of
from runner.ui.forms.start import start_of
from runner.ui.forms.texts import pretty

__all__ = [
    "Choice",
    "Field",
    "NotShownError",
    "Posted",
    "Reading",
    "Shape",
    "Widget",
    "added",
    "fields_of",
    "flatten",
    "pretty",
    "read",
    "removed",
    "shape_of",
    "start_of",
]
