"""Unit: the mailbox answers, refuses and forgets; no task waits for an actor that is gone."""

import pytest
import trio
from attrs import frozen
from trio.testing import wait_all_tasks_blocked

from actors.mailbox import ActorGone, Mailbox, Question
from protocol.errors import ErrorKind, RunnerError, error


@frozen
class Double(Question[int]):
    number: int


async def double(question):
    if question.number < 0:
        raise error(ErrorKind.BAD_INPUT, "negative")
    return question.number * 2


async def hang(question):
    await trio.sleep_forever()


async def test_answers_and_refuses_each_asker(nursery):
    mailbox = Mailbox("adder")
    nursery.start_soon(mailbox.serve, double)

    assert await mailbox.ask(Double(4)) == 8
    with pytest.raises(RunnerError, match="negative"):
        await mailbox.ask(Double(-1))
    assert await mailbox.ask(Double(5)) == 10


async def test_many_askers_on_a_small_mailbox_each_get_their_own_answer(nursery):
    mailbox = Mailbox("adder", capacity=1)
    nursery.start_soon(mailbox.serve, double)
    answers = {}

    async def one(number):
        answers[number] = await mailbox.ask(Double(number))

    async with trio.open_nursery() as askers:
        for number in range(50):
            askers.start_soon(one, number)

    assert answers == {number: number * 2 for number in range(50)}
    assert mailbox.statistics().waiting == 0


async def test_the_end_of_the_actor_refuses_the_letter_in_hand_those_waiting_and_those_blocked(nursery):
    mailbox = Mailbox("sleeper", capacity=2)
    scope = trio.CancelScope()
    refused = []

    async def serve():
        with scope:
            await mailbox.serve(hang)

    async def ask(number):
        with pytest.raises(ActorGone) as caught:
            await mailbox.ask(Double(number))
        refused.append(number)
        assert caught.value.failure.kind is ErrorKind.UNAVAILABLE

    nursery.start_soon(serve)
    async with trio.open_nursery() as askers:
        for number in range(6):
            askers.start_soon(ask, number)
        await wait_all_tasks_blocked()
        assert mailbox.statistics().waiting == 2
        assert mailbox.statistics().blocked == 3
        scope.cancel()

    assert sorted(refused) == list(range(6))
    assert not mailbox.statistics().open
    with pytest.raises(ActorGone):
        await mailbox.ask(Double(1))


async def test_a_bug_in_the_actor_reaches_its_supervisor_and_the_asker_is_refused():
    mailbox = Mailbox("buggy")

    async def bug(question):
        raise ZeroDivisionError

    async def ask():
        with pytest.raises(ActorGone, match="buggy"):
            await mailbox.ask(Double(1))

    async with trio.open_nursery() as askers:
        askers.start_soon(ask)
        with pytest.raises(ZeroDivisionError):
            await mailbox.serve(bug)


async def test_serving_again_opens_the_mailbox_again(nursery):
    mailbox = Mailbox("phoenix")
    mailbox.close()
    mailbox.close()
    nursery.start_soon(mailbox.serve, double)
    await wait_all_tasks_blocked()

    assert await mailbox.ask(Double(1)) == 2


async def test_a_cancelled_asker_withdraws_its_question(nursery):
    mailbox = Mailbox("adder")
    handled = []

    async def note(question):
        handled.append(question.number)
        return 0

    async def ask(scope):
        with scope:
            await mailbox.ask(Double(1))

    scope = trio.CancelScope()
    nursery.start_soon(ask, scope)
    await wait_all_tasks_blocked()
    assert mailbox.statistics().waiting == 1
    scope.cancel()
    await wait_all_tasks_blocked()
    nursery.start_soon(mailbox.serve, note)

    assert await mailbox.ask(Double(2)) == 0
    assert handled == [2]


async def test_an_asker_cancelled_while_its_letter_is_in_hand_disturbs_nobody(nursery):
    mailbox = Mailbox("adder")
    go = trio.Event()

    async def slow(question):
        await go.wait()
        return question.number

    async def ask(scope):
        with scope:
            await mailbox.ask(Double(1))

    scope = trio.CancelScope()
    nursery.start_soon(mailbox.serve, slow)
    nursery.start_soon(ask, scope)
    await wait_all_tasks_blocked()
    scope.cancel()
    await wait_all_tasks_blocked()
    go.set()

    assert await mailbox.ask(Double(2)) == 2


def test_a_mailbox_holds_at_least_one_letter():
    with pytest.raises(ValueError, match="at least one"):
        Mailbox("none", capacity=0)
