"""Unit: the restart policy as a value, and the supervisor on a clock that jumps."""

import pytest
import trio
from structlog.testing import capture_logs

from actors.supervise import ActorFailed, Restart, RestartPolicy, supervise


def test_delays_grow_and_are_bounded():
    policy = RestartPolicy(max_restarts=5, window_seconds=60, initial_seconds=1, factor=3, max_seconds=5)
    failures, delays = (), []
    for now in range(5):
        restart = policy.next(failures, now)
        failures = restart.failures
        delays.append(restart.delay_seconds)

    assert delays == [1, 3, 5, 5, 5]
    assert policy.next(failures, 5) is None


def test_failures_outside_the_window_are_forgotten():
    policy = RestartPolicy(max_restarts=2, window_seconds=10, initial_seconds=1, factor=2, max_seconds=100)

    assert policy.next((0.0, 1.0), 9.0) is None
    assert policy.next((0.0, 1.0), 10.5) == Restart(2, (1.0, 10.5))
    assert policy.next((0.0, 1.0), 50.0) == Restart(1, (50.0,))


def test_no_restarts_at_all_and_huge_counts():
    assert RestartPolicy(max_restarts=0).next((), 0.0) is None
    policy = RestartPolicy(max_restarts=5000, factor=10.0, max_seconds=5.0)
    assert policy.next(tuple(0.0 for _ in range(4000)), 1.0).delay_seconds == 5.0


class Flaky:
    """An actor that fails `lives` seconds after its start, the first `fails` times."""

    def __init__(self, *, fails, lives=0.0, starts=True):
        self.runs = []
        self.fails, self.lives, self.starts = fails, lives, starts

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        self.runs.append(trio.current_time())
        if self.starts:
            task_status.started(len(self.runs))
        await trio.sleep(self.lives)
        if len(self.runs) <= self.fails:
            raise OSError("it broke")


POLICY = RestartPolicy(max_restarts=3, window_seconds=100, initial_seconds=1, factor=2, max_seconds=60)


async def test_restarts_with_back_off_and_ends_with_the_actor(autojump_clock):
    actor = Flaky(fails=3)
    begun = trio.current_time()
    with capture_logs() as logs:
        await supervise(actor, name="flaky", policy=POLICY)

    assert [at - begun for at in actor.runs] == [0, 1, 3, 7]
    assert [entry["log_level"] for entry in logs] == ["error"] * 3


async def test_escalates_after_too_many_failures(autojump_clock):
    actor = Flaky(fails=99)
    with capture_logs() as logs, pytest.raises(ActorFailed, match="flaky failed 4 times within 100") as caught:
        await supervise(actor, name="flaky", policy=POLICY)

    assert len(actor.runs) == 4
    assert isinstance(caught.value.__cause__, OSError)
    assert logs[-1]["log_level"] == "critical"
    assert logs[-1]["actor"] == "flaky"


async def test_an_actor_that_fails_rarely_is_always_restarted(autojump_clock):
    actor = Flaky(fails=20, lives=60)
    await supervise(actor, name="flaky", policy=POLICY)

    assert len(actor.runs) == 21


async def test_the_first_start_is_passed_on_once(autojump_clock):
    actor = Flaky(fails=2, lives=1)
    async with trio.open_nursery() as nursery:

        async def start(*, task_status):
            await supervise(actor, name="flaky", policy=POLICY, task_status=task_status)

        assert await nursery.start(start) == 1

    assert len(actor.runs) == 3


async def test_an_actor_that_never_started_is_not_restarted(autojump_clock):
    actor = Flaky(fails=99, starts=False)
    with pytest.raises(OSError, match="it broke"):
        await supervise(actor, name="flaky", policy=POLICY)

    assert len(actor.runs) == 1


async def test_cancellation_ends_the_actor_and_the_supervisor(autojump_clock):
    actor = Flaky(fails=99, lives=1)
    with trio.move_on_after(1.5) as scope:
        await supervise(actor, name="flaky", policy=POLICY)

    assert scope.cancelled_caught
    assert len(actor.runs) == 1
