"""The program around the actors: command line, REST, gRPC, authentication, and the server process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def without(*libraries: str) -> Iterator[None]:
    """Import as if these optional libraries were not installed, unless they are imported already.

    Libraries import others for features that this program does not use, at the cost of memory and of time at start.
    """
    hidden = [name for name in libraries if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = cast("Any", None)  # every import of it raises ModuleNotFoundError
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
