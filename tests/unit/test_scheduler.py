"""Unit: who gets a worker next: the decision as a table, turns of modules, eviction, and what leaves the queue."""

from __future__ import annotations

from types import SimpleNamespace

import attrs
import pytest

from actors.workers.pool import Phases, Waiter
from actors.workers.scheduler import Scheduler, Step, next_step
from config.modules.policies import WorkersPolicy
from config.settings import ExecutorSettings
from protocol.errors import ErrorKind, Failure
from protocol.model import Isolation

CALM = {
    "idle": 0,
    "own": 0,
    "starting": 0,
    "waiting": 1,
    "concurrency": 2,
    "total": 0,
    "room": 4,
    "evictable": False,
    "paused": False,
}


def module(name, *, concurrency=2, least=0):
    workers = WorkersPolicy(min=least)
    spec = SimpleNamespace(isolation=Isolation.WARM, concurrency=concurrency, workers=workers)
    return SimpleNamespace(digest=name, ref=name, spec=spec)


@attrs.define(eq=False)
class Idle:
    """The parts of a worker that the scheduler looks at."""

    module: object
    idle_since: float = 0.0
    guest: object = SimpleNamespace(exit_code=None)
    reusable: bool = True
    calls: int = 0
    launched_at: float = 0.0


class Kind:
    """A scheduler of the modules `a`, `b` and `c`; it records the starts and the retired workers."""

    def __init__(self, room=4, **fields):
        self.starts, self.retired = [], []
        self.scheduler = Scheduler(ExecutorSettings(max_workers=room, max_age_seconds=1e9), self.start, self.retire)
        self.modules = {name: module(name, **fields) for name in "abc"}
        self.scheduler.publish("abc", "abc")

    def start(self, pool):
        pool.starting += 1
        self.starts.append(pool.module.digest)

    def retire(self, of):
        self.retired.append(of)

    def pool(self, name):
        return self.scheduler.pool(self.modules[name])

    def idle(self, name, **fields):
        one = Idle(self.modules[name], **fields)
        self.pool(name).idle.append(one)
        return one

    def wait(self, name):
        waiter = Waiter()
        self.scheduler.join(self.pool(name), waiter)
        return waiter

    def started(self, name, failure=None, cause=None):
        pool = self.pool(name)
        pool.starting -= 1
        self.scheduler.started(pool, failure or Idle(self.modules[name]), Phases(), cause)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, Step.SPAWN),
        ({"idle": 1, "paused": True}, Step.REUSE),
        ({"paused": True}, Step.REFUSE),
        ({"paused": True, "own": 1}, Step.WAIT),
        ({"own": 2}, Step.WAIT),
        ({"own": 1, "starting": 1}, Step.WAIT),
        ({"own": 1, "starting": 1, "waiting": 2}, Step.SPAWN),
        ({"total": 4}, Step.WAIT),
        ({"total": 4, "evictable": True}, Step.EVICT),
    ],
)
def test_the_step_for_the_oldest_caller(changes, step):
    assert next_step(**{**CALM, **changes}) is step


async def test_callers_of_a_module_are_served_in_order():
    kind = Kind()
    first, second = kind.wait("a"), kind.wait("a")
    assert kind.starts == ["a", "a"]

    kind.started("a")
    assert (first.woken.is_set(), second.woken.is_set()) == (True, False)
    kind.scheduler.release(first.worker)

    assert second.worker is first.worker
    assert kind.scheduler.waiting == 0


async def test_modules_take_turns():
    """A flood of `a` keeps the only place while its turn lasts; then `b`, which came last, gets it."""
    kind = Kind(room=1)
    flood = [kind.wait("a") for _ in range(3)]
    other = kind.wait("b")
    kind.started("a")
    kind.scheduler.release(flood[0].worker)
    assert flood[1].worker is flood[0].worker

    kind.pool("a").turn_at -= 1.0
    kind.scheduler.release(flood[1].worker)

    assert kind.starts == ["a", "b"]
    assert kind.retired == [flood[0].worker]
    kind.started("b")
    assert other.woken.is_set()


async def test_the_longest_idle_worker_is_evicted():
    kind = Kind(room=3)
    kind.idle("b", idle_since=2.0)
    longest = kind.idle("c", idle_since=1.0)
    kind.idle("c", idle_since=3.0)
    kind.wait("a")

    assert kind.retired == [longest]
    assert kind.starts == ["a"]


async def test_workers_min_is_not_evicted():
    kind = Kind(room=1, least=1)
    kind.idle("b")
    waiter = kind.wait("a")

    assert (kind.starts, kind.retired, waiter.woken.is_set()) == ([], [], False)


async def test_a_failure_goes_to_the_oldest_caller_only():
    kind = Kind()
    first, second = kind.wait("a"), kind.wait("a")
    kind.started("a", Failure(ErrorKind.LOAD_FAILED, "no"))

    assert first.failure.kind is ErrorKind.LOAD_FAILED
    assert not second.woken.is_set()


async def test_a_start_is_for_the_caller_that_caused_it():
    kind = Kind()
    first, second = kind.wait("a"), kind.wait("a")
    kind.started("a", cause=second)
    kind.started("a", Failure(ErrorKind.LOAD_FAILED, "no"), cause=first)

    assert second.worker is not None
    assert first.failure.kind is ErrorKind.LOAD_FAILED
    assert kind.scheduler.waiting == 0


async def test_a_start_whose_cause_has_gone():
    """The oldest caller gets its worker. Its failure is for a caller that has no start of its own."""
    kind = Kind()
    gone, first, second = Waiter(), kind.wait("a"), kind.wait("a")
    first.caused = True
    kind.started("a", Failure(ErrorKind.LOAD_FAILED, "no"), cause=gone)
    assert not first.woken.is_set()
    assert second.failure.kind is ErrorKind.LOAD_FAILED
    kind.started("a", cause=gone)
    assert first.worker is not None


async def test_a_caller_that_gives_up_leaves_nothing():
    kind = Kind()
    waiting, served = kind.wait("a"), kind.wait("b")
    kind.started("b")
    for name, waiter in (("a", waiting), ("b", served)):
        kind.scheduler.leave(kind.pool(name), waiter)

    assert (kind.scheduler.waiting, kind.pool("b").busy) == (0, set())
    assert kind.pool("b").idle == [served.worker]


async def test_closing_wakes_all_callers_and_keeps_no_worker():
    kind = Kind(concurrency=1)
    first = kind.wait("a")
    kind.started("a")
    second = kind.wait("a")
    kind.scheduler.close()
    kind.scheduler.release(first.worker)

    assert second.failure.kind is ErrorKind.SHUTDOWN
    assert (kind.scheduler.waiting, kind.retired) == (0, [first.worker])


async def test_workers_of_an_old_version_are_retired():
    kind = Kind()
    idle = kind.idle("a")
    kind.scheduler.publish("bc", "bc")

    assert kind.retired == [idle]
    assert list(kind.scheduler.pools) == []
