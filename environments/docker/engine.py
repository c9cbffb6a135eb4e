"""The container engine: its SDK in threads, and streams attached to containers on the event loop.

It works with every engine that has Docker's API: dockerd, podman's service. Only this module imports the SDK, at the
first call. Probing an engine and listing its containers needs no SDK.
"""

from __future__ import annotations

import json
import math
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, urlsplit

import trio
from attrs import define, field, frozen

from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.model import Stream

T = TypeVar("T")
Api: TypeAlias = Any
"""The SDK's low-level client; the library has no types."""

DEFAULT_HOST = "unix:///var/run/docker.sock"
CALL_SECONDS = 60.0
"""Time limit for one request, and for attaching a stream."""
PROBE_SECONDS = 3.0
_LIBRARY_VERSION = "1.44"
"""The newest requested version of the API; every maintained engine supports it or an older one."""
_THREADS = 16
_MAX_HEAD = 64 * 1024
_MAX_ANSWER = 16 * 1024 * 1024
_READ_BYTES = 256 * 1024
_HEADER = 8
_STREAMS = {1: Stream.STDOUT, 2: Stream.STDERR}


class EngineError(RunnerError):
    """The engine refused a request: `unavailable`, with its message."""

    def __init__(self, message: str) -> None:
        super().__init__(Failure(ErrorKind.UNAVAILABLE, message, field="env"))


class EngineAwayError(EngineError):
    """The engine does not answer; the message has its address and the remedy."""


class NotThereError(EngineError):
    """The engine has no such container or image."""


class StreamBrokenError(Exception):
    """The attached stream has ended, orderly or not."""


@frozen
class Address:
    """The address of the engine. `base_url` and `certificates` are for the SDK, `context` is for attached streams."""

    shown: str
    path: str | None
    host: str = ""
    port: int = 0
    base_url: str = ""
    certificates: Path | None = None
    context: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def read(cls, url: str | None, environ: Mapping[str, str]) -> Address:
        """Return the address in a setting or `DOCKER_HOST`. Raises EngineError if it cannot be used."""
        shown = url or environ.get("DOCKER_HOST") or DEFAULT_HOST
        parts = urlsplit(shown if "://" in shown else f"tcp://{shown}")
        if parts.scheme == "unix":
            return cls(shown, parts.path, base_url=f"unix://{parts.path}")
        if parts.scheme not in ("tcp", "http", "https"):
            allowed = "unix://PATH or tcp://HOST:PORT"
            raise EngineError(
                f"{shown}: {parts.scheme}:// is not supported; set docker_host or DOCKER_HOST to {allowed}"
            )
        secure = parts.scheme == "https" or bool(environ.get("DOCKER_TLS_VERIFY"))
        try:
            host, port = parts.hostname or "localhost", parts.port or (2376 if secure else 2375)
            folder = Path(environ.get("DOCKER_CERT_PATH") or Path(environ.get("HOME", "/")) / ".docker")
            context = _context(folder) if secure else None
        except (ValueError, OSError) as problem:
            raise EngineError(f"{shown} cannot be used: {problem}") from problem
        scheme = "https" if secure else "http"
        return cls(shown, None, host, port, f"{scheme}://{host}:{port}", folder if secure else None, context)

    def knock(self) -> None:
        """Raise OSError if a unix socket has no listener: the library would leak its own socket."""
        if self.path is not None:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PROBE_SECONDS)
                sock.connect(self.path)


