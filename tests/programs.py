"""The guest program as its interpreter imports it: by plain names, out of its own folder."""

from __future__ import annotations

import sys
from pathlib import Path

import protocol

FOLDER = Path(protocol.__file__).parent
"""The folder of the files of the guest program, `FILES`."""
FILES = ("guest.py", "parts.py", "values.py")

sys.path.insert(0, str(FOLDER))
try:
    import guest
    import parts
    import values
finally:
    sys.path.remove(str(FOLDER))
    for name in ("guest", "parts", "values"):
        sys.modules.pop(name, None)

__all__ = ["FILES", "FOLDER", "guest", "parts", "values"]
