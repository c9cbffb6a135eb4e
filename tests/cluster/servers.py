"""Cluster: real NATS servers on free ports of loopback, which a test can kill, stop, start, and cut off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from config.settings import ClusterSettings

_START_SECONDS = 60.0
_ATTEMPTS = 5
"""Another process may take a port before its server does."""


def find_server() -> str | None:
    """Return the path of nats-server: beside this Python, else of the machine."""
    return shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@attrs.define(eq=False)
class Server:
    """One server. Its ports and its folder stay the same when it is started again."""

    name: str
    folder: Path
    port: int = attrs.field(factory=free_port)
    route: int = attrs.field(factory=free_port)
    monitor: int = attrs.field(factory=free_port)
    routes: list[int] = attrs.field(factory=list)
    """Ports by which it reaches the others."""
    extra: str = ""
    """More lines of its configuration."""
    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False
    damaged: bool = False
    """Whether somebody has damaged its files."""

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor_url(self) -> str:
        return f"http://127.0.0.1:{self.monitor}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"server_name: {self.name}",
            f"listen: 127.0.0.1:{self.port}",
            f"http: 127.0.0.1:{self.monitor}",
            f"jetstream {{ store_dir: {json.dumps(str(self.folder))}, sync_interval: always }}",
            self.extra,
        ]
        if self.routes:
            routes = ", ".join(f"nats://127.0.0.1:{port}" for port in self.routes)
            # No server listens at port 1: servers that hear of each other use the routes that the test knows.
            cluster = f"name: tests, listen: 127.0.0.1:{self.route}, advertise: 127.0.0.1:1, no_advertise: true"
            lines.append(f"cluster {{ {cluster}, routes: [{routes}] }}")
        config = self.folder / "server.conf"
        config.write_text("\n".join(lines) + "\n")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([find_server() or "nats-server", "-c", config], stdout=log, stderr=log)
        self.stopped = False

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """End it as a loss of power does; what it has not synced to disk may be lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Stop it: it keeps its connections, and does nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.stopped = True

    def cont(self) -> None:
        """Let it continue after `stop`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.stopped = False

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def ask(self, path: str) -> Any:
        """Return what its monitoring port answers, or None."""
        with (
            contextlib.suppress(OSError, ValueError),
            urllib.request.urlopen(self.monitor_url + path, timeout=5) as got,
        ):
            return json.load(got)
        return None


class Servers:
    """One server, or three of a cluster. With `proxied`, a server can be cut off from the others and from clients."""

    def __init__(self, folder: Path, count: int = 3, *, proxied: bool = False, extra: str = "") -> None:
        self.folder = folder
        self.count = count
        self.extra = extra
        self.proxies = Proxies() if proxied else None
        self.all: list[Server] = []

    def open(self) -> None:
        """Start them, and wait until JetStream works."""
        for attempt in range(_ATTEMPTS):
            self._make(self.folder / str(attempt))
            for each in self.all:
                each.start()
            if self.wait_ready():
                return
            for each in self.all:
                each.kill()
        raise AssertionError(f"the servers do not start: {[each.log[-2000:] for each in self.all]}")

    def _make(self, folder: Path) -> None:
        self.all = [Server(f"n{number}", folder / f"n{number}", extra=self.extra) for number in range(self.count)]
        for one in self.all if self.count > 1 else ():
            for other in self.all:
                if other is not one:
                    to = self.proxies.add((one.name, other.name), other.route) if self.proxies else other.route
                    one.routes.append(to)
        if self.proxies:
            for each in self.all:
                self.proxies.add(("client", each.name), each.port)

    def close(self) -> None:
        """End them."""
        for each in self.all:
            each.kill()
        if self.proxies:
            self.proxies.close()

    @property
    def urls(self) -> tuple[str, ...]:
        """Their addresses for clients; through the proxies if there are any."""
        if self.proxies:
            return tuple(f"nats://127.0.0.1:{self.proxies.ports['client', each.name]}" for each in self.all)
        return tuple(each.url for each in self.all)

    def settings(self, name: str | None = None, **changes: Any) -> ClusterSettings:
        """Return settings of a runner; each cluster has a name of its own if none is given."""
        given = {"servers": self.urls, "name": name or f"t{secrets.token_hex(4)}", "node": "one", **changes}
        return ClusterSettings(**given)

    def wait_ready(self, seconds: float = _START_SECONDS) -> bool:
        """Wait until all know a leader and are up to date. False if one of them has ended, or after this time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not all(each.running for each in self.all):
                return False
            if all(_ready(each, clustered=self.count > 1) for each in self.all if not each.stopped):
                return True
            time.sleep(0.05)
        return False

    def leader(self, stream: str) -> Server:
        """Return the leader of a stream, as the servers that run see it."""
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            for server in self.all:
                found = server.running and not server.stopped and _leader(server, stream)
                for other in self.all:
                    if found == other.name and other.running:
                        return other
            time.sleep(0.05)
        raise AssertionError(f"{stream} has no leader")

    def partition(self, server: Server, *, clients: bool = True) -> None:
        """Cut a server off: its connections stay open, and carry nothing."""
        assert self.proxies is not None
        for pair in self.proxies.ports:
            if server.name in pair and (clients or "client" not in pair):
                self.proxies.block(pair)

    def heal(self) -> None:
        """Have all servers run, continue and reach each other, and wait until they are ready."""
        if self.proxies:
            self.proxies.heal()
        for each in self.all:
            if each.stopped:
                each.cont()
            if not each.running:
                each.start()
        assert self.wait_ready(), [each.log[-2000:] for each in self.all]

    def mend(self) -> None:
        """Empty the stores of damaged servers, which then copy those of the others."""
        for each in self.all:
            if each.damaged:
                each.kill()
                shutil.rmtree(each.folder / "jetstream")
                each.damaged = False
                each.start()
                assert self.wait_ready(), each.log[-2000:]


