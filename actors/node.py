"""The name of this runner in its cluster, which the data directory keeps also after the runner has left it."""

from __future__ import annotations

import os
import re
import secrets
import socket
from pathlib import Path
from typing import Final

from config.cluster import read_node
from config.mistakes import Wrong
from config.settings import ClusterSettings
from protocol.errors import ErrorKind, error

NODE_FILE: Final = "node"
"""Its name in the data directory."""
_MAX_BYTES: Final = 1024


def node_name(settings: ClusterSettings, data_dir: Path) -> str:
    """Return the name of this runner: the setting, or the one that the data directory keeps, made at the first start.

    A made name is the first word of the host's name with a random suffix, so that runners on one machine differ.
    Blocks. Call it with the lock of the data directory. Raises `RunnerError` (`unavailable`) if it cannot be read or
    made.
    """
    name = find_node(settings, data_dir)
    if name is not None:
        return name
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0]).strip("-")[:48]
    name, path = f"{host or 'runner'}-{secrets.token_hex(3)}", data_dir / NODE_FILE
    temporary = path.with_name(f"{NODE_FILE}.new")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            file.write(f"{name}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as problem:
        raise _unusable(path, problem.strerror or "") from None
    return name


def find_node(settings: ClusterSettings, data_dir: Path) -> str | None:
    """Return the name of this runner, or None if it has none yet. Makes nothing; otherwise as `node_name`."""
    if settings.node is not None:
        return settings.node
    path = data_dir / NODE_FILE
    try:
        with path.open("rb") as file:
            return str(read_node(file.read(_MAX_BYTES).decode(errors="replace").strip()))
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise _unusable(path, problem.strerror or "") from None
    except Wrong:
        raise _unusable(path, "it holds no name") from None


def _unusable(path: Path, reason: str) -> Exception:
    message = f"the name of this runner in {path} cannot be read or made ({reason}); give the setting `node`"
    return error(ErrorKind.UNAVAILABLE, message, field="node")
