"""Environment keys: a pure function of the content, equal on every machine of one platform."""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
from collections.abc import Sequence

from protocol.model import Kind

_LAYOUT = 1
"""Incremented to reject directories built by older runners."""


def environment_key(kind: Kind, requirements: Sequence[str], python: str) -> str:
    """Return the key of an environment: kind and Python version, and a hash of its content and platform."""
    content = json.dumps([_LAYOUT, kind, python, platform_tag(), [line.strip() for line in requirements]])
    return f"{kind}-py{python}-{hashlib.sha256(content.encode()).hexdigest()[:20]}"


def platform_tag() -> str:
    """Return the platform of binary packages: system, machine and C library."""
    return f"{sysconfig.get_platform()}-{'-'.join(platform.libc_ver())}"
