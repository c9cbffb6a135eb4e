"""Programs that build environments, uv above all: run to their end, with their last lines as the error message."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from environments.local import ProcessTable
from protocol.errors import ErrorKind, error

_LAST_LINES = 20


class Tail:
    """Passes an installer's lines on, and keeps the last ones to explain a failure."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)

    def __call__(self, line: str) -> None:
        """Take a line."""
        self._lines.append(line)
        if self._say is not None:
            self._say(line)

    def text(self, otherwise: str) -> str:
        """Return the kept lines that are not blank, or `otherwise` if there are none."""
        return "\n".join(line for line in self._lines if line.strip()) or otherwise


async def run_installer(
    table: ProcessTable,
    argv: Sequence[str],
    environ: Mapping[str, str],
    say: Callable[[str], None],
    *,
    failed: str,
    field: str | None = None,
) -> None:
    """Run a program to its end; `say` gets its lines.

    Raises RunnerError: `unavailable` if the program cannot be started; `environment_failed` at `field` if it fails,
    whose message is `failed` and the program's last lines. Cancelled, the program is killed.
    """
    tail = Tail(say)
    try:
        status = await table.run(argv, environ, on_line=tail)
    except OSError as problem:
        raise error(ErrorKind.UNAVAILABLE, f"{argv[0]} cannot be run: {problem}", field="env") from problem
    if status != 0:
        text = tail.text(f"{Path(argv[0]).name} ended with exit code {status}")
        raise error(ErrorKind.ENVIRONMENT_FAILED, f"{failed}:\n{text}", field=field)


def find_uv() -> str | None:
    """Return the path of the uv program: that of the installed package, else the one on PATH."""
    try:
        from uv import find_uv_bin  # noqa: PLC0415  (some packagings have uv on PATH only)

        return os.fspath(find_uv_bin())
    except (ImportError, FileNotFoundError):
        return shutil.which("uv")


async def run_uv(
    uv: str | None,
    arguments: Sequence[str],
    table: ProcessTable,
    environ: Mapping[str, str],
    say: Callable[[str], None],
    *,
    failed: str,
    offline: bool,
) -> None:
    """Run uv without downloading Pythons and without its configuration files. Raises as `run_installer`."""
    options = [*(["--offline"] if offline else []), "--no-config", "--no-progress", "--color", "never"]
    argv = [uv or "uv", *arguments, *options]
    await run_installer(table, argv, {**environ, "UV_PYTHON_DOWNLOADS": "never"}, say, failed=failed)
