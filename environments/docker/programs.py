"""Programs that the runner itself runs in containers of their own: to ask an image for its Python, to build one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import trio
from attrs import define, field

from environments.docker.engine import Api, Engine, EngineError, StreamBrokenError
from protocol.model import Stream

COMMON: Mapping[str, Any] = {"security_opt": ["no-new-privileges"], "log_config": {"Type": "none"}}
"""Host configuration of every container. File limits are set inside: not every engine may set the default ones."""
_READ = """import os
def read(n):
    data = b""
    while len(data) < n:
        part = os.read(0, n - len(data))
        if not part: os._exit(1)
        data += part
    return data
"""
READ_FRAME = _READ + "sent = read(int.from_bytes(read(4), 'big'))\n"
"""How every program in a container begins: it reads one frame from standard input."""


@define(eq=False)
class Waits:
    """The waits of tasks that another task can end, all at once."""

    _scopes: set[trio.CancelScope] = field(factory=set, init=False)

    @contextlib.contextmanager
    def one(self) -> Iterator[trio.CancelScope]:
        """Have a wait in the block."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    def end(self) -> None:
        """End them."""
        for scope in self._scopes:
            scope.cancel()


@define
class Programs:
    """Runs programs in containers of an engine. `labels` mark the containers."""

    engine: Engine
    labels: Mapping[str, str]
    name: Callable[[], str]
    """Returns a unique name for a container."""
    busy: set[str] = field(factory=set, init=False)
    """The names of the containers that exist now."""

    @contextlib.asynccontextmanager
    async def container(self) -> AsyncIterator[str]:
        """Give a name for one container, and remove it at the end; the sweep removes it if the engine is away."""
        name = self.name()
        self.busy.add(name)
        try:
            yield name
        finally:
            with trio.CancelScope(shield=True):
                with contextlib.suppress(EngineError):
                    await self.engine.call(lambda api: api.remove_container(name, force=True, v=True))
                self.busy.discard(name)

    async def output(self, image: str, argv: Sequence[str]) -> tuple[int, str]:
        """Return exit code and output of a program in an image."""
        parts: list[bytes] = []
        async with self.container() as name:
            code = await self.run(
                name, image, argv, b"", lambda _, data: parts.append(data), network="none", user="65534:65534"
            )
        return code, b"".join(parts).decode(errors="replace").strip()

    async def run(
        self,
        name: str,
        image: str,
        argv: Sequence[str],
        data: bytes,
        take: Callable[[Stream, bytes], None],
        *,
        network: str,
        user: str,
    ) -> int:
        """Run a program in the container `name` to its end; return its exit code. `data` is its first frame."""

        def create(api: Api) -> None:
            host = api.create_host_config(network_mode=network, **COMMON)
            api.create_container(
                image,
                name=name,
                entrypoint=list(argv),
                user=user,
                working_dir="/",
                labels=dict(self.labels),
                host_config=host,
                stdin_open=True,
                healthcheck={"test": ["NONE"]},
            )

        await self.engine.call(create)
        attached = await self.engine.attach(name)
        try:
            await self.engine.call(lambda api: api.start(name))
            if data:
                await attached.send(len(data).to_bytes(4, "big") + data)
            while True:
                for stream, part in await attached.receive():
                    take(stream, part)
        except StreamBrokenError:
            pass
        finally:
            attached.close()
        found = await self.engine.call(lambda api: api.wait(name))
        return int(found["StatusCode"])
