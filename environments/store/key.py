"""Content -> environment key. Pure: equal content gives an equal key on every machine of one platform."""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
from collections.abc import Sequence

from protocol.model import Kind

_LAYOUT = 1
"""Raised when directories built by an older runner must not be used any more."""


def environment_key(kind: Kind, requirements: Sequence[str], python: str) -> str:
    """Return the key of an environment: kind, Python version, platform and a hash of everything that goes into it."""
    content = json.dumps([_LAYOUT, kind, python, platform_tag(), [line.strip() for line in requirements]])
    return f"{kind}-py{python}-{hashlib.sha256(content.encode()).hexdigest()[:20]}"


def platform_tag() -> str:
    """Return what binary packages depend on: system, machine and C library."""
    return f"{sysconfig.get_platform()}-{'-'.join(platform.libc_ver())}"
