"""Reads a modules file as the runner does when it starts."""

from __future__ import annotations

from pathlib import Path

from config.load import load_settings
from config.modules import ModulesFile


def load_modules(path: Path) -> ModulesFile:
    """Return the modules file. Raises `ConfigError` with all its mistakes."""
    return load_settings({"config": path}, {}).modules
