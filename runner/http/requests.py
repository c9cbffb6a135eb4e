"""The bytes of a client, cut into heads and bodies of requests by one strict grammar: no input or output.

Leniency is how requests are smuggled past proxies: a request that two parties could read in two ways is refused. So
lines end in CRLF, a field has one line, a length is given once, and a path is decoded once, after its slashes have
separated it: `%2F` stays as it is. What one expression does not match is explained afterwards.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import attrs

from runner.http.messages import Headers

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_LINES: Final = rb"(?:" + _TOKEN + rb":[\t -~\x80-\xff]*+\r\n)*+"
_HEAD: Final = re.compile(rb"(" + _TOKEN + rb") ([!-~]++) HTTP/([0-9]\.[0-9])\r\n(" + _LINES + rb")\r\n")
FIELDS: Final = re.compile(_LINES + rb"\r\n")
"""Fields and the empty line after them: trailers."""
LONE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\0")
"""What no head has: half of a line end, and NUL."""
_START: Final = re.compile(_TOKEN)
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)(/[^?#]*+)?(\?[^#]*+)?", re.IGNORECASE)
_HOST: Final = re.compile(
    rb"(?:\[(?:[0-9A-Fa-f:.]++|[vV][0-9A-Fa-f]++\.[A-Za-z0-9._~!$&'()*+,;=:-]++)\]"
    rb"|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*+)(?::([0-9]*+))?"
)
"""Host and port (RFC 3986, 3.2.2), or nothing, as RFC 9112 allows."""
_MOST_PORT: Final = 65535
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})?")
_ONCE: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"upgrade", b"expect"})
"""Fields whose repetition would leave it to the reader which one counts."""
_MOST_DIGITS: Final = 15
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15}+)(;[\t -~\x80-\xff]*+)?+")
_MOST_LINE_BYTES: Final = 256
"""The longest line with the size of a chunk and its extensions."""
_MOST_EXTENSION_BYTES: Final = 16 * 1024
"""All extensions of the chunks of a body, which are not read."""
_MOST_BLANK_LINES: Final = 4
"""Empty lines ahead of a request line, which RFC 9112 asks servers to ignore."""


class RefusedError(Exception):
    """A request that is not served: the status and the reason of its answer."""

    def __init__(self, status: int, detail: str, headers: Headers | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or []


@attrs.define(eq=False)
class Head:
    """The head of one request."""

    method: str
    path: str
    """Decoded, except `%2F`, which is no separator."""
    raw_path: bytes
    query: bytes
    version: str
    headers: Headers
    """Names in lower case, values without spaces around them."""
    fields: dict[bytes, bytes]
    """The headers by name; of a repeated one the last."""
    length: int
    """The `content-length`, 0 without one."""
    chunked: bool
    closing: bool
    """Whether the client wants the connection closed after the answer."""

    @property
    def upgrading(self) -> bool:
        """Whether the client asks for a websocket."""
        return self.method == "GET" and self.fields.get(b"upgrade", b"").lower() == b"websocket"

    @property
    def expecting(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends the body."""
        return self.fields.get(b"expect", b"").lower() == b"100-continue" and self.version == "1.1"


def check_start(data: bytes, searched: int) -> None:
    """Raise RefusedError if the beginning of a head, of which `searched` bytes were checked, cannot become one."""
    if not _START.match(data):
        raise RefusedError(400, "this is not HTTP")
    if (lone := LONE.search(data, max(0, searched - 1))) is not None:
        raise RefusedError(400, _why_lone(lone[0]))


def parse_head(raw: bytes) -> Head:
    """Return the request with this head, which ends with its empty line. Raises RefusedError."""
    match = _HEAD.fullmatch(raw)
    if match is None:
        raise RefusedError(400, _why_not(raw))
    method, target, version, block = match.groups()
    if version not in {b"1.1", b"1.0"}:
        raise RefusedError(505, "this server supports HTTP/1.1 only")
    headers: Headers = []
    if block:
        for line in block[:-2].split(b"\r\n"):
            name, _, value = line.partition(b":")
            headers.append((name.lower(), value.strip(b" \t")))
    fields = dict(headers)
    connection = fields.get(b"connection", b"")
    if len(fields) != len(headers):
        _check_repeated(headers)
        connection = b",".join(value for name, value in headers if name == b"connection")
    if target[0] != 0x2F:  # a slash
        target = _origin(method, target, headers, fields)
    host = fields.get(b"host")
    if host is None and version == b"1.1":
        raise RefusedError(400, "the field `host` is missing")
    if host:
        _check_host(host)
    length, chunked = _framing(fields, version)
    path, _, query = target.partition(b"?")
    closing = version == b"1.0" or (
        connection != b"" and b"close" in {each.strip(b" \t").lower() for each in connection.split(b",")}
    )
    text = decoded(path) if b"%" in path else path.decode("ascii")
    return Head(method.decode("ascii"), text, path, query, version.decode(), headers, fields, length, chunked, closing)


