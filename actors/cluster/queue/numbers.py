"""How many executions wait in the queue of the cluster, and how many are before one: as the engine counted last."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import structlog
import trio
from attrs import define, field, frozen

from actors.cluster.engine import AwayError, Engine, EngineError
from actors.cluster.queue.lanes import Lane
from protocol.errors import ErrorKind, error

_COUNT_SECONDS: Final = 2.0

log = structlog.get_logger("queue")


@frozen
class Place:
    """Where a job is in its lane."""

    ahead: int
    """Jobs before it, at most."""
    running: int
    """Jobs of the lane that runners have."""


@define(eq=False)
class Numbers:
    """Counts the jobs of all runners."""

    engine: Engine
    max_queued: int
    jobs: int = field(default=0, init=False)
    """All jobs at the last count, those that run included."""
    since: int = field(default=0, init=False)
    """Put by this runner since then."""
    coming: int = field(default=0, init=False)
    """Jobs that this runner is about to put."""

    async def run(self) -> None:
        """Count until cancelled."""
        while True:
            try:
                found = await self._ask(f"$JS.API.STREAM.INFO.{self.engine.names.queue}")
                self.jobs, self.since = found["state"]["messages"], 0
            except (EngineError, KeyError) as problem:
                log.debug("jobs cannot be counted", why=str(problem))
            await trio.sleep(_COUNT_SECONDS)

    def check(self, running: int) -> None:
        """Raise RunnerError `overloaded` when as many executions wait as may; `running` of the jobs are here."""
        queued = max(0, self.jobs - running) + self.since + self.coming
        if queued >= self.max_queued:
            text = f"{queued} executions are queued in the cluster; the limit is `max_queued`"
            raise error(ErrorKind.OVERLOADED, text, retry_after=5)

    async def of(self, lane: Lane, name: str) -> Place | None:
        """Return where a job is; None when it is not in the queue, or that is not known."""
        names = self.engine.names
        try:
            job = await self.engine.last(names.job(lane.name, name), fresh=True)
            found = await self._ask(f"$JS.API.CONSUMER.INFO.{names.queue}.{lane.name}")
            waiting, reached, running = found["num_pending"], found["delivered"]["stream_seq"], found["num_ack_pending"]
        except (EngineError, KeyError):
            return None
        if job is None:
            return None
        return Place(max(0, min(waiting - 1, job.sequence - reached - 1)), running)

    async def _ask(self, subject: str) -> dict[str, Any]:
        answer: dict[str, Any] = msgspec.json.decode(await self.engine.ask(subject, b""))
        if "error" in answer:
            raise AwayError(answer["error"].get("description", "refused"))
        return answer
