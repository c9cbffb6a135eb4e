"""Checks the source of a module under the Python that will import it, in a process that ends in time."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import trio
from attrs import evolve

from config.code import QUICK_BYTES, RUNNING, Finding, Source, Verdict, source_in, target_python
from config.mistakes import Wrong
from config.modules import ModuleSpec
from environments.local import ProcessTable
from environments.venv import VenvEnvironment
from protocol.model import Kind

SECONDS = 20.0
"""Time limit of a check; a longer one finds nothing."""
_MAX_LINES = 100


async def check_under(table: ProcessTable, python: str, source: Source, environ: Mapping[str, str]) -> Verdict:
    """Return the findings of an interpreter in a source, which it does not run.

    `certain` is false if the interpreter cannot be started, or does not answer within `SECONDS`. Raises OSError if the
    source cannot be written for the interpreter. Cancelled, the process is killed before Cancelled propagates.
    """
    lines: list[str] = []

    def keep(line: str) -> None:
        if line and len(lines) < _MAX_LINES:
            lines.append(line)

    with tempfile.TemporaryDirectory(prefix="operato-check-") as folder:
        program, file = Path(folder) / "check.py", Path(folder) / "source"
        program.write_bytes(files("config.code").joinpath("source.py").read_bytes())
        file.write_bytes(source.text)
        command = [python, "-I", "-S", "-X", "utf8", str(program), str(file), source.function, source.name]
        command += ["package" if source.package else "", "shared" if source.shared else ""]
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
    """Return the mistakes in the code of a module that reading its fields left unchecked.

    Those are modules of another Python than the runner's, if that is on this machine (none is installed for a check),
    and sources of more than `QUICK_BYTES`. Raises OSError, and is cancelled, as `check_under`.
    """
    try:
        if spec.code is not None:
            source = Source(spec.code.encode(), spec.handler)
        elif spec.path is not None:
            source = source_in(spec.path, spec.handler)
        else:  # the code is in an image
            return []
    except Wrong as wrong:
        return [wrong]
    source = evolve(source, shared=spec.calls > 1)
    python = target_python({"env": spec.env, "python": spec.python, "image": spec.image})
    if python is None or (python == RUNNING and len(source.text) <= QUICK_BYTES):
        return []
    found = sys.executable if python == RUNNING else None
    if found is None and spec.env is Kind.VENV:
        found = await environment.find(spec.python)
    if found is None:
        return []
    launcher = environment.launcher
    return list(source.wrongs(await check_under(launcher.table, found, source, launcher.environ)))
