"""Unit: the grammar of requests: refusals and readings, the same in any split, and the same as those of h11."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.http.requests import Head, Incoming, RefusedError

MAX_HEAD = 16 * 1024
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def requests(raw: bytes, size: int | None = None) -> list[tuple[Head, bytes]]:
    """Return the requests in `raw`, fed in pieces of `size`; those that are not complete are left out."""
    incoming, found = Incoming(MAX_HEAD), []
    head: Head | None = None
    body = b""
    for at in range(0, len(raw), size or len(raw) or 1):
        incoming.feed(raw[at : at + (size or len(raw))])
        while True:
            if head is None:
                head, body = incoming.head(), b""
                if head is None:
                    break
            if not incoming.complete:
                body += incoming.body()
            if not incoming.complete:
                break
            found.append((head, body))
            head = None
    return found


def refused(raw: bytes, size: int | None = None) -> int | None:
    try:
        requests(raw, size)
    except RefusedError as problem:
        return problem.status
    return None


REFUSED = {
    "line feed alone after the request line": (b"GET / HTTP/1.1\nHost: x\r\n\r\n", 400),
    "line feed alone after a field": (GET + b"A: b\nC: d\r\n\r\n", 400),
    "line feeds alone everywhere": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "carriage return alone": (GET + b"A: b\rC: d\r\n\r\n", 400),
    "carriage return in the target": (b"GET /\r HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "folded field": (GET + b"A: b\r\n c\r\n\r\n", 400),
    "folded field with a tab": (GET + b"A: b\r\n\tc\r\n\r\n", 400),
    "folded first field": (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    "NUL in a value": (GET + b"A: \0\r\n\r\n", 400),
    "NUL in a name": (GET + b"A\0: b\r\n\r\n", 400),
    "NUL in the target": (b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "NUL in percent escapes": (b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "half an escape": (b"GET /%2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "escape that is not hexadecimal": (b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "path that is not UTF-8": (b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "target that is not ASCII": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "space before the colon": (GET + b"A : b\r\n\r\n", 400),
    "no colon": (GET + b"A\r\n\r\n", 400),
    "no name": (GET + b": b\r\n\r\n", 400),
    "name with a space": (GET + b"A b: c\r\n\r\n", 400),
    "two spaces after the method": (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "tab after the method": (b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "space after the version": (b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
    "space before the method": (b" GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no version": (b"GET /\r\nHost: x\r\n\r\n", 400),
    "lower-case version": (b"GET / http/1.1\r\nHost: x\r\n\r\n", 400),
    "version 1.2": (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505),
    "version 2.0": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (GET + b"Host: x\r\n\r\n", 400),
    "target without a slash": (b"GET x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "target of CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "asterisk without OPTIONS": (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "absolute target of another scheme": (b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "absolute target with a user": (b"GET http://a@x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "long head": (GET + b"A: " + b"b" * MAX_HEAD, 431),
    "many fields": (GET + b"A: b\r\n" * 4000, 431),
    "five empty lines": (b"\r\n" * 5 + GET + b"\r\n", 400),
    "empty line that is a line feed": (b"\n" + GET + b"\r\n", 400),
    "length and coding": (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "coding and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n", 400),
    "length 0 and coding": (POST + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
    "the same length twice": (POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
    "lengths in a list": (POST + b"Content-Length: 1, 1\r\n\r\nx", 400),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "length with a sign": (POST + b"Content-Length: +1\r\n\r\nx", 400),
    "length with a space": (POST + b"Content-Length: 1 0\r\n\r\nx", 400),
    "hexadecimal length": (POST + b"Content-Length: 0x1\r\n\r\nx", 400),
    "length with an underscore": (POST + b"Content-Length: 1_0\r\n\r\nx", 400),
    "empty length": (POST + b"Content-Length:\r\n\r\n", 400),
    "length of other digits": (POST + b"Content-Length: \xd9\xa1\r\n\r\n", 400),
    "length over 15 digits": (POST + b"Content-Length: 1000000000000000\r\n\r\n", 400),
    "coding of HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "unknown coding": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "coding after another": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "coding before another": (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n", 501),
    "coding twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 501),
    "coding in two fields": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "coding with another in two fields": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", 400),
    "coding in quotes": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n', 501),
    "coding with a parameter": (POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n", 501),
    "coding with a vertical tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400),
    "empty coding": (POST + b"Transfer-Encoding:\r\n\r\n", 501),
    "coding with a space in its name": (POST + b"Transfer-Encoding : chunked\r\n\r\n", 400),
    "chunk that is no number": (CHUNKED + b"zz\r\n", 400),
    "negative chunk": (CHUNKED + b"-1\r\n", 400),
    "chunk with a prefix": (CHUNKED + b"0x1\r\nx\r\n", 400),
    "chunk with an underscore": (CHUNKED + b"1_0\r\n", 400),
    "chunk with a sign": (CHUNKED + b"+1\r\nx\r\n", 400),
    "chunk after a space": (CHUNKED + b" 1\r\nx\r\n", 400),
    "chunk before a space": (CHUNKED + b"1 \r\nx\r\n", 400),
    "empty chunk size": (CHUNKED + b"\r\n", 400),
    "huge chunk size": (CHUNKED + b"1000000000000000\r\n", 400),
    "chunk longer than its size": (CHUNKED + b"1\r\nxy\r\n", 400),
    "chunk that ends in a line feed": (CHUNKED + b"1\r\nx\n0\r\n\r\n", 400),
    "chunk size that ends in a line feed": (CHUNKED + b"1\nx\r\n0\r\n\r\n", 400),
    "carriage return in a chunk size": (CHUNKED + b"1\r;a\r\nx\r\n", 400),
    "line feed in an extension": (CHUNKED + b"1;a\nb\r\nx\r\n", 400),
    "NUL in an extension": (CHUNKED + b"1;\0\r\nx\r\n", 400),
    "long extension": (CHUNKED + b"1;" + b"a" * 300, 400),
    "many extensions": (CHUNKED + (b"1;" + b"a" * 200 + b"\r\nx\r\n") * 100, 400),
    "trailer without a colon": (CHUNKED + b"0\r\nA\r\n\r\n", 400),
    "trailer that ends in a line feed": (CHUNKED + b"0\r\nA: b\n\r\n\r\n", 400),
    "long trailers": (CHUNKED + b"0\r\n" + b"A: b\r\n" * 4000, 431),
}


@pytest.mark.parametrize("size", [None, 1, 7])
@pytest.mark.parametrize(("raw", "status"), REFUSED.values(), ids=REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(raw: bytes, status: int, size: int | None) -> None:
    assert refused(raw, size) == status


HOSTS = {
    b"a": True,
    b"a.example:8000": True,
    b"127.0.0.1:": True,
    b"[::1]:8000": True,
    b"[v1.a:b]": True,
    b"a_b~c,d%C3%A9": True,
    b"": True,
    b"a b": False,
    b"a/b": False,
    b"user@a": False,
    b"a:b": False,
    b"a:-1": False,
    b"a:65536": False,
    b"a:0000000000000000080": False,
    b"::1": False,
    b"[::1": False,
    b"[::1]a": False,
    b"[]": False,
    b"%zz": False,
    b"a?": False,
    b"a#b": False,
    "\u00e9".encode(): False,
    b'"a"': False,
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_is_a_name_or_an_address_with_a_port(host: bytes) -> None:
    for raw in (b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host, b"GET / HTTP/1.0\r\nHost: %b\r\n\r\n" % host):
        incoming = Incoming(1000)
        incoming.feed(raw)
        if HOSTS[host]:
            assert incoming.head() is not None
        else:
            with pytest.raises(RefusedError, match="host") as caught:
                incoming.head()
            assert caught.value.status == 400


def test_an_error_names_what_is_wrong() -> None:
    for raw, words in (
        (GET + b"A: b\r\n c\r\n\r\n", "second line"),
        (GET + b"A : b\r\n\r\n", "'A : b'"),
        (GET + b"A: \0\r\n\r\n", "NUL"),
        (b"GET / HTTP/1.1\nHost: x\n\n", "CRLF"),
        (b"GET /\r\n\r\n", "first line"),
        (POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n", "`content-length` is given more than once"),
    ):
        with pytest.raises(RefusedError, match=words):
            requests(raw)


@pytest.mark.parametrize("size", [None, 1, 7])
def test_requests_one_after_another(size: int | None) -> None:
    raw = (
        b"\r\n\r\n" + GET + b"\r\n"
        b"POST /a?b=%41 HTTP/1.1\r\nhost:x\r\nContent-Length:\t3 \r\nX:\r\n\r\nabc"
        b"\r\n" + CHUNKED + b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n000\r\nTrailer: a\r\n\r\n" + GET + b"A: \xff\r\n\r\n"
    )
    found = requests(raw, size)

    assert [(head.method, head.path, head.query, body) for head, body in found] == [
        ("GET", "/", b"", b""),
        ("POST", "/a", b"b=%41", b"abc"),
        ("POST", "/", b"", b"abc0123456789"),
        ("GET", "/", b"", b""),
    ]
    assert found[1][0].headers == [(b"host", b"x"), (b"content-length", b"3"), (b"x", b"")]
    assert found[3][0].fields[b"a"] == b"\xff"


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        (b"http://other/path?a=b", "/path", b"a=b", b"other"),
        (b"HTTP://other:80", "/", b"", b"other:80"),
        (b"https://[::1]:8000?a", "/", b"a", b"[::1]:8000"),
        (b"http://other/a%2Fb%20c", "/a%2Fb c", b"", b"other"),
    ],
)
def test_an_absolute_target_is_a_path_and_a_host(target: bytes, path: str, query: bytes, host: bytes) -> None:
    [(head, _)] = requests(b"GET " + target + b" HTTP/1.1\r\nA: b\r\nHost: x\r\n\r\n")

    assert (head.path, head.query) == (path, query)
    assert head.headers == [(b"host", host), (b"a", b"b")]
    assert head.fields[b"host"] == host


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a%2fb", "/a%2Fb"),
        (b"/a%2Fb/c", "/a%2Fb/c"),
        (b"/a%252fb", "/a%2fb"),
        (b"/%E2%82%AC%25", "/€%"),
        (b"//a", "//a"),
        (b"/a/../b", "/a/../b"),
        (b"/%2e%2e/b", "/../b"),
    ],
)
def test_a_path_is_decoded_once_and_an_escaped_slash_separates_nothing(target: bytes, path: str) -> None:
    [(head, _)] = requests(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")

    assert head.path == path
    assert head.path.count("/") == target.count(b"/")
    assert head.raw_path == target


@pytest.mark.parametrize(
    ("raw", "closing"),
    [
        (GET + b"\r\n", False),
        (GET + b"Connection: keep-alive\r\n\r\n", False),
        (GET + b"Connection: Close\r\n\r\n", True),
        (GET + b"Connection: x\r\nConnection: y, close ,z\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", True),
    ],
)
def test_the_client_may_want_the_connection_closed(raw: bytes, closing: bool) -> None:
    assert requests(raw)[0][0].closing is closing


PIECES = st.sampled_from(
    [
        *(raw for raw, _ in REFUSED.values() if len(raw) < 300),
        *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"a", b"0", b"A: b\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n"),
        *(
            GET,
            POST,
            CHUNKED,
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"hello",
            b"Connection: close\r\n",
        ),
    ]
)


@given(st.lists(PIECES, max_size=8), st.integers(1, 40))
def test_no_input_raises_anything_else_and_no_split_changes_its_meaning(pieces: list[bytes], size: int) -> None:
    raw = b"".join(pieces)

    assert refused(raw) == refused(raw, size)
    if refused(raw) is None:
        whole, split = requests(raw), requests(raw, size)
        assert [(head.headers, body) for head, body in whole] == [(head.headers, body) for head, body in split]


@given(st.lists(PIECES, max_size=8))
def test_what_is_accepted_means_the_same_to_h11(pieces: list[bytes]) -> None:
    """A proxy that reads as h11 does would pass on the same requests. Absolute targets and blank lines differ."""
    raw = b"".join(pieces)
    if refused(raw) is not None or raw.startswith(b"\r\n"):
        return
    for head, body in requests(raw)[:1]:
        peer = h11.Connection(h11.SERVER, max_incomplete_event_size=10 * MAX_HEAD)
        peer.receive_data(raw)
        request = peer.next_event()
        assert isinstance(request, h11.Request)
        assert request.method.decode() == head.method
        assert list(request.headers) == head.headers
        got = b""
        while isinstance(event := peer.next_event(), h11.Data):
            got += event.data
        assert isinstance(event, h11.EndOfMessage)
        assert got == body
