"""The executions of the runner: begin, find, cancel and drain them.

Rules:
* An execution is live from acceptance until its end is recorded; before and after, only the history has it.
* A caller that waits for the answer runs the execution in its own task, so that cancelling the caller ends it. With an
  idempotency key several callers may wait, so it runs in this actor's nursery. Asynchronous executions, for which no
  caller waits, belong to the dispatcher.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import msgspec
import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.events import EventLog
from actors.executions.approvals import Approvals, Asking
from actors.executions.attempts import Attempts
from actors.executions.children import Nesting, Parent
from actors.executions.dispatcher import Dispatcher
from actors.executions.idempotency import Claims
from actors.executions.later import Later
from actors.executions.live import BROKEN, Key, Live, LiveExecutions, SupersededError
from actors.executions.owners import Here, Owners
from actors.executions.places import Places
from actors.executions.queueing import QueuedCalls
from actors.executions.tally import RunsStatistics, Tally
from actors.history import LARGE_BYTES, MAX_LINKED, History
from actors.registry import Published, Registry
from actors.workers import Outcome
from config.settings import ExecutorSettings
from protocol.errors import ErrorKind, Failure, RunnerError, shutting_down
from protocol.events import ChildEvent
from protocol.model import Execution, Status, Waiting

_FLUSH_SECONDS = 1.0
"""Interval at which the output of running executions is stored."""

log = structlog.get_logger("runs")


@define(eq=False)
class Runs:
    """The actor of live executions. `execute` works before and after `run`, `start` only meanwhile."""

    registry: Registry
    history: History
    attempts: Attempts
    settings: ExecutorSettings
    labels: tuple[str, ...] = ()
    """What this runner has, for the modules that need it."""
    stopping: bool = field(default=False, init=False)
    """No execution begins any more."""
    dispatcher: Dispatcher = field(init=False)
    """An actor of its own, to be supervised beside this one."""
    later: Later = field(init=False)
    """Another one."""
    nesting: Nesting = field(init=False)
    """The calls that handlers make."""
    queued_calls: QueuedCalls = field(init=False)
    """The calls that have turns in the queue."""
    on_enter: list[Callable[[Live], None]] = field(init=False)
    """Functions that get each execution when it becomes live."""
    asking: Asking = field(init=False)
    """The executions that wait for a person."""
    owners: Owners = field(init=False)
    """Finds executions for the doors, on other runners too where there are some."""
    claims: Claims | None = field(default=None, init=False)
    """The idempotency keys of the cluster."""
    forward: Callable[[Live, msgspec.Raw], Awaitable[Execution | None]] | None = field(default=None, init=False)
    """Runs a call on another runner of the cluster and returns its recorded end; None: this runner runs it.

    The call has left when it raises.
    """
    _live: LiveExecutions = field(init=False)
    _stop: trio.Event = field(factory=trio.Event, init=False)
    _nursery: trio.Nursery | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        attempts, settings = self.attempts, self.settings
        self.owners = Here(self)
        kept = settings.kept_output_bytes, attempts.max_frame_bytes
        self._live = LiveExecutions(self.history, attempts.records, *kept)
        self.on_enter = self._live.on_enter
        self.asking = Asking(self._live, Approvals(settings.approval_timeout_seconds, settings.max_waiting))
        places = Places(labels=self.labels)
        self.dispatcher = Dispatcher(self.registry, attempts, self._live, places, self.asking, settings.max_queued)
        self.queued_calls = QueuedCalls(self.dispatcher.submit, lambda: self.owners, self.history)
        attempts.nesting = self.nesting = Nesting(self.registry, self, self.dispatcher.submit, attempts.files)
        self.later = Later(self._live, self.dispatcher.queue_due, settings.max_scheduled)

    @property
    def tally(self) -> Tally:
        """How executions ended since the start of the runner."""
        return self._live.tally

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run keyed executions and store output until cancelled; running executions have ended when this returns."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = self.nesting.nursery = nursery
                task_status.started()
                while True:
                    await trio.sleep(_FLUSH_SECONDS)
                    self._live.flush()
        finally:
            self._nursery = self.nesting.nursery = None

    # Begin

    async def execute(
        self,
        module: Published,
        execution: Execution,
        raw: msgspec.Raw,
        on_item: Callable[[str, EventLog], None] | None = None,
        parent: Parent | None = None,
        begun: Callable[[Live], None] | None = None,
    ) -> Execution:
        """Run an execution in this task and return it ended and recorded; a failure of user code is in it.

        `on_item` is called with its id and events when the handler, a generator, has made the first item, `begun` at
        the begin; `parent` is the execution that called it. Raises
        RunnerError when it never began, or could not be recorded. Cancelled, the execution is ended and recorded as
        cancelled before Cancelled is raised.
        """
        if parent is None and self.dispatcher.queue.takes_calls(module):
            return await self.queued_calls.run(module, execution, on_item)
        self._admit(execution)
        live = self._live.enter(module, execution, path=_path(parent), has_followers=parent is not None)
        if begun is not None:
            begun(live)
        if on_item is not None:
            live.log.on_item = partial(on_item, execution.id, live.log)
        return await self._run(live, raw)

    def start(self, module: Published, execution: Execution, raw: msgspec.Raw, parent: Parent | None = None) -> Live:
        """Run an execution in a task of its own, independent of its callers; `wait_ended` returns it.

        `parent` is the execution that called it. Raises RunnerError (`shutdown`, and `unavailable` when its end could
        not be recorded).
        """
        if self._nursery is None or self.stopping:
            raise RunnerError(shutting_down())
        self._admit(execution)
        live = self._live.enter(module, execution, path=_path(parent))
        self._nursery.start_soon(self._run_alone, live, raw, name=f"run {execution.id}")
        return live

    def _admit(self, execution: Execution) -> None:
        """Raise RunnerError while no end could be recorded, or too many large inputs wait for a worker."""
        try:
            self.attempts.records.admit()
            if len(execution.input) > LARGE_BYTES:  # the number of callers bounds the others
                self._live.check_inputs(len(execution.input), self.attempts.max_input_bytes)
        except RunnerError as problem:
            self.tally.refuse(problem.failure.kind)
            raise

    # Find

    def find(self, name: str) -> Live | None:
        """Return the live execution with this id."""
        return self._live.by_id.get(name)

    def find_keyed(self, key: Key) -> Live | None:
        """Return the live execution with this idempotency key."""
        return self._live.by_key.get(key)

    def live_executions(self, name: str | None = None, version: str | None = None) -> tuple[Live, ...]:
        """Return the live executions: all, those of a module, or those of one version of it."""
        refs = ((live, live.execution.module) for live in self._live)
        return tuple(live for live, ref in refs if name in (None, ref.name) and version in (None, ref.version))

    def snapshot(self, live: Live) -> Execution:
        """Return an execution as it is now, with its waiting reason."""
        found = live.snapshot()
        called = (each.id for each in live.log.store.all() if isinstance(each, ChildEvent))
        return replace(found, waiting=self.waiting(live), children=tuple(called)[: -MAX_LINKED - 1 : -1])

    def waiting(self, live: Live) -> Waiting | None:
        """Return why an execution waits, and how many are before it."""
        ahead = self.dispatcher.ahead(live)
        if ahead is not None and live.waiting is not None:
            held = self.dispatcher.places.reason(live)
            reason = live.waiting.reason if held is None else f"queued: {held}"
            more = f"; {ahead} of this {'module' if live.execution.group is None else 'group'} are before it"
            return replace(live.waiting, reason=reason + (more if ahead else ""))
        return live.waiting

    # End

    async def cancel(self, live: Live, why: str = "cancelled on request") -> Execution:
        """End an execution in any state, and return it when its end is recorded.

        Several callers, or one that calls again, wait for the same end. Raises RunnerError when it cannot be recorded.
        """
        await self.dispatcher.cancel(live, Failure(ErrorKind.CANCELLED, why))
        return await self.wait_ended(live)

    async def cancel_scheduled(self, execution: Execution, why: str = "cancelled on request") -> Execution:
        """End an execution that was not live when it was read, and return it; one that has ended stays as it is.

        Raises RunnerError when its end cannot be recorded.
        """
        if execution.status.final:
            return execution
        ended = await self.later.cancel(execution.id, Failure(ErrorKind.CANCELLED, why))
        if ended is not None:
            return ended
        live = self.find(execution.id)  # its time has come meanwhile
        return await self.history.get(execution.id) or execution if live is None else await self.cancel(live)

    async def wait_ended(self, live: Live) -> Execution:
        """Return the execution when its end is recorded. Raises RunnerError when it never began or was not recorded."""
        return await self.queued_calls.end(live)

    async def wait_idle(self) -> None:
        """Wait until no execution runs; the queued ones do not count."""
        while len(self._live) > self.dispatcher.queued:
            await self._live.wait_left()

    async def wait_stopping(self) -> None:
        """Wait until `stop` is called."""
        await self._stop.wait()

    def stop(self, *, at_once: bool) -> None:
        """Begin no more executions; `at_once` also ends the running ones. The queued ones stay for the next runner."""
        self.stopping = True
        self._stop.set()
        self.dispatcher.stop()
        self.asking.stop()
        if at_once:
            self.dispatcher.hand_over()
            for live in self._live:
                live.cancel(Failure(ErrorKind.SHUTDOWN, "the runner was shut down"))

    def statistics(self) -> RunsStatistics:
        """Return the counters."""
        live, dispatcher = self._live, self.dispatcher
        counts = dispatcher.queued, dispatcher.accepted, live.ended, self.later.count, self.nesting.called
        return RunsStatistics(len(live), *counts, len(self.asking.approvals))

    async def _run(self, live: Live, raw: msgspec.Raw) -> Execution:
        """Run an execution to its recorded end, or raise why it has none."""
        if self.forward is not None and (ended := await self.forward(live, raw)) is not None:
            return ended
        try:
            spec = live.module.spec
            refused = await self.asking.call(live) if self.asking.approvals.asks(live) else None
            if refused is not None:
                outcome = refused
            elif spec.rate is None and spec.group is None:
                outcome = await self.attempts.run(live, raw)
            else:
                outcome = await self.dispatcher.places.run(live, partial(self.attempts.run, live, raw))
        except SupersededError:
            self._live.pass_on(live)
            raise
        except RunnerError as problem:
            records = self.attempts.records
            if live.recorded or (live.began_at and records.waits_for_disk):
                with suppress(RunnerError):
                    await records.finish(live.ending(Outcome(failure=problem.failure, exit_code=1), Status.FAILED))
            self._live.leave(live, problem)
            raise
        except BaseException as problem:  # cancelled, or a bug of the runner: it gets a recorded end all the same
            outcome = live.stopped() if isinstance(problem, trio.Cancelled) else BROKEN
            with suppress(RunnerError):
                await self._live.record(live, outcome)
            raise
        return await self._live.record(live, outcome)

    async def _run_alone(self, live: Live, raw: msgspec.Raw) -> None:
        """Run an execution whose answer is for its waiters, not for this task."""
        try:
            await self._run(live, raw)
        except RunnerError as problem:
            if not live.recorded and not live.began_at:
                log.info("a call was refused", execution=live.execution.id, why=str(problem))
                return
            log.warning("an execution has no recorded end", execution=live.execution.id, why=str(problem))
        except Exception:
            log.exception("an execution failed inside the runner", execution=live.execution.id)


def _path(parent: Parent | None) -> tuple[str, ...]:
    """Return the modules of the handlers that wait for an execution."""
    return () if parent is None else (*parent.path, parent.module.spec.name)
