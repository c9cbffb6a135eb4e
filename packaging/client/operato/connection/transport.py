"""The two ways to wait: httpx in the thread of the caller, and httpx in an event loop of asyncio or Trio."""

from __future__ import annotations

import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any, TypeVar, Union

import anyio
import anyio.to_thread
import httpx

from operato.connection.settings import Settings
from operato.errors import LostError, UnavailableError

T = TypeVar("T")
S = TypeVar("S")

CONNECT_SECONDS = 10.0
_PIECE_BYTES = 256 * 1024
_CLOSE_SECONDS = 2.0
_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), seconds)
        for name, seconds in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]
"""An answer may take hours; these probes detect a lost server after 50 s."""


@dataclass(frozen=True)
class Upload:
    """A body that is read while it is sent, and read again when it is sent again."""

    open: Callable[[], IO[bytes]]
    size: int


Body = Union[bytes, Upload, None]


@dataclass(frozen=True)
class Request:
    """One request. `seconds` is the longest silence of the runner; None waits without limit."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: Body = field(default=None, repr=False)
    seconds: float | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of httpx, but for the body."""
        limits = httpx.Timeout(self.seconds, connect=CONNECT_SECONDS)
        size = {"content-length": str(self.body.size)} if isinstance(self.body, Upload) else {}
        return {
            "method": self.method,
            "url": self.url,
            "headers": {**self.headers, **size},
            "extensions": {"timeout": limits.as_dict()},
        }


class NotSentError(UnavailableError):
    """No connection could be made: the runner has seen nothing of the request."""


class SilentError(UnavailableError):
    """The runner said nothing for as long as the request allows."""


class Reply(ABC):
    """An answer whose body is read in parts. It is closed after the last one, or by `close`."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._ended = False

    async def part(self) -> bytes:
        """Return some bytes of the body, empty at its end. Raises LostError and SilentError."""
        if self._ended:
            return b""
        try:
            with _translated():
                found = await self._next()
        except BaseException:
            self._ended = True
            raise
        if not found:
            self._ended = True
        return found

    async def close(self) -> None:
        """Close it; if its body was not read to the end, its connection too."""
        if self._ended:
            return
        self._ended = True
        await self._abandon()

    @abstractmethod
    async def _next(self) -> bytes: ...

    @abstractmethod
    async def _abandon(self) -> None:
        """Close the connection, and end the iterators of httpx, which would be left suspended."""


class Transport(ABC):
    """Requests, waiting and parallel work."""

    @abstractmethod
    async def open(self, request: Request) -> Reply:
        """Send a request; return its answer once its head is there. Raises NotSentError, SilentError, LostError."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return what blocking work returns."""

    @abstractmethod
    async def each(self, work: Callable[[int, S], Coroutine[Any, Any, None]], items: Iterable[S], most: int) -> None:
        """Run `work` for all numbered items, `most` at a time. The first error ends it: items that wait do not begin.

        Raises that error.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that waits for a SyncTransport only."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("the coroutine waits for an event loop")


@contextmanager
def _translated() -> Iterator[None]:
    """Raise the errors of httpx as those of this library."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, UnicodeError, httpx.InvalidURL) as problem:
        raise NotSentError(f"no runner answers ({_reason(problem)}); check OPERATO_URL") from problem
    except httpx.TimeoutException as problem:
        raise SilentError("the runner accepted the request but did not answer in time") from problem
    except (httpx.HTTPError, httpx.StreamError) as problem:
        raise LostError(f"the connection to the runner was lost ({_reason(problem)})") from problem


def _reason(problem: BaseException) -> str:
    return str(problem).strip().rstrip(".") or type(problem).__name__


# -- in the thread of the caller -----------------------------------------------------------------------------------


class _SyncReply(Reply):
    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response)
        self._parts = response.iter_raw()

    async def _next(self) -> bytes:
        return next(self._parts, b"")

    async def _abandon(self) -> None:
        self._parts = iter(())  # which ends the iterators of httpx
        self._response.close()


