"""Cluster: runners of two releases beside each other, and an upgrade of one after the other under load."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.cluster.fleet import Load, fleet
from tests.server_process import ROOT, wait_for

pytestmark = pytest.mark.timeout(240)
ROOMS = ("actors", "config", "environments", "protocol", "runner")


def later_release(folder: Path, *, version: int) -> Path:
    """Return a release whose letters have one more field, and another version if earlier ones cannot read it."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("main.py", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    letters = folder / "actors" / "cluster" / "letters.py"
    text, changed = re.subn(
        r"^VERSION: Final = \d+$", f"VERSION: Final = {version}", letters.read_text(), flags=re.MULTILINE
    )
    text, added = re.subn(r"^(    version: int = VERSION\n)", r'\1    later: str = "x"\n', text, flags=re.MULTILINE)
    text = text.replace("class Letter(Struct, frozen=True, omit_defaults=True)", "class Letter(Struct, frozen=True)")
    assert (changed, added) == (1, 2)
    letters.write_text(text)
    return folder


@pytest.fixture
def runners(three_servers, tmp_path):
    three_servers.heal()
    with fleet(three_servers, tmp_path / "fleet") as made:
        yield made


def test_runners_are_upgraded_one_after_the_other_under_load(runners, tmp_path):
    later = later_release(tmp_path / "later", version=1)
    with Load(runners) as load:
        for runner in runners.runners:
            load.wait(10)
            assert runner.stop() == 0
            runner.release = later
            runner.start()
            runner.wait_ready()
        load.wait(10)

    ends = runners.check()
    assert set(ends) <= {"succeeded", "cancelled"}, ends
    assert all("cannot be read" not in runner.log for runner in runners.runners)


def test_a_release_that_cannot_read_another_leaves_its_executions_alone_until_it_is_upgraded(runners, tmp_path):
    later = later_release(tmp_path / "later", version=2)
    first, *rest = runners.runners
    assert first.stop() == 0
    first.release = later
    first.start()
    first.wait_ready()

    of_later = [runners.submit(first, module) for module in ("again", "paced") for _ in range(5)]
    of_earlier = [runners.submit(runner, module) for runner in rest for module in ("again", "paced") for _ in range(5)]
    wait_for(lambda: {*of_later, *of_earlier} <= {*runners.ends(first)})
    assert all(first.get(f"/executions/{name}")["node"] == first.node for name in of_later)
    wait_for(lambda: all(" writes letters of version 2, this one reads 1 at most" in each.log for each in rest))
    assert all(each.get(f"/executions/{of_later[0]}") is None for each in rest)  # after the time in which others arrive
    assert all(runners.call(runner) for runner in runners.runners)

    with Load(runners) as load:
        for runner in rest:
            assert runner.stop() == 0
            runner.release = later
            runner.start()
            runner.wait_ready()
        load.wait(10)
    runners.check()
