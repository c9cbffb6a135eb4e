"""The connection to the engine: nats-py on an asyncio loop in a thread, behind calls of the runner's own loop.

It carries subjects, headers and bytes; everything else of the engine is made of them on the runner's loop. A connection
that is lost is given up with all that it had in hand, and another client connects: no message is sent long after its
sender gave up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

import attrs
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from actors.cluster.engine.messages import Message

_CONNECT_SECONDS: Final = 4
_CLOSE_SECONDS: Final = 2
_PING_SECONDS: Final = 2.0
_PONG_SECONDS: Final = 5
"""Without a pong in this time the connection counts as lost: the server may be stopped."""
_FLUSH_SECONDS: Final = 1
"""A full buffer delays the next message by this time, then it is exceeded: what waits has a bound of its own."""
_RETRY_SECONDS: Final = 0.25
_LATE_SECONDS: Final = 1.0
"""So late a message may come after the end of its subscription."""
_MAX_TOLD: Final = 20
"""Different problems of one connection that are logged."""
_PLAIN: Final = "the server does not offer TLS"
_NONE: Final[Mapping[str, str]] = {}

Handle = Callable[[Message], None]


class Credentials(Protocol):
    """A user, as the servers know it."""

    @property
    def jwt(self) -> str:
        """The token of the user."""

    def sign(self, nonce: bytes) -> bytes:
        """Return the signature of a server's nonce, in base64."""


@attrs.frozen
class Access:
    """Servers, and what they ask for."""

    servers: tuple[str, ...]
    name: str
    """Of the client, as the server shows it."""
    credentials: Callable[[], Credentials] | None = None
    """Called for each connection, in the thread: the file may have changed."""
    tls: ssl.SSLContext | None = None
    """If set, the servers must use TLS."""


@attrs.frozen
class Server:
    """The server at the other end."""

    url: str
    version: str
    max_payload: int


@attrs.define(eq=False)
class Subscription:
    """A subject, and who handles its messages. Each counter is changed by one of the threads only."""

    subject: str
    handle: Handle
    limit: int
    """Messages that may wait for the runner's loop; later ones are dropped and counted."""
    received: int = 0
    handled: int = 0
    dropped: int = 0

    def take(self, message: Message) -> None:
        """Handle one message, on the runner's loop."""
        self.handled += 1
        self.handle(message)


class _Loop(asyncio.SelectorEventLoop):
    """Knows its connections, which it can then end at once: closing one waits for a server that may be stopped."""

    def __init__(self) -> None:
        super().__init__()
        self._connections: list[asyncio.BaseTransport] = []

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        transport, protocol = await super().create_connection(*args, **kwargs)
        self._connections.append(transport)
        return transport, protocol

    def abort(self) -> None:
        """End all connections, with all that they have in hand."""
        for transport in self._connections:
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
        self._connections.clear()


class _Client(Client):
    """Tells whether the connection is encrypted."""

    encrypted = False

    @property
    def ssl_context(self) -> ssl.SSLContext:
        self.encrypted = True
        return super().ssl_context


@attrs.frozen
class Hooks:
    """What the thread tells the runner's loop."""

    connected: Callable[[tuple[int, Server]], None]
    lost: Callable[[str], None]
    failed: Callable[[str], None]
    trouble: Callable[[str], None]
    roomy: Callable[[None], None]


Command = tuple[int, str, bytes, str, dict[str, str] | None] | tuple[str, Subscription]
"""A message with the number of the connection that it is for; a subscription that begins (`+`) or ends (`-`)."""


