"""The container engine: its SDK in threads, and streams attached to containers on the event loop.

Works with whatever speaks Docker's API: dockerd, podman's service. The SDK is imported here only, at the first call.
"""

from __future__ import annotations

import json
import math
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import trio
from attrs import define, field, frozen

from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.model import Stream

T = TypeVar("T")
Api: TypeAlias = Any
"""The SDK's low-level client; the library has no types."""

DEFAULT_HOST = "unix:///var/run/docker.sock"
CALL_SECONDS = 60.0
"""How long the engine may think about one request, and how long a stream may say nothing while it is attached."""
PROBE_SECONDS = 3.0
_LIBRARY_VERSION = "1.44"
"""The newest version of the API that is asked for; every engine that is still kept up speaks it or an older one."""
_THREADS = 16
_MAX_HEAD = 64 * 1024
_READ_BYTES = 256 * 1024
_HEADER = 8
_STREAMS = {1: Stream.STDOUT, 2: Stream.STDERR}


class EngineError(RunnerError):
    """The engine refused: `unavailable`, with its own words."""

    def __init__(self, message: str) -> None:
        super().__init__(Failure(ErrorKind.UNAVAILABLE, message, field="env"))


class EngineAwayError(EngineError):
    """The engine does not answer; the message says where it was looked for, and the remedy."""


class NotThereError(EngineError):
    """The engine has no such container or image."""


class StreamBrokenError(Exception):
    """The attached stream has ended, in order or not."""


@frozen
class Address:
    """Where the engine is. `base_url` and `tls` are for the SDK, `context` is for streams of our own."""

    shown: str
    path: str | None
    host: str = ""
    port: int = 0
    base_url: str = ""
    certificates: Path | None = None
    context: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def read(cls, url: str | None, environ: Mapping[str, str]) -> Address:
        """Return the address that a setting or `DOCKER_HOST` names. Raises EngineError when it cannot be used."""
        shown = url or environ.get("DOCKER_HOST") or DEFAULT_HOST
        parts = urlsplit(shown if "://" in shown else f"tcp://{shown}")
        if parts.scheme == "unix":
            return cls(shown, parts.path, base_url=f"unix://{parts.path}")
        if parts.scheme not in ("tcp", "http", "https"):
            allowed = "unix://PATH or tcp://HOST:PORT"
            raise EngineError(f"{shown}: {parts.scheme}:// is not spoken; set docker_host or DOCKER_HOST to {allowed}")
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
        """Raise OSError when nobody listens at a unix socket: there the library would leak its own socket."""
        if self.path is not None:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PROBE_SECONDS)
                sock.connect(self.path)


def _context(folder: Path) -> ssl.SSLContext:
    """Return what the files of `DOCKER_CERT_PATH` say: whom to trust, and who we are."""
    ca, own, key = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
    context = ssl.create_default_context(cafile=str(ca) if ca.exists() else None)
    if own.exists():
        context.load_cert_chain(own, key)
    return context


