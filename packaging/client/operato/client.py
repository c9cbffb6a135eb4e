"""`AsyncClient`, and `Client`, whose methods are those of `AsyncClient` driven in the thread of the caller."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from operato.calls import Calls
from operato.connection import (
    ANSWER_SECONDS,
    AsyncTransport,
    Link,
    SyncTransport,
    Token,
    Transport,
    drive,
    read_settings,
)
from operato.files import Files
from operato.kept import Executions, Modules, Schedules
from operato.streams import AsyncStream, Stream

T = TypeVar("T")
A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)

if TYPE_CHECKING:
    from typing_extensions import Concatenate, ParamSpec, Self

    P = ParamSpec("P")

RETRIES = 4
"""Further tries of a request that the runner refused for now, or that did not reach it."""


class AsyncClient(Calls):
    """A client of one runner, for asyncio and Trio. Many calls may run at a time, in one event loop.

    `url`, `token`, `ca`, `cert` and `cert_key` are by default the variables OPERATO_URL, OPERATO_TOKEN, OPERATO_CA,
    OPERATO_CERT and OPERATO_CERT_KEY, which the command line uses too. `token` may be a function that returns a fresh
    one, and may be an API key. `timeout` is the longest silence of the runner in seconds, for answers that wait for no
    handler; `call_timeout` is the one for calls, by default without limit. Raises BadInputError and OSError.
    """

    files: Files
    """Uploads and downloads."""
    executions: Executions
    """The record: look, list, cancel, repeat."""
    schedules: Schedules
    modules: Modules

    def __init__(
        self,
        url: str | None = None,
        token: Token = None,
        *,
        ca: str | None = None,
        cert: str | None = None,
        cert_key: str | None = None,
        timeout: float = ANSWER_SECONDS,
        call_timeout: float | None = None,
        retries: int = RETRIES,
    ) -> None:
        settings = read_settings(url, token, ca, cert, cert_key)
        self._link = Link(self._transport_class(settings), settings, retries=retries, seconds=timeout)
        self.files = Files(self._link)
        super().__init__(self._link, self.files, call_timeout)
        self.executions = Executions(self._link, self.files)
        self.schedules = Schedules(self._link, self.files)
        self.modules = Modules(self._link)

    _transport_class: Callable[..., Transport] = AsyncTransport

    async def close(self) -> None:
        """Close all connections; calls that run are cancelled by the runner, unless they have a key."""
        await self._link.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Driven(AsyncClient):
    """An AsyncClient that never waits for an event loop."""

    _transport_class = SyncTransport


class _Facade(Generic[A_co]):
    def __init__(self, inner: A_co) -> None:
        self._inner = inner


def _plain(method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[_Facade[A], P], T]:
    """Return a method that waits in the thread of its caller."""

    def run(self: _Facade[A], /, *arguments: P.args, **named: P.kwargs) -> T:
        return drive(method(self._inner, *arguments, **named))

    functools.update_wrapper(run, method)
    return run


def _iterated(method: Callable[Concatenate[A, P], AsyncStream[T]]) -> Callable[Concatenate[_Facade[A], P], Stream[T]]:
    """Return a method whose items are for plain loops."""

    def run(self: _Facade[A], /, *arguments: P.args, **named: P.kwargs) -> Stream[T]:
        return Stream(method(self._inner, *arguments, **named))

    functools.update_wrapper(run, method)
    return run


class PlainFiles(_Facade[Files]):
    """Uploads and downloads."""

    upload = _plain(Files.upload)
    download = _plain(Files.download)
    result = _plain(Files.result)
    delete = _plain(Files.delete)
    list = _iterated(Files.list)


class PlainExecutions(_Facade[Executions]):
    """The record: look, list, cancel, repeat."""

    get = _plain(Executions.get)
    list = _iterated(Executions.list)
    output = _plain(Executions.output)
    cancel = _plain(Executions.cancel)
    rerun = _plain(Executions.rerun)
    rerun_all = _plain(Executions.rerun_all)


class PlainSchedules(_Facade[Schedules]):
    """The schedules of a runner."""

    list = _iterated(Schedules.list)
    get = _plain(Schedules.get)
    create = _plain(Schedules.create)
    update = _plain(Schedules.update)
    delete = _plain(Schedules.delete)
    pause = _plain(Schedules.pause)
    resume = _plain(Schedules.resume)
    fire = _plain(Schedules.fire)
    next = _plain(Schedules.next)


class PlainModules(_Facade[Modules]):
    """The modules that a client may call."""

    list = _iterated(Modules.list)
    get = _plain(Modules.get)
    stats = _plain(Modules.stats)


class Client(_Facade[AsyncClient]):
    """A client of one runner for programs without an event loop. Several threads may share it.

    The parameters are those of `AsyncClient`.
    """

    def __init__(
        self,
        url: str | None = None,
        token: Token = None,
        *,
        ca: str | None = None,
        cert: str | None = None,
        cert_key: str | None = None,
        timeout: float = ANSWER_SECONDS,
        call_timeout: float | None = None,
        retries: int = RETRIES,
    ) -> None:
        files = {"ca": ca, "cert": cert, "cert_key": cert_key}
        super().__init__(_Driven(url, token, **files, timeout=timeout, call_timeout=call_timeout, retries=retries))
        self.files = PlainFiles(self._inner.files)
        self.executions = PlainExecutions(self._inner.executions)
        self.schedules = PlainSchedules(self._inner.schedules)
        self.modules = PlainModules(self._inner.modules)

    call = _plain(AsyncClient.call)
    execute = _plain(AsyncClient.execute)
    submit = _plain(AsyncClient.submit)
    wait = _plain(AsyncClient.wait)
    map = _plain(AsyncClient.map)
    batch = _iterated(AsyncClient.batch)
    events = _iterated(AsyncClient.events)
    stream = _iterated(AsyncClient.stream)
    close = _plain(AsyncClient.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