class Side:
    """The side of the thread. The runner's loop calls `do` and `stop` and reads `sent`; the rest runs in the thread."""

    def __init__(self, access: Access, arrive: Callable[[Callable[[Any], None], Any], None], hooks: Hooks) -> None:
        self.sent = 0
        """Bytes of all messages that nats-py has taken, or that were dropped."""
        self.awaited = False
        """Whether somebody waits for room."""
        self._access = access
        self._arrive = arrive
        self._hooks = hooks
        self._commands: deque[Command] = deque()
        self._woken = False
        self._stopped = False
        self._client: Client | None = None
        self._epoch = 0
        self._subscriptions: dict[Subscription, Any] = {}
        """With what nats-py has for it, or None while there is no connection."""
        self._loop = _Loop()
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._draining: set[asyncio.Task[None]] = set()

    def do(self, command: Command) -> None:
        """Have a command done, after those before it."""
        self._commands.append(command)
        if not self._woken:
            self._woken = True
            self._wake()

    def stop(self) -> None:
        """Have the thread send what it has, and end."""
        self._stopped = True
        self._wake()
        with contextlib.suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(self._stopping.set)

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ready.set)

    def run(self, end: Callable[[], None]) -> None:
        """Run until `stop`."""
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main())
        finally:
            end()

    async def _main(self) -> None:
        keeping, serving = asyncio.create_task(self._keep()), asyncio.create_task(self._serve())
        await self._stopping.wait()
        await asyncio.wait({serving}, timeout=_CLOSE_SECONDS)
        while not keeping.done():  # `wait_for` of Python 3.11, which nats-py uses, can swallow a cancellation
            keeping.cancel()
            await asyncio.wait({keeping}, timeout=_CLOSE_SECONDS)
        self._loop.abort()
        await asyncio.sleep(0)  # for what ends with the connection

    async def _serve(self) -> None:
        while not self._stopped or self._commands:
            await self._ready.wait()
            self._ready.clear()
            await self._work()

    async def _work(self) -> None:
        """Do the commands that there are."""
        self._woken = False  # first: what comes from now on wakes again
        commands = self._commands
        while commands:
            command = commands.popleft()
            if len(command) == 2:
                await self._change(*command)
                continue
            epoch, subject, data, reply, headers = command
            client = self._client
            if client is not None and epoch == self._epoch:
                with contextlib.suppress(nats.errors.Error, OSError):  # the connection is about to be given up
                    await client.publish(subject, data, reply, headers)
            self.sent += len(data)
        if self.awaited:
            self.awaited = False
            self._arrive(self._hooks.roomy, None)

    async def _change(self, what: str, subscription: Subscription) -> None:
        if what == "+":
            self._subscriptions[subscription] = None
            await self._listen(subscription)
            return
        known = self._subscriptions.pop(subscription, None)
        if known is not None and self._client is not None:
            task = asyncio.create_task(_drain(self._client, known))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)
            await asyncio.sleep(0)  # so that the server hears of it before later messages

    async def _listen(self, subscription: Subscription) -> None:
        client = self._client
        if client is None or subscription not in self._subscriptions:
            return

        async def receive(message: Msg) -> None:
            if subscription.received - subscription.handled >= subscription.limit:
                subscription.dropped += 1
                return
            subscription.received += 1
            self._arrive(
                subscription.take, Message(message.subject, message.data, message.reply, message.headers or _NONE)
            )

        with contextlib.suppress(nats.errors.Error, OSError):
            known = await client.subscribe(subscription.subject, cb=receive)
            if subscription in self._subscriptions:
                self._subscriptions[subscription] = known
            else:  # it ended in the meantime
                await known.unsubscribe()

    async def _keep(self) -> None:
        """Stay connected, to any of the servers."""
        while True:
            for url in random.sample(self._access.servers, len(self._access.servers)):
                await self._use(url)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _use(self, url: str) -> None:
        """Connect to a server, and be connected as long as it answers."""
        client, closed = _Client(), asyncio.Event()
        problem, told = "the server closed the connection", set[str]()

        async def on_closed() -> None:
            closed.set()

        async def on_error(error: Exception) -> None:
            nonlocal problem
            problem = str(error) or type(error).__name__
            if self._client is client and problem not in told and len(told) < _MAX_TOLD:
                told.add(problem)
                self._arrive(self._hooks.trouble, f"{url}: {problem}")

        try:
            await _within(_CONNECT_SECONDS, client.connect(**self._options(url, on_closed, on_error)))
            if self._access.tls is not None and not client.encrypted:
                problem = _PLAIN
                return
            await self._begin(client, url)
            while not closed.is_set():
                with contextlib.suppress(TimeoutError):
                    await _within(_PING_SECONDS, closed.wait())
                    return
                await client.rtt(_PONG_SECONDS)
        except Exception as error:  # noqa: BLE001 - no failure of a connection may end the attempts
            problem = problem if isinstance(error, nats.errors.NoServersError) else str(error) or type(error).__name__
        finally:
            await self._give_up(client, f"{url}: {problem}")

    async def _begin(self, client: Client, url: str) -> None:
        self._client = client
        self._epoch += 1
        for subscription in list(self._subscriptions):
            await self._listen(subscription)
        server = Server(url, str(client.connected_server_version)[len("<nats server v") : -1], client.max_payload)
        self._arrive(self._hooks.connected, (self._epoch, server))

    async def _give_up(self, client: Client, problem: str) -> None:
        """Close the connection: at once, or after it has sent everything at the end of the runner."""
        was, self._client = self._client, None
        self._subscriptions = dict.fromkeys(self._subscriptions)
        self._arrive(self._hooks.failed if was is None else self._hooks.lost, problem)
        if not self._stopped:
            self._loop.abort()
        with contextlib.suppress(Exception):  # one that has hardly begun to connect fails to close, as an assertion
            await _within(_CLOSE_SECONDS, client.close())
        self._loop.abort()

    def _options(self, url: str, on_closed: Any, on_error: Any) -> dict[str, Any]:
        """Return what nats-py needs to connect once; it never connects again by itself."""
        options: dict[str, Any] = {
            "servers": [url],
            "name": self._access.name,
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": _CONNECT_SECONDS,
            "ping_interval": 3600,  # `_use` asks
            "flush_timeout": _FLUSH_SECONDS,
            "closed_cb": on_closed,
            "error_cb": on_error,
            "tls": self._access.tls,
        }
        if self._access.credentials is not None:
            user = self._access.credentials()
            options["user_jwt_cb"] = user.jwt.encode
            options["signature_cb"] = lambda nonce: user.sign(nonce.encode())
        return options


async def _within(seconds: float, work: Coroutine[Any, Any, Any]) -> None:
    """Do some work, or raise `TimeoutError`, even where the work ignores that it is cancelled."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # looked at, in any case
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
    if not done:
        raise TimeoutError(f"no answer in {seconds:g} s")
    await task


async def _drain(client: Client, subscription: Any) -> None:
    """End a subscription. The server may still send what it had matched before, also after its answer to a ping."""
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        await client._send_unsubscribe(subscription._id)  # noqa: SLF001  (all that is public forgets it at once)
        await asyncio.sleep(_LATE_SECONDS)
        await subscription.drain()
