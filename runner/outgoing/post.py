"""`Poster`: posts messages over HTTP and HTTPS, with the checks of addresses where connections are made.

Names are resolved here, and a connection is made to the address that was checked: a name that leads elsewhere a moment
later changes nothing. Redirects are not followed, proxies of the environment are not used.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, Final

import certifi
import httpcore
import trio
from attrs import define, field

from actors.starts import MAX_AT_ONCE, MAX_FOR_ONE, PostError
from runner.outgoing.addresses import REMEDY, Allowed

POST_SECONDS: Final = 15.0
"""For everything, from the name to the answer."""
_CONNECT_SECONDS: Final = 5.0
_LOOKUPS: Final = 16
"""Names that are resolved at a time, in threads of their own: a slow server of names must not take those of others."""
_ANSWER_BYTES: Final = 64 * 1024
"""Of an answer are read, so that its connection can be used again; no more than that."""
_READ_BYTES: Final = 4096
"""Read at a time: thousands of small parts of an answer, such as `100 Continue`, would hold up everything else."""
_ALL_BYTES: Final = 256 * 1024
"""Of one answer, headers and interim answers included; more is a failed attempt."""
_IDLE_SECONDS: Final = 5.0
_SHOWN: Final = 200


class _RefusedError(Exception):
    """No address of a host is allowed."""


@define
class _Bounded(httpcore.AsyncNetworkStream):
    """A connection that reads answers in small pieces, and none without an end."""

    _inner: httpcore.AsyncNetworkStream
    _left: int = _ALL_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._inner.read(min(max_bytes, _READ_BYTES), timeout)
        self._left -= len(data)
        if self._left < 0:
            raise httpcore.ReadError(f"the answer is longer than {_ALL_BYTES} bytes")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._left = _ALL_BYTES  # the next answer
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Bounded(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


@define
class _Network(httpcore.AsyncNetworkBackend):
    """Connects to addresses that are allowed."""

    _allowed: Allowed
    _inner: httpcore.AsyncNetworkBackend
    _lookups: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(_LOOKUPS))

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Return a connection to the first address of a host that is allowed and answers."""
        named = self._allowed.host(host)
        refused: list[str] = []
        failed: Exception = httpcore.ConnectError(f"the host {host} has no address")
        for address in await self._addresses(host, port):
            why = None if named else self._allowed.refusal(address)
            if why is not None:
                refused.append(f"{address}, {why}")
                continue
            try:
                stream = await self._inner.connect_tcp(
                    address, port, min(timeout or _CONNECT_SECONDS, _CONNECT_SECONDS), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as problem:
                failed = problem
                continue
            if named or not self._is_own(stream):
                return _Bounded(stream)
            await stream.aclose()
            refused.append(f"{address}, an address of this machine")
        if refused:
            raise _RefusedError(f"{host} leads to {'; '.join(refused[:3])}; {REMEDY}")
        raise failed

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host, each once."""

        def look_up() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(each[4][0]) for each in found))

        try:
            return await trio.to_thread.run_sync(look_up, limiter=self._lookups, abandon_on_cancel=True)
        except (OSError, UnicodeError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise httpcore.ConnectError(f"the host {host} cannot be found: {reason}") from problem

    def _is_own(self, stream: httpcore.AsyncNetworkStream) -> bool:
        """Return whether this machine talks to itself, over a public address of its own that is not allowed."""
        ours, theirs = (str(stream.get_extra_info(name)[0]) for name in ("client_addr", "server_addr"))
        return ours == theirs and not self._allowed.within(theirs)


@define(eq=False)
class Poster:
    """Posts messages; connections are kept for a moment."""

    allowed: Allowed
    context: ssl.SSLContext
    _pool: httpcore.AsyncConnectionPool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            self.context,
            max_connections=MAX_AT_ONCE,
            max_keepalive_connections=MAX_AT_ONCE // MAX_FOR_ONE,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=_Network(self.allowed, httpcore.TrioBackend()),
        )

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Return the status of the answer, within `POST_SECONDS`. Raises PostError."""
        with trio.move_on_after(POST_SECONDS):
            try:
                return await _status(self._pool, url, headers, body)
            except _RefusedError as problem:
                raise PostError(str(problem)) from None
            except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError) as problem:
                raise PostError(f"no answer: {_reason(problem)}") from None
            except ValueError as problem:  # an address that HTTP cannot express
                raise PostError(f"it cannot be sent: {str(problem)[:_SHOWN]}") from None
        raise PostError(f"no answer within {POST_SECONDS:g} seconds")

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


async def _status(pool: httpcore.AsyncConnectionPool, url: str, headers: Mapping[str, str], body: bytes) -> int:
    sent = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
    async with pool.stream("POST", url, headers=sent, content=body) as answer:
        read = 0
        async for part in answer.aiter_stream():
            read += len(part)
            if read > _ANSWER_BYTES:
                break
        return answer.status


def _reason(problem: BaseException) -> str:
    """Return the text of an error, or that of the error behind it: some have none."""
    behind: BaseException | None = problem
    while behind is not None:
        if text := str(behind):
            return text[:_SHOWN]
        behind = behind.__cause__ or behind.__context__
    return type(problem).__name__


def trusting() -> ssl.SSLContext:
    """Return a context that trusts the CAs of this machine, and the usual ones where it has none. Blocks."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
