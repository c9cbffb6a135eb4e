"""Cluster: idempotency keys and instants of schedules that belong to one runner of several, over one real server."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio
from msgspec.structs import replace

from actors.cluster.engine import StaleError, open_engine
from actors.cluster.feed import SharedClaims, SharedInstants
from actors.cluster.feed.claims import FOUND_SECONDS
from actors.cluster.feed.instants import UNSETTLED_SECONDS
from actors.cluster.letters import Author, Letter, pack, unpack
from actors.executions import Delivery, Idempotency
from actors.history import Page
from protocol.errors import ErrorKind, RunnerError, error
from protocol.ids import execution_id
from protocol.model import Execution, Kind, ModuleRef, Status


@attrs.define
class Executions:
    """The executions of all runners, as each of them finds them at once."""

    found: dict = attrs.field(factory=dict)

    @property
    def owners(self):
        return self

    @property
    def history(self):
        return self

    async def reach(self, name):
        return None

    async def get(self, name):
        return self.found.get(name)

    async def find_keyed(self, *_):
        return None


@attrs.define
class Clock:
    now: float = 0.0

    def __call__(self):
        return self.now + trio.current_time()


def execution(key="k", **fields):
    return Execution(
        id=execution_id(),
        module=ModuleRef("job", "1"),
        env=Kind.INLINE,
        status=Status.QUEUED,
        created_at=time.time(),
        input=b"1",
        subject="kim",
        asynchronous=True,
        idempotency_key=key,
        **fields,
    )


@asynccontextmanager
async def claiming(settings, executions, boot, alive):
    async with open_engine(settings) as engine:
        yield SharedClaims(engine, Author(boot, boot, "1.0"), executions, lambda: alive, Clock())


@pytest.fixture
async def both(nats):
    settings, executions, alive = nats.settings(), Executions(), {"a", "b"}
    async with (
        claiming(settings, executions, "a", alive) as a,
        claiming(settings, executions, "b", alive) as b,
    ):
        yield a, b, executions, alive


def ended(given):
    return replace(given, status=Status.SUCCEEDED, result=b"1", finished_at=time.time())


async def test_the_second_runner_gets_the_execution_of_the_first(both):
    a, b, executions, _ = both
    first = execution()
    assert await a.claim(first, 60, None) is None
    executions.found[first.id] = ended(first)

    assert (await b.claim(execution(), 60, None)).id == first.id
    assert await b.claim(execution("other"), 60, None) is None


async def test_of_many_calls_at_once_one_begins(both):
    a, b, executions, _ = both
    began = []

    async def begin(given):
        await trio.sleep(0.05)
        began.append(given.id)
        executions.found[given.id] = ended(given)
        return executions.found[given.id]

    answers = []

    async def call(claims):
        given = execution()
        keyed = Idempotency(executions, 60, lambda _: None, claims)
        answers.append((await keyed.first(given, partial(begin, given))).id)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for claims in (a, b) * 4:
                nursery.start_soon(call, claims)

    assert len(began) == 1
    assert answers == began * 8


async def test_another_input_is_a_conflict_on_every_runner(both):
    a, b, executions, _ = both
    first = execution()
    await a.claim(first, 60, None)
    executions.found[first.id] = ended(first)

    keyed = Idempotency(executions, 60, lambda _: None, b)
    with pytest.raises(RunnerError) as problem:
        await keyed.first(replace(execution(), input=b"2"), partial(trio.sleep, 0))
    assert (problem.value.failure.kind, problem.value.failure.field) == (ErrorKind.CONFLICT, "Idempotency-Key")


async def test_the_key_of_a_runner_that_ended_is_taken_over_and_its_execution_never_begins(both):
    a, b, _, alive = both
    first = execution()
    await a.claim(first, 60, None)
    alive.discard("a")

    with trio.fail_after(20):
        assert await b.claim(execution(), 60, None) is None

    state = a.engine.names.state(first.id)
    with pytest.raises(StaleError):  # the runner was only stopped, and continues
        await a.engine.publish(state, pack(Letter(a.author, first)).data, expect=0)
    never = unpack((await a.engine.last(state)).data).execution
    assert (never.status, never.idempotency_key) == (Status.CANCELLED, None)


async def test_a_runner_that_is_there_has_time_to_accept(both):
    a, b, executions, _ = both
    first = execution()
    await a.claim(first, 60, None)
    answers = []

    async def call():
        answers.append(await b.claim(execution(), 60, None))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(0.3)
            assert not answers
            await a.engine.publish(a.engine.names.state(first.id), pack(Letter(a.author, first)).data, expect=0)
            b.clock.now += FOUND_SECONDS + 1  # it does not begin the call again, but waits for its state
            await trio.sleep(0.3)
            assert not answers
            executions.found[first.id] = ended(first)

    assert answers[0].id == first.id


async def test_a_refused_call_gives_its_key_up(both):
    a, b, _, _ = both

    async def refuse():
        raise error(ErrorKind.OVERLOADED, "full")

    with pytest.raises(RunnerError):
        await Idempotency(Executions(), 60, lambda _: None, a).first(execution(), refuse)

    with trio.fail_after(5):
        assert await b.claim(execution(), 60, None) is None


async def test_a_delivery_that_was_refused_is_run_again(both):
    a, b, executions, _ = both
    first, second = execution(), execution()
    await a.claim(first, 60, None)
    executions.found[first.id] = replace(ended(first), status=Status.FAILED)
    delivery = Delivery("k", lambda known: known.status is Status.FAILED)

    async def begin():
        executions.found[second.id] = ended(second)
        return executions.found[second.id]

    for claims in (b, a):
        keyed = Idempotency(executions, 60, lambda _: None, claims)
        assert (await keyed.first(execution() if claims is a else second, begin, delivery)).id == second.id


@pytest.mark.parametrize(("first", "then"), [(Status.QUEUED, Status.RUNNING), (Status.RUNNING, Status.QUEUED)])
async def test_an_execution_that_begins_or_goes_back_meanwhile_is_found(first, then):
    given, statuses = execution(), iter([first, then, then])

    class Moving(Executions):
        async def list(self, query):
            return Page((given,) if query.status is next(statuses) else ())

        async def reach(self, name):
            return name

    assert await SharedInstants(None, Author("a", "a", "1.0"), Moving()).running("daily") == [given.id]


async def test_an_instant_belongs_to_one_runner_until_it_is_gone(nats):
    settings, clock = nats.settings(), Clock()
    async with open_engine(settings) as one, open_engine(settings) as other:
        a = SharedInstants(one, Author("a", "a", "1.0"), Executions(), clock)
        b = SharedInstants(other, Author("b", "b", "1.0"), Executions(), clock)

        assert await a.take("daily/1")
        assert not await b.take("daily/1")
        assert await a.take("daily/1")
        assert await b.take("daily/2")
        clock.now += UNSETTLED_SECONDS + 1
        assert await b.take("daily/1")
        assert not await a.take("daily/1")
