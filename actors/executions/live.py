"""One execution from acceptance to its end: its state now, its events, and the way to end it."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import trio
from attrs import define, evolve, field

from actors.events import EventLog
from actors.registry import Published
from actors.workers import Call, Outcome, Phases, Waiter
from protocol import events, messages
from protocol.errors import Failure, RunnerError
from protocol.model import Attempt, Execution, Status, Timings, Waiting


@define(eq=False)
class Live:
    """An execution that has not ended. Changed by the task that runs it; `cancel` may be called by any."""

    execution: Execution
    """As it was recorded last."""
    module: Published
    log: EventLog
    attempt: int = 0
    """The attempt that is made or prepared now; `execution.attempts` counts those that were made."""
    phases: Phases = field(init=False)
    ran: float = field(init=False)
    """Seconds in the handler, over all attempts."""
    began_at: float = field(default=0.0, init=False)
    """When this attempt had a worker, in seconds since the epoch; 0 while it has none."""
    queued_at: float = field(default=0.0, init=False)
    """Since when it waits for its turn, in seconds since the epoch."""
    told: bool = False
    """Why it waits is of interest to more than its caller, so the states before its first run are events."""
    call: Call | None = field(default=None, init=False)
    """The handler's run, while there is one."""
    waiter: Waiter | None = field(default=None, init=False)
    """Its wait for a worker, while there is one."""
    pause: trio.CancelScope | None = field(default=None, init=False)
    """Round any other wait."""
    stopped_by: Failure | None = field(default=None, init=False)
    killed: tuple[str, ...] = field(default=(), init=False)
    """What was ended by force when the task that ran the handler was cancelled."""
    waiting: Waiting | None = field(default=None, init=False)
    occupy: Callable[[int], None] = field(default=lambda _: None, init=False)
    """Called with -1 when it gives its turn to others of its module, with 1 when it goes on."""
    flushed: int = field(default=0, init=False)
    """Events before this number are stored."""
    recorded: bool = field(default=False, init=False)
    """Whether its begin is in the history, so that its end has to be as well."""
    ended: trio.Event = field(factory=trio.Event, init=False)
    refusal: RunnerError | None = field(default=None, init=False)
    """Why it never began, or could not be recorded; what those who wait for its end are told."""

    def __attrs_post_init__(self) -> None:
        before = self.execution.timings
        self.phases = Phases(before.queue, before.build, before.start, before.load)
        self.ran = before.run

    @property
    def pausing(self) -> bool:
        """Whether it waits for its next attempt, and is recorded as queued."""
        return self.pause is not None and self.execution.asynchronous and self.execution.status is Status.QUEUED

    def cancel(self, why: Failure) -> None:
        """End it in whatever state it is. Never blocks; the first reason counts."""
        if self.stopped_by is None and not self.ended.is_set():
            self.stopped_by = why
            if self.call is not None:
                self.call.cancel(why)
            elif self.waiter is not None:
                self.waiter.give_up(why)
            elif self.pause is not None:
                self.pause.cancel()

    def wait_for(self, reason: str) -> None:
        """Note why it waits, and tell those who follow it."""
        if self.waiting is None or self.waiting.reason != reason:
            self.waiting = Waiting(reason, time.time())
            if self.told or self.execution.failed_attempts:
                self.log.status(Status.QUEUED, self.attempt, reason)

    def ask(self) -> Waiter:
        """Return the waiter of this execution for a worker."""
        self.waiter = Waiter(self.wait_for)
        return self.waiter

    async def sleep(self, seconds: float) -> None:
        """Wait before the next attempt; less when it is cancelled."""
        if self.stopped_by is not None:
            return
        self.pause = trio.CancelScope(deadline=trio.current_time() + seconds)
        self.occupy(-1)
        try:
            with self.pause:
                await trio.sleep_forever()
        finally:
            self.pause = None
            self.occupy(1)

    def begin(self, raw: msgspec.Raw, seconds: float) -> Call:
        """Note that an attempt has a worker; return its call of the handler, of at most `seconds`."""
        again = self.began_at  # the worker that it had was gone before it could be asked
        self.began_at = time.time()
        first = self.execution.started_at or self.began_at
        self.execution = evolve(self.execution, status=Status.RUNNING, started_at=first, attempts=self.attempt)
        self.waiting = self.waiter = None
        if not again:
            self.log.status(Status.RUNNING, self.attempt)
        self.call = Call(self.execution.id, raw, self.attempt, seconds, self.log)
        return self.call

    def hear(self, message: messages.Item | messages.Progress) -> None:
        """Add what a handler in the runner's own process says."""
        if isinstance(message, messages.Item):
            self.log.item(message.value)
        else:
            self.log.progress(message.done, message.total, message.text)

    def count(self) -> None:
        """Note that the attempt was made, also where it came to no worker."""
        self.execution = evolve(self.execution, attempts=self.attempt)

    def try_again(self, outcome: Outcome, failure: Failure) -> None:
        """Keep what became of an attempt that is followed by another one."""
        now = time.time()
        number, began = self.attempt, self.began_at or now
        done = Attempt(number, began, now, failure, outcome.exit_code, outcome.seconds, outcome.killed)
        self.execution = evolve(self.execution, failed_attempts=(*self.execution.failed_attempts, done))
        self.began_at = 0.0

    def snapshot(self) -> Execution:
        """Return the execution as it is now, with what is kept of its events."""
        return evolve(
            self.execution,
            events=events.encode_all(self.log.kept()),
            events_count=self.log.next_seq,
            output_dropped=self.log.dropped_bytes,
            timings=self._timings(),
            waiting=self.waiting,
        )

    def ending(self, outcome: Outcome, status: Status) -> Execution:
        """Return the execution as it is to be recorded at its end."""
        self.log.end_output()
        # Nothing but the one attempt: what history shows then is made again from the record.
        trivial = self.log.next_seq <= 1
        return evolve(
            self.execution,
            status=status,
            result=outcome.result,
            failure=outcome.failure,
            events=b"[]" if trivial else events.encode_all(self.log.kept()),
            events_count=self.log.next_seq,
            output_dropped=self.log.dropped_bytes,
            exit_code=outcome.exit_code,
            timings=self._timings(),
            killed=outcome.killed,
            peak_memory=outcome.peak_memory,
            waiting=None,
            finished_at=time.time(),
        )

    def refused(self, failure: Failure) -> Execution:
        """Return the execution as those who follow it are told that it has no recorded end."""
        return evolve(
            self.execution,
            status=Status.FAILED,
            failure=failure,
            events_count=self.log.next_seq,
            finished_at=time.time(),
        )

    def _timings(self) -> Timings:
        phases = self.phases
        return Timings(phases.queue, phases.build, phases.start, phases.load, self.ran)
