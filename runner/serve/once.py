"""One call without a server, for the command `run`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import trio
from attrs import evolve

from actors.system import Surroundings, open_system
from config.load import Loaded
from config.modules import ModuleSpec
from environments import proc
from protocol.events import decode_all, text_of
from runner.api import Service
from runner.auth import Principal
from runner.serve.dev import with_source
from runner.status import CODES


def run_once(loaded: Loaded, around: Surroundings, name: str, data: bytes, timeout: float | None) -> int:
    """Run one module without a server: result to standard output, printed text to standard error.

    Returns 0, or the exit code of the error kind. Raises RunnerError for a call that never began.
    """
    proc.hide()
    return trio.run(_once, loaded, around, name, data, timeout)


async def _once(loaded: Loaded, around: Surroundings, name: str, data: bytes, timeout: float | None) -> int:
    caller = Principal("command-line", frozenset({"admin"}), ())
    # A server may have the history of the data directory open, and this one call needs no record.
    records = tempfile.mkdtemp(prefix="operato-run-")
    settings = evolve(loaded.settings, executor=evolve(loaded.settings.executor, spares=0))
    wanted = [_alone(m) for m in loaded.modules.modules if m.name == name]
    try:
        modules = wanted or loaded.modules.modules
        async with open_system(settings, around, modules, records=Path(records)) as system:
            service = Service(system.registry, system.executors, system.history, system.runs, system.files, settings)
            execution = await service.execute(caller, name, data, timeout=timeout)
    finally:
        shutil.rmtree(records, ignore_errors=True)
    sys.stderr.write(text_of(decode_all(execution.events), None))
    failure = execution.failure
    if failure is None:
        sys.stdout.write((execution.result or b"null").decode() + "\n")
        return 0
    traceback = failure.traceback or ""
    if loaded.modules.path.suffix == ".py":  # the file itself, in place of its stored copy
        traceback = with_source(traceback, loaded.modules.path)
    sys.stderr.write(f"{traceback}error: {failure.kind}: {failure.message}\n")
    return CODES[failure.kind].exit


def _alone(module: ModuleSpec) -> ModuleSpec:
    """Return a module for one call: without kept workers, and approved by the person who makes the call."""
    return evolve(module, workers=evolve(module.workers, min=0), tool=evolve(module.tool, confirm=False))
