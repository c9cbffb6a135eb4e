"""Unit: when the answers of a batch leave; the clock stands still, so that nothing leaves because of the time."""

from __future__ import annotations

from types import SimpleNamespace

import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.model import Execution, Kind, ModuleRef, Status
from runner.api.batch import _GATHERED, Batch, Input
from runner.auth.principal import Principal

CALLER = Principal("anna", frozenset())


def ended(name):
    return Execution(
        id=name,
        module=ModuleRef("hello", "1"),
        env=Kind.INLINE,
        status=Status.SUCCEEDED,
        subject="anna",
        created_at=0.0,
    )


@define(slots=False)
class Door:
    """A client of a batch, and the service behind it: `send` gives inputs, `written` are the answers of each write."""

    written: list[list[str]] = field(factory=list)
    holding: trio.Event | None = None
    """A write waits for it."""
    slow: dict[str, trio.Event] = field(factory=dict)
    """Inputs whose handler waits for an event."""

    def __attrs_post_init__(self):
        self.inputs, self.rest = trio.open_memory_channel(1000)

    def send(self, *names):
        for name in names:
            self.inputs.send_nowait(Input(name, name.encode()))

    async def take(self):
        try:
            return await self.rest.receive()
        except trio.EndOfChannel:
            return None

    async def answer(self, answered):
        if self.holding is not None:
            await self.holding.wait()
        self.written.append([given.name for given, _ in answered])

    def module(self, *_):
        return SimpleNamespace(spec=SimpleNamespace(concurrency=1, queue_timeout=1.0))

    async def execute(self, _caller, _name, data, **_):
        if (event := self.slow.get(data.decode())) is not None:
            await event.wait()
        return ended(data.decode())

    async def run(self, parallelism):
        self.runs = SimpleNamespace(stopping=False)
        batch = Batch(self, CALLER, "hello", parallelism=parallelism)
        await batch.run(self.take, self.answer, lambda: None, lambda: self.rest.statistics().current_buffer_used > 0)


def drive(test, parallelism=1):
    """Run `test(door)` beside a batch, on a clock that stands still."""

    async def main():
        door = Door()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.run, parallelism)
            await wait_all_tasks_blocked()
            await test(door)
            door.inputs.close()

    trio.run(main, clock=MockClock())


def test_a_client_that_waits_for_each_answer_gets_it_at_once():
    async def test(door):
        for name in "abc":
            door.send(name)
            await wait_all_tasks_blocked()
            assert door.written[-1] == [name]

    drive(test)


def test_answers_that_follow_soon_are_written_together():
    async def test(door):
        door.slow["last"] = trio.Event()
        door.send("a", "b", "c", "last")
        await wait_all_tasks_blocked()
        (first,) = door.written
        assert first[0] == "a"  # with others by the order of tasks; the rest waits for a millisecond

        trio.lowlevel.current_clock().jump(0.001)
        await wait_all_tasks_blocked()
        assert [name for each in door.written for name in each] == ["a", "b", "c"]
        assert len(door.written) <= 2
        door.slow["last"].set()

    drive(test)


def test_an_answer_after_a_pause_is_written_at_once():
    async def test(door):
        door.slow.update({name: trio.Event() for name in "bc"})
        door.send("a", "b", "c")
        await wait_all_tasks_blocked()
        trio.lowlevel.current_clock().jump(0.001)
        await wait_all_tasks_blocked()
        door.slow["b"].set()
        await wait_all_tasks_blocked()
        assert door.written == [["a"], ["b"]]
        door.slow["c"].set()

    drive(test)


def test_answers_leave_at_once_when_one_task_waits_for_the_client():
    async def test(door):
        door.slow.update({name: trio.Event() for name in "ab"})
        door.send("a", "b")
        await wait_all_tasks_blocked()
        for name in "ab":
            door.slow[name].set()
            await wait_all_tasks_blocked()
            assert door.written[-1] == [name]

    drive(test, parallelism=3)


def test_a_client_that_does_not_read_holds_the_inputs():
    async def test(door):
        door.holding = trio.Event()
        names = [str(number) for number in range(3 * _GATHERED)]
        door.send(*names)
        await wait_all_tasks_blocked()
        assert door.rest.statistics().current_buffer_used >= len(names) - _GATHERED - 4

        door.holding.set()
        await wait_all_tasks_blocked()
        assert [name for write in door.written for name in write] == names

    drive(test)
