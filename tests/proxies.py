"""Servers on loopback for the tests: ways to an engine and to a runner that can be cut, a slow file server."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@contextmanager
def refusing_port() -> Iterator[int]:
    """Give a port of loopback that refuses connections: it is bound, but without a listener."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@attrs.define(eq=False)
class Proxy:
    """Passes connections on to a unix socket, as long as it is asked to."""

    target: str
    nursery: trio.Nursery
    listen: Callable[[], object]
    connections: int = 0
    _scope: trio.CancelScope | None = None

    async def open(self) -> None:
        """Accept connections."""
        await self.nursery.start(self._serve)

    def cut(self) -> None:
        """Cut all connections and accept no more."""
        if self._scope is not None:
            self._scope.cancel()

    async def _serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await self.listen()
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:
                    serve = partial(trio.serve_listeners, self._pass_on, listeners, handler_nursery=nursery)
                    await nursery.start(serve)
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            for listener in listeners:
                with trio.CancelScope(shield=True):
                    await listener.aclose()

    async def _pass_on(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        try:
            async with stream, await trio.open_unix_socket(self.target) as engine, trio.open_nursery() as nursery:
                nursery.start_soon(_copy, engine, stream, nursery.cancel_scope)
                await _copy(stream, engine, None)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass


async def _copy(source: trio.abc.Stream, target: trio.abc.Stream, ends: trio.CancelScope | None) -> None:
    """Copy until the end of the source. Its end is passed on, or ends everything."""
    try:
        async for data in source:
            await target.send_all(data)
        if ends is None and isinstance(target, trio.SocketStream):
            await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        if ends is None:
            raise
    if ends is not None:
        ends.cancel()


@asynccontextmanager
async def unix_proxy(path: Path, target: str) -> AsyncIterator[Proxy]:
    """Yield a proxy that will listen at a path of its own; it is closed at first."""

    async def listen() -> list[trio.SocketListener]:
        path.unlink(missing_ok=True)
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(path))
        sock.listen()
        return [trio.SocketListener(sock)]

    async with trio.open_nursery() as nursery:
        yield Proxy(target, nursery, listen)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tcp_proxy(target: str, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Yield the port of a proxy on loopback, with TLS if a context is given."""
    ports = []

    async def listen() -> list[trio.abc.Listener]:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        ports.append(listeners[0].socket.getsockname()[1])
        return [trio.SSLListener(each, context, https_compatible=True) for each in listeners] if context else listeners

    async with trio.open_nursery() as nursery:
        await Proxy(target, nursery, listen).open()
        yield ports[0]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def file_server(
    files: Callable[[str], bytes | None],
    *,
    pause: float = 0.0,
    heads: Mapping[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Yield the port of an HTTP server on loopback, with TLS if a context is given.

    `pause` is the seconds between pieces of 4 KiB.
    """

    async def serve(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream(raw, context, server_side=True, https_compatible=True) if context else raw
        try:
            async with stream:
                await _answer(stream, files, pause, heads or {})
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _answer(
    stream: trio.abc.Stream, files: Callable[[str], bytes | None], pause: float, heads: Mapping[str, str]
) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        data = await stream.receive_some()
        if not data or data.startswith(b"\x16"):  # an engine tries TLS first
            return
        head += data
    method, path, _ = head.decode().split(" ", 2)
    content = files(path)
    status = "404 Not Found" if content is None else "200 OK"
    content = content or b""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close"]
    lines += [f"Content-Type: {kind}" for ending, kind in heads.items() if ending in path]
    await stream.send_all(("\r\n".join(lines) + "\r\n\r\n").encode())
    for at in range(0, len(content) if method == "GET" else 0, 4096 if pause else max(1, len(content))):
        await stream.send_all(content[at : at + 4096] if pause else content)
        if pause:
            await trio.sleep(pause)


@contextmanager
def certificates(folder: Path) -> Iterator[ssl.SSLContext]:
    """Write the files of DOCKER_CERT_PATH for a client; yield the context of the server."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "engine of the tests")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for file, data in (("ca.pem", pem), ("cert.pem", pem), ("key.pem", secret)):
        (folder / file).write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    yield context


class Gate:
    """A port on loopback that stays while the server behind it changes; its connections can be cut.

    For tests without Trio: it works in threads, which end with `close`.
    """

    def __init__(self) -> None:
        self.target: int | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Cut all connections."""
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut all connections, accept none, and wait for the threads."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target or 0))
            except OSError:
                client.close()
                continue
            both = (client, server)
            self._open.update(both)
            threads = [threading.Thread(target=self._pass_on, args=ends) for ends in (both, both[::-1])]
            self._threads += threads
            for thread in threads:
                thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()
