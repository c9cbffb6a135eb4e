"""Fixtures of all tests: a time limit, environments built once, and the check that a test leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from xdist.scheduler import LoadScopeScheduling

from environments import proc
from environments.conda.conda import find_client
from tests import engines
from tests.channel import make_channel
from tests.support import descendants, open_fds, open_rig

pytest_plugins = ["tests.time_limit"]

# As the runner logs: a traceback with the values of variables takes minutes where these reach the whole application.
_PLAIN = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _PLAIN])

_FD_SLACK = 2
"""Descriptors that libraries open once and keep."""
_BUILDING = ("test_docker.py::", "test_image.py::", "test_requirements.py::")
"""Files whose tests build images. In the last it is those with `engine` among their parameters."""
_BROWSER = "tests/browser/"
"""Its tests share one browser and one server."""
_CLUSTER = "tests/cluster/"
"""Its tests share three servers and three runners."""
_LONGEST_FIRST = (
    "tests/contract/test_executions.py",
    "images",
    _CLUSTER,
    _BROWSER,
    "tests/acceptance/test_dist.py",
    "tests/contract/",
    "tests/acceptance/",
)
"""Starts of the names of scopes."""


class OneBuilder(LoadScopeScheduling):
    """Gives all tests of a file to one process, and those that build images, with a browser or of clusters to one each.

    Built images are seen by all processes, and fixtures of a file may be expensive.
    """

    def _split_scope(self, nodeid: str) -> str:
        builds = any(file in nodeid for file in _BUILDING[:2]) or (_BUILDING[2] in nodeid and "engine" in nodeid)
        shared = [folder for folder in (_BROWSER, _CLUSTER) if nodeid.startswith(folder)]
        return "images" if builds else shared[0] if shared else nodeid.partition("::")[0]

    def _assign_work_unit(self, node: Any) -> None:
        """Begin with the longest scopes, so that short ones fill the gap at the end."""
        longest = min(self.workqueue, key=lambda scope: [not scope.startswith(start) for start in _LONGEST_FIRST])
        self.workqueue.move_to_end(longest, last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneBuilder:
    """Distribute the tests to several processes."""
    return OneBuilder(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """Keep the collector away from the tests themselves: with them, one collection takes a second of a test's time."""
    gc.disable()
    try:
        found = yield
        gc.collect()
        gc.freeze()
    finally:
        gc.enable()
    return found


@pytest.fixture(autouse=True, scope="session")
def sigint_of_children() -> None:
    """Start children with the default disposition of SIGINT, which `nohup make test &` ignores."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a contract test that leaves processes or descriptors behind. Unit tests have none."""
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
    """Return the directory for records of images of all tests."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="session")
def condas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory for conda environments of all tests."""
    return tmp_path_factory.mktemp("condas")


@pytest.fixture(scope="session")
def channel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of a conda channel. Without a client the tests are skipped, and fail in CI."""
    if find_client(None, {}) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("py-rattler is not installed (the extra `conda`)")
    return make_channel(tmp_path_factory.mktemp("channel"))


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """Provide an engine with the base image of the tests. Without one the tests are skipped, and fail in CI."""
    reason = engines.missing()
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    engines.make_base_image()
    yield
    engines.remove_images()


@pytest.fixture(params=["engine"])
def with_engine(engine: None) -> None:
    """Provide the engine to one test of a file. The parameter is part of the name by which `OneBuilder` finds it."""


@pytest.fixture
async def rig(tmp_path, venvs, images, condas):
    """Executors under a directory of this test."""
    async with open_rig(tmp_path / "rig", venvs=venvs, images=images, condas=condas) as opened:
        yield opened
