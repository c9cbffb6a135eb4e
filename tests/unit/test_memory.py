"""Unit: the memory of the machine, and of the control groups above the runner, read from files."""

from __future__ import annotations

import pytest

from environments.limits import MachineMemory

MEMINFO = "MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  600 kB\n"


def group(path, limit, used, droppable, *, version=2):
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    path.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (path / name).write_text(f"{value}\n")
    name = "inactive_file" if version == 2 else "total_inactive_file"
    (path / "memory.stat").write_text(f"anon 5\n{name} {droppable}\nactive_file 7\n")


@pytest.fixture
def find(tmp_path):
    def found(groups, hierarchy=""):
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
        return MachineMemory.find(groups, {hierarchy: tmp_path / "mount"}, tmp_path / "proc")

    return found


def test_without_groups_it_is_that_of_the_machine(find):
    memory = find({})

    assert (memory.total(), memory.free()) == (1000 * 1024, 600 * 1024)


def test_the_nearest_limit_of_the_groups_above_counts(find, tmp_path):
    group(tmp_path / "mount" / "a" / "b", "max", 10, 0)
    group(tmp_path / "mount" / "a", 5000, 4000, 1500)
    group(tmp_path / "mount", 9000, 100, 0)
    memory = find({"": "/a/b"})

    assert (memory.total(), memory.free()) == (5000, 2500)


def test_a_group_of_version_1(find, tmp_path):
    group(tmp_path / "mount" / "a", 5000, 4000, 200, version=1)
    group(tmp_path / "mount", 2**63 - 4096, 100, 0, version=1)
    memory = find({"memory": "/a"}, "memory")

    assert (memory.total(), memory.free()) == (5000, 1200)


def test_a_group_that_is_gone_does_not_limit(find, tmp_path):
    group(tmp_path / "mount" / "a", 5000, 4000, 200)
    memory = find({"": "/a"})
    for path in (tmp_path / "mount" / "a").iterdir():
        path.unlink()

    assert (memory.total(), memory.free()) == (1000 * 1024, 600 * 1024)


def test_this_machine():
    memory = MachineMemory.find({}, {})

    assert 0 < memory.free() < memory.total()
