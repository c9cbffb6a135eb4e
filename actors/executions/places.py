"""What holds an execution back besides workers: labels that its module needs, its rate, and the limit of its group.

Rates and groups hold for executions out of the backlog and for calls that wait for their answer. A call that waits
takes its place before it asks for a worker, and waits at most `queue_timeout`. An execution has its place until its
end: also between its attempts, so that those of a group do not overtake each other. Both are of this runner, and begin
anew with it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from actors.executions.live import Live
from actors.registry import Published
from actors.turns import Groups, Rates
from actors.workers import Outcome
from config.cluster import missing_labels
from config.modules import limit_of
from protocol.errors import ErrorKind, error


@define(eq=False)
class Places:
    """The rates and groups of all modules."""

    clock: Callable[[], float] = time.monotonic
    labels: tuple[str, ...] = ()
    """What this runner has, for the modules that need it."""
    _groups: Groups = field(factory=Groups, init=False)
    _rates: Rates = field(factory=Rates, init=False)
    _alarms: set[str] = field(factory=set, init=False)
    """Modules whose backlog is looked at when their rate allows it."""
    _nursery: trio.Nursery | None = field(default=None, init=False)
    _free: Callable[[str, str], None] = field(default=lambda _module, _group: None, init=False)
    _dispatch: Callable[[], None] = field(default=lambda: None, init=False)

    def open(self, nursery: trio.Nursery, free: Callable[[str, str], None], dispatch: Callable[[], None]) -> None:
        """Serve a backlog: `free` lets a group of a module be served again, `dispatch` takes what may run."""
        self._nursery, self._free, self._dispatch = nursery, free, dispatch
        self._alarms.clear()

    # The backlog

    def must_wait(self, name: str, module: Published | None) -> bool:
        """Return whether the rate of a module holds its backlog, which is looked at again in time, or its needs do."""
        if module is not None and module.spec.needs and self.lacks(module):
            return True
        seconds = self.rate_wait(name, module)
        if seconds > 0 and self._nursery is not None and name not in self._alarms:
            self._alarms.add(name)
            self._nursery.start_soon(self._look_again, name, seconds)
        return seconds > 0

    async def _look_again(self, name: str, seconds: float) -> None:
        await trio.sleep(seconds)
        self._alarms.discard(name)
        self._dispatch()

    def full_groups(self, name: str, module: Published | None) -> Callable[[str], bool]:
        """Return the function that tells whether a group of a module is full."""
        policy = None if module is None else module.spec.group
        if policy is None:
            return _never
        return lambda group: self._groups.full((name, group), policy.concurrency)

    def begin(self, name: str, group: str | None, module: Published | None) -> None:
        """Take a place for an execution of a module."""
        if group is not None:
            self._groups.take((name, group))
        if module is not None and module.spec.rate is not None:
            self._rates.note(name, self.clock())

    def end(self, name: str, group: str | None) -> None:
        """Give the place of an execution that has ended to the next one of its group."""
        if group is not None and self._groups.leave((name, group)):
            self._free(name, group)
            self._dispatch()

    # Calls that wait

    async def run(self, live: Live, attempts: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Run the attempts of a call in its place.

        Raises RunnerError: `overloaded` when it has none within `queue_timeout`, and what the attempts raise.
        """
        name, group, module = place_of(live), live.execution.group, live.module
        limit = trio.current_time() + module.spec.queue_timeout
        if group is not None and not await self._wait_group(live, name, group, limit):
            return live.stopped()
        try:
            if live.stopped_by is None:
                await self._wait_rate(live, module.spec.name, limit)
            return live.stopped() if live.stopped_by is not None else await attempts()
        finally:
            self.end(name, group)

    async def _wait_group(self, live: Live, name: str, group: str, limit: float) -> bool:
        """Take a place in a group; return False when the execution was cancelled before it had one."""
        policy = live.module.spec.group
        key, most = (name, group), 1 if policy is None else policy.concurrency
        if not self._groups.full(key, most):
            self._groups.take(key)
            return True
        live.wait_for(self.group_reason(name, group))
        has_place = trio.Event()
        number = self._groups.wait(key, has_place.set)
        try:
            await _pause(live, limit, has_place)
        except BaseException:
            if has_place.is_set():
                self.end(name, group)
            else:
                self._groups.leave_queue(key, number)
            raise
        if has_place.is_set():
            return True
        self._groups.leave_queue(key, number)
        if live.stopped_by is not None:
            return False
        why = f"{self.group_reason(name, group)}; `queue_timeout` passed"
        raise error(ErrorKind.OVERLOADED, why, retry_after=1)

    async def _wait_rate(self, live: Live, name: str, limit: float) -> None:
        """Wait until the rate of the module allows the call, and note its begin."""
        while (seconds := self.rate_wait(name, live.module)) > 0 and live.stopped_by is None:
            reason = f"the rate of the module is {live.module.spec.rate}"
            if trio.current_time() + seconds > limit:
                raise error(ErrorKind.OVERLOADED, f"{reason}; `queue_timeout` would pass", retry_after=seconds)
            live.wait_for(reason)
            await _pause(live, trio.current_time() + seconds, trio.Event())
        if live.module.spec.rate is not None:
            self._rates.note(name, self.clock())

    # Reasons

    def lacks(self, module: Published) -> str:
        """Return why this runner may not run a module; empty when it has the labels that the module needs."""
        missing = missing_labels(module.spec.needs, self.labels)
        if not missing:
            return ""
        return (
            f"this runner has no {', '.join(missing)}, which the module `needs`; add the label to `labels` of a runner"
        )

    def rate_wait(self, name: str, module: Published | None) -> float:
        """Return how many seconds the rate of a module holds its next execution."""
        if module is None or module.spec.rate is None:
            return 0.0
        return self._rates.wait(name, *limit_of(module.spec.rate), self.clock())

    def group_reason(self, name: str, group: str) -> str:
        """Return why an execution of a group waits."""
        return f"{self._groups.taken((name, group))} executions of its group {group} run, which is the limit"

    def reason(self, live: Live) -> str | None:
        """Return what holds a queued execution, None when it is neither needs, rate nor group."""
        name, group, policy = live.execution.module.name, live.execution.group, live.module.spec.group
        if lacks := self.lacks(live.module):
            return lacks
        if group is not None and policy is not None and self._groups.full((name, group), policy.concurrency):
            return self.group_reason(name, group)
        if self.rate_wait(name, live.module) > 0:
            return f"the rate of the module is {live.module.spec.rate}"
        return None


def place_of(live: Live) -> str:
    """Return the name under which a call takes its place in a group.

    Calls of handlers have places of their own, apart for each number of handlers that wait: one that waits for another
    execution of its group waits for handlers only that were called as deeply, and never for its own caller.
    """
    name = live.execution.module.name
    return f"{name} {len(live.path)}" if live.path else name


def _never(_group: str) -> bool:
    return False


async def _pause(live: Live, until: float, event: trio.Event) -> None:
    """Wait for an event; `cancel` of the execution ends the wait."""
    live.pause = trio.CancelScope(deadline=until)
    try:
        with live.pause:
            await event.wait()
    finally:
        live.pause = None
