"""The engine as the other rooms see it: publish, read, pull, ask and serve, over one connection."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import structlog
import trio

from actors.cluster.engine.errors import AwayError, EngineError, RefusedError, UnansweredError
from actors.cluster.engine.link import Access, Link
from actors.cluster.engine.messages import Message, Stored, from_direct, read_answer
from actors.cluster.engine.pulling import Consumer, Puller
from actors.cluster.engine.reading import Reader
from actors.cluster.engine.requests import Requests
from actors.cluster.engine.streams import Names, ensure_streams, repeated
from config.settings import ClusterSettings
from protocol.errors import ErrorKind, RunnerError, error

log = structlog.get_logger("runner.cluster")

MIN_VERSION: Final = (2, 12)
OPEN_SECONDS: Final = 10.0
_READ_SECONDS: Final = 5.0


class Engine:
    """One runner's use of the cluster's servers. All methods belong to the runner's loop."""

    def __init__(self, link: Link, requests: Requests, names: Names) -> None:
        self.names = names
        self._link = link
        self._requests = requests

    @property
    def changed(self) -> set[Callable[[], None]]:
        """Hooks that are called on the loop when the connection comes and when it goes."""
        return self._link.changed

    @property
    def connected(self) -> bool:
        """Whether there is a connection to one of the servers."""
        return self._link.server is not None

    @property
    def max_payload(self) -> int:
        """The largest message that the servers take, in bytes."""
        return self._link.max_payload

    async def wait_connected(self) -> None:
        """Wait for a connection."""
        await self._link.wait_connected()

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
        there is a later one. After an `AwayError` it may be stored or not. Publishing it again is safe with `expect`,
        whose `StaleError` may then be about the message itself, and for two minutes with `message_id`, which returns
        the sequence of the first. `ttl` is in seconds, at least 1; the message is gone after it.
        """
        if len(data) > self.max_payload:
            raise RefusedError(f"a message of {len(data)} bytes, of which the servers take {self.max_payload}")
        sent = dict(headers) if headers else {}
        if expect is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expect)
        if ttl is not None:
            sent["Nats-TTL"] = f"{max(ttl, 1.0):.0f}s"
        if message_id is not None:
            sent["Nats-Msg-Id"] = message_id
        answer = await self._ask(subject, data, sent or None, timeout)
        sequence: int = read_answer(answer)["seq"]
        return sequence

    async def last(self, subject: str, *, fresh: bool = False) -> Stored | None:
        """Return the last message of a subject, or None. Raises `AwayError`.

        Any server answers, so that it may lag a moment behind: whatever is decided by it is to be published with
        `expect`. None, and with `fresh` everything, is the answer of the leader.
        """
        stream = self.names.stream_of(subject)
        if not fresh:
            answer = await self._ask(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", None, _READ_SECONDS)
            if answer.status != _NOT_FOUND:
                return from_direct(answer)
        return await self._requests.last(stream, subject)

    @asynccontextmanager
    async def read(self, stream: str, *, after: int, subjects: Sequence[str] = ()) -> AsyncIterator[Reader]:
        """Read a stream in order, after a sequence; 0 is its begin."""
        reader = Reader(self._link, self._requests, stream, after, subjects)
        try:
            yield reader
        finally:
            reader.close()

    @asynccontextmanager
    async def pull(self, consumer: Consumer) -> AsyncIterator[Puller]:
        """Pull jobs of a consumer, which is made if it is missing. Raises `AwayError` or `RefusedError`."""
        puller = Puller(self._link, self._requests, consumer)
        try:
            await puller.ensure()
            yield puller
        finally:
            puller.close()

    def say(self, subject: str, data: bytes) -> None:
        """Send a message to those who listen now, if there are any and there is a connection."""
        try:
            self._link.post(subject, data)
        except AwayError:
            log.debug("nothing is said without a connection", subject=subject)

    async def ask(self, subject: str, data: bytes, *, timeout: float = 5.0) -> bytes:
        """Return the answer of the runner that serves a subject. Raises `UnansweredError` or `AwayError`."""
        return (await self._requests.ask(subject, data, timeout=timeout)).data

    async def _ask(self, subject: str, data: bytes, headers: dict[str, str] | None, timeout: float) -> Message:
        try:
            return await self._requests.ask(subject, data, headers=headers, timeout=timeout)
        except UnansweredError as failed:
            raise AwayError(str(failed)) from failed


_NOT_FOUND: Final = "404"


def _access(settings: ClusterSettings) -> Access:
    """Return how to reach the servers. Raises `RunnerError` for files that cannot be used."""
    return Access(
        settings.servers,
        name=f"operato-runner {settings.node or settings.name}",
        credentials=None if settings.credentials is None else str(settings.credentials),
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
async def open_engine(settings: ClusterSettings) -> AsyncIterator[Engine]:
    """Connect to the cluster's servers and make sure of its streams.

    Raises `RunnerError` (`unavailable`, field `cluster`) if this is not possible within 10 s, naming the reason.
    """
    link = Link(_access(settings), _trouble)
    requests, names = Requests(link), Names(settings.name)
    link.start()
    try:
        with trio.move_on_after(OPEN_SECONDS) as scope:
            try:
                await link.wait_connected()
                _check_version(link)
                await repeated(partial(requests.call, "$JS.API.INFO"))
                await repeated(partial(ensure_streams, requests, names, servers=len(settings.servers)))
            except EngineError as failed:
                raise _unavailable(str(failed)) from failed
        if scope.cancelled_caught:
            raise _unavailable(link.problem or "JetStream does not answer: is it on, and do most servers run?")
        yield Engine(link, requests, names)
    finally:
        await link.close()


def _check_version(link: Link) -> None:
    server = link.server
    if server is not None and _version(server.version) < MIN_VERSION:
        least = ".".join(map(str, MIN_VERSION))
        raise _unavailable(f"{server.url} is NATS {server.version}: version {least} or later is needed")


def _trouble(problem: str) -> None:
    log.warning("trouble with the cluster's servers", problem=problem)
