"""Calls of modules: one, many, and asynchronous ones."""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from operato.connection import ANSWER_SECONDS, Link, segment
from operato.errors import ConflictError
from operato.events import Events
from operato.files import Files
from operato.inputs import encoded
from operato.outcomes import Batch
from operato.records import Event, Execution, Outcome
from operato.streams import AsyncStream

_JSON = "application/json"
_POLL_SECONDS = 30.0


class Calls:
    """The calls of a client."""

    def __init__(self, link: Link, files: Files, seconds: float | None) -> None:
        self._link = link
        self._files = files
        self._seconds = seconds

    async def call(
        self,
        name: str,
        input: Any = None,
        *,
        version: str | None = None,
        timeout: float | None = None,
        key: str | None = None,
    ) -> Any:
        """Call a module and return its result. `timeout` shortens the time limit of its handler, in seconds.

        The input is JSON; files (`operato.File`) and bytes in it are uploaded first. Raises OperatoError of the kind of
        the failure. Without `key`, a caller that is cancelled or disconnects cancels the execution. With an
        idempotency key, a lost connection is made again, and the same call returns the same execution.
        """
        return (await self.execute(name, input, version=version, timeout=timeout, key=key)).value()

    async def execute(
        self,
        name: str,
        input: Any = None,
        *,
        version: str | None = None,
        timeout: float | None = None,
        key: str | None = None,
    ) -> Execution:
        """Call a module as `call` does and return the whole execution, with its output, also if it failed."""
        return Execution.of(
            await self._link.json(
                "POST",
                f"/modules/execute/{segment(name)}",
                query={"version": version},
                body=await encoded(self._files, input),
                headers={"content-type": _JSON, "x-timeout": timeout, "idempotency-key": key},
                again=key is not None,
                seconds=self._seconds,
            )
        )

    async def submit(
        self,
        name: str,
        input: Any = None,
        *,
        version: str | None = None,
        timeout: float | None = None,
        key: str | None = None,
        priority: int | None = None,
        run_at: float | str | dt.datetime | None = None,
        delay: float | str | None = None,
    ) -> Execution:
        """Let a module run asynchronously, now or later, and return the accepted execution.

        Without `key` it gets an idempotency key of its own, so that a lost connection accepts nothing twice.
        """
        moment = run_at.astimezone().isoformat() if isinstance(run_at, dt.datetime) else run_at
        return Execution.of(
            await self._link.json(
                "POST",
                f"/modules/execute/{segment(name)}",
                query={"version": version, "priority": priority, "run_at": moment, "delay": delay},
                body=await encoded(self._files, input),
                headers={
                    "content-type": _JSON,
                    "prefer": "respond-async",
                    "x-timeout": timeout,
                    "idempotency-key": key or uuid.uuid4().hex,
                },
                again=True,
                seconds=ANSWER_SECONDS,
            )
        )

    async def wait(self, execution: Execution | str, *, timeout: float | None = None) -> Any:
        """Wait until an execution has ended, and return its result. Raises its error.

        Raises TimeoutError if it has not ended after `timeout` seconds; the execution continues. Needs the scope
        `executions:read`.
        """
        identity = _identity(execution)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            events = Events(self._link, identity, 0, deadline)
            try:
                while await events.take() is not None:
                    pass
            except ConflictError:  # it is scheduled for later
                if not await self._due(identity, deadline):
                    raise
                continue
            finally:
                await events.close()
            found = await self._link.json("GET", f"/executions/{segment(identity)}")
            return Execution.of(found).value()

    async def _due(self, identity: str, deadline: float | None) -> bool:
        """Wait until a scheduled execution may begin; return False for any other one. Raises TimeoutError."""
        found = await self._link.json("GET", f"/executions/{segment(identity)}")
        if found.get("status") != "scheduled":
            return Execution.of(found).ended or found.get("status") in ("queued", "running")
        pause = min(max(float(found.get("run_at") or 0) - time.time(), 0.2), _POLL_SECONDS)
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("the execution has not begun in time")
            pause = min(pause, remaining)
        await self._link.transport.sleep(pause)
        return True

    async def map(
        self,
        name: str,
        inputs: Iterable[Any],
        *,
        parallel: int = 8,
        version: str | None = None,
        timeout: float | None = None,
        key: str | None = None,
    ) -> list[Any]:
        """Call a module for each input, `parallel` at a time, and return the results in the order of the inputs.

        The first error ends it: an AsyncClient cancels the other calls, a Client begins no further ones. With `key`,
        each call has the idempotency key `KEY-NUMBER`.
        """
        _check_parallel(parallel)
        results: dict[int, Any] = {}

        async def one(number: int, value: Any) -> None:
            own = None if key is None else f"{key}-{number}"
            results[number] = await self.call(name, value, version=version, timeout=timeout, key=own)

        await self._link.transport.each(one, inputs, parallel)
        return [results[number] for number in range(len(results))]

    def batch(
        self,
        name: str,
        inputs: Iterable[Any],
        *,
        parallel: int | None = None,
        version: str | None = None,
        timeout: float | None = None,
    ) -> AsyncStream[Outcome]:
        """Call a module for any number of inputs in few requests, and yield the outcomes in the order of the inputs.

        A failed input is an outcome with an error, and the others continue. Inputs are taken up to 1000 at a time; the
        runner runs `parallel` of these at a time, by default as many as the module's `concurrency`.
        """
        if parallel is not None:
            _check_parallel(parallel)
        how: Mapping[str, Any] = {"version": version, "parallel": parallel}
        batch = Batch(self._link, self._files, f"/modules/execute/{segment(name)}/batch", inputs, how, timeout)
        return AsyncStream(batch.take, batch.close)

    def events(self, execution: Execution | str, *, start: int = 0) -> AsyncStream[Event]:
        """Yield the events of an execution from number `start` on: past ones, then live ones, to its end.

        A lost connection is made again for up to a minute, without gaps and repetitions. Needs `executions:read`.
        """
        events = Events(self._link, _identity(execution), start)
        return AsyncStream(events.take, events.close)

    def stream(
        self,
        name: str,
        input: Any = None,
        *,
        version: str | None = None,
        timeout: float | None = None,
        key: str | None = None,
    ) -> AsyncStream[Event]:
        """Call a module asynchronously and yield its events while it runs: output, items, progress, the end.

        Leaving early does not cancel the execution. Needs `executions:run` and `executions:read`.
        """
        begun: list[Events] = []

        async def take() -> Event | None:
            if not begun:
                accepted = await self.submit(name, input, version=version, timeout=timeout, key=key)
                begun.append(Events(self._link, accepted.id, 0))
            return await begun[0].take()

        async def close() -> None:
            for events in begun:
                await events.close()

        return AsyncStream(take, close)


def _identity(execution: Execution | str) -> str:
    return execution if isinstance(execution, str) else execution.id


def _check_parallel(parallel: int) -> None:
    if not 1 <= parallel <= 256:
        raise ValueError(f"parallel is from 1 to 256, not {parallel}")
