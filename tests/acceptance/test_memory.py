"""Acceptance: the server process gives back the memory that large requests leave behind."""

import sys

from tests.server_process import ROOT, running, wait_for

MODULES = "modules:\n  - {name: hello, env: inline, code: 'def handler(input): return 1'}\n"
PROGRAM = """
import gc, pathlib, sys
from runner.serve import heap

heap._GROWTH_BYTES, heap._LOOK_SECONDS = 0, 0.01
place = pathlib.Path(sys.argv.pop(1))

def note(phase, info):
    if phase == "stop" and info["generation"] == 2 and sys._getframe(1).f_code.co_name == "tend":
        place.touch()

gc.callbacks.append(note)
from runner.cli import main
main()
"""


def test_a_server_that_has_grown_collects_its_garbage(tmp_path):
    program = (sys.executable, "-c", PROGRAM, str(tmp_path / "collected"))
    with running(tmp_path, MODULES, program=program, environ={"PYTHONPATH": str(ROOT)}) as server:
        assert server.execute("hello", None).status_code == 200
        wait_for((tmp_path / "collected").exists)
