"""Executions that are alive: run in their caller's task, or accepted, recorded, and run when it is their turn.

Rules:
* An execution is in `_live` from acceptance until its end is recorded; history alone has it before and after.
* Who waits for an answer runs the execution in its own task, so that a cancelled caller ends it. What nobody waits for
  (asynchronous), or several may (an idempotency key), runs in this actor's nursery.
* An asynchronous execution is recorded as queued before it is accepted, and stays so until it has a worker: whatever
  ends the runner before that, the next one runs it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial

import msgspec
import structlog
import trio
from attrs import define, evolve, field

from actors.events import EventLog
from actors.executions.attempts import Attempts
from actors.executions.backlog import Backlog
from actors.executions.endings import as_refusal, broken, log_end, queued_on, refused, stopped
from actors.executions.idempotency import Key, key_of
from actors.executions.live import Live
from actors.executions.recovery import Recovery
from actors.executions.retry import retry_delay
from actors.executions.tally import RunsStatistics, Tally
from actors.history import History
from actors.registry import Published, Registry
from actors.workers import Outcome
from config.settings import ExecutorSettings
from protocol import events
from protocol.errors import ErrorKind, Failure, RunnerError, error, shutting_down
from protocol.model import Execution, Status, Waiting

_FLUSH_SECONDS = 1.0
"""How often what was printed is stored while an execution runs."""
log = structlog.get_logger("runs")


@define(eq=False)
class Runs:
    """The actor. `execute` may be called while `run` runs or not; the other verbs need it."""

    registry: Registry
    history: History
    attempts: Attempts
    settings: ExecutorSettings
    max_frame_bytes: int
    stopping: bool = field(default=False, init=False)
    """Nothing is begun any more."""
    tally: Tally = field(factory=Tally, init=False)
    """What became of executions, for who watches the runner."""
    _stop: trio.Event = field(factory=trio.Event, init=False)
    _live: dict[str, Live] = field(factory=dict, init=False)
    _keyed: dict[Key, Live] = field(factory=dict, init=False)
    _backlog: Backlog = field(factory=Backlog, init=False)
    _running: dict[str, int] = field(factory=dict, init=False)
    """Tasks of asynchronous executions by module name, without those between two attempts."""
    _nursery: trio.Nursery | None = field(default=None, init=False)
    _changed: trio.Event = field(factory=trio.Event, init=False)
    _accepting: int = field(default=0, init=False)
    _accepted: int = field(default=0, init=False)
    _ended: int = field(default=0, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run what was accepted, what the last runner left included, until cancelled; then what runs has been ended."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._recover()
                task_status.started()
                self._dispatch()
                while True:
                    await trio.sleep(_FLUSH_SECONDS)
                    self._flush()
        finally:
            self._nursery = None

    # Verbs

    async def execute(self, module: Published, execution: Execution, raw: msgspec.Raw) -> Execution:
        """Run an execution in this task and return it ended and recorded; a failure of user code is in it.

        Raises RunnerError for what never began, or could not be recorded. Cancelled, the execution is ended and
        recorded as cancelled before Cancelled goes on.
        """
        return await self._run(self._enter(module, execution, told=False), raw)

    def start(self, module: Published, execution: Execution, raw: msgspec.Raw) -> Live:
        """Run an execution in a task of its own, whoever waits for it; `wait_ended` returns what became of it.

        Raises RunnerError (`shutdown`).
        """
        nursery = self._open()
        live = self._enter(module, execution)
        nursery.start_soon(self._run_alone, live, raw, name=f"run {execution.id}")
        return live

    async def submit(self, module: Published, execution: Execution) -> Live:
        """Accept an execution: when this returns it is recorded, and will run, also after a restart.

        Raises RunnerError: `overloaded` (too many are queued), `shutdown`, `unavailable` (it cannot be recorded).
        Cancelled, it may have been accepted or not.
        """
        self._open()
        if len(self._backlog) + self._accepting >= self.settings.max_queued:
            self.tally.refuse(ErrorKind.OVERLOADED)
            text = f"{len(self._backlog)} executions are queued; the limit is `max_queued`"
            raise error(ErrorKind.OVERLOADED, text, retry_after=5)
        self._accepting += 1
        try:
            await self.history.submit(execution)
        except BaseException:
            if self.history.waits_for_disk:  # it may be in the journal, and must not run: nobody knows its id
                with trio.CancelScope(shield=True), suppress(RunnerError):
                    await self.history.finish(refused(execution))
            raise
        finally:
            self._accepting -= 1
        self._accepted += 1
        live = self._enter(module, execution)
        self._queue(live)
        self._dispatch()
        return live

    def find(self, name: str) -> Live | None:
        """Return the execution with this id when it has not ended."""
        return self._live.get(name)

    def find_keyed(self, key: Key) -> Live | None:
        """Return the execution with this idempotency key when it has not ended."""
        return self._keyed.get(key)

    def snapshot(self, live: Live) -> Execution:
        """Return an execution as it is now, and why it waits."""
        return evolve(live.snapshot(), waiting=self.waiting(live))

    def waiting(self, live: Live) -> Waiting | None:
        """Return why an execution waits, and how many are before it."""
        ahead = self._backlog.ahead(live.execution.module.name, live.execution.id)
        if ahead and live.waiting is not None:
            return evolve(live.waiting, reason=f"{live.waiting.reason}; {ahead} of this module are before it")
        return live.waiting

    def living(self, name: str | None = None, version: str | None = None) -> tuple[Live, ...]:
        """Return the executions that have not ended: all, those of a module, or of one version of it."""
        refs = ((live, live.execution.module) for live in self._live.values())
        return tuple(live for live, ref in refs if name in (None, ref.name) and version in (None, ref.version))

    async def cancel(self, live: Live, why: str = "cancelled on request") -> Execution:
        """End an execution, whatever it waits for or does, and return it when its end is recorded.

        Who comes later, or comes again, waits for the same end. Raises RunnerError when it cannot be recorded.
        """
        live.cancel(Failure(ErrorKind.CANCELLED, why))
        if self._backlog.remove(live.execution.module.name, live.execution.id):
            with trio.CancelScope(shield=True):  # nobody else will end it; reading and recording have their own limits
                await self._end_unbegun(live)
        return await self.wait_ended(live)

    async def wait_ended(self, live: Live) -> Execution:
        """Return the execution when its end is recorded. Raises RunnerError when it never began or was not recorded."""
        await live.ended.wait()
        if live.refusal is not None:
            raise live.refusal
        return live.execution

    async def wait_idle(self) -> None:
        """Wait until nothing runs; what is queued does not count."""
        while len(self._live) > len(self._backlog):
            self._changed = trio.Event()
            await self._changed.wait()

    async def wait_stopping(self) -> None:
        """Wait until nothing is begun any more."""
        await self._stop.wait()

    def stop(self, *, at_once: bool) -> None:
        """Begin nothing more; `at_once` also ends what runs. What is queued stays so, for the next runner."""
        self.stopping = True
        self._stop.set()
        for live in tuple(self._live.values()):
            if live.pausing:
                live.cancel(Failure(ErrorKind.SHUTDOWN, "the runner was shut down"))
        if at_once:
            for live in tuple(self._live.values()):
                if self._backlog.remove(live.execution.module.name, live.execution.id):
                    self._leave(live, queued_on(), goes_on=True)
                else:
                    live.cancel(Failure(ErrorKind.SHUTDOWN, "the runner was shut down"))

    def statistics(self) -> RunsStatistics:
        """Return the counters."""
        return RunsStatistics(len(self._live), len(self._backlog), self._accepted, self._ended)

    # Life

    def _open(self) -> trio.Nursery:
        if self._nursery is None or self.stopping:
            raise RunnerError(shutting_down())
        return self._nursery

    def _enter(self, module: Published, execution: Execution, *, told: bool = True) -> Live:
        keep = self.settings.kept_output_bytes
        events_log = EventLog(limit=module.spec.output, keep=keep, keep_items=self.max_frame_bytes)
        live = self._live[execution.id] = Live(execution, module, events_log, execution.attempts, told)
        if execution.idempotency_key is not None:
            self._keyed[key_of(execution)] = live
        return live

    def _leave(self, live: Live, refusal: RunnerError | None = None, *, goes_on: bool = False) -> None:
        """Forget an execution; `refusal` is why it has no recorded end, as those who wait and follow are told.

        What `goes_on` does so in the next runner: its events have no end.
        """
        execution = live.execution
        del self._live[execution.id]
        if execution.idempotency_key is not None:
            self._keyed.pop(key_of(execution), None)
        if refusal is not None:
            live.refusal = refusal
            if goes_on:
                live.log.close(refusal.failure.message, live.attempt)
            else:
                self.tally.refuse(refusal.failure.kind)
                live.log.end(events.last_event(live.refused(refusal.failure)))
        live.ended.set()
        self._ended += 1
        self._changed.set()

    async def _run(self, live: Live, raw: msgspec.Raw) -> Execution:
        """Run an execution to its recorded end, or raise why there is none."""
        try:
            outcome = await self.attempts.run(live, raw)
        except RunnerError as problem:
            if live.recorded or (live.began_at and self.history.waits_for_disk):
                with suppress(RunnerError):
                    await self.history.finish(live.ending(Outcome(failure=problem.failure, exit_code=1), Status.FAILED))
            self._leave(live, problem)
            raise
        except BaseException as problem:  # cancelled, or something of ours is broken: it has an end all the same
            outcome = stopped(live) if isinstance(problem, trio.Cancelled) else broken()
            with suppress(RunnerError):
                await self._record(live, outcome)
            raise
        return await self._record(live, outcome)

    async def _record(self, live: Live, outcome: Outcome) -> Execution:
        """Record the end; then those who follow or wait hear of it.

        Raises RunnerError when it cannot be recorded; the execution has left all the same. Cancelled, it is recorded.
        """
        failure = outcome.failure
        status = Status.SUCCEEDED if failure is None else Status.FAILED
        if failure is not None and failure.kind is ErrorKind.CANCELLED:
            status = Status.CANCELLED
        ended = live.ending(outcome, status)
        try:
            await self.history.finish(ended)
        except Exception as problem:  # one of ours as well: nobody is to wait for ever
            self._leave(live, as_refusal(problem))
            raise
        except trio.Cancelled:  # noticed only in a wait behind the journal's record
            self._end(live, ended)
            raise
        self._end(live, ended)
        log_end(ended, outcome.seconds)
        return ended

    def _end(self, live: Live, ended: Execution) -> None:
        live.execution = ended
        self.tally.count(ended)
        live.log.end(events.last_event(ended))
        self._leave(live)

    async def _run_alone(self, live: Live, raw: msgspec.Raw) -> None:
        """Run an execution whose answer is for those who wait, not for this task."""
        try:
            await self._run(live, raw)
        except RunnerError as problem:
            log.warning("an execution has no recorded end", execution=live.execution.id, why=str(problem))
        except Exception:
            log.exception("an execution failed inside the runner", execution=live.execution.id)

    # The asynchronous ones

    def _queue(self, live: Live) -> None:
        """Let an accepted execution wait for its turn, without its payload."""
        live.queued_at = time.time()
        self._backlog.push(live.execution.module.name, live.execution.id, live.execution.input)
        live.execution = evolve(live.execution, input=b"null", events=b"[]")
        live.wait_for("queued")

    def _dispatch(self) -> None:
        """Start a task for each execution whose turn it is: for each module as many as it may have workers."""
        if self._nursery is None or self.stopping:
            return
        for name in self._backlog.modules():
            module = self.registry.snapshot.modules.get(name)
            places = module.spec.concurrency if module else 1
            while self._running.get(name, 0) < places and (identity := self._backlog.pop(name)) is not None:
                self._occupy(name, 1)
                live = self._live[identity]
                live.occupy = partial(self._occupy, name)
                live.phases.queue += max(0.0, time.time() - live.queued_at)
                self._nursery.start_soon(self._run_queued, name, live, name=f"run {identity}")

    async def _run_queued(self, name: str, live: Live) -> None:
        try:
            await self._run_accepted(live, await self._payload(live))
        except RunnerError as problem:
            log.warning("an accepted execution has no recorded end", execution=live.execution.id, why=str(problem))
            if live.execution.id in self._live:
                self._leave(live, problem)
        except Exception:
            log.exception("an execution failed inside the runner", execution=live.execution.id)
            await self._record(live, broken())
        finally:
            self._occupy(name, -1)

    def _occupy(self, name: str, change: int) -> None:
        """Count a task of a module in or out. One that waits for its next attempt is out: others go before it."""
        self._running[name] = self._running.get(name, 0) + change
        if not self._running[name]:
            del self._running[name]
        if change < 0:
            self._dispatch()

    async def _payload(self, live: Live) -> msgspec.Raw:
        """Return the input of an accepted execution, else from its record. Raises RunnerError when that is gone."""
        data = self._backlog.take_input(live.execution.id)
        if data is None:
            stored = await self.history.get(live.execution.id)
            if stored is None:
                raise error(ErrorKind.NOT_FOUND, "the record of the execution is gone")
            data = stored.input
        live.execution = evolve(live.execution, input=data)
        return msgspec.Raw(data)

    async def _run_accepted(self, live: Live, raw: msgspec.Raw) -> None:
        """Run an accepted execution to its end, unless the runner ends first: then it stays or becomes queued."""
        try:
            outcome = await self.attempts.run(live, raw)
        except RunnerError as problem:
            outcome = Outcome(failure=problem.failure, exit_code=1)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._put_off(live, stopped(live))
            raise
        if outcome.failure is not None and outcome.failure.kind is ErrorKind.SHUTDOWN:
            await self._put_off(live, outcome)
        else:
            await self._record(live, outcome)

    async def _put_off(self, live: Live, outcome: Outcome) -> None:
        """Leave an execution that the end of the runner cut off to the next one, where that may run it (again)."""
        lost = Failure(ErrorKind.LOST, "the runner was shut down while this was running")
        if live.execution.status is Status.QUEUED:
            self._leave(live, queued_on(), goes_on=True)
            return
        if live.began_at:
            if retry_delay(lost, live.attempt, live.module.spec.retry, 0.0) is None:
                await self._record(live, evolve(outcome, failure=Failure(ErrorKind.SHUTDOWN, lost.message)))
                return
            live.try_again(outcome, lost)
        await self.history.submit(evolve(live.snapshot(), status=Status.QUEUED, waiting=None))
        self._leave(live, queued_on(), goes_on=True)

    async def _end_unbegun(self, live: Live) -> None:
        """Record the end of an execution that was cancelled before its turn came."""
        try:
            await self._payload(live)
            await self._record(live, stopped(live))
        except RunnerError as problem:
            log.warning("a cancelled execution has no recorded end", execution=live.execution.id, why=str(problem))
            if live.execution.id in self._live:
                self._leave(live, problem)

    async def _recover(self) -> None:
        """Queue what the last runner accepted and did not end."""
        recovery = Recovery(self.history, self.registry)
        async for module, execution in recovery.executions():
            if execution.id not in self._live:
                live = self._enter(module, execution)
                live.log.restore(events.decode_all(execution.events), execution.events_count, execution.created_at)
                self._queue(live)

    def _flush(self) -> None:
        """Store what was printed since the last time, so that a death of the runner keeps it."""
        for name, live in self._live.items():
            begun = live.execution.status is Status.RUNNING or live.execution.failed_attempts
            if begun and live.flushed < live.log.next_seq:
                said = live.log.since(live.flushed)
                self.history.append(name, events.encode_all(said), live.flushed, live.log.gap())
                live.flushed = live.log.next_seq
