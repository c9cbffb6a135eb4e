"""Fixtures of all tests: executors, how a handler is called, and the check that a test leaves nothing behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from environments import proc
from tests import engines
from tests.support import descendants, open_fds, open_rig

_FD_SLACK = 2
"""Descriptors that libraries open once and keep."""


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a contract test that leaves a process or descriptors behind. Those of a unit test have neither."""
    if "contract" not in request.path.parts:
        yield
        return
    before, fds = descendants(), open_fds()
    yield
    left = [f"{pid} {proc.name(pid)}" for pid in descendants() - before]
    assert not left, f"processes were left: {left}"
    now = open_fds()
    if len(now) > len(fds) + _FD_SLACK:
        gc.collect()
        now = open_fds()
    new = {fd: what for fd, what in now.items() if fds.get(fd) != what}
    assert len(now) <= len(fds) + _FD_SLACK, f"descriptors were left: {new}"


@pytest.fixture(scope="session")
def venvs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Environments built once for all tests."""
    return tmp_path_factory.mktemp("venvs")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where what is known of images is kept for all tests."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """Have a container engine with the base image of the tests. Without one tests are skipped, and in CI they fail."""
    reason = engines.missing()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    engines.make_base_image()
    yield
    engines.remove_images()


@pytest.fixture
async def rig(tmp_path, venvs, images):
    """Executors under a directory of this test."""
    async with open_rig(tmp_path / "rig", venvs=venvs, images=images) as opened:
        yield opened
