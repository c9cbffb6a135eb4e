"""The real program with a probe of its event loop: `python -m tests.probe FILE [OPTION ...]`.

The probe is a thread, which asks the loop for a sign again and again, and notes how long it takes. Its numbers are in
FILE, which the reader maps: the longest time (`wall`), and the longest `held`, which is the same without the noise of
the machine: no longer than the processor time that the whole process took meanwhile, in whichever thread, since a
thread holds the loop too while it does not give back the lock of the interpreter.
"""

from __future__ import annotations

import mmap
import struct
import sys
import threading
import time
from functools import partial
from pathlib import Path

import trio

TICK_SECONDS = 0.004
FORM = struct.Struct("<ddd")
"""`held`, `wall`, and the number of ticks."""


class Probe(trio.abc.Instrument):
    """Starts the thread that measures the loop that the server runs in."""

    def __init__(self, numbers: mmap.mmap) -> None:
        self._numbers = numbers

    def before_run(self) -> None:
        """Start to measure."""
        token = trio.lowlevel.current_trio_token()
        threading.Thread(target=self._measure, args=(token,), name="probe", daemon=True).start()

    def _measure(self, token: trio.lowlevel.TrioToken) -> None:
        answered = threading.Event()
        while True:
            time.sleep(TICK_SECONDS)
            answered.clear()
            try:
                token.run_sync_soon(self._answer, time.monotonic(), time.process_time(), answered)
            except trio.RunFinishedError:
                return
            answered.wait()

    def _answer(self, began: float, used: float, answered: threading.Event) -> None:
        """Note the time since the question; runs in the loop."""
        late, used = time.monotonic() - began, time.process_time() - used
        held, wall, ticks = FORM.unpack_from(self._numbers)
        FORM.pack_into(self._numbers, 0, max(held, min(late, used)), max(wall, late), ticks + 1)
        answered.set()


class Numbers:
    """What a probe has measured since the last `reset`, for the process that reads it."""

    def __init__(self, file: Path) -> None:
        file.write_bytes(bytes(FORM.size))
        self._numbers = mapped(file)

    def reset(self) -> None:
        """Begin again."""
        FORM.pack_into(self._numbers, 0, 0, 0, 0)

    def read(self) -> tuple[float, float, int]:
        """Return `held` and `wall` in seconds, and the number of ticks."""
        held, wall, ticks = FORM.unpack_from(self._numbers)
        return held, wall, int(ticks)


def mapped(file: Path) -> mmap.mmap:
    """Return the shared memory of a file."""
    with file.open("r+b") as opened:
        return mmap.mmap(opened.fileno(), 0)


if __name__ == "__main__":
    # The runner is a fork of this process, which has the mapping and this function too.
    trio.run = partial(trio.run, instruments=[Probe(mapped(Path(sys.argv.pop(1))))])

    from runner.cli import main

    main()
