"""Unit: the address under which a server is reached from this machine."""

import pytest

from runner.ports import in_url, reachable


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("127.0.0.1", "127.0.0.1"),
        ("192.0.2.7", "192.0.2.7"),
    ],
)
def test_an_address_that_can_be_called(host, url):
    assert in_url(reachable(host)) == url
