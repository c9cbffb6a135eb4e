"""Unit: the address of an engine, the library's errors, and the stream of a container without terminal."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from environments.docker.engine import Address, Demultiplexer, EngineError, StreamBrokenError, _innermost, _numbers
from protocol.errors import ErrorKind
from protocol.model import Stream

PIECES = st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.binary(max_size=200)), max_size=8)


def encoded(pieces):
    return b"".join(bytes([kind, 0, 0, 0]) + len(data).to_bytes(4, "big") + data for kind, data in pieces)


@given(PIECES, st.lists(st.integers(0, 2000), max_size=8))
def test_any_split_of_a_stream_gives_the_same_text(pieces, cuts):
    data = encoded(pieces)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    demultiplexer = Demultiplexer()

    found = [p for a, b in pairwise(places) for p in demultiplexer.feed(data[a:b])]

    for kind, stream in ((1, Stream.STDOUT), (2, Stream.STDERR)):
        expected = b"".join(data for each, data in pieces if each == kind)
        assert b"".join(data for each, data in found if each is stream) == expected
    assert all(data for _, data in found)


@pytest.mark.parametrize("data", [b"HTTP/1.1 500", b"\x04\0\0\0\0\0\0\1x", b"\1\0\0\1\0\0\0\1x"])
def test_what_is_no_such_stream(data):
    with pytest.raises(StreamBrokenError):
        Demultiplexer().feed(data)


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        (None, {}, "unix:///var/run/docker.sock"),
        (None, {"DOCKER_HOST": "unix:///run/podman/podman.sock"}, "unix:///run/podman/podman.sock"),
        ("unix:///a.sock", {"DOCKER_HOST": "unix:///b.sock"}, "unix:///a.sock"),
        ("tcp://engine:2375", {}, "http://engine:2375"),
        ("tcp://engine", {}, "http://engine:2375"),
        ("engine:1234", {}, "http://engine:1234"),
        ("http://engine", {}, "http://engine:2375"),
        ("tcp://[::1]:99", {}, "http://::1:99"),
    ],
)
def test_addresses(url, environ, expected):
    assert Address.read(url, environ).base_url == expected


@pytest.mark.parametrize("url", ["ssh://host", "npipe:////./pipe/docker", "tcp://host:port", "tcp://host:99999"])
def test_addresses_that_cannot_be_used(url):
    with pytest.raises(EngineError) as caught:
        Address.read(url, {})

    failure = caught.value.failure
    assert (failure.kind, failure.field) == (ErrorKind.UNAVAILABLE, "env")
    assert url in failure.message


def test_tls_needs_its_files(tmp_path):
    (tmp_path / "cert.pem").write_text("nonsense")
    with pytest.raises(EngineError, match="cannot be used"):
        Address.read("tcp://host", {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)})


def test_tls_takes_another_port(tmp_path):
    address = Address.read("tcp://host", {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)})

    assert address.base_url == "https://host:2376"
    assert address.context is not None


def test_the_cause_at_the_bottom_is_told():
    bottom = FileNotFoundError(2, "No such file or directory")
    middle = RuntimeError("connection aborted", bottom)
    outer = ValueError("outer")
    outer.__cause__ = middle

    assert _innermost(outer) is bottom


def test_versions_are_numbers():
    assert _numbers("1.9") < _numbers("1.41")