class Demultiplexer:
    """Cuts what an engine sends for a container without terminal: 1 byte stream, 3 empty, 4 size, then the data.

    Data is handed on as it comes; nothing is held but an incomplete header.
    """

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._stream: Stream | None = None

    def feed(self, data: bytes) -> list[tuple[Stream, bytes]]:
        """Return the pieces in `data`, in order. Raises StreamBrokenError when it is not such a stream."""
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
        """Turn the connection into the raw stream of a container. Raises EngineError with the engine's words."""
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
        if status not in ([b"101"], [b"200"]):  # 200 is an old way to say 101
            raise EngineError(f"the engine did not attach: {_said(head, self._early)}")

    async def send(self, data: bytes) -> None:
        """Write to standard input. Raises StreamBrokenError."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as problem:
            raise StreamBrokenError(str(problem)) from problem

    async def receive(self) -> list[tuple[Stream, bytes]]:
        """Return what came on both outputs, maybe nothing. Raises StreamBrokenError at the end."""
        data, self._early = self._early, b""
        try:
            data = data or bytes(await self._stream.receive_some(_READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as problem:
            raise StreamBrokenError(str(problem)) from problem
        if not data:
            raise StreamBrokenError("the engine has closed the stream")
        return self._demultiplexer.feed(data)

    async def end_input(self) -> None:
        """Close standard input, where the transport can (TLS cannot). Raises StreamBrokenError."""
        if isinstance(self._stream, trio.SocketStream):
            try:
                await self._stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as problem:
                raise StreamBrokenError(str(problem)) from problem

    def close(self) -> None:
        """Close the connection at once."""
        stream = self._stream.transport_stream if isinstance(self._stream, trio.SSLStream) else self._stream
        if isinstance(stream, trio.SocketStream):
            stream.socket.close()


@define(eq=False)
class Engine:
    """One engine. Each call has an SDK client of its own: one costs 0.1 ms, and none is shared between threads."""

    address: Address
    version: str = _LIBRARY_VERSION
    """Of the API; `ping` finds the one that both sides speak."""
    _threads: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(_THREADS), init=False)

    async def ping(self) -> Mapping[str, Any]:
        """Return what the engine says of itself. Raises EngineAwayError."""
        spoken = await self.call(lambda api: api.version(api_version=False)["ApiVersion"], seconds=PROBE_SECONDS)
        self.version = min(str(spoken), _LIBRARY_VERSION, key=_numbers)
        return await self.call(lambda api: dict(api.info()), seconds=PROBE_SECONDS)

    async def call(self, what: Callable[[Api], T], *, seconds: float = CALL_SECONDS, abandon: bool = False) -> T:
        """Return what the SDK returns. Raises EngineAwayError, NotThereError and EngineError.

        Cancelled, the request is waited for (at most `seconds` of silence), or with `abandon` left to its thread.
        """
        return await trio.to_thread.run_sync(
            self._call, what, seconds, abandon_on_cancel=abandon, limiter=None if abandon else self._threads
        )

    def _call(self, what: Callable[[Api], T], seconds: float) -> T:
        try:
            import docker  # noqa: PLC0415  (an extra; it takes a tenth of a second)
            import requests  # noqa: PLC0415  (what the SDK speaks with)
            from docker.errors import APIError, DockerException, NotFound  # noqa: PLC0415
        except ImportError as problem:
            raise EngineAwayError(f"the docker library is not installed ({problem}); `pip install docker`") from problem
        folder = self.address.certificates
        try:
            self.address.knock()
            tls = docker.tls.TLSConfig(**_tls_arguments(folder)) if folder else False
            with docker.APIClient(self.address.base_url, self.version, timeout=math.ceil(seconds), tls=tls) as api:
                # The address says whom to trust; REQUESTS_CA_BUNDLE and proxies are not meant for an engine.
                api.trust_env = False
                return what(api)
        except NotFound as problem:
            raise NotThereError(_words(problem)) from problem
        except APIError as problem:
            raise EngineError(_words(problem)) from problem
        except (OSError, requests.RequestException, DockerException) as problem:
            raise EngineAwayError(self._away(problem)) from problem

    def _away(self, problem: BaseException) -> str:
        reason = _innermost(problem)
        remedy = "start it, or set docker_host or DOCKER_HOST to where one listens"
        if isinstance(reason, PermissionError):
            remedy = "let this user use it (group docker), or set DOCKER_HOST to one that it may use"
        return f"no container engine answers at {self.address.shown} ({reason}); {remedy}"

    async def attach(self, container: str) -> Attached:
        """Return the streams of a created container, which is started afterwards. Raises as `call` does."""
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
        raise EngineAwayError(f"the engine at {self.address.shown} does not attach within {CALL_SECONDS:g} s")

    async def _connect(self) -> trio.abc.Stream:
        at = self.address
        if at.path is not None:
            return await trio.open_unix_socket(at.path)
        if at.context is None:
            return await trio.open_tcp_stream(at.host, at.port)
        stream = await trio.open_ssl_over_tcp_stream(at.host, at.port, ssl_context=at.context, https_compatible=True)
        await stream.do_handshake()
        return stream


def _said(head: bytes, body: bytes) -> str:
    """Return the message in a refusal, or its first line where there is none."""
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


def _words(problem: Any) -> str:
    """Return what the engine itself said."""
    return str(problem.explanation or problem)


def _innermost(problem: BaseException) -> BaseException:
    """Return the cause at the bottom of the library's wrappers: what the operating system said."""
    seen: BaseException = problem
    while True:
        inner = seen.__cause__ or seen.__context__ or next((a for a in seen.args if isinstance(a, BaseException)), None)
        reason = getattr(seen, "reason", None)
        inner = inner or (reason if isinstance(reason, BaseException) else None)
        if inner is None or (isinstance(seen, OSError) and seen.errno):
            return seen
        seen = inner
