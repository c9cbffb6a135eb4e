"""The jobs that this runner has: kept while their executions run here, then taken off the queue or given back.

A job is taken off when the end of its execution is in the log. Until then its consumer hears of it at least three times
in each ack wait. A job whose execution another runner has is left alone: any word about it would count for that runner.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import trio
from attrs import define, field

from actors.cluster.engine import Delivery
from actors.cluster.queue.needed import Record
from actors.executions import Live
from protocol.errors import ErrorKind

_AGAIN_SECONDS: Final = 2.0
"""Pause before a job is delivered again whose execution could not be recorded."""


@define(eq=False)
class Job:
    """One job that this runner has."""

    delivery: Delivery
    live: Live
    module: str
    since: float
    """Trio time."""
    given_back: bool = field(default=False, init=False)
    settled: trio.Event = field(factory=trio.Event, init=False)
    """The end of its execution is in the log."""

    @property
    def begun(self) -> bool:
        """Whether its execution has had a worker."""
        return self.live.began_at > 0 or self.live.execution.attempts > 0


@define(eq=False)
class Jobs:
    """All jobs that this runner has, by the ids of their executions."""

    record: Record
    ack_wait_seconds: float
    by_id: dict[str, Job] = field(factory=dict, init=False)
    modules: Counter[str] = field(factory=Counter, init=False)
    """How many there are of each module."""

    def __len__(self) -> int:
        return len(self.by_id)

    def waiting(self) -> list[Job]:
        """Return the jobs whose executions have not begun, the oldest first."""
        return [job for job in self.by_id.values() if not job.begun]

    async def hold(self, delivery: Delivery, live: Live) -> None:
        """Keep a job until its execution has left, and answer it."""
        name = live.execution.id
        job = self.by_id[name] = Job(delivery, live, live.execution.module.name, trio.current_time())
        self.modules[job.module] += 1
        try:
            await live.ended.wait()
            if not job.given_back and live.refusal is None:
                await self._wait_settled(job)
        finally:
            del self.by_id[name]
            self.modules[job.module] -= 1
            if not self.modules[job.module]:
                del self.modules[job.module]
        await self._answer(job)

    def renew(self, name: str, delivery: Delivery) -> bool:
        """Replace a job that was delivered again, as its consumer had not heard of it; return whether it is here."""
        job = self.by_id.get(name)
        if job is None or job.live.superseded:
            return False
        job.delivery = delivery
        delivery.in_progress()
        return True

    def keep(self) -> None:
        """Tell the consumers of all jobs that they are in progress."""
        for job in self.by_id.values():
            if not job.live.superseded:
                job.delivery.in_progress()

    def settle(self, name: str) -> None:
        """Note that the end of an execution is in the log."""
        if (job := self.by_id.get(name)) is not None:
            job.settled.set()

    async def _wait_settled(self, job: Job) -> None:
        """Wait until the end is in the log. Not for ever: the job is delivered again, and dropped then."""
        if not self.record.settled(job.live.execution.id):
            with trio.move_on_after(self.ack_wait_seconds):
                await job.settled.wait()

    async def _answer(self, job: Job) -> None:
        live = job.live
        if job.given_back:
            await job.delivery.nak()
        elif live.superseded:
            return
        elif live.refusal is not None:
            handed_over = live.refusal.failure.kind is ErrorKind.SHUTDOWN
            await job.delivery.nak(0.0 if handed_over else _AGAIN_SECONDS)
        elif job.settled.is_set() or self.record.settled(live.execution.id):
            await job.delivery.ack()
