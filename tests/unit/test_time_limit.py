"""Unit: the time limit of tests: a test that hangs fails, cleans up, and later tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = """
import subprocess, time
import pytest, trio

@pytest.fixture
async def resource():
    try:
        yield
    finally:
        print("cleaned up")

@pytest.mark.timeout(0.3)
async def test_waits(resource):
    await trio.sleep_forever()

@pytest.mark.timeout(0.3)
def test_blocks():
    subprocess.run(["sleep", "60"])

@pytest.mark.timeout(0.3)
async def test_cancelled_and_quiet():
    with trio.move_on_after(60):
        await trio.sleep(60)

async def test_after():
    await trio.sleep(0)
"""


def test_a_test_that_hangs_fails_and_the_next_one_runs(tmp_path):
    (tmp_path / "test_hangs.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\ntimeout_method = signal\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.time_limit", "-p", "no:cacheprovider", str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CI": ""}  # with it, the summary repeats the messages
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100, check=False)

    assert "3 failed, 1 passed" in done.stdout, done.stdout
    assert done.stdout.count("Failed: the test exceeded its time limit of 0.3 s") == 2, done.stdout
    assert "    await trio.sleep_forever()" in done.stdout
    assert "cleaned up" in done.stdout
    assert "Failed: Timeout (>0.3s)" in done.stdout
