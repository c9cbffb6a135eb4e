"""The variables of an activated conda environment, captured once, so that its Python can be started directly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from environments.installer import Tail
from environments.local import ProcessTable
from protocol.errors import ErrorKind, error

_SCRIPT = 'for f in "$@"; do . "$f" >&2; done; exec "$CONDA_PREFIX/bin/python" -I -S -c "$OPERATO_DUMP"'
_DUMP = "import json, os; print(json.dumps(dict(os.environ)))"
_OF_SHELL = {"OPERATO_DUMP", "SHLVL", "PWD", "OLDPWD", "_"}


async def activated(prefix: Path, base: Mapping[str, str], table: ProcessTable) -> dict[str, str]:
    """Return `base` with `prefix` activated: PATH, CONDA_*, and the variables and scripts of its packages.

    Raises RunnerError `environment_failed` if a script fails. Cancelled, the shell is killed.
    """
    environ = {
        **base,
        "PATH": f"{prefix / 'bin'}:{base.get('PATH', '')}",
        "CONDA_PREFIX": str(prefix),
        "CONDA_DEFAULT_ENV": str(prefix),
        "CONDA_SHLVL": "1",
        **_variables(prefix),
    }
    scripts = sorted(str(path) for path in (prefix / "etc" / "conda" / "activate.d").glob("*.sh"))
    if not scripts:
        return environ
    lines: list[str] = []
    tail = Tail(lines.append)
    shell = shutil.which("bash", path=environ["PATH"]) or "/bin/sh"
    argv = [shell, "-c", _SCRIPT, "activate", *scripts]
    status = await table.run(argv, {**environ, "OPERATO_DUMP": _DUMP}, on_line=tail)
    for line in reversed(lines):
        if line.startswith("{"):
            found: dict[str, str] = json.loads(line)
            return {name: value for name, value in found.items() if name not in _OF_SHELL}
    text = tail.text(f"exit code {status}")
    raise error(ErrorKind.ENVIRONMENT_FAILED, f"the environment could not be activated:\n{text}", field="dependencies")


def _variables(prefix: Path) -> dict[str, str]:
    """Return the variables declared by packages and by the environment itself."""
    found: dict[str, object] = {}
    for path in sorted((prefix / "etc" / "conda" / "env_vars.d").glob("*.json")):
        found.update(_read(path))
    state = _read(prefix / "conda-meta" / "state").get("env_vars", {})
    found.update(state if isinstance(state, dict) else {})
    return {name: str(value) for name, value in found.items()}


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
