"""Fixtures of all tests: executors, how a handler is called, and the check that a test leaves nothing behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from environments import proc
from environments.conda import find_client
from tests import engines
from tests.channel import make_channel
from tests.support import descendants, open_fds, open_rig

_FD_SLACK = 2
"""Descriptors that libraries open once and keep."""


_OF_THE_ENGINE = ("test_dist.py", "test_image.py")
"""Files that have module fixtures which are dear to make, beside tests that need a container engine."""


@pytest.hookimpl(tryfirst=True)  # xdist looks at the groups in this hook too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process run all that needs a container engine, whose images are named once for all; else a whole file."""
    for item in items:
        values = getattr(item, "callspec", None)
        engine = (
            item.path.name in _OF_THE_ENGINE
            or "engine" in getattr(item, "fixturenames", ())
            or (values is not None and any(word in values.id for word in ("docker", "engine")))
        )
        group = "engine" if engine and "unit" not in item.path.parts else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


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
def condas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where conda environments are kept for all tests."""
    return tmp_path_factory.mktemp("condas")


@pytest.fixture(scope="session")
def channel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of a conda channel. Without a client tests are skipped, and in CI they fail."""
    if find_client(None, {}) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("py-rattler is not installed (the extra `conda`)")
    return make_channel(tmp_path_factory.mktemp("channel"))


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """Have a container engine with the base image of the tests. Without one tests are skipped, and in CI they fail."""
    reason = engines.missing()
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    engines.make_base_image()
    yield
    engines.remove_images()


@pytest.fixture
async def rig(tmp_path, venvs, images, condas):
    """Executors under a directory of this test."""
    async with open_rig(tmp_path / "rig", venvs=venvs, images=images, condas=condas) as opened:
        yield opened
