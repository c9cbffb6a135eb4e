"""Tracebacks whose lines lead to the code of their module."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from markupsafe import Markup, escape

_LINE: Final = re.compile(r'^(\s*File ")([^"\n]{1,1000})(", line )([0-9]{1,7})', re.MULTILINE)
_FOREIGN: Final = ("/site-packages/", "/lib/python", "<")
"""Parts of the paths of other code."""


def linked(traceback: str, address: str) -> Markup:
    """Return a traceback whose lines lead to the page of a module's code, which has a query; "": without links."""
    if not address:
        return escape(traceback)
    found, end = [], 0
    for line in _LINE.finditer(traceback):
        path, number = line[2], line[4]
        if not any(part in path for part in _FOREIGN):
            target = f"{address}&file={quote(path, safe='/')}#L{number}"
            place = Markup('{}<a href="{}">{}{}{}</a>').format(line[1], target, path, line[3], number)
            found += [escape(traceback[end : line.start()]), place]
            end = line.end()
    return Markup("").join([*found, escape(traceback[end:])])
