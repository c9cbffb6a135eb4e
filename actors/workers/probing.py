"""Whether one kind of environment can be used on this machine: asked at the start, and again while it cannot."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio
from attrs import define, field

from environments.base import Availability, Environment
from protocol.errors import ErrorKind, error

_PROBE_SECONDS = 2.0

log = structlog.get_logger("probing")


@define(eq=False)
class Probing:
    """What is known of a kind; `on_found` is called when it can be used although it could not before."""

    environment: Environment
    on_found: Callable[[], None]
    found: Availability = field(init=False)

    async def begin(self) -> None:
        """Ask for the first time."""
        self.found = await self.environment.probe()

    async def run(self) -> None:
        """Ask again for what cannot be used, until cancelled: an engine may be started, or a tool installed, later."""
        while True:
            await trio.sleep(_PROBE_SECONDS)
            if not self.found.available:
                await self.ask()

    async def ask(self) -> None:
        """Ask again, and say what has changed."""
        before, self.found = self.found, await self.environment.probe()
        if self.found.available and not before.available:
            log.info("environments can be used now", env=self.environment.kind)
            self.on_found()
        elif before.available and not self.found.available:
            log.warning("environments cannot be used", env=self.environment.kind, why=self.found.reason)

    def refuse(self) -> None:
        """Raise RunnerError `unavailable` while the kind cannot be used."""
        if not self.found.available:
            raise error(ErrorKind.UNAVAILABLE, self.found.reason, field="env")
