"""One accepted execution whose turn has come: it runs to its recorded end, or is left to another runner."""

from __future__ import annotations

import msgspec
import structlog
import trio
from attrs import define, evolve
from msgspec.structs import replace

from actors.executions.attempts import Attempts, retry_delay
from actors.executions.live import BROKEN, Live, LiveExecutions, SupersededError
from actors.turns import Backlog
from actors.workers import Outcome
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Status

_CUT_OFF = Failure(ErrorKind.LOST, "the runner was shut down while this was running")

log = structlog.get_logger("dispatcher")


@define(eq=False)
class Accepted:
    """Runs accepted executions, whose inputs are in the backlog or in their records."""

    attempts: Attempts
    live: LiveExecutions
    backlog: Backlog

    async def run(self, live: Live) -> None:
        """Run an execution until it has left: with a recorded end, or to another runner."""
        try:
            await self._run(live, await self.payload(live))
        except SupersededError:
            return  # it has left
        except RunnerError as problem:
            log.warning("an accepted execution has no recorded end", execution=live.execution.id, why=str(problem))
            self.refuse(live, problem)
        except Exception:
            log.exception("an execution failed inside the runner", execution=live.execution.id)
            await self.live.record(live, BROKEN)
        else:
            return
        await trio.lowlevel.checkpoint()  # many that fail at once must not hold up other tasks

    async def end(self, live: Live) -> None:
        """Record the end of an execution that was cancelled before it had its turn."""
        with trio.CancelScope(shield=True):  # no other task ends it; reading and recording have their own limits
            try:
                await self.payload(live)
                await self.live.record(live, live.stopped())
            except SupersededError:
                return
            except RunnerError as problem:
                log.warning("a cancelled execution has no recorded end", execution=live.execution.id, why=str(problem))
                self.refuse(live, problem)

    def refuse(self, live: Live, problem: RunnerError) -> None:
        """Remove an execution without a recorded end, unless the failed recording has done so."""
        if self.live.holds(live):
            self.live.leave(live, problem)

    async def payload(self, live: Live) -> msgspec.Raw:
        """Return the input of an accepted execution, if need be from its record.

        Raises RunnerError when the record is gone or cannot be read.
        """
        data = self.backlog.take_input(live.execution.id)
        if data is None:
            stored = await self.live.history.get(live.execution.id)
            if stored is None:
                raise error(ErrorKind.NOT_FOUND, "the record of the execution is gone")
            data = stored.input
        live.execution = replace(live.execution, input=data)
        return msgspec.Raw(data)

    async def _run(self, live: Live, raw: msgspec.Raw) -> None:
        """Run an accepted execution to its end; if the runner ends first, put it off."""
        try:
            outcome = await self.attempts.run(live, raw)
        except SupersededError:
            self.live.pass_on(live)
            raise
        except RunnerError as problem:
            outcome = Outcome(failure=problem.failure, exit_code=1)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._put_off(live, live.stopped())
            raise
        if outcome.failure is not None and outcome.failure.kind is ErrorKind.SHUTDOWN:
            await self._put_off(live, outcome)
        else:
            await self.live.record(live, outcome)

    async def _put_off(self, live: Live, outcome: Outcome) -> None:
        """Hand an execution that the shutdown cut off over to the next runner, if that may run it (again)."""
        if live.superseded:
            self.live.pass_on(live)
            return
        if live.execution.status is not Status.QUEUED:
            if live.began_at:
                if retry_delay(_CUT_OFF, live.attempt, live.module.spec.retry, 0.0) is None:
                    failure = Failure(ErrorKind.SHUTDOWN, _CUT_OFF.message)
                    await self.live.record(live, evolve(outcome, failure=failure))
                    return
                live.try_again(outcome, _CUT_OFF)
            try:
                await self.live.records.submit(replace(live.snapshot(), status=Status.QUEUED, waiting=None))
            except SupersededError:
                self.live.pass_on(live)
                return
        self.live.hand_over(live)
