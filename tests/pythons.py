"""The interpreters of this machine under which the guest program must work."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def find_pythons() -> dict[str, str]:
    """Return version -> path of one interpreter of each minor version; shims that do not run are left out."""
    candidates = [str(path) for path in sorted((Path.home() / ".pyenv" / "versions").glob("*/bin/python3"))]
    candidates += [found for minor in range(8, 16) if (found := shutil.which(f"python3.{minor}"))]
    candidates += [found for name in ("python3", "python") if (found := shutil.which(name))]
    pythons: dict[str, str] = {}
    for path in candidates:
        code = "import sys; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
        try:
            asked = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True, timeout=20, check=False)
        except OSError:
            continue
        version, _, implementation = asked.stdout.strip().partition(" ")
        if asked.returncode == 0 and implementation == "cpython" and tuple(map(int, version.split("."))) >= (3, 8):
            pythons.setdefault(version, path)
    return pythons


PYTHONS = find_pythons()