def _ready(server: Server, *, clustered: bool) -> bool:
    health = server.ask("/healthz")
    if health is None or health.get("status") != "ok":
        return False
    state = server.ask("/jsz") if clustered else None
    return not clustered or bool(state and state.get("meta_cluster", {}).get("leader"))


def _leader(server: Server, stream: str) -> str | None:
    state = server.ask("/jsz?accounts=true&streams=true") or {}
    for account in state.get("account_details") or ():
        for each in account.get("stream_detail") or ():
            if each["name"] == stream:
                name: str | None = (each.get("cluster") or {}).get("leader", server.name)
                return name
    return None


class Proxies:
    """Passes connections on, in a thread, until it is blocked."""

    def __init__(self) -> None:
        self.ports: dict[tuple[str, str], int] = {}
        self._blocked: dict[tuple[str, str], asyncio.Event] = {}
        self._open: dict[tuple[str, str], set[asyncio.StreamWriter]] = {}
        self._listening: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies")
        self._thread.start()

    def add(self, pair: tuple[str, str], target: int) -> int:
        """Pass connections on to a port; returns the port to connect to."""
        self._do(self._serve(pair, target))
        return self.ports[pair]

    def block(self, pair: tuple[str, str]) -> None:
        """Carry nothing, with all connections open."""
        self._do(self._set(pair, blocked=True))

    def heal(self) -> None:
        """Carry everything again; connections that were blocked are closed, as an end of a connection would."""
        for pair, way in self._blocked.items():
            if not way.is_set():
                self._do(self._set(pair, blocked=False))

    def close(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _set(self, pair: tuple[str, str], *, blocked: bool) -> None:
        if blocked:
            self._blocked[pair].clear()
            return
        for writer in list(self._open[pair]):
            writer.transport.abort()
        self._blocked[pair].set()

    async def _serve(self, pair: tuple[str, str], target: int) -> None:
        way = self._blocked[pair] = asyncio.Event()
        way.set()
        self._open[pair] = set()

        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    await way.wait()
                    writer.write(data)
                    await writer.drain()
            writer.transport.abort()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ends = {writer}
            self._open[pair] |= ends
            try:
                await way.wait()
                there, back = await asyncio.open_connection("127.0.0.1", target)
                ends.add(back)
                self._open[pair].add(back)
                await asyncio.gather(copy(reader, back), copy(there, writer))
            except OSError:
                pass
            finally:
                for each in ends:
                    each.transport.abort()
                self._open[pair] -= ends

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._listening.append(server)
        self.ports[pair] = server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        for server in self._listening:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):
            await asyncio.sleep(0)  # for the ends of the connections


@contextlib.contextmanager
def running(folder: Path, count: int, **given: Any) -> Iterator[Servers]:
    """Run servers."""
    servers = Servers(folder, count, **given)
    try:
        servers.open()
        yield servers
    finally:
        servers.close()
