"""Which release this is."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path


def release() -> str:
    """Return the version of the project file where this runs from source, else of what is installed."""
    project = Path(__file__).parents[1] / "pyproject.toml"
    try:
        return str(tomllib.loads(project.read_text())["project"]["version"])
    except (OSError, ValueError, KeyError):
        return version("operato-runner")