class SyncTransport(Transport):
    """Waits in the thread of the caller; may be used by several threads."""

    def __init__(self, settings: Settings) -> None:
        wire = httpx.HTTPTransport(
            verify=settings.context or False,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
            socket_options=_KEEP_ALIVE,
        )
        self._http = httpx.Client(transport=wire, trust_env=False, follow_redirects=False)

    async def open(self, request: Request) -> Reply:
        body = _pieces(request.body) if isinstance(request.body, Upload) else request.body
        with _translated():
            return _SyncReply(
                self._http.send(self._http.build_request(content=body, **request.arguments()), stream=True)
            )

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - this transport has a thread to itself

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return work(*arguments)

    async def each(self, work: Callable[[int, S], Coroutine[Any, Any, None]], items: Iterable[S], most: int) -> None:
        source, lock, stopped, errors = (
            iter(enumerate(items)),
            threading.Lock(),
            threading.Event(),
            list[BaseException](),
        )

        def take() -> None:
            try:
                while not stopped.is_set():
                    with lock:
                        number, item = next(source)
                    drive(work(number, item))
            except StopIteration:
                return
            except BaseException as problem:  # noqa: BLE001 - raised again in the thread of the caller
                errors.append(problem)
                stopped.set()

        pool = ThreadPoolExecutor(most, thread_name_prefix="operato")
        try:
            workers = [pool.submit(take) for _ in range(_workers(items, most))]
            for worker in workers:
                worker.result()
        finally:
            stopped.set()
            pool.shutdown(wait=False)  # after Ctrl-C, requests that are on their way end by themselves
        if errors:
            raise errors[0]

    async def close(self) -> None:
        self._http.close()


def _workers(items: Iterable[Any], most: int) -> int:
    return min(most, len(items)) if isinstance(items, (list, tuple, range, Mapping)) else most


def _pieces(body: Upload) -> Iterator[bytes]:
    with body.open() as file:
        piece = file.read(_PIECE_BYTES)
        while piece:
            yield piece
            piece = file.read(_PIECE_BYTES)


# -- in an event loop ----------------------------------------------------------------------------------------------


class _AsyncReply(Reply):
    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response)
        self._parts = response.aiter_raw()

    async def _next(self) -> bytes:
        async for part in self._parts:
            return part
        return b""

    async def _abandon(self) -> None:
        with anyio.CancelScope() as scope, suppress(httpx.HTTPError, httpx.StreamError):
            scope.cancel()  # ends the iterators of httpx at their next wait, and closes the connection
            async for _ in self._parts:
                pass
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self._response.aclose()


class AsyncTransport(Transport):
    """Waits in the event loop of asyncio or Trio in which it is used."""

    def __init__(self, settings: Settings) -> None:
        wire = httpx.AsyncHTTPTransport(
            verify=settings.context or False,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
            socket_options=_KEEP_ALIVE,
        )
        self._http = httpx.AsyncClient(transport=wire, trust_env=False, follow_redirects=False)

    async def open(self, request: Request) -> Reply:
        body = _pieces_async(request.body) if isinstance(request.body, Upload) else request.body
        with _translated():
            built = self._http.build_request(content=body, **request.arguments())
            return _AsyncReply(await self._http.send(built, stream=True))

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await anyio.to_thread.run_sync(work, *arguments)

    async def each(self, work: Callable[[int, S], Coroutine[Any, Any, None]], items: Iterable[S], most: int) -> None:
        source, errors = iter(enumerate(items)), list[Exception]()

        async def take() -> None:
            try:
                for number, item in source:
                    await work(number, item)
            except Exception as problem:  # noqa: BLE001 - raised again, alone and not in a group
                errors.append(problem)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(_workers(items, most)):
                group.start_soon(take)
        if errors:
            raise errors[0]

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._http.aclose()


async def _pieces_async(body: Upload) -> AsyncIterator[bytes]:
    file = await anyio.to_thread.run_sync(body.open)
    try:
        piece = await anyio.to_thread.run_sync(file.read, _PIECE_BYTES)
        while piece:
            yield piece
            piece = await anyio.to_thread.run_sync(file.read, _PIECE_BYTES)
    finally:
        file.close()
