"""The task of a connection, which runs its handlers one after another.

It is started by the first request, and parked between requests: waking it costs a fraction of a new task. A request
that comes while it is busy, with work of its handler after the last message, starts another task, and the busy one ends
with its handler.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Protocol

import trio

from runner.http.asgi import App
from runner.http.exchange import call
from runner.http.messages import Message


class Served(Protocol):
    """A request or websocket."""

    scope: Message
    cancel_scope: trio.CancelScope | None

    async def receive(self) -> Message:
        """Return the next message for the handler."""

    async def send(self, message: Message) -> None:
        """Send a message of the handler."""

    def ended(self) -> None:
        """Answer in place of a handler that has returned."""

    def interrupted(self) -> None:
        """Answer in place of a handler that was cancelled from outside of its connection."""


class Tasks:
    """Runs the handlers of one connection. Each has context variables of its own, copied when the connection began."""

    def __init__(self, app: App, nursery: trio.Nursery, idle: Callable[[], None]) -> None:
        """Start tasks in `nursery`; call `idle` when the last one has ended."""
        self.running = 0
        self._app = app
        self._nursery = nursery
        self._idle = idle
        self._open = True
        self._scope: trio.CancelScope | None = None  # of the task that gets the next request
        self._parked: trio.lowlevel.Task | None = None
        self._next: Served | None = None  # for the parked task, when it is woken
        self._variables = contextvars.copy_context()

    def serve(self, served: Served) -> None:
        """Run the handler of a request, in the parked task or a new one."""
        task = self._parked
        if task is None:
            self._scope = served.cancel_scope = trio.CancelScope()
            self.running += 1
            # A pipelined request is begun by the task that answered the one before, whose variables stay its own.
            self._variables.run(self._nursery.start_soon, self._work, served, self._scope)
        else:
            self._parked, self._next = None, served
            served.cancel_scope = self._scope
            task.context = self._variables.copy()
            trio.lowlevel.reschedule(task)

    def close(self) -> None:
        """Serve no more requests: the parked task ends, and a busy one with its handler."""
        self._open = False
        task, self._parked = self._parked, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    async def _work(self, served: Served | None, scope: trio.CancelScope) -> None:
        """Run handlers, until the connection ends or another task has taken over."""
        last = served
        try:
            with scope:
                while served is not None:
                    last = served
                    await call(self._app, served.scope, served.receive, served.send)
                    served.ended()
                    served = await self._park() if self._open and self._scope is scope else None
        except BaseException:  # a cancellation from outside, perhaps in a group
            if last is not None:
                last.interrupted()
            raise
        finally:
            if self._scope is scope:
                self._scope = None
            self.running -= 1
            if not self.running:
                self._idle()

    async def _park(self) -> Served | None:
        """Wait for the next request; None: there will be none."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._parked, self._next = trio.lowlevel.current_task(), None
        await trio.lowlevel.wait_task_rescheduled(abort)
        return self._next
