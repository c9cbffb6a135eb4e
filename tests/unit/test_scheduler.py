"""Unit: who gets a worker next: the decision as a table, turns of modules, eviction, and what leaves the queue."""

from __future__ import annotations

from types import SimpleNamespace

import attrs
import pytest

from actors.workers.pool import Phases, Waiter
from actors.workers.scheduler import Scheduler, Step, next_step
from config.modules.policies import WorkersPolicy
from config.modules.spec import ModuleSpec
from config.settings import ExecutorSettings
from protocol.errors import ErrorKind, Failure
from protocol.model import Kind as Kinds

CALM = {
    "idle": 0,
    "own": 0,
    "starting": 0,
    "waiting": 1,
    "concurrency": 2,
    "room": 4,
    "paused": False,
}


def module(name, *, concurrency=2, least=0, calls=1, most=0):
    workers = WorkersPolicy(min=least, max_calls=most)
    spec = ModuleSpec(name, Kinds.INLINE, code="", concurrency=concurrency, calls=calls, workers=workers)
    return SimpleNamespace(digest=name, ref=name, spec=spec)


@attrs.define(eq=False)
class Idle:
    """The parts of a worker that the scheduler looks at."""

    module: object
    idle_since: float = 0.0
    guest: object = SimpleNamespace(exit_code=None, name="1")
    reusable: bool = True
    calls: int = 0
    launched_at: float = 0.0
    start_seconds: float = 0.1
    memory_bytes: int = 10
    measured: int = 0

    @property
    def footprint(self):
        return self

    def measure(self, _guest, _calls):
        self.measured += 1


@attrs.define
class Memory:
    """The memory of a machine."""

    bytes: int = 1600
    unused: int = 1600

    def total(self):
        return self.bytes

    def free(self):
        return self.unused


class Kind:
    """A scheduler of the modules `a`, `b` and `c`; it records the starts and the retired workers."""

    def __init__(self, room=4, kept=0, **fields):
        self.starts, self.retired, self.memory = [], [], Memory()
        settings = ExecutorSettings(max_workers=room, max_age_seconds=1e9, idle_seconds=1e9, kept_memory_bytes=kept)
        self.scheduler = Scheduler(settings, self.memory, self.start, self.retire)
        self.modules = {name: module(name, **fields) for name in "abc"}
        self.scheduler.publish("abc", "abc")

    def start(self, pool):
        self.scheduler.begin(pool)
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
        self.scheduler.end(pool)
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
        ({"room": 0}, Step.WAIT),
        ({"room": 0, "idle": 1}, Step.WAIT),
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


async def test_a_worker_whose_start_took_long_is_evicted_later():
    kind = Kind(room=2)
    kind.idle("b", idle_since=1.0, start_seconds=1e9)
    cheap = kind.idle("c", idle_since=2.0)
    kind.wait("a")

    assert kind.retired == [cheap]


async def test_workers_min_is_not_evicted():
    kind = Kind(room=1, least=1)
    kind.idle("b")
    kind.wait("a")

    assert (kind.starts, kind.retired) == (["a"], [])


async def test_more_workers_are_kept_than_may_run():
    """As long as the idle ones have no more memory than they may."""
    kind = Kind(room=1, kept=20)
    for name in "abcab":
        waiter = kind.wait(name)
        if not waiter.worker:
            kind.started(name)
        kind.scheduler.release(waiter.worker)
    assert (kind.starts, kind.retired) == (["a", "b", "c"], [])

    longest = kind.pool("c").idle[0]
    longest.memory_bytes = 11
    kind.scheduler.maintain()
    assert kind.retired == [longest]


async def test_as_many_workers_are_kept_as_may_run():
    kind = Kind(room=2)
    for name in "ab":
        kind.idle(name, memory_bytes=1000)
    kind.scheduler.maintain()

    assert kind.retired == []


async def test_idle_workers_do_not_run_beyond_the_limit():
    kind = Kind(room=1, kept=100)
    kind.idle("b")
    first, second = kind.wait("a"), kind.wait("b")
    kind.started("a")
    assert second.worker is None
    assert kind.scheduler.working == 1

    kind.scheduler.release(first.worker)
    assert second.worker is not None
    assert (kind.scheduler.working, kind.retired) == (1, [])


async def test_idle_workers_go_when_the_machine_is_short_of_memory():
    """As many as give back what is missing, but none of `workers.min`."""
    kind = Kind(kept=1000)
    workers = [kind.idle("a", idle_since=float(number)) for number in range(4)]
    kind.memory.unused = 100
    kind.scheduler.maintain()
    assert kind.retired == []
    assert [worker.measured for worker in workers] == [1] * 4

    kind.memory.unused = 85
    kind.scheduler.maintain()
    assert kind.retired == workers[:2]
    assert kind.scheduler.keeping.evicted == 2

    least = Kind(kept=1000, least=1)
    least.idle("a")
    least.memory.unused = 0
    least.scheduler.maintain()
    assert least.retired == []


async def test_room_for_a_worker_that_no_caller_waits_for():
    kind = Kind(room=2, kept=25)
    for name in "aab":
        assert kind.scheduler.keeping.has_room()
        kind.idle(name)
    assert not kind.scheduler.keeping.has_room()


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


async def test_workers_are_filled_before_more_are_started():
    """Seven callers of workers with three calls each, of which five may run."""
    kind = Kind(concurrency=5, calls=3)
    waiting = [kind.wait("a") for _ in range(7)]
    assert kind.starts == ["a"] * 2  # five calls need no third one

    kind.started("a")
    assert [each.worker for each in waiting].count(waiting[0].worker) == 3
    kind.started("a")
    assert [bool(each.worker) for each in waiting] == [True] * 5 + [False] * 2
    assert (kind.scheduler.working, kind.scheduler.waiting) == (2, 2)
    assert "its 5 calls run in 2 of its workers, as many as `concurrency` allows" in kind.pool("a").reason(0)

    kind.scheduler.release(waiting[3].worker)
    assert waiting[5].worker is waiting[3].worker
    for each in (*waiting[:3], waiting[4], waiting[5]):
        kind.scheduler.release(each.worker)
    kind.scheduler.release(waiting[6].worker)
    assert (kind.scheduler.working, len(kind.pool("a").idle), kind.pool("a").seats.lent) == (0, 2, 0)
    assert kind.retired == []


async def test_a_shared_worker_that_is_worn_out_is_retired_after_its_last_call():
    kind = Kind(calls=2, most=2)
    first, second, third = (kind.wait("a") for _ in range(3))
    kind.started("a")
    assert (first.worker, third.worker) == (second.worker, None)

    kind.scheduler.release(first.worker)
    assert kind.retired == []
    kind.scheduler.release(second.worker)

    assert kind.retired == [first.worker]
    assert third.worker is None
    kind.started("a")
    assert third.worker is not None


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
