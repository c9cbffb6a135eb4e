"""The engine as the other rooms see it: publish, read, pull, ask and serve, over one connection."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from actors.cluster.engine.connection import Connection
from actors.cluster.engine.link import Access, Server
from actors.cluster.engine.messages import (
    AwayError,
    EngineError,
    Extent,
    Stored,
    UnansweredError,
    from_direct,
)
from actors.cluster.engine.objects import Objects
from actors.cluster.engine.pulling import Consumer, Puller
from actors.cluster.engine.reading import Reader
from actors.cluster.engine.requests import Requests
from actors.cluster.engine.streams import Names, ensure_streams
from actors.cluster.engine.talks import Answer, AnswerMany, Echo, Serving, Talk, open_answer
from config.cluster import read_credentials
from config.settings import ClusterSettings
from protocol.errors import ErrorKind, RunnerError, error

log = structlog.get_logger("runner.cluster")

MIN_VERSION: Final = (2, 12)
MIN_PAYLOAD_BYTES: Final = 1024 * 1024
"""Letters have up to so many."""
OPEN_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.25
_AGAIN_SECONDS: Final = 5.0
_SILENT: Final = "JetStream does not answer: is it on, and do most servers run?"


class Engine:
    """One runner's use of the cluster's servers. All methods belong to the runner's loop."""

    def __init__(self, connection: Connection, requests: Requests, names: Names, nursery: trio.Nursery) -> None:
        self.names = names
        self.prepared = trio.Event()
        """Set when the streams exist."""
        self.changed: Final = connection.changed
        """Hooks that are called on the loop when the connection comes and when it goes."""
        self._connection = connection
        self._requests = requests
        self._objects = Objects(connection, requests, names)
        self._serving = Serving(connection, requests, nursery)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to one of the servers."""
        return self._connection.server is not None

    @property
    def server(self) -> str | None:
        """The address of the server at the other end, or None."""
        return None if self._connection.server is None else self._connection.server.url

    @property
    def max_payload(self) -> int:
        """The largest message that the servers take, in bytes."""
        return self._connection.max_payload

    async def wait_connected(self) -> None:
        """Wait for a connection."""
        await self._connection.wait_connected()

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        expect: int | None = None,
        headers: Mapping[str, str] | None = None,
        ttl: float | None = None,
        message_id: str | None = None,
        timeout: float = 5.0,
    ) -> int:
        """Store a message, and return its sequence in the stream.

        `expect` is the sequence of the last message of the subject that the caller knows, 0 for none: `StaleError` if
        there is another one. After an `AwayError` it may be stored or not. Publishing it again is safe with `expect`
        and `message_id`: it returns the sequence of the first if that is the last of its subject. With `message_id`
        alone the engine knows it for two minutes; with `expect` alone the `StaleError` may be about the message
        itself. `ttl` is in seconds, at least 1; the message is gone after it.
        """
        return await self._requests.publish(
            subject, data, expect=expect, headers=headers, ttl=ttl, message_id=message_id, timeout=timeout
        )

    async def last(self, subject: str, *, fresh: bool = False) -> Stored | None:
        """Return the last message of a subject, or None. Raises `AwayError`.

        Any server answers, so that it may lag a moment behind: publish a decision that rests on it with
        `expect`. None, and with `fresh` everything, is the answer of the leader.
        """
        stream = self.names.stream_of(subject)
        if not fresh:
            try:
                answer = await self._requests.ask(f"$JS.API.DIRECT.GET.{stream}.{subject}")
            except UnansweredError as failed:
                raise AwayError(str(failed)) from failed
            if answer.status != _NOT_FOUND:
                return from_direct(answer)
        return await self._requests.last(stream, subject)

    async def extent(self, stream: str) -> Extent:
        """Return which stream it is and where it ends, as its leader knows it. Raises `AwayError`, `RefusedError`."""
        found = await self._requests.call(f"$JS.API.STREAM.INFO.{stream}")
        cluster = found.get("cluster") or {}
        led = f"{cluster.get('leader', '')} {cluster.get('leader_since', '')}".strip()
        return Extent(found["created"], found["state"]["last_seq"], led)

    @asynccontextmanager
    async def read(self, stream: str, *, after: int, subjects: Sequence[str] = ()) -> AsyncIterator[Reader]:
        """Read a stream in order, after a sequence; 0 is its begin."""
        reader = Reader(self._connection, self._requests, stream, after=after, subjects=subjects)
        try:
            yield reader
        finally:
            reader.close()

    @asynccontextmanager
    async def pull(self, consumer: Consumer) -> AsyncIterator[Puller]:
        """Pull jobs of a consumer, which is made if it is missing. Raises `AwayError` or `RefusedError`."""
        puller = Puller(self._connection, self._requests, consumer)
        try:
            await puller.ensure()
            yield puller
        finally:
            puller.close()

    def say(self, subject: str, data: bytes) -> None:
        """Send a message to the runners that listen now; without a connection it is dropped."""
        try:
            self._connection.post(subject, data)
        except AwayError:
            log.debug("a message was dropped without a connection", subject=subject)

    async def ask(self, subject: str, data: bytes, *, timeout: float = 5.0) -> bytes:
        """Return the answer of the runner that serves a subject.

        Raises the `RunnerError` of that runner, `UnansweredError` without such a runner, `AwayError` without an answer.
        """
        return open_answer(await self._requests.ask(subject, data, timeout=timeout))

    @asynccontextmanager
    async def ask_many(self, subject: str, data: bytes) -> AsyncIterator[Talk]:
        """Ask the runner that serves a subject by `serve_many`; gives an iterator over its answers, in order.

        It raises the `RunnerError` of that runner, and `UnansweredError` if there is no such runner, or it is gone.
        The other side is cancelled at the end. Raises `AwayError` without a connection.
        """
        talk = Talk(self._connection, self._requests)
        try:
            talk.begin(subject, data)
            yield talk
        finally:
            talk.close()

    @asynccontextmanager
    async def ask_all(self, subject: str, data: bytes) -> AsyncIterator[Echo]:
        """Ask all runners that serve a subject by `serve`; gives an iterator over their answers, without an end.

        Its user ends it by a time limit. It raises `UnansweredError` if there is no such runner, and `AwayError`.
        """
        echo = Echo(self._connection, self._requests)
        try:
            echo.begin(subject, data)
            yield echo
        finally:
            echo.close()

    def serve(self, subject: str, answer: Answer) -> AbstractAsyncContextManager[None]:
        """Answer questions of other runners, each in a task; a `RunnerError` of `answer` is raised in the asker."""
        return self._serving.open(subject, partial(self._serving.one, answer))

    def serve_many(self, subject: str, answer: AnswerMany) -> AbstractAsyncContextManager[None]:
        """Answer questions of other runners with many answers each; `answer` is cancelled if the asker is gone."""
        return self._serving.open(subject, partial(self._serving.many, answer))

    async def put_object(self, name: str, content: Path | bytes) -> None:
        """Store a content of any size, in the place of an earlier one. Raises `AwayError` or `RefusedError`."""
        await self._objects.put(name, content)

    async def get_object(self, name: str, path: Path | None = None) -> bytes | None:
        """Return a content, or write it into `path` and return no bytes. None: there is no such content.

        Raises `RefusedError` if it is damaged, and `AwayError`; the file may then have a part of it.
        """
        return await self._objects.get(name, path)

    async def object_exists(self, name: str) -> bool:
        """Return whether there is a content of this name. Raises `AwayError`."""
        return await self._objects.exists(name)

    async def delete_object(self, name: str) -> None:
        """Remove a content, if there is one. Raises `AwayError`."""
        await self._objects.delete(name)


_NOT_FOUND: Final = "404"


def _access(settings: ClusterSettings) -> Access:
    """Return how to reach the servers. Raises `RunnerError` for files that cannot be used."""
    return Access(
        settings.servers,
        name=f"operato-runner {settings.node or settings.name}",
        credentials=None if settings.credentials is None else partial(read_credentials, settings.credentials),
        tls=_tls(settings),
    )


def _tls(settings: ClusterSettings) -> ssl.SSLContext | None:
    files = settings.ca or settings.cert
    if files is None and not any(server.startswith("tls://") for server in settings.servers):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.cert is not None:
            context.load_cert_chain(settings.cert, settings.key)
    except OSError as failed:  # `SSLError` is one
        raise _unavailable(f"{files} cannot be used for TLS: {failed}") from failed
    return context


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.partition("-")[0].split(".")[:2] if part.isdigit())


def _unavailable(reason: str) -> RunnerError:
    return error(ErrorKind.UNAVAILABLE, f"the cluster cannot be used: {reason}", field="cluster")


@asynccontextmanager
async def open_engine(settings: ClusterSettings, *, prepares: bool = True, waits: bool = True) -> AsyncIterator[Engine]:
    """Connect to the cluster's servers and make sure of its streams, unless `prepares` is False.

    Raises `RunnerError` (`unavailable`, field `cluster`) if this is not possible within 10 s, naming the reason. With
    `waits` False, servers that do not answer by then are used once they do, and `Engine.prepared` is set then.
    """
    connection = Connection(_access(settings), _trouble)
    connection.start()
    try:
        requests, names = Requests(connection), Names(settings.name)
        prepare = partial(_prepare, connection, requests, names, len(settings.servers) if prepares else None)
        prepared = await _at_first(prepare, waits=waits)
        async with trio.open_nursery() as nursery:
            engine = Engine(connection, requests, names, nursery)
            if prepared:
                engine.prepared.set()
            if prepares or not prepared:
                nursery.start_soon(_prepare_again, connection, prepare, engine)
            yield engine
            nursery.cancel_scope.cancel()
    finally:
        await connection.close()


async def _at_first(prepare: Callable[[], Awaitable[None]], *, waits: bool) -> bool:
    try:
        await prepare()
    except AwayError as away:
        if waits:
            raise _unavailable(str(away)) from away
        log.warning("the servers of the cluster are away", why=str(away))
        return False
    return True


async def _prepare(connection: Connection, requests: Requests, names: Names, servers: int | None) -> None:
    """Wait for the engine, check it, and make its streams.

    Raises `RunnerError` if it refuses, and `AwayError` with the last reason when the time is over.
    """
    reason = _SILENT
    with trio.move_on_after(OPEN_SECONDS):
        while True:
            try:
                await connection.wait_connected()
                _check_server(connection.server)
                await requests.call("$JS.API.INFO")
                if servers is not None:
                    await ensure_streams(requests, names, servers=servers)
            except AwayError as failed:
                reason = f"{_SILENT} ({failed})"
                await trio.sleep(_PAUSE_SECONDS)
            except EngineError as failed:
                raise _unavailable(str(failed)) from failed
            else:
                return
    raise AwayError(reason if connection.server else connection.problem or _SILENT)


async def _prepare_again(connection: Connection, prepare: Callable[[], Awaitable[None]], engine: Engine) -> None:
    """Prepare the streams at each connection: those in memory are gone with a server that was alone.

    Refusals are followed by another try.
    """
    came, coming = trio.open_memory_channel[None](1)

    def changed() -> None:
        if connection.server is not None:
            with contextlib.suppress(trio.WouldBlock):  # it is about to prepare
                came.send_nowait(None)

    connection.changed.add(changed)
    if not engine.prepared.is_set():
        came.send_nowait(None)
    async for _ in coming:
        while True:
            try:
                await prepare()
            except (RunnerError, AwayError) as problem:
                log.warning("the cluster cannot be used yet", why=str(problem))
                await trio.sleep(_AGAIN_SECONDS)
            else:
                engine.prepared.set()
                break


def _check_server(server: Server | None) -> None:
    if server is not None and _version(server.version) < MIN_VERSION:
        least = ".".join(map(str, MIN_VERSION))
        raise _unavailable(f"{server.url} is NATS {server.version}: version {least} or later is needed")
    if server is not None and server.max_payload < MIN_PAYLOAD_BYTES:
        text = f"{server.url} takes messages of {server.max_payload} bytes at most"
        raise _unavailable(f"{text}: write `max_payload: 1MB` into its nats-server.conf")


def _trouble(problem: str) -> None:
    log.warning("trouble with the cluster's servers", problem=problem)
