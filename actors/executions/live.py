"""Live executions: the state of one from acceptance to its end, and the set of all that have not ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.events import EventLog, last_of
from actors.executions.children import Children
from actors.executions.seams import Ending, ExecutionLog
from actors.executions.tally import Tally
from actors.history import LARGE_BYTES, History
from actors.registry import Published
from actors.workers import Call, Outcome, Phases, Waiter
from protocol import events, messages
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Attempt, Execution, Status, Timings, Waiting

_NOT_ACCEPTED = Failure(ErrorKind.CANCELLED, "it was not accepted: its record did not reach the disk in time")
_INTERNAL = Failure(ErrorKind.INTERNAL, "internal error; search the runner's log for the execution ID")
BROKEN = Outcome(failure=_INTERNAL, exit_code=70)
"""The outcome of an execution that a bug of the runner ended."""

Key = tuple[str, str, str]
"""Caller, module name, idempotency key."""

log = structlog.get_logger("runs")


class SupersededError(RunnerError):
    """Another runner of the cluster has the execution, so this one records no state of it."""

    def __init__(self, name: str) -> None:
        text = f"another runner has the execution {name}; ask again"
        super().__init__(Failure(ErrorKind.UNAVAILABLE, text, retry_after=1))


def key_of(execution: Execution) -> Key:
    """Return the identity of an execution that has an idempotency key."""
    return execution.subject, execution.module.name, execution.idempotency_key or ""


@define(eq=False)
class Live:
    """One execution that has not ended. Changed by the task that runs it; any task may call `cancel`."""

    execution: Execution
    """The execution as it was last recorded."""
    module: Published
    log: EventLog
    attempt: int = 0
    """The attempt in progress or in preparation; `execution.attempts` counts the attempts made."""
    phases: Phases = field(init=False)
    ran: float = field(init=False)
    """Seconds in the handler, over all attempts."""
    began_at: float = field(default=0.0, init=False)
    """When this attempt got a worker, in seconds since the epoch; 0 before that."""
    queued_at: float = field(default=0.0, init=False)
    """When it joined the backlog, in seconds since the epoch."""
    path: tuple[str, ...] = ()
    """The modules of the handlers that wait for it, each called by the one before; the first caller first."""
    children: Children | None = field(default=None, init=False)
    """The calls of modules that the running handler makes."""
    has_followers: bool = False
    """Others than its caller may follow it, so its waiting reasons before the first attempt are events too."""
    call: Call | None = field(default=None, init=False)
    """The running call of the handler, if any."""
    waiter: Waiter | None = field(default=None, init=False)
    """Its wait for a worker, if any."""
    pause: trio.CancelScope | None = field(default=None, init=False)
    """The scope of any other wait, if any."""
    stopped_by: Failure | None = field(default=None, init=False)
    superseded: bool = field(default=False, init=False)
    """Another runner has it, so this one records nothing of it any more."""
    killed: tuple[str, ...] = field(default=(), init=False)
    """Processes killed when the task that ran the handler was cancelled."""
    waiting: Waiting | None = field(default=None, init=False)
    occupy: Callable[[int], None] = field(default=lambda _: None, init=False)
    """Called with -1 when it gives its turn to others of its module, with 1 when it takes a turn again."""
    flushed: int = field(default=0, init=False)
    """Events before this number are stored."""
    recorded: bool = field(default=False, init=False)
    """The history has its begin, so its end must be recorded too."""
    ended: Ending = field(factory=trio.Event, init=False)
    refusal: RunnerError | None = field(default=None, init=False)
    """The error for its waiters when it never began or its end was not recorded."""

    def __attrs_post_init__(self) -> None:
        before = self.execution.timings
        self.phases = Phases(before.queue, before.build, before.start, before.load)
        self.ran = before.run

    @property
    def pausing(self) -> bool:
        """Whether it waits for its next attempt and is recorded as queued."""
        return self.pause is not None and self.execution.asynchronous and self.execution.status is Status.QUEUED

    def cancel(self, why: Failure) -> None:
        """End it in any state. Never blocks; the first reason counts."""
        if self.stopped_by is None and not self.ended.is_set():
            self.stopped_by = why
            if self.children is not None:
                self.children.stop()
            if self.call is not None:
                self.call.cancel(why)
            elif self.waiter is not None:
                self.waiter.give_up(why)
            elif self.pause is not None:
                self.pause.cancel()

    def wait_for(self, reason: str) -> None:
        """Set the reason why it waits; followers get it as an event."""
        if self.waiting is None or self.waiting.reason != reason:
            self.waiting = Waiting(reason, time.time())
            if self.has_followers or self.execution.failed_attempts:
                self.log.status(Status.QUEUED, self.attempt, reason)

    def ask(self) -> Waiter:
        """Return a new waiter of this execution for a worker."""
        self.waiter = Waiter(self.wait_for, self.log)
        return self.waiter

    async def sleep(self, seconds: float) -> None:
        """Wait before the next attempt; `cancel` ends the wait."""
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
        """Start an attempt that has a worker; return its call of the handler, of at most `seconds`."""
        again = self.began_at  # its last worker was gone before the call could reach it
        self.began_at = time.time()
        first = self.execution.started_at or self.began_at
        self.execution = replace(self.execution, status=Status.RUNNING, started_at=first, attempts=self.attempt)
        self.waiting = self.waiter = None
        if not again:
            self.log.status(Status.RUNNING, self.attempt)
        self.call = Call(self.execution.id, raw, self.attempt, seconds, self.log)
        return self.call

    def hear(self, message: messages.Item | messages.Progress) -> None:
        """Add an item or progress of a handler in the runner's own process."""
        if isinstance(message, messages.Item):
            self.log.item(message.value)
        else:
            self.log.progress(message.done, message.total, message.text)

    def count(self) -> None:
        """Count the attempt as made; it got no worker."""
        self.execution = replace(self.execution, attempts=self.attempt)

    def try_again(self, outcome: Outcome, failure: Failure) -> None:
        """Add the failed attempt to the record; another attempt follows."""
        now = time.time()
        number, began = self.attempt, self.began_at or now
        done = Attempt(number, began, now, failure, outcome.exit_code, outcome.seconds, outcome.killed)
        self.execution = replace(self.execution, failed_attempts=(*self.execution.failed_attempts, done))
        self.began_at = 0.0

    def stopped(self) -> Outcome:
        """Return the outcome when it was stopped while no handler ran, or its caller has gone."""
        failure = self.stopped_by or Failure(ErrorKind.CANCELLED, "the caller went away")
        return Outcome(failure=failure, exit_code=130, killed=self.killed)

    def snapshot(self) -> Execution:
        """Return the execution as it is now, with its kept events."""
        return replace(
            self.execution,
            events=events.encode_all(self.log.kept()),
            events_count=self.log.next_seq,
            output_dropped=self.log.store.dropped_bytes,
            timings=self._timings(),
            waiting=self.waiting,
        )

    def ending(self, outcome: Outcome, status: Status) -> Execution:
        """Return the record of its end."""
        self.log.end_output()
        # Only the begin of the one attempt: history rebuilds that event from the record.
        trivial = self.log.next_seq == 0 or (self.log.next_seq == 1 and self.began_at > 0)
        return replace(
            self.execution,
            status=status,
            result=outcome.result,
            failure=outcome.failure,
            events=b"[]" if trivial else events.encode_all(self.log.kept()),
            events_count=self.log.next_seq,
            output_dropped=self.log.store.dropped_bytes,
            output_bytes=self.log.store.added_bytes,
            result_bytes=None if outcome.result is None else len(outcome.result),
            exit_code=outcome.exit_code,
            timings=self._timings(),
            killed=outcome.killed,
            peak_memory=outcome.peak_memory,
            waiting=None,
            finished_at=time.time(),
        )

    def _timings(self) -> Timings:
        phases = self.phases
        return Timings(phases.queue, phases.build, phases.start, phases.load, self.ran)


