"""Keeps an actor running: restarts it with back-off, and gives up when restarting does not help."""

from __future__ import annotations

from typing import Any, Protocol

import structlog
import trio
from attrs import field, frozen, validators

log: Any = structlog.get_logger(__name__)


class Actor(Protocol):
    """An object that can be supervised."""

    async def run(self, *, task_status: trio.TaskStatus[Any]) -> None:
        """Do the actor's work until cancelled; call `task_status.started()` once it can be used."""


class ActorFailed(Exception):  # noqa: N818 - the name is the sentence
    """An actor failed too often, so the runner goes down; the last failure is the `__cause__`."""

    def __init__(self, name: str, failures: int, window_seconds: float) -> None:
        super().__init__(f"the {name} failed {failures} times within {window_seconds:g} seconds")
        self.name = name


@frozen
class Restart:
    """The decision to restart after `delay_seconds`; `failures` are the clock times to remember for the next one."""

    delay_seconds: float
    failures: tuple[float, ...]


@frozen
class RestartPolicy:
    """At most `max_restarts` within `window_seconds`; the n-th waits `initial * factor ** (n - 1)`, at most `max`."""

    max_restarts: int = field(default=5, validator=validators.ge(0))
    window_seconds: float = field(default=60.0, validator=validators.gt(0))
    initial_seconds: float = field(default=0.1, validator=validators.ge(0))
    factor: float = field(default=2.0, validator=validators.ge(1))
    max_seconds: float = field(default=5.0, validator=validators.ge(0))

    def next(self, failures: tuple[float, ...], now: float) -> Restart | None:
        """Decide about a failure at `now` after those at the times `failures`; None means: give up.

        Failures older than the window are forgotten, for the count and for the delay.
        """
        recent = (*(at for at in failures if now - at < self.window_seconds), now)
        if len(recent) > self.max_restarts:
            return None
        # The exponent is bounded by max_restarts, but a large one must not overflow a float.
        delay = self.initial_seconds
        for _ in recent[1:]:
            delay = min(delay * self.factor, self.max_seconds)
        return Restart(min(delay, self.max_seconds), recent)


class _FirstStart:
    """A task status that passes on the first start only: its receiver waits for one."""

    def __init__(self, status: trio.TaskStatus[Any]) -> None:
        self._status = status
        self.passed = False

    def started(self, value: Any = None) -> None:
        if not self.passed:
            self.passed = True
            self._status.started(value)


async def supervise(
    actor: Actor,
    *,
    name: str,
    policy: RestartPolicy | None = None,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run an actor until it returns; run it again when it raises.

    `task_status` passes on the first `started` of the actor. An actor that fails before that is not restarted: its
    exception reaches the caller that starts the runner and can act on it.
    Raises `ActorFailed` from the last error when `policy` gives up. Cancellation ends the actor's run and this.
    """
    policy = policy or RestartPolicy()
    first = _FirstStart(task_status)
    failures: tuple[float, ...] = ()
    while True:
        try:
            await actor.run(task_status=first)
        except Exception as error:
            if not first.passed:
                raise
            restart = policy.next(failures, trio.current_time())
            if restart is None:
                log.critical("actor failed too often: the runner goes down", actor=name, exc_info=True)
                raise ActorFailed(name, policy.max_restarts + 1, policy.window_seconds) from error
            failures = restart.failures
            log.exception("actor failed and is restarted", actor=name, delay=restart.delay_seconds)
            await trio.sleep(restart.delay_seconds)
        else:
            return
