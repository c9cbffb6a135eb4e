"""`SharedClaims`: idempotency keys, each of which belongs to one execution of a cluster.

Rules:
* The first message of a key wins; it names the execution that has the key. It is there for the validity of the key.
* A key whose execution is nowhere belongs to a runner that ended, or refused the call, before it accepted it. Another
  call takes it over. Before that it writes an end for that execution into the log, which then refuses the first letter
  of its runner: of the two executions at most one runs.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from hashlib import sha256
from typing import Final, TypeVar

import structlog
import trio
from attrs import define
from msgspec.structs import replace

from actors.cluster.engine import AwayError, Engine, EngineError, RefusedError, StaleError, Stored
from actors.cluster.feed.news import ClaimNews, pack, unpack
from actors.cluster.feed.reached import Reached
from actors.cluster.letters import Author, Letter, UnreadableError
from actors.cluster.letters import pack as pack_letter
from actors.executions import Live
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Execution, Status

LONGEST_SECONDS: Final = 7 * 86400.0
"""How long a claim stays at most; afterwards the history has the execution."""
FOUND_SECONDS: Final = 10.0
"""How long a call waits for the execution that has its key."""
_PAUSE_SECONDS: Final = 0.1
_MOST_TRIES: Final = 200
_RUNS: Final = (Status.QUEUED, Status.RUNNING)
_NEVER: Final = Failure(ErrorKind.CANCELLED, "its runner ended before it accepted the call, which was made again")

T = TypeVar("T")
log = structlog.get_logger("cluster")


@define(eq=False)
class SharedClaims:
    """The idempotency keys of one runner in a cluster.

    `alive` returns the boots of the runners that are there, None while that is not known.
    """

    engine: Engine
    author: Author
    runs: Reached
    alive: Callable[[], Collection[str] | None]
    clock: Callable[[], float] = trio.current_time

    async def claim(self, execution: Execution, seconds: float, refused: str | None) -> Live | Execution | None:
        """Return None when the key of an execution is its own now, else the execution that has it.

        Raises RunnerError `unavailable` when the engine, or the runner that has it, does not answer.
        """
        subject = self._subject(execution)
        data, ttl = pack(ClaimNews(author=self.author, name=execution.id)), min(seconds, LONGEST_SECONDS)
        expect, since = 0, self.clock()
        for _ in range(_MOST_TRIES):
            try:
                await _answered(lambda: self.engine.publish(subject, data, expect=expect, ttl=ttl))  # noqa: B023
            except StaleError:
                pass
            else:
                return None
            found, first = await self._read(subject)
            if first is None or first.name in ("", refused):
                expect = 0 if found is None else found.sequence
                continue
            if first.name == execution.id:  # an answer was lost
                return None
            known = await self._known(first.name)
            if known is not None:
                return known
            if self._may_come(first, since):
                await trio.sleep(_PAUSE_SECONDS)
            elif await self._end(execution, first.name):
                expect = 0 if found is None else found.sequence
            else:
                return await self.current(first.name)
        raise error(ErrorKind.UNAVAILABLE, "the first call with this key cannot be found now; try again", retry_after=1)

    async def release(self, execution: Execution) -> None:
        """Give the key of an execution up that was not accepted."""
        subject = self._subject(execution)
        with trio.move_on_after(2, shield=True):
            try:
                found, first = await self._read(subject)
                if found is not None and first is not None and first.name == execution.id:
                    free = pack(ClaimNews(author=self.author, name=""))
                    await self.engine.publish(subject, free, expect=found.sequence, ttl=1)
            except (EngineError, RunnerError) as problem:
                log.info("an idempotency key stays claimed for a moment", execution=execution.id, why=str(problem))

    async def current(self, name: str) -> Live | Execution:
        """Return an execution of any runner, live or ended, as soon as its runner is known here."""
        since = self.clock()
        while True:
            if (known := await self._known(name)) is not None:
                return known
            if self.clock() - since > FOUND_SECONDS:
                text = f"the execution {name} has this key, and its runner cannot be reached; try again"
                raise error(ErrorKind.UNAVAILABLE, text, retry_after=5)
            await trio.sleep(_PAUSE_SECONDS)

    def _subject(self, execution: Execution) -> str:
        names = execution.subject, execution.module.name, execution.idempotency_key or ""
        return self.engine.names.claim(sha256("\0".join(names).encode()).hexdigest())

    async def _read(self, subject: str) -> tuple[Stored | None, ClaimNews | None]:
        found = await _answered(lambda: self.engine.last(subject, fresh=True))
        if found is None or found.gone:
            return found, None
        try:
            return found, unpack(found.data, ClaimNews)
        except UnreadableError as problem:
            raise error(ErrorKind.UNAVAILABLE, f"the first call with this key cannot be read: {problem}") from problem

    async def _known(self, name: str) -> Live | Execution | None:
        """Return an execution of any runner."""
        try:
            live = await self.runs.owners.reach(name)
        except RunnerError as problem:
            if problem.failure.kind is not ErrorKind.UNAVAILABLE:
                raise
            live = None
        if live is not None:
            return live
        found = await self.runs.history.get(name)
        return found if found is not None and found.status not in _RUNS else None

    def _may_come(self, first: ClaimNews, since: float) -> bool:
        """Return whether the execution of a claim may still be accepted, or be on its way to this runner."""
        if self.clock() - since > FOUND_SECONDS:
            return False
        alive = self.alive()
        return alive is None or first.author.boot in alive or self.clock() - since < 1.0

    async def _end(self, execution: Execution, name: str) -> bool:
        """Make sure that an execution never begins; return whether that is so, as it was not accepted."""
        now = time.time()
        never = replace(
            execution,
            id=name,
            status=Status.CANCELLED,
            failure=_NEVER,
            input=b"null",
            idempotency_key=None,
            exit_code=130,
            finished_at=now,
        )
        data = pack_letter(Letter(self.author, never)).data
        try:
            await _answered(lambda: self.engine.publish(self.engine.names.state(name), data, expect=0))
        except StaleError:
            return False  # it was accepted: its state is about to arrive here
        log.warning("a call is made again whose runner ended before it accepted it", execution=name)
        return True


async def _answered(work: Callable[[], Awaitable[T]]) -> T:
    """Return the answer of the engine. Raises StaleError, and RunnerError `unavailable` without an answer."""
    try:
        return await work()
    except (AwayError, RefusedError) as problem:
        text = f"the servers of the cluster do not take the claim of the key: {problem}"
        raise error(ErrorKind.UNAVAILABLE, text, field="cluster", retry_after=5) from problem
