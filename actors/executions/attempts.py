"""Runs one execution through its attempts (lease, handler, retry) to an outcome; records only its begin."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio
from attrs import define, evolve, field
from msgspec.structs import replace

from actors.channel import no_call
from actors.executions.children import Nesting, Reply, Turn
from actors.executions.inputs import names_files, use_named
from actors.executions.live import Live, SupersededError
from actors.executions.seams import ExecutionLog
from actors.files import Files
from actors.registry import may_run_in_process
from actors.workers import Executor, Masker, Outcome, Worker, look_up
from config.modules import RetryPolicy
from config.secrets import LookUp
from environments.base import Store
from environments.local import Exchange, InProcess
from environments.remedies import with_remedy
from protocol import messages
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Isolation, Kind, Status

NOT_BEGUN = frozenset({ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE, ErrorKind.SHUTDOWN})
"""Failures of a lease after which the execution never began, so that it needs no record."""
_WORKERS = 3
"""Workers tried for one attempt, when each was gone before the call reached it."""
_WAITS = 10
"""Times that a worker is given back while the record lacks room; then the caller waits with it."""
_NONE: Mapping[str, tuple[Path, str]] = {}
_RECORD_AGAIN = 0.5
"""Seconds before the next try to record a begin."""

log = structlog.get_logger("attempts")


@define(eq=False)
class Attempts:
    """Runs the attempts of all executions, on executors by kind, and records their begins."""

    executors: Mapping[Kind, Executor]
    records: ExecutionLog
    max_frame_bytes: int
    max_input_bytes: int
    """Inputs of all callers that wait for a worker, together."""
    secrets: LookUp
    files: Files
    copies: Path
    """The folder for files of handlers in the runner's own process."""
    nesting: Nesting | None = field(default=None, init=False)
    """Makes the calls of handlers."""
    _in_process: InProcess = field(factory=InProcess, init=False)

    def close(self) -> None:
        """Forget the modules that were loaded into the runner's own process."""
        self._in_process.close()

    async def run(self, live: Live, raw: msgspec.Raw) -> Outcome:
        """Return the outcome of the last attempt.

        Raises RunnerError when the execution never began (`overloaded`, `unavailable`, `shutdown` on the first
        attempt), when the begin of a call with an idempotency key cannot be recorded, and SupersededError when another
        runner has it. Cancelled, the handler has been ended.
        """
        spec = live.module.spec
        while live.stopped_by is None:
            live.attempt += 1
            outcome = await self._attempt(live, raw)
            live.ran += outcome.seconds
            if outcome.failure is None or live.stopped_by is not None:
                return outcome
            delay = retry_delay(outcome.failure, live.attempt, spec.retry, random.uniform(-1, 1))  # noqa: S311
            if delay is None:
                return outcome
            live.try_again(outcome, outcome.failure)
            kind = outcome.failure.kind
            live.wait_for(f"attempt {live.attempt + 1} of {spec.retry.attempts} in {delay:.1f} s, after {kind}")
            log.info("trying again", execution=live.execution.id, kind=kind, delay=round(delay, 3))
            await self._record_pause(live)
            await live.sleep(delay)
        return live.stopped()

    async def _record_pause(self, live: Live) -> None:
        """Record that an asynchronous execution is queued again: while it waits, nothing of it can be lost."""
        if live.execution.asynchronous:
            live.execution = replace(live.execution, status=Status.QUEUED, events_count=live.log.next_seq)
            try:
                await self.records.submit(live.execution)
            except SupersededError:
                raise
            except RunnerError as problem:  # only its next attempt would be lost with this runner
                log.warning("a pause is not recorded", execution=live.execution.id, why=str(problem))

    async def _attempt(self, live: Live, raw: msgspec.Raw) -> Outcome:
        """Run the handler once. A worker that was gone before the call reached it is not an attempt."""
        if live.module.spec.isolation is Isolation.NONE:
            return await self._in_runner(live, raw)
        executor = self.executors[live.module.spec.env]
        patient = live.execution.asynchronous
        outcome: Outcome | None = Outcome()
        files = None if names_files(live.execution.input) else _NONE
        workers = waits = 0
        while workers < _WORKERS:
            try:
                if files is None or self.records.room.scarce:
                    files = await self._ready(live, files)
                    if files is None:
                        return live.stopped()
                lease = executor.lease(live.module, live.phases, ask=live.ask, patient=patient, level=len(live.path))
                async with lease as worker:
                    turn = lease.turn() if live.module.spec.calls_modules else None
                    outcome = await self._call(live, raw, worker, files, turn, gives_back=waits < _WAITS)
            except RunnerError as problem:
                if live.stopped_by is not None:
                    return live.stopped()
                never_began = live.attempt == 1 and problem.failure.kind in NOT_BEGUN
                if never_began or isinstance(problem, SupersededError):
                    raise
                live.count()
                return Outcome(failure=problem.failure, exit_code=1)
            finally:
                live.waiter = live.pause = None
            if outcome is None:
                waits += 1
                continue
            if outcome.reached or live.stopped_by is not None:
                break
            workers += 1
            log.info("the worker was gone before the call reached it", execution=live.execution.id)
        return outcome or Outcome()

    async def _call(
        self,
        live: Live,
        raw: msgspec.Raw,
        worker: Worker,
        files: Mapping[str, tuple[Path, str]],
        turn: Turn | None,
        *,
        gives_back: bool,
    ) -> Outcome | None:
        """Call the handler, or return None to give the worker back until the record has room for it."""
        if live.stopped_by is not None:  # by a task that ran between the handover of the worker and this
            return live.stopped()
        if gives_back and self.records.room.lacks(live.execution):  # others took the room while this waited
            return None
        call = live.begin(raw, _seconds(live))
        call.files, call.store = files, self._storing(live)
        if turn is not None and self.nesting is not None:
            call.nested = live.children = self.nesting.children(live, turn)
        try:
            await self._record_begin(live)
            if call.stopped_by is not None:
                return live.stopped()
            outcome = await worker.execute(call)
            if outcome.failure is None or outcome.seconds or not outcome.reached:
                return outcome
            return evolve(outcome, seconds=max(0.0, time.time() - live.began_at))  # without an answer that has it
        finally:
            live.call = None
            live.killed = call.killed
            if live.children is not None:
                await live.children.close()
                live.children = None

    async def _ready(
        self, live: Live, files: Mapping[str, tuple[Path, str]] | None
    ) -> Mapping[str, tuple[Path, str]] | None:
        """Find the files of the input, and wait until the record has room; None if the execution was stopped meanwhile.

        Raises RunnerError.
        """
        if files is None:
            with trio.CancelScope() as live.pause:
                files = await self._files_of(live)
            live.pause = None
        if files is not None and self.records.room.scarce and not await self._take_room(live):
            return None
        return files

    async def _take_room(self, live: Live) -> bool:
        """Wait, without a worker, until the record has room; return False if the execution was stopped meanwhile.

        Raises RunnerError `unavailable` without room in 30 s. An accepted execution waits for as long as it takes.
        """
        room, began = self.records.room, trio.current_time()
        if room.lacks(live.execution):
            live.wait_for("records wait for the database")
        with trio.CancelScope() as live.pause:
            while live.execution.asynchronous and not await room.wait(live.execution):
                pass
            await room.take(live.execution)
        live.pause = None
        live.phases.queue += trio.current_time() - began
        return live.stopped_by is None

    async def _files_of(self, live: Live) -> Mapping[str, tuple[Path, str]]:
        """Return the files that the input names. Raises RunnerError as `use_named`."""
        execution = live.execution
        found = await use_named(self.files, execution.id, live.module.spec.name, execution.input)
        return {name: (file.path, file.name) for name, file in found.items()}

    def _storing(self, live: Live) -> Store:
        """Return what stores the files that the handler makes."""
        return partial(self.files.writing, execution=live.execution.id, module=live.module.spec.name)

    async def _record_begin(self, live: Live) -> None:
        """Record that the handler is about to run. An accepted execution does not fail on a full disk: it waits."""
        execution = live.execution
        if not execution.asynchronous and execution.idempotency_key is None:
            if self.records.room.scarce:
                await self.records.room.take(execution)
            self.records.begin(execution)
            live.recorded = True
            return
        warned = False
        while True:
            # The next runner must know that it ran, else it, or a repeated call, would run it again.
            try:
                await self.records.submit(execution)
            except SupersededError:
                raise
            except RunnerError as problem:
                if not execution.asynchronous or live.stopped_by is not None:
                    raise
                if not warned:
                    log.warning("a begin cannot be recorded; trying again", execution=execution.id, why=str(problem))
                warned = True
                await trio.sleep(_RECORD_AGAIN)
            else:
                live.recorded = True
                return

    async def _in_runner(self, live: Live, raw: msgspec.Raw) -> Outcome:
        module = live.module
        if not may_run_in_process(module):
            raise error(ErrorKind.FORBIDDEN, "`isolation: none` is accepted from the operator's file only")
        began = trio.current_time()
        seconds = _seconds(live)
        live.begin(raw, seconds)
        live.call = None  # a thread cannot be stopped: `cancel` ends the wait for it
        outcome, masker = Outcome(), None
        if self.nesting is not None:
            live.children = self.nesting.children(live, None)
        with trio.CancelScope() as live.pause:
            await self._record_begin(live)
            try:
                exchange = Exchange(await self._files_of(live), self._storing(live), self.copies)
                masker = Masker.of((await look_up(module.spec, self.secrets)).values())
                result = await self._in_process.call(
                    module.digest,
                    module.entry,
                    module.function,
                    module.spec.concurrency,
                    bytes(raw),
                    seconds=seconds,
                    execution_id=live.execution.id,
                    attempt=live.attempt,
                    on_event=live.hear if masker is None else masker.before(live.hear),
                    max_bytes=self.max_frame_bytes,
                    exchange=exchange,
                    begin=_no_calls if live.children is None else live.children.take,
                    level=len(live.path),
                )
                outcome = Outcome(result=result)
            except RunnerError as problem:
                failure = with_remedy(problem.failure, module.spec, module.root, package=module.package)
                hidden = failure if masker is None else masker.failure(failure)
                outcome = Outcome(failure=hidden, exit_code=1)
            finally:
                if live.children is not None:
                    await live.children.close()
                    live.children = None
        if live.pause.cancelled_caught:
            outcome = live.stopped()
        live.pause = None
        return evolve(outcome, seconds=trio.current_time() - began)


def _no_calls(message: messages.Call | messages.Withdraw, reply: Reply) -> None:
    """Refuse a call by a module that may call none."""
    if isinstance(message, messages.Call):
        trio.lowlevel.spawn_system_task(reply, no_call(message))


def _seconds(live: Live) -> float:
    own, asked = live.module.spec.timeout, live.execution.timeout
    return own if asked is None else min(asked, own)


def retry_delay(failure: Failure, attempt: int, policy: RetryPolicy, spread: float) -> float | None:
    """Return the seconds to wait before the next attempt, or None to give up.

    `attempt` counts from 1 and is the one that failed; `spread` is a random number in [-1, 1].
    """
    if not policy.allows(failure.kind, attempt):
        return None
    backoff = policy.backoff
    delay = min(backoff.max, backoff.initial * backoff.factor ** (attempt - 1))
    return max(0.0, delay * (1 + backoff.jitter * spread))