@lru_cache(64)
def _check_host(host: bytes) -> None:
    match = _HOST.fullmatch(host)
    if match is None:
        raise RefusedError(400, f"`host` is no name or address with an optional port: {host.decode('latin-1')!r:.60}")
    if match[1] and (len(match[1]) > len(str(_MOST_PORT)) or int(match[1]) > _MOST_PORT):
        raise RefusedError(400, f"the port in `host` is above {_MOST_PORT}")


def _check_repeated(headers: Headers) -> None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and name in _ONCE:
            raise RefusedError(400, f"the field `{name.decode()}` is given more than once")
        seen.add(name)


def _framing(fields: dict[bytes, bytes], version: bytes) -> tuple[int, bool]:
    """Return the length of the body, and whether it is chunked."""
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if length is not None and not (length.isdigit() and len(length) <= _MOST_DIGITS):
        raise RefusedError(400, "`content-length` is not a number of bytes")
    if coding is not None:
        if length is not None:
            raise RefusedError(400, "content-length and transfer-encoding exclude each other")
        if version == b"1.0":
            raise RefusedError(400, "HTTP/1.0 has no transfer-encoding")
        if coding.lower() != b"chunked":
            raise RefusedError(501, "the only transfer-encoding is `chunked`")
    return int(length or 0), coding is not None


def _origin(method: bytes, target: bytes, headers: Headers, fields: dict[bytes, bytes]) -> bytes:
    """Return a target in another form as path and query; the host of an absolute one replaces the field."""
    if target == b"*" and method == b"OPTIONS":
        return target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise RefusedError(400, "the target of the request is neither a path nor an http URL")
    host, path, query = match.groups(b"")
    headers[:] = [(b"host", host), *(each for each in headers if each[0] != b"host")]
    fields[b"host"] = host
    return (path or b"/") + query


def decoded(path: bytes) -> str:
    """Return a path with its percent escapes decoded once, except those of slashes. Raises RefusedError."""
    try:
        return _ESCAPE.sub(_unescaped, path).decode()
    except UnicodeDecodeError:
        raise RefusedError(400, "the path is not UTF-8 in percent escapes") from None


def _unescaped(match: re.Match[bytes]) -> bytes:
    if match[1] is None:
        raise RefusedError(400, "a `%` in the path is not followed by two hexadecimal digits")
    byte = bytes.fromhex(match[1].decode())
    if byte == b"\0":
        raise RefusedError(400, "the path has a NUL")
    return b"%2F" if byte == b"/" else byte


def _why_not(raw: bytes) -> str:
    """Return why something is no head."""
    if (lone := LONE.search(raw)) is not None:
        return _why_lone(lone[0])
    first, *lines = raw.split(b"\r\n")
    if not re.fullmatch(_TOKEN + rb" [!-~]++ HTTP/[0-9]\.[0-9]", first):
        return "the first line is not a method, a target and `HTTP/1.1`, separated by single spaces"
    for line in lines:
        if line[:1] in {b" ", b"\t"}:
            return "a field has a second line, which HTTP does not allow any more"
        if line and not re.fullmatch(_TOKEN + rb":[\t -~\x80-\xff]*+", line):
            return f"not a field of the form `name: value`: {line.decode('latin-1')!r:.60}"
    return "this is not HTTP"


def _why_lone(found: bytes) -> str:
    return "the head has a NUL" if found == b"\0" else "a line of the head does not end in CRLF"


