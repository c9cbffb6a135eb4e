"""Which ends count: that of this runner, or that of another one which took the execution over meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from attrs import define

from actors.cluster.engine import Engine, EngineError
from actors.cluster.letters import UnreadableError, unpack
from protocol.model import Execution

log: Any = structlog.get_logger("cluster.ends")


@define(eq=False)
class EndsOfThisRunner:
    """Confirms, for notices, that this runner ended an execution, so that one end has its notices once."""

    engine: Engine
    node: str
    get: Callable[[str], Awaitable[Execution | None]]
    """Finds an execution in the history of this runner."""

    async def __call__(self, execution: str) -> bool | None:
        """Return whether the end of this runner counts; None without an end in the engine. Raises RunnerError."""
        known = await self.get(execution)
        if known is not None and not known.asynchronous:  # no other runner ever takes it over
            return True
        try:
            stored = await self.engine.last(self.engine.names.state(execution))
            letter = None if stored is None or stored.gone else unpack(stored.data)
        except (EngineError, UnreadableError) as problem:
            log.info("it is not known yet who ended an execution", execution=execution, why=str(problem))
            return None
        if letter is None or not letter.execution.status.final:
            return None
        return letter.author.node == self.node
