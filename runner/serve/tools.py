"""The tools of a modules file for one client, without a server, for the command `mcp`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import trio
from attrs import evolve

from actors.system import Surroundings, open_system
from config.load import Loaded
from environments import proc
from runner.api import Service
from runner.auth import Principal
from runner.mcp import serve_lines
from runner.stdio import standard_lines


def run_tools(loaded: Loaded, around: Surroundings) -> int:
    """Serve the modules as tools over standard input and output, until the input ends; nothing is recorded."""
    proc.hide()
    trio.run(_serve, loaded, around)
    return 0


async def _serve(loaded: Loaded, around: Surroundings) -> None:
    caller = Principal("command-line", frozenset({"admin"}), ())
    # A server may have the history of the data directory open.
    records = tempfile.mkdtemp(prefix="operato-mcp-")
    settings = evolve(loaded.settings, executor=evolve(loaded.settings.executor, spares=0))
    try:
        async with open_system(settings, around, loaded.modules.modules, records=Path(records)) as system:
            service = Service(system.registry, system.executors, system.history, system.runs, system.files, settings)
            async with standard_lines(settings.server.max_frame_bytes) as lines:
                await serve_lines(service, caller, lines)
            await system.drain(0)
    finally:
        shutil.rmtree(records, ignore_errors=True)