@define(eq=False)
class LiveExecutions:
    """All executions from acceptance until their end is recorded. Before and after, only the history has them."""

    history: History
    """Where they are read."""
    records: ExecutionLog
    """Where they are recorded."""
    kept_output_bytes: int
    """Output and progress kept of each execution."""
    kept_item_bytes: int
    """Items kept of each execution."""
    by_id: dict[str, Live] = field(factory=dict, init=False)
    by_key: dict[Key, Live] = field(factory=dict, init=False)
    """Only those with an idempotency key."""
    ended: int = field(default=0, init=False)
    tally: Tally = field(factory=Tally, init=False)
    on_enter: list[Callable[[Live], None]] = field(factory=list, init=False)
    """Functions that get each execution that is added."""
    on_pass: list[Callable[[Live], None]] = field(factory=list, init=False)
    """Functions that get each execution that another runner has, before its events end here: they may take its log."""
    _left: trio.Event | None = field(default=None, init=False)
    _logs_successes: bool = field(factory=lambda: log.bind().is_enabled_for(logging.DEBUG), init=False)

    def __len__(self) -> int:
        return len(self.by_id)

    def __iter__(self) -> Iterator[Live]:
        return iter(tuple(self.by_id.values()))

    def owned(self, execution: Execution) -> Execution:
        """Return an execution of which this runner takes care from now on, with its name in a cluster."""
        node = self.records.node
        return execution if node is None or node == execution.node else replace(execution, node=node)

    async def accept(self, execution: Execution) -> Execution:
        """Record an execution that has not begun, and return it as recorded.

        Raises RunnerError `unavailable`; then it is not accepted.

        Cancelled, it may have been recorded or not.
        """
        records, execution = self.records, self.owned(execution)
        if len(execution.input) > LARGE_BYTES and records.room.lacks(execution, growing=False):
            self.tally.refuse(ErrorKind.OVERLOADED)
            text = "records that wait for the database take all the memory of `history_max_unwritten`"
            raise error(ErrorKind.OVERLOADED, text, retry_after=1)
        try:
            await records.submit(execution)
        except BaseException:
            if records.waits_for_disk:  # it may be in the journal, and must not run: its caller has no id
                ended = replace(execution, status=Status.CANCELLED, failure=_NOT_ACCEPTED, exit_code=130)
                with trio.CancelScope(shield=True), suppress(RunnerError):
                    await records.finish(replace(ended, finished_at=time.time()))
            raise
        return execution

    def enter(
        self,
        module: Published,
        execution: Execution,
        *,
        path: tuple[str, ...] = (),
        has_followers: bool = True,
    ) -> Live:
        """Add an execution."""
        kept = EventLog(limit=module.spec.output, keep=self.kept_output_bytes, keep_items=self.kept_item_bytes)
        live = self.by_id[execution.id] = Live(
            self.owned(execution), module, kept, execution.attempts, path=path, has_followers=has_followers
        )
        if execution.idempotency_key is not None:
            self.by_key[key_of(execution)] = live
        for hear in self.on_enter:
            hear(live)
        return live

    def check_inputs(self, size: int, limit: int) -> None:
        """Raise RunnerError `overloaded` if `size` bytes more are too much for the inputs that wait for a worker."""
        waiting = sum(len(live.execution.input) for live in self.by_id.values() if not live.began_at)
        if waiting and waiting + size > limit:
            text = "inputs that wait for a worker take all the memory of `max_buffered`; try again"
            raise error(ErrorKind.OVERLOADED, text, retry_after=1.0)

    def leave(self, live: Live, refusal: RunnerError | None = None, *, handed_over: bool = False) -> None:
        """Remove an execution. Without a recorded end, `refusal` is the error for its waiters and followers.

        `handed_over`: the next runner runs it, so its events have no end.
        """
        execution = live.execution
        del self.by_id[execution.id]
        if execution.idempotency_key is not None:
            self.by_key.pop(key_of(execution), None)
        self.records.release(execution.id)
        if refusal is not None:
            live.refusal = refusal
            failure = refusal.failure
            if handed_over:
                live.log.close(failure.message, live.attempt)
            else:
                self.tally.refuse(failure.kind)
                number, now = live.log.next_seq, time.time()
                lost = replace(execution, status=Status.FAILED, failure=failure, events_count=number, finished_at=now)
                live.log.end(events.last_event(lost))
        live.ended.set()
        self.ended += 1
        if self._left is not None:
            self._left.set()
            self._left = None

    def holds(self, live: Live) -> bool:
        """Return whether an execution has not left."""
        return self.by_id.get(live.execution.id) is live

    def hand_over(self, live: Live) -> None:
        """Remove a queued execution, which the next runner runs."""
        text = "the runner was shut down; the execution is queued for the next one"
        self.leave(live, error(ErrorKind.SHUTDOWN, text, retry_after=5), handed_over=True)

    def pass_on(self, live: Live) -> None:
        """Remove an execution that another runner has. It gets no record, and its events have no end here."""
        live.superseded = True
        for take in self.on_pass:
            take(live)
        log.info("another runner has an execution", execution=live.execution.id, module=str(live.execution.module))
        self.leave(live, SupersededError(live.execution.id), handed_over=True)

    async def wait_left(self) -> None:
        """Wait until an execution leaves."""
        if self._left is None:
            self._left = trio.Event()
        await self._left.wait()

    async def record(self, live: Live, outcome: Outcome) -> Execution:
        """Record the end of an execution, then publish it to followers and waiters.

        Raises RunnerError when it cannot be recorded; the execution has left all the same. Cancelled, it is recorded.
        Raises SupersededError when another runner has it.
        """
        if live.superseded:
            self.pass_on(live)
            raise SupersededError(live.execution.id)
        failure = outcome.failure
        status = Status.SUCCEEDED if failure is None else Status.FAILED
        if failure is not None and failure.kind is ErrorKind.CANCELLED:
            status = Status.CANCELLED
        ended = live.ending(outcome, status)
        try:
            await self.records.finish(ended)
        except SupersededError:
            self.pass_on(live)
            raise
        except Exception as problem:  # also a bug of the runner: waiters must not wait for ever
            self.leave(live, problem if isinstance(problem, RunnerError) else RunnerError(_INTERNAL))
            raise
        except trio.Cancelled:  # raised only in a wait after the journal has the record
            self._end(live, ended)
            raise
        self._end(live, ended)
        if failure is not None:
            why = failure.message[:200]
            log.info("execution ended", execution=ended.id, module=str(ended.module), kind=failure.kind, why=why)
        elif self._logs_successes:
            log.debug("execution succeeded", execution=ended.id, module=str(ended.module), run=outcome.seconds)
        return ended

    def _end(self, live: Live, ended: Execution) -> None:
        live.execution = ended
        self.tally.count(ended)
        if live.log.followed:
            live.log.end(last_of(ended))
        self.leave(live)

    def flush(self) -> None:
        """Store the events since the last flush, so that they survive the death of the runner."""
        for name, live in self.by_id.items():
            begun = live.recorded or live.execution.failed_attempts
            if begun and live.flushed < live.log.next_seq and not live.execution.summary:
                fresh = live.log.kept(live.flushed)
                self.records.append(name, events.encode_all(fresh), live.flushed, live.log.store.gap())
                live.flushed = live.log.next_seq