class _OverUnix(HTTPConnection):
    """A connection to a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PROBE_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(at: Address) -> HTTPConnection:
    if at.path is not None:
        return _OverUnix(at.path)
    if at.context is not None:
        return HTTPSConnection(at.host, at.port, timeout=PROBE_SECONDS, context=at.context)
    return HTTPConnection(at.host, at.port, timeout=PROBE_SECONDS)


def _context(folder: Path) -> ssl.SSLContext:
    """Return the TLS context from the files in `DOCKER_CERT_PATH`: CA and client certificate."""
    ca, own, key = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
    context = ssl.create_default_context(cafile=str(ca) if ca.exists() else None)
    if own.exists():
        context.load_cert_chain(own, key)
    return context


class Demultiplexer:
    """Splits an engine's stream for a container without terminal: 1 byte stream, 3 zero bytes, 4 bytes size, the data.

    Data is passed on as it comes; only an incomplete header is buffered.
    """

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._stream: Stream | None = None

    def feed(self, data: bytes) -> list[tuple[Stream, bytes]]:
        """Return the pieces in `data`, in order. Raises StreamBrokenError if it is not such a stream."""
        pieces = []
        at = 0
        while at < len(data):
            if not self._left:
                taken = data[at : at + _HEADER - len(self._head)]
                self._head += taken
                at += len(taken)
                if len(self._head) < _HEADER:
                    break
                kind, self._left = self._head[0], int.from_bytes(self._head[4:], "big")
                if kind > 3 or self._head[1:4] != b"\0\0\0":
                    raise StreamBrokenError(f"not a multiplexed stream: {self._head!r}")
                self._stream, self._head = _STREAMS.get(kind), b""
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            if piece and self._stream is not None:
                pieces.append((self._stream, piece))
        return pieces


@define(eq=False)
class Attached:
    """Standard input and both outputs of a container. One task may read and one may write at a time."""

    _stream: trio.abc.Stream
    _demultiplexer: Demultiplexer = field(factory=Demultiplexer, init=False)
    _early: bytes = field(default=b"", init=False)

    async def upgrade(self, path: str) -> None:
        """Turn the connection into the raw stream of a container. Raises EngineError with the engine's message."""
        lines = (f"POST {path} HTTP/1.1", "Host: docker", "Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0")
        await self._stream.send_all("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            data = await self._stream.receive_some(_READ_BYTES)
            head += data
            if not data or len(head) > _MAX_HEAD:
                raise EngineError(f"the engine did not attach: {head[:200]!r}")
        head, _, self._early = head.partition(b"\r\n\r\n")
        status = head.split(b" ", 2)[1:2]
        if status not in ([b"101"], [b"200"]):  # old engines answer 200
            raise EngineError(f"the engine did not attach: {_refusal(head, self._early)}")

    async def send(self, data: bytes) -> None:
        """Write to standard input. Raises StreamBrokenError."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as problem:
            raise StreamBrokenError(str(problem)) from problem

    async def receive(self) -> list[tuple[Stream, bytes]]:
        """Return received pieces of both outputs, maybe none. Raises StreamBrokenError at the end."""
        data, self._early = self._early, b""
        try:
            data = data or bytes(await self._stream.receive_some(_READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as problem:
            raise StreamBrokenError(str(problem)) from problem
        if not data:
            raise StreamBrokenError("the engine closed the stream")
        return self._demultiplexer.feed(data)

    def close(self) -> None:
        """Close the connection at once."""
        stream = self._stream.transport_stream if isinstance(self._stream, trio.SSLStream) else self._stream
        if isinstance(stream, trio.SocketStream):
            stream.socket.close()


@define(eq=False)
class Engine:
    """One engine. Each call has its own SDK client, which costs 0.1 ms, so that threads do not share one."""

    address: Address
    version: str = _LIBRARY_VERSION
    """The API version; `ping` negotiates it."""
    _threads: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(_THREADS), init=False)

    async def ping(self) -> Mapping[str, Any]:
        """Negotiate the API version; return the engine's information. Raises EngineAwayError."""
        supported = (await self._get("/version"))["ApiVersion"]
        self.version = min(str(supported), _LIBRARY_VERSION, key=_numbers)
        return dict(await self._get(f"/v{self.version}/info"))

    async def containers(self, label: str) -> list[Mapping[str, Any]]:
        """Return all containers with a label, those that ended included. Raises as `call` does."""
        filters = quote(json.dumps({"label": [label]}))
        return list(await self._get(f"/v{self.version}/containers/json?all=1&filters={filters}"))

    async def _get(self, path: str) -> Any:
        return await trio.to_thread.run_sync(self._plain_get, path, limiter=self._threads)

    def _plain_get(self, path: str) -> Any:
        """Return what the engine answers, without the SDK: a runner without containers need not import it."""
        try:
            with closing(_connection(self.address)) as connection:
                connection.request("GET", path, headers={"Connection": "close"})
                answer = connection.getresponse()
                found = json.loads(answer.read(_MAX_ANSWER))
        except (OSError, HTTPException, ValueError) as problem:
            raise EngineAwayError(self._away(problem)) from problem
        if answer.status != HTTPStatus.OK:
            raise EngineError(str(found.get("message", answer.reason)))
        return found

    async def call(self, what: Callable[[Api], T], *, seconds: float = CALL_SECONDS, abandon: bool = False) -> T:
        """Return the result of `what`. Raises EngineAwayError, NotThereError and EngineError.

        Cancelled, it waits for the request (at most `seconds` of silence), or with `abandon` leaves it to its thread.
        """
        return await trio.to_thread.run_sync(
            self._call, what, seconds, abandon_on_cancel=abandon, limiter=None if abandon else self._threads
        )

    def _call(self, what: Callable[[Api], T], seconds: float) -> T:
        try:
            self.address.knock()
        except OSError as problem:
            raise EngineAwayError(self._away(problem)) from problem
        try:
            import docker  # noqa: PLC0415  (0.2 s and 8 MB, only for containers)
            import requests  # noqa: PLC0415  (the SDK's HTTP library)
            from docker.errors import APIError, DockerException, NotFound  # noqa: PLC0415
        except ImportError as problem:
            raise EngineAwayError(f"the docker library is not installed ({problem}); `pip install docker`") from problem
        folder = self.address.certificates
        try:
            tls = docker.tls.TLSConfig(**_tls_arguments(folder)) if folder else False
            with docker.APIClient(self.address.base_url, self.version, timeout=math.ceil(seconds), tls=tls) as api:
                # The address has the CA; REQUESTS_CA_BUNDLE and proxies are not meant for an engine.
                api.trust_env = False
                return what(api)
        except NotFound as problem:
            raise NotThereError(_engine_message(problem)) from problem
        except APIError as problem:
            raise EngineError(_engine_message(problem)) from problem
        except (OSError, requests.RequestException, DockerException) as problem:
            raise EngineAwayError(self._away(problem)) from problem

    def _away(self, problem: BaseException) -> str:
        reason = _innermost(problem)
        remedy = "start one, or set docker_host or DOCKER_HOST to its address"
        if isinstance(reason, PermissionError):
            remedy = "give this user access (group docker), or set DOCKER_HOST to an accessible engine"
        return f"no container engine answers at {self.address.shown} ({reason}); {remedy}"

    async def attach(self, container: str) -> Attached:
        """Return the streams of a created container, before its start. Raises as `call` does."""
        path = f"/v{self.version}/containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1"
        stream: trio.abc.Stream | None = None
        attached: Attached | None = None
        with trio.move_on_after(CALL_SECONDS):
            try:
                stream = await self._connect()
                attached = Attached(stream)
                await attached.upgrade(path)
            except BaseException as problem:
                if stream is not None:
                    await trio.aclose_forcefully(stream)
                if isinstance(problem, OSError | trio.BrokenResourceError):
                    raise EngineAwayError(self._away(problem)) from problem
                raise
            return attached
        raise EngineAwayError(f"the engine at {self.address.shown} did not attach within {CALL_SECONDS:g} s")

    async def _connect(self) -> trio.abc.Stream:
        at = self.address
        if at.path is not None:
            return await trio.open_unix_socket(at.path)
        if at.context is None:
            return await trio.open_tcp_stream(at.host, at.port)
        stream = await trio.open_ssl_over_tcp_stream(at.host, at.port, ssl_context=at.context, https_compatible=True)
        await stream.do_handshake()
        return stream


def _refusal(head: bytes, body: bytes) -> str:
    """Return the message in a refusal, or its status line if it has no message."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return head.partition(b"\r\n")[0].decode(errors="replace")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _tls_arguments(folder: Path) -> dict[str, Any]:
    ca, own, key = (str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    arguments: dict[str, Any] = {"verify": True}
    if Path(ca).exists():
        arguments["ca_cert"] = ca
    if Path(own).exists():
        arguments["client_cert"] = (own, key)
    return arguments


def _engine_message(problem: Any) -> str:
    """Return the engine's own message."""
    return str(problem.explanation or problem)


def _innermost(problem: BaseException) -> BaseException:
    """Return the innermost cause in the library's wrappers: the error of the operating system."""
    seen: BaseException = problem
    while True:
        inner = seen.__cause__ or seen.__context__ or next((a for a in seen.args if isinstance(a, BaseException)), None)
        reason = getattr(seen, "reason", None)
        inner = inner or (reason if isinstance(reason, BaseException) else None)
        if inner is None or (isinstance(seen, OSError) and seen.errno):
            return seen
        seen = inner
