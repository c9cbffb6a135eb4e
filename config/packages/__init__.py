"""The Pythons and packages that a module asks for: versions and ranges of Python, lock files, projects."""

from config.packages.locks import (
    CONDA_LOCK,
    CONDA_LOCK_COMMAND,
    PROJECT,
    PYLOCK,
    UV_LOCK,
    Texts,
    has_project,
    is_explicit,
    is_locked,
    is_project,
    read_conda_lock,
    read_project,
    read_texts,
    registries,
    subdir,
)
from config.packages.versions import MINORS, fits, is_range, minor_for, read_python

__all__ = [
    "CONDA_LOCK",
    "CONDA_LOCK_COMMAND",
    "MINORS",
    "PROJECT",
    "PYLOCK",
    "UV_LOCK",
    "Texts",
    "fits",
    "has_project",
    "is_explicit",
    "is_locked",
    "is_project",
    "is_range",
    "minor_for",
    "read_conda_lock",
    "read_project",
    "read_python",
    "read_texts",
    "registries",
    "subdir",
]
