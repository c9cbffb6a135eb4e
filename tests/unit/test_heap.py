"""Unit: memory that large buffers took goes back to the system, as `environments.proc` sets the C library."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from environments import proc

MIB = 1 << 20
if sys.argv[1] == "set":
    proc.give_back_memory()
kept = []
for size in (16, 15, 14, 13):
    large = []
    for _ in range(8):
        large.append(bytearray(b"x") * (size * MIB))
        kept.append(b"x" * 100_000)  # above the large one, if that is in the heap
    large.clear()
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) // 1024)
"""


def resident(how: str) -> int:
    """Return the MiB that a program keeps after it freed large buffers."""
    found = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(found.stdout)


def test_large_buffers_go_back_to_the_system() -> None:
    if resident("unset") < 80:
        pytest.skip("this C library gives memory back by itself")
    assert resident("set") < 60
