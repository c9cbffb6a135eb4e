"""Checks the source of a module under the interpreter that will import it, where the runner's own cannot judge it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import trio

from config.code import Finding, Verdict
from config.code import entry as code
from config.mistakes import Wrong
from config.modules import ModuleSpec
from environments.local import ProcessTable
from environments.venv import VenvEnvironment
from protocol.model import Kind

SECONDS = 20.0
"""Time that a check may take; one that takes longer tells nothing."""
_MAX_LINES = 100


async def check_under(
    table: ProcessTable, python: str, source: bytes, handler: str, name: str, environ: Mapping[str, str]
) -> Verdict:
    """Return what an interpreter finds in a source, which it does not run.

    Parameters as `config.source.check`. `certain` is false where the interpreter cannot be started, or does not answer
    within `SECONDS`. Raises OSError when the source cannot be put where the interpreter reads it. Cancelled, its
    process is killed before Cancelled goes on.
    """
    lines: list[str] = []

    def keep(line: str) -> None:
        if line and len(lines) < _MAX_LINES:
            lines.append(line)

    with tempfile.TemporaryDirectory(prefix="operato-check-") as folder:
        program, file = Path(folder) / "check.py", Path(folder) / "source"
        program.write_bytes(files("config.code").joinpath("source.py").read_bytes())
        file.write_bytes(source)
        command = [python, "-I", "-S", "-X", "utf8", str(program), str(file), handler, name]
        status: int | None = None
        try:
            with trio.move_on_after(SECONDS):
                status = await table.run(command, environ, on_line=keep)
        except OSError:
            status = None
    if status != 0:
        return Verdict([], certain=False)
    try:
        return Verdict([Finding(*each) for each in json.loads(lines[-1])])
    except (ValueError, TypeError, IndexError):
        return Verdict([], certain=False)


async def check_module(environment: VenvEnvironment, spec: ModuleSpec) -> list[Wrong]:
    """Return what is wrong with the code of a module, where reading its fields did not look at it.

    That is where its Python is another one than the runner's, and here: it is not brought for a check. And where there
    is more of the code than `QUICK_BYTES`: that is checked in a process of its own, which ends in time. Raises OSError
    and is cancelled as `check_under`.
    """
    python = code.target({"env": spec.env, "python": spec.python, "image": spec.image})
    try:
        entry, source = _source(spec)
    except Wrong as wrong:
        return [wrong]
    if source is None or python is None or (python == code.RUNNING and len(source) <= code.QUICK_BYTES):
        return []
    found = sys.executable if python == code.RUNNING else None
    if found is None and spec.env is Kind.VENV:
        found = await environment.find(spec.python)
    if found is None:
        return []
    table, environ = environment.launcher.table, environment.launcher.environ
    function = spec.handler.rpartition(":")[2]
    if entry is None or spec.path is None:
        verdict = await check_under(table, found, source, function, code.NAME, environ)
        return list(map(code.in_code, verdict.findings))
    shown = entry.relative_to(spec.path if spec.path.is_dir() else spec.path.parent).as_posix()
    return list(code.file_wrongs(await check_under(table, found, source, function, shown, environ), str(entry)))


def _source(spec: ModuleSpec) -> tuple[Path | None, bytes | None]:
    """Return the file with the handler, None for code in a field, and the source, None for what an image has."""
    if spec.code is not None:
        return None, spec.code.encode()
    if spec.path is None:
        return None, None
    entry = code.entry_of(spec.path, spec.handler)
    return entry, code.read_entry(entry)
