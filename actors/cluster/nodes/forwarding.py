"""Calls that another runner runs for a caller of this one: it has a free place, or what the module needs.

Rules:
* A call is begun once. It has its id from here; a runner that may have got it is asked to withhold it before another
  one is tried, and without an answer the call is `lost`.
* The runner with the caller copies events and end. The runner that runs it records it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Final

import msgspec
import structlog
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.engine import AwayError, UnansweredError
from actors.cluster.nodes.mirror import FOLLOW_SECONDS
from actors.cluster.nodes.presence import Neighbours
from actors.cluster.nodes.requests import Requests
from actors.cluster.nodes.wording import Absent, Cancel, Follow, Found, News, Refused, Run, Taken, Withhold
from actors.events import last_of
from actors.executions import Live, LiveExecutions, Runs
from actors.workers import Outcome
from config.cluster import missing_labels
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.events import decode_all
from protocol.model import Execution, Isolation

_TRIES: Final = 2
"""Runners that are asked to run a call."""
_ASK_SECONDS: Final = 10.0
_WITHHOLD_SECONDS: Final = 30.0
"""The longest wait for the answer whether an offered call has begun."""
_SILENCE_SECONDS: Final = 60.0
"""After this silence of the runner that runs a call, it is lost, even if that runner seems to be there."""
_PAUSE_SECONDS: Final = 0.25
_STOP_SECONDS: Final = 20.0
"""The longest wait for the end of a call whose caller went away."""
_GONE: Final = Failure(ErrorKind.CANCELLED, "the caller went away")
_LOST: Final = "the runner {node}, which ran this for a caller of another one, is gone"

log = structlog.get_logger("cluster")


@define(eq=False)
class Forwarding:
    """Runs calls on other runners."""

    runs: Runs
    lives: LiveExecutions
    requests: Requests
    neighbours: Neighbours
    labels: tuple[str, ...]
    adopt: Callable[[Execution], Awaitable[None]]
    """Stores an end that another runner has recorded."""
    guests: Collection[str]
    """Calls that run here for callers of other runners."""
    forwarded: int = field(default=0, init=False)
    """Calls that other runners took."""

    async def run(self, live: Live, raw: msgspec.Raw) -> Execution | None:
        """Run a call on another runner if that is better, and return its recorded end; None: it is for this runner.

        Raises RunnerError `unavailable` when no runner has what the module needs; then the call has left. Cancelled,
        it has been ended, as far as its runner answers.
        """
        missing = self._missing(live)
        if not missing and not self._is_full(live):
            return None
        tried: list[str] = []
        spec = live.module.spec
        while len(tried) < _TRIES and live.stopped_by is None:
            now = trio.current_time()
            found = self.neighbours.free(spec.env, spec.needs, now, without=tried, even_full=bool(missing))
            if not found:
                break
            tried.append(found[0])
            ended = await self._run_on(found[0], live, raw, even_full=bool(missing))
            if ended is not None:
                return ended
        if missing and live.stopped_by is None:
            problem = _unmet(missing, tried, is_away=self.neighbours.is_away)
            self.lives.leave(live, problem)
            raise problem
        return None

    def _missing(self, live: Live) -> tuple[str, ...]:
        """Return what this runner lacks: labels, or the kind of environment."""
        spec = live.module.spec
        if live.execution.id in self.guests or spec.isolation is Isolation.NONE:
            return ()
        missing = missing_labels(spec.needs, self.labels)
        available = self.runs.attempts.executors[spec.env].availability.available
        return missing if available else (*missing, f"env: {spec.env}")

    def _is_full(self, live: Live) -> bool:
        """Whether a call would wait here for a place. Calls of handlers stay here: they have places of their own."""
        if live.path or live.execution.id in self.guests or self.runs.asking.approvals.asks(live):
            return False
        spec = live.module.spec
        return spec.isolation is not Isolation.NONE and self.runs.attempts.executors[spec.env].must_wait(live.module)

    async def _run_on(self, node: str, live: Live, raw: msgspec.Raw, *, even_full: bool) -> Execution | None:
        """Run a call on this runner; None if it has not begun there, and never will."""
        execution = replace(live.execution, node=node, input=bytes(raw))
        self.neighbours.lend(node)
        try:
            if not await self._offer(node, Run(execution, live.module.content_digest, live.path, even_full)):
                return None
            self.forwarded += 1
            return await self._follow(node, live)
        except trio.Cancelled:
            with trio.CancelScope(shield=True), trio.move_on_after(_STOP_SECONDS):
                await self._stop(node, live)
            self.lives.leave(live, RunnerError(_GONE))
            raise

    async def _offer(self, node: str, question: Run) -> bool:
        """Return whether a runner has taken a call. One that may have got it counts as having it."""
        try:
            answer = await self.requests.ask(node, question, timeout=_ASK_SECONDS)
        except UnansweredError:
            return False
        except AwayError:
            return await self._has(node, question.execution.id)
        if isinstance(answer, Refused):
            log.debug("a runner refuses a call", execution=question.execution.id, node=node, why=answer.failure.message)
        return isinstance(answer, Taken)

    async def _has(self, node: str, name: str) -> bool:
        """Return whether a runner has a call, whose offer it may have got; if not, it will never begin it."""
        until = trio.current_time() + _WITHHOLD_SECONDS
        while (now := trio.current_time()) < until and self.neighbours.get(node, now) is not None:
            try:
                return not isinstance(await self.requests.ask(node, Withhold(name)), Absent)
            except (AwayError, UnansweredError):
                await trio.sleep(_PAUSE_SECONDS)
        return True

    async def _follow(self, node: str, live: Live) -> Execution | None:
        """Copy the events of a call until its end; None if it has not begun."""
        heard = trio.current_time()
        stopped = False
        while True:
            if live.stopped_by is not None and not stopped:
                stopped = await self._asked_to_stop(node, live, live.stopped_by)
            question = Follow(live.execution.id, live.log.next_seq, FOLLOW_SECONDS)
            try:
                with trio.CancelScope() as scope:
                    live.pause = None if stopped else scope
                    answer = await self.requests.ask(node, question, timeout=2 * FOLLOW_SECONDS)
                live.pause = None
                if scope.cancelled_caught:
                    continue
            except (AwayError, UnansweredError):
                live.pause = None
                now = trio.current_time()
                if self.neighbours.get(node, now) is None or now - heard > _SILENCE_SECONDS:
                    return await self._lost(node, live)
                await trio.sleep(_PAUSE_SECONDS)
                continue
            heard = trio.current_time()
            if isinstance(answer, News):
                if (ended := await self._copy(live, answer)) is not None:
                    return ended
            elif isinstance(answer, Refused) and not answer.began:
                return None
            else:
                return await self._lost(node, live)

    async def _copy(self, live: Live, news: News) -> Execution | None:
        for event in decode_all(news.events):
            live.log.take(event)
        live.waiting, live.attempt = news.waiting, news.attempts
        if news.ended is None:
            return None
        try:
            await self.adopt(news.ended)
        except RunnerError as problem:  # the projection brings it
            log.warning("the end of a call is not here yet", execution=live.execution.id, why=str(problem))
        live.execution = news.ended
        if live.log.followed:
            live.log.end(last_of(news.ended))
        self.lives.leave(live)
        return news.ended

    async def _asked_to_stop(self, node: str, live: Live, why: Failure) -> bool:
        try:
            await self.requests.ask(node, Cancel(live.execution.id, why, 0.0))
        except (AwayError, UnansweredError):
            return False
        return True

    async def _stop(self, node: str, live: Live) -> None:
        """End a call whose caller went away, and store its end here."""
        while self.neighbours.get(node, trio.current_time()) is not None:
            try:
                answer = await self.requests.ask(node, Cancel(live.execution.id, _GONE, 5.0), timeout=10)
            except (AwayError, UnansweredError):
                await trio.sleep(_PAUSE_SECONDS)
                continue
            if isinstance(answer, Found):
                try:
                    await self.adopt(answer.execution)
                except RunnerError as problem:
                    log.warning("the end of a call is not here yet", execution=live.execution.id, why=str(problem))
            if not isinstance(answer, Taken):
                return

    async def _lost(self, node: str, live: Live) -> Execution:
        """Record that the end of a call is not known."""
        log.warning("a call is lost with its runner", execution=live.execution.id, node=node)
        failure = Failure(ErrorKind.LOST, _LOST.format(node=node))
        live.attempt = max(live.attempt, 1)
        live.count()
        return await self.lives.record(live, Outcome(failure=failure))


def _unmet(missing: tuple[str, ...], tried: list[str], *, is_away: bool) -> RunnerError:
    wanted = ", ".join(missing)
    if is_away:
        text = f"the module needs {wanted}, and no other runner can be asked: the servers of the cluster do not answer"
        return error(ErrorKind.UNAVAILABLE, text, field="needs", retry_after=5)
    if tried:
        text = (
            f"the runners with {wanted}, which the module needs, did not take the call: {', '.join(tried)}; try again"
        )
        return error(ErrorKind.UNAVAILABLE, text, field="needs", retry_after=1)
    text = f"no runner that takes work has {wanted}, which the module needs: see `nodes`, and `doctor` on each runner"
    return error(ErrorKind.UNAVAILABLE, text, field="needs", retry_after=5)