class Incoming:
    """Takes bytes with `feed`; returns the next `head`, and after it pieces of the `body` until `complete`."""

    def __init__(self, max_head_bytes: int) -> None:
        self.complete = True
        """Whether the body of the last head has ended."""
        self._max_head_bytes = max_head_bytes
        self._data = b""
        self._searched = 0
        self._blank_lines = 0
        self._left = 0  # bytes of the body, or of its chunk
        self._chunked = False
        self._chunk_ending = False  # the CRLF after a chunk comes next
        self._trailing = False  # the last chunk was seen
        self._extensions = 0

    @property
    def waiting(self) -> int:
        """The number of bytes that are not parsed."""
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Add bytes from the client."""
        self._data = self._data + data if self._data else data

    def head(self) -> Head | None:
        """Return the next head, None if it has not arrived whole. Raises RefusedError."""
        if self._data[:1] in {b"\r", b"\n"}:
            self._skip_blank_lines()
        data = self._data
        end = data.find(b"\r\n\r\n", max(0, self._searched - 3))
        size = len(data) if end < 0 else end + 4
        if size > self._max_head_bytes:
            raise RefusedError(431, f"the head is over {self._max_head_bytes} bytes")
        if end < 0:
            if data and data != b"\r":
                check_start(data, self._searched)
            self._searched = size
            return None
        self._data = data[size:]
        self._searched = self._blank_lines = 0
        found = parse_head(data if len(data) == size else data[:size])
        self._left, self._chunked = found.length, found.chunked
        self._chunk_ending = self._trailing = False
        self._extensions = 0
        self.complete = not (found.length or found.chunked)
        return found

    def body(self) -> bytes:
        """Return what has arrived of the body. Raises RefusedError."""
        if self._chunked:
            return self._dechunked()
        data = self._data
        if len(data) <= self._left:
            self._data = b""
        else:
            data, self._data = data[: self._left], data[self._left :]
        self._left -= len(data)
        self.complete = not self._left
        return data

    def _skip_blank_lines(self) -> None:
        while self._data.startswith(b"\r\n"):
            self._data = self._data[2:]
            self._blank_lines += 1
            if self._blank_lines > _MOST_BLANK_LINES:
                raise RefusedError(400, "too many empty lines ahead of a request")
        if self._data[:1] == b"\n" or (self._data[:1] == b"\r" and len(self._data) > 1):
            raise RefusedError(400, "a line does not end in CRLF")
        self._searched = 0

    def _dechunked(self) -> bytes:
        """Return the data of the chunks that have arrived."""
        data, at = self._data, 0
        pieces: list[bytes] = []
        while not self._trailing:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
                self._chunk_ending = True
            if self._chunk_ending:
                if len(data) - at < 2:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise RefusedError(400, "a chunk is longer than its size")
                at += 2
                self._chunk_ending = False
            end = data.find(b"\r\n", at, at + _MOST_LINE_BYTES)
            if end < 0:
                self._check_line(data[at : at + _MOST_LINE_BYTES])
                break
            self._left = self._size(data[at:end])
            at = end + 2
            self._trailing = self._left == 0
        self._data = data[at:]
        if self._trailing:
            self._skip_trailers()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _size(self, line: bytes) -> int:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise RefusedError(400, f"not the size of a chunk: {line.decode('latin-1')!r:.40}")
        self._extensions += len(line) - match.end(1)
        if self._extensions > _MOST_EXTENSION_BYTES:
            raise RefusedError(400, "the extensions of the chunks are too long")
        return int(match[1], 16)

    def _check_line(self, data: bytes) -> None:
        """Refuse what cannot become the line of a chunk."""
        if len(data) >= _MOST_LINE_BYTES or LONE.search(data) is not None:
            raise RefusedError(400, f"not the size of a chunk: {data.decode('latin-1')!r:.40}")

    def _skip_trailers(self) -> None:
        """Drop the fields after the last chunk, which no handler can see."""
        data = self._data
        if data.startswith(b"\r\n"):
            size = 2
        else:
            end = data.find(b"\r\n\r\n", max(0, self._searched - 3))
            size = end + 4
            if max(len(data) if end < 0 else size, 0) > self._max_head_bytes:
                raise RefusedError(431, f"the trailers are over {self._max_head_bytes} bytes")
            if end < 0:
                if LONE.search(data, max(0, self._searched - 1)) is not None:
                    raise RefusedError(400, "a line of the trailers does not end in CRLF")
                self._searched = len(data)
                return
            if FIELDS.fullmatch(data, 0, size) is None:
                raise RefusedError(400, "the trailers are not fields of the form `name: value`")
        self._data = data[size:]
        self._searched = 0
        self.complete = True
