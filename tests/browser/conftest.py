"""Browser: fixtures: one server and one Chromium for all tests of this folder, and a context of its own for each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import chromium as browsers
from tests.browser.chromium import AXE, Chromium, Complaints, opened, running_chromium
from tests.browser.showcase import MODULES, fill, sign_in
from tests.server_process import Server, running, url_of


def lack(reason: str) -> None:
    """Skip a test for what this machine lacks; where everything is installed, fail it."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test in the thread of the browser that it uses."""
    chromium = pyfuncitem.funcargs.get("chromium")
    if not isinstance(chromium, Chromium):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    chromium.run(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in names})
    return True


@pytest.fixture(scope="package")
def chromium() -> Iterator[Chromium]:
    """Run the browser."""
    if reason := browsers.missing():
        lack(reason)
    with running_chromium() as running_one:
        yield running_one


@pytest.fixture(scope="package")
def axe() -> None:
    """Provide the accessibility checker."""
    if not AXE.exists():
        lack("axe-core is not installed (`make axe`, which needs npm)")


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server with the modules of the showcase."""
    with running(tmp_path_factory.mktemp("dashboard"), MODULES) as one:
        yield one


@pytest.fixture(scope="package")
def filled(server: Server) -> dict[str, Any]:
    """Fill the server; return the names that pages need."""
    return fill(server)


@pytest.fixture
def complaints(server: Server) -> Iterator[Complaints]:
    """Collect everything that pages do and should not, and fail the test for it."""
    made = Complaints(url_of(server))
    yield made
    assert made.found == []


@pytest.fixture
def visitor(chromium: Chromium, server: Server, complaints: Complaints) -> Iterator[Any]:
    """Provide a page without a session."""
    with opened(chromium, complaints) as page:
        yield page


@pytest.fixture(scope="package")
def session(chromium: Chromium, server: Server) -> Any:
    """Sign in once for all tests; return the cookies."""

    def begin() -> Any:
        context = chromium.browser.new_context(base_url=url_of(server))
        sign_in(context.new_page(), server.token)
        state = context.storage_state()
        context.close()
        return state

    return chromium.run(begin)


@pytest.fixture
def page(chromium: Chromium, server: Server, complaints: Complaints, session: Any) -> Iterator[Any]:
    """Provide a page of an admin."""
    with opened(chromium, complaints, storage_state=session) as page:
        yield page
