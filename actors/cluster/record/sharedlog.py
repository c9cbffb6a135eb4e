"""`SharedLog`: the execution log of a runner in a cluster, made of its history and the log of the engine.

Rules:
* A state of an accepted or keyed execution is published with the sequence of the state before it. If another runner was
  first, this one has no part in the execution any more: `SupersededError`.
* A new execution is in the history of this runner before it is published: without an answer of the engine, it counts
  as accepted, and the outbox offers it. While no server leads the log or has room, it is refused. All other states
  are published first.
* A begin must be published before its handler is called. An end, or a pause, does not wait for an engine that is away.
* A plain synchronous call touches the history only, and the outbox publishes its end. So calls are as fast as without
  a cluster, and go on without the engine.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.engine import AwayError, EngineError, FullError, LeaderlessError, RefusedError, StaleError
from actors.cluster.letters import Author, Letter, UnreadableError
from actors.cluster.life import Publish, State, Stored, Superseded, resolve
from actors.cluster.record.mail import Mail
from actors.cluster.record.recent import Recent
from actors.executions import SupersededError
from actors.history import History, Room, summary_of
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Execution, Status

_END_SECONDS: Final = 5.0
"""How long an end waits for the engine; then the outbox publishes it."""
_ELECTION_SECONDS: Final = 5.0
"""How long a new execution waits for a server that leads the log; an election takes less."""
_AGAIN_SECONDS: Final = 0.25
_RETRY_SECONDS: Final = 5.0
_TRIES: Final = 8
_NONE: Final = "the servers of the cluster do not answer"

log = structlog.get_logger("cluster")


def is_shared(execution: Execution) -> bool:
    """Return whether all states of an execution are published; of others, the end."""
    return execution.asynchronous or execution.idempotency_key is not None


@define(eq=False)
class SharedLog:
    """The execution log of one runner. Its methods are those of `ExecutionLog`, and of the `Record` of the queue."""

    mail: Mail
    history: History
    wake: Callable[[], None] = field(default=lambda: None, init=False)
    """Lets the outbox look."""
    unsent: set[str] = field(factory=set, init=False)
    """Executions of which the log may lack the last state, or the queue the job."""
    renewed: set[str] = field(factory=set, init=False)
    """Those of them that were added again since the outbox last looked at them."""
    accepting: set[str] = field(factory=set, init=False)
    """New executions that this runner is about to publish, which the outbox leaves alone."""
    recent: Recent = field(factory=Recent, init=False)
    """The last ends of plain calls."""
    _known: dict[str, int] = field(factory=dict, init=False)
    """The sequences of the last letters about live executions of this runner."""

    # The execution log

    @property
    def node(self) -> str:
        """The name of this runner."""
        return self.mail.me.node

    @property
    def room(self) -> Room:
        """The room for records."""
        return self.history.room

    @property
    def waits_for_disk(self) -> bool:
        """Whether a refused record may exist all the same."""
        return self.history.waits_for_disk

    def admit(self) -> None:
        """Raise RunnerError while no execution may begin."""
        self.history.admit()

    def begin(self, execution: Execution) -> None:
        """Remember a plain call as running; never blocks, and needs no engine. Raises RunnerError."""
        self.history.begin(execution)

    def release(self, name: str) -> None:
        """Forget an execution that has left this runner."""
        self.history.release(name)
        self._known.pop(name, None)

    def append(self, name: str, events: bytes, first_seq: int, forget: tuple[int, int] | None = None) -> None:
        """Add events of a running execution to the history."""
        self.history.append(name, events, first_seq, forget)

    async def submit(self, execution: Execution) -> None:
        """Record a state that is no end.

        Raises RunnerError: `unavailable` when a new execution cannot be accepted or a begin cannot be published, and
        SupersededError. Then a new one is not accepted, and a handler must not be called.
        """
        if not is_shared(execution):
            await self.history.submit(execution)
        elif _is_new(execution):
            await self._accept(execution)
        else:
            await self._continue(execution)

    async def finish(self, execution: Execution) -> None:
        """Record an end. Raises RunnerError as `History.finish`, and SupersededError: then nothing is recorded."""
        if not is_shared(execution):
            await self.history.finish(execution)
            self.recent.put(execution)
            self.wake()
            return
        self.unsent.add(execution.id)
        published = False
        try:
            # The record of an end is made even if the caller was cancelled.
            with trio.CancelScope(deadline=trio.current_time() + _END_SECONDS, shield=True):
                await self._publish(execution)
                self.unsent.discard(execution.id)
                published = True
        except SupersededError:
            self.unsent.discard(execution.id)
            raise
        except (EngineError, UnreadableError, RunnerError) as problem:
            log.info("an end is published later", execution=execution.id, why=str(problem))
        await self.history.finish(execution)
        self._known.pop(execution.id, None)
        if not published:  # the outbox may have offered the state before it meanwhile
            self.owe(execution.id)

    async def _accept(self, execution: Execution) -> None:
        if not self.mail.engine.connected:
            raise _away()
        self.accepting.add(execution.id)
        try:
            await self.history.submit(execution)
            await self._announce(execution)
        finally:
            self.accepting.discard(execution.id)

    async def _announce(self, execution: Execution) -> None:
        self.unsent.add(execution.id)
        try:
            await _over_elections(partial(self._publish, execution, 0))
        except (RefusedError, LeaderlessError, FullError) as problem:
            self.unsent.discard(execution.id)
            await self._refuse(execution, problem)
        except (EngineError, UnreadableError, RunnerError) as problem:
            log.info("it is not known yet whether an execution is in the log", execution=execution.id, why=str(problem))
            self.wake()
        else:
            self.unsent.discard(execution.id)

    async def _refuse(self, execution: Execution, problem: EngineError) -> None:
        text = f"the cluster does not accept it: {problem}"
        why = Failure(ErrorKind.UNAVAILABLE, text)
        ended = replace(execution, status=Status.FAILED, failure=why, exit_code=1, finished_at=time.time())
        await self.history.finish(ended)
        raise error(ErrorKind.UNAVAILABLE, text, field="cluster", retry_after=_RETRY_SECONDS)

    async def _continue(self, execution: Execution) -> None:
        try:
            sequence = await self._publish(execution)
        except (EngineError, UnreadableError) as problem:
            if execution.status is Status.RUNNING:
                text = f"the begin cannot be published: {problem}"
                raise error(ErrorKind.UNAVAILABLE, text, field="cluster", retry_after=_RETRY_SECONDS) from problem
            log.info("a pause is published with the next attempt", execution=execution.id, why=str(problem))
        else:
            if execution.status is Status.RUNNING or execution.id in self._known:
                self._known[execution.id] = sequence
        await self.history.submit(execution)

    # The log of the engine

    async def _publish(self, execution: Execution, expect: int | None = None) -> int:
        """Put a state into the log after the one before it, and return its sequence.

        Raises SupersededError; EngineError, UnreadableError and RunnerError, after which it may be there or not.
        """
        if not self.mail.engine.connected:
            raise AwayError(_NONE)
        letter, fresh = letter_of(self.mail.me, execution), False
        expect = self._known.get(execution.id) if expect is None else expect
        for _ in range(_TRIES):
            if expect is None:
                match resolve(letter, await self.mail.state(execution.id, fresh=fresh)):
                    case Stored(sequence):
                        return sequence
                    case Superseded():
                        raise SupersededError(execution.id)
                    case Publish(following):
                        expect = following
            try:
                return await self.mail.send(letter, expect)
            except StaleError:
                expect, fresh = None, True
        raise AwayError("others write about it all the time")

    # For the queue

    async def state(self, name: str) -> State | None:
        """Return the last letter about an execution. Raises AwayError, UnreadableError and RunnerError."""
        return await self.mail.state(name)

    async def publish(self, letter: Letter, expect: int) -> int:
        """Publish a decision about an execution of another runner, and return its sequence.

        Raises EngineError; and RunnerError when the history of this runner lacks what was published.
        """
        sequence = await self.mail.send(letter, expect)
        if letter.execution.status.final:
            await self.history.finish(letter.execution)  # the runner that ended it tells its recipients
        else:
            await self.history.adopt([letter.execution])
        return sequence

    async def take(self, state: State, execution: Execution) -> None:
        """Prepare to run an execution here: its next state follows `state`. Raises RunnerError."""
        await self.history.submit(execution)
        self._known[execution.id] = state.sequence

    def known(self, name: str) -> int:
        """Return the sequence of the last letter about a live execution of this runner; 0 when it has none."""
        return self._known.get(name, 0)

    def owe(self, name: str) -> None:
        """Have the last state of an execution published, and its job put, as soon as the engine answers."""
        self.unsent.add(name)
        self.renewed.add(name)
        self.wake()

    def settled(self, name: str) -> bool:
        """Return whether the end of an execution, which is recorded here, is in the log."""
        return name not in self.unsent


def _is_new(execution: Execution) -> bool:
    """Return whether nothing about an execution can be in the log yet."""
    if execution.status is Status.SCHEDULED:
        return True
    queued = execution.status is Status.QUEUED and execution.asynchronous
    return queued and not execution.attempts and execution.run_at is None and execution.approval is None


async def _over_elections(publish: Callable[[], Awaitable[int]]) -> None:
    """Publish, while there may be an election. Raises LeaderlessError when that takes too long."""
    latest = trio.current_time() + _ELECTION_SECONDS
    while True:
        try:
            await publish()
        except LeaderlessError:
            if trio.current_time() > latest:
                raise
            await trio.sleep(_AGAIN_SECONDS)
        else:
            return


def _away() -> RunnerError:
    return error(ErrorKind.UNAVAILABLE, f"{_NONE}; try again", field="cluster", retry_after=_RETRY_SECONDS)


def letter_of(author: Author, execution: Execution) -> Letter:
    """Return a letter as others may read it: without what the history does not keep."""
    return Letter(author, summary_of(execution) if execution.summary else execution)
