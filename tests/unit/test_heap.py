"""Unit: memory that large buffers took goes back to the system: the C library, and garbage of few objects."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from runner.serve.heap import Heap

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


MIB = 1 << 20


class Ring:
    """An object that refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
async def test_garbage_goes_when_the_process_has_grown_since_it_was_smallest() -> None:
    sizes = iter([100 * MIB, 60 * MIB, 80 * MIB, 120 * MIB, 90 * MIB, 110 * MIB])
    heap = Heap(lambda: next(sizes))
    ring = weakref.ref(Ring())
    for _ in range(2):
        await heap.tend()
        assert ring() is not None
    await heap.tend()  # 60 MiB more than the least
    assert ring() is None
    ring = weakref.ref(Ring())
    await heap.tend()  # 20 MiB more than after the collection
    assert ring() is not None


def test_garbage_of_large_buffers_goes_back_to_the_system() -> None:
    program = """
import gc, trio
from environments import proc
from runner.serve.heap import Heap, _resident

class Ring:
    def __init__(self):
        self.me, self.body = self, b"x" * (8 << 20)

gc.disable()
heap = Heap()
before = _resident()
for _ in range(16):
    Ring()
grown = _resident() - before
trio.run(heap.tend)
print(grown >> 20, (_resident() - before) >> 20)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    grown, left = map(int, found.stdout.split())
    assert grown >= 120
    assert left < 32
