"""Unit: many calls of one worker on the host: a model of their messages in any order, their ends, and their seats."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from types import SimpleNamespace

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.channel import Channel
from actors.events import EventLog
from actors.workers.call import Call
from actors.workers.shared import Seats, Shared
from environments.base import ChannelClosedError
from protocol import frames
from protocol.errors import ErrorKind, Failure
from protocol.events import ItemEvent, OutputEvent, ProgressEvent
from protocol.model import Stream

GRACE = 1.0


class FakeGuest:
    """A guest whose messages the test sends; it records those of the host."""

    name, fault, exit_code = "1", None, None

    def __init__(self, cuts=()):
        self.inbox = self
        self.heard = []
        self._cuts = [*cuts]
        self._put, self._get = trio.open_memory_channel(1000)
        self._changed = trio.Event()
        self._left = b""

    def apart(self, _execution):
        return self

    async def send(self, frame):
        await trio.lowlevel.checkpoint()
        (payload,) = frames.FrameDecoder(1 << 20).feed(frame)
        self.heard.append(json.loads(payload))
        self._changed.set()
        self._changed = trio.Event()

    async def receive(self):
        if not self._left:
            try:
                self._left = await self._get.receive()
            except trio.EndOfChannel:
                raise ChannelClosedError from None
        cut = self._cuts.pop() if self._cuts else len(self._left)
        data, self._left = self._left[:cut], self._left[cut:]
        return data

    def say(self, *payloads):
        for payload in payloads:
            data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            self._put.send_nowait(frames.encode(data))

    async def hears(self, **fields):
        """Wait for a message of the host with these fields, and take it."""
        while True:
            for each in self.heard:
                if fields.items() <= each.items():
                    self.heard.remove(each)
                    return each
            await self._changed.wait()

    async def end_children(self, _stays):
        await trio.lowlevel.checkpoint()
        return ("7 sleep",)

    def die(self):
        self.exit_code = -9
        self._put.close()


class FakeWorker:
    """The parts of a worker that its calls use."""

    def __init__(self, guest):
        self.guest, self.masked, self.reusable, self.grace_seconds = guest, None, True, GRACE
        self.ended = 0
        self.expect = self.drain = lambda *_: None

    def shown(self, failure):
        return failure

    def passed_limit(self):
        return None

    async def end(self):
        self.ended += 1
        self.guest.die()
        await trio.lowlevel.checkpoint()
        return ("8 left",)


class Site:
    """Calls of one worker that a test makes."""

    def __init__(self, nursery, cuts=()):
        self.guest = FakeGuest(cuts)
        self.worker = FakeWorker(self.guest)
        self.shared = Shared(self.worker, Channel(self.guest, 1 << 20))
        self.nursery, self.outcomes, self.stored, self.calls = nursery, {}, {}, {}
        nursery.start_soon(self.shared.run)

    def begin(self, name, limit=1 << 20):
        log = EventLog(limit=limit, keep=1 << 20, keep_items=1 << 20)
        call = self.calls[name] = Call(name, msgspec.Raw(b"1"), 1, 60.0, log, store=self.store(name))
        self.nursery.start_soon(self._run, call)
        return call

    async def _run(self, call):
        self.outcomes[call.id] = await self.shared.execute(call)

    def store(self, owner):
        found = self.stored[owner] = []

        @asynccontextmanager
        async def store(name, _media_type):
            parts = []

            class Writing:
                async def write(self, data):
                    await trio.lowlevel.checkpoint()
                    parts.append(bytes(data))

                async def finish(self):
                    found.append((name, b"".join(parts)))
                    return SimpleNamespace(described={"id": name})

            yield Writing()

        return store

    async def ended(self, *names):
        with trio.fail_after(50):
            while not self.outcomes.keys() >= {*names}:
                await trio.sleep(0.01)


def run(test, **options):
    """Run an async function with a site, on a clock that jumps."""

    async def within():
        async with trio.open_nursery() as nursery:
            with trio.fail_after(100):
                await test(Site(nursery, **options))
            nursery.cancel_scope.cancel()

    trio.run(within, clock=trio.testing.MockClock(autojump_threshold=0))


STEPS = st.one_of(
    st.tuples(st.just("print"), st.sampled_from(["stdout", "stderr"]), st.text(max_size=5)),
    st.tuples(st.just("item"), st.integers(0, 9)),
    st.tuples(st.just("progress"), st.integers(0, 9)),
    st.tuples(st.just("file"), st.lists(st.binary(max_size=6), max_size=3)),
)
CALLS = st.lists(
    st.tuples(st.lists(STEPS, max_size=5), st.sampled_from(["result", "error", "cancel"])), min_size=1, max_size=5
)


async def speak(site, name, steps, end, random):
    """Be the guest of one call."""
    guest = site.guest
    await guest.hears(type="execute", id=name)
    for number, (kind, *about) in enumerate(steps):
        for _ in range(random.randrange(3)):
            await trio.lowlevel.checkpoint()
        if kind == "file":
            await send_file(guest, name, f"{name}-{number}", about[0])
        else:
            fields = {
                "print": lambda stream, text="": {"type": "printed", "stream": stream, "text": f"{name}{text}"},
                "item": lambda value: {"type": "item", "value": value},
                "progress": lambda done: {"type": "progress", "done": done},
            }
            guest.say({**fields[kind](*about), "id": name})
    if end == "cancel":
        while not steps_seen(site, name, steps):
            await trio.lowlevel.checkpoint()
        site.calls[name].cancel(Failure(ErrorKind.CANCELLED, f"{name} is stopped"))
        await guest.hears(type="cancel", id=name)
    if end == "result":
        guest.say({"type": "result", "id": name, "seconds": 1.0, "value": name})
    else:
        guest.say({"type": "error", "id": name, "kind": "handler_error", "message": name})


async def send_file(guest, name, file, pieces):
    guest.say({"type": "store", "id": name, "name": file, "media_type": ""})
    for piece in [*(each for each in pieces if each), b""]:
        guest.say({"type": "part", "id": name}, b"\0" + piece)
        await trio.lowlevel.checkpoint()
    await guest.hears(type="stored", id=name, file={"id": file})


@settings(max_examples=60, deadline=None)
@given(CALLS, st.randoms(use_true_random=False), st.lists(st.integers(1, 9), max_size=40))
def test_each_call_gets_its_messages_in_order_and_nothing_else(plans, random, cuts):
    """A guest sends the messages of several calls in any order, and the stream is cut anywhere."""

    async def test(site):
        names = [f"e{n}" for n in range(len(plans))]
        for name, (steps, end) in zip(names, plans, strict=True):
            site.begin(name)
            site.nursery.start_soon(speak, site, name, steps, end, random)
        await site.ended(*names)
        for name, (steps, end) in zip(names, plans, strict=True):
            check(site, name, steps, end)
        assert site.shared.calls == []
        assert site.worker.ended == 0
        assert site.guest.heard == []

    run(test, cuts=cuts)


def steps_seen(site, name, steps):
    """Return whether a call has all its messages."""
    items = [each for each in site.calls[name].log.kept() if isinstance(each, ItemEvent | ProgressEvent)]
    printed = sum(kind == "print" for kind, *_ in steps)
    texts = "".join(each.text for each in site.calls[name].log.kept() if isinstance(each, OutputEvent))
    return len(items) == sum(kind in ("item", "progress") for kind, *_ in steps) and texts.count(name) >= printed


def check(site, name, steps, end):
    outcome, events = site.outcomes[name], site.calls[name].log.kept()
    if end == "result":
        assert json.loads(outcome.result) == name
    else:
        expected = (ErrorKind.CANCELLED, f"{name} is stopped") if end == "cancel" else (ErrorKind.HANDLER_ERROR, name)
        assert (outcome.failure.kind, outcome.failure.message) == expected
    assert [json.loads(bytes(each.value)) for each in events if isinstance(each, ItemEvent)] == [
        about[0] for kind, *about in steps if kind == "item"
    ]
    assert [each.done for each in events if isinstance(each, ProgressEvent)] == [
        about[0] for kind, *about in steps if kind == "progress"
    ]
    for stream in Stream:
        text = "".join(e.text for e in events if isinstance(e, OutputEvent) and e.stream is stream)
        assert text == "".join(f"{name}{about[1]}" for kind, *about in steps if kind == "print" and about[0] == stream)
    assert site.stored[name] == [
        (f"{name}-{number}", b"".join(about[0])) for number, (kind, *about) in enumerate(steps) if kind == "file"
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        [{"type": "item", "id": "e9", "value": 1}],
        [b"\0stray"],
        [{"type": "part", "id": "e0"}, {"type": "item", "id": "e0", "value": 1}],
        [{"type": "printed", "id": "e0", "stream": "other", "text": ""}],
        [{"type": "ready", "python": "3", "pid": 1, "seconds": 0.0}],
        [{"type": "store", "id": "e0", "name": "", "media_type": ""}] * 2,
        [{"type": "part", "id": "e0"}, b"\0" + b"x" * ((1 << 20) + 1)],
        [b"no json"],
    ],
)
def test_a_guest_out_of_step_ends_with_all_its_calls(wrong):
    async def test(site):
        for name in ("e0", "e1"):
            site.begin(name)
            await site.guest.hears(type="execute", id=name)
        site.guest.say(*wrong)
        await site.ended("e0", "e1")

        assert {each.failure.kind for each in site.outcomes.values()} == {ErrorKind.WORKER_CRASHED}
        assert all("disturbed" in each.failure.message for each in site.outcomes.values())
        assert site.worker.ended
        assert not site.worker.reusable
        site.begin("e2")
        await site.ended("e2")
        assert not site.outcomes["e2"].reached

    run(test)


def test_a_call_that_does_not_answer_a_cancel_ends_the_worker():
    async def test(site):
        for name in ("e0", "e1", "e2"):
            site.begin(name)
            await site.guest.hears(type="execute", id=name)
        began = trio.current_time()
        for name in ("e0", "e1"):
            site.calls[name].cancel(Failure(ErrorKind.CANCELLED, "stopped"))
        await site.ended("e0", "e1", "e2")

        assert trio.current_time() - began == pytest.approx(GRACE, abs=0.1)
        kinds = {name: each.failure.kind for name, each in site.outcomes.items()}
        assert kinds == {"e0": ErrorKind.CANCELLED, "e1": ErrorKind.CANCELLED, "e2": ErrorKind.LOST}
        assert site.outcomes["e2"].reached

    run(test)


def test_a_call_that_is_not_sent_yet_is_not_reached_by_its_cancel():
    """A guest that does not read holds up the frames behind the one on its way."""

    async def test(site):
        gate, send = trio.Event(), site.guest.send

        async def held(frame):
            await gate.wait()
            await send(frame)

        site.guest.send = held
        site.begin("e0")
        await trio.sleep(0.1)
        second = site.begin("e1")
        await trio.sleep(0.1)
        second.cancel(Failure(ErrorKind.CANCELLED, "stopped"))
        await site.ended("e1")
        gate.set()
        await site.guest.hears(type="execute", id="e0")
        site.guest.say({"type": "result", "id": "e0", "seconds": 0.0, "value": 1})
        await site.ended("e0")

        assert site.outcomes["e1"].failure.kind is ErrorKind.CANCELLED
        assert site.outcomes["e0"].result == b"1"
        assert site.guest.heard == []

    run(test)


def test_too_much_output_of_one_call_ends_it_alone():
    async def test(site):
        for name, limit in (("e0", 3), ("e1", 1 << 20)):
            site.begin(name, limit)
            await site.guest.hears(type="execute", id=name)
        site.guest.say({"type": "printed", "id": "e0", "stream": "stdout", "text": "long"})
        await site.guest.hears(type="cancel", id="e0")
        site.guest.say({"type": "error", "id": "e0", "kind": "cancelled", "message": ""})
        site.guest.say({"type": "result", "id": "e1", "seconds": 0.0, "value": 2})
        await site.ended("e0", "e1")

        assert site.outcomes["e0"].failure.kind is ErrorKind.OUTPUT_LIMIT
        assert site.outcomes["e1"].result == b"2"
        assert site.worker.ended == 0

    run(test)


def test_left_processes_end_before_the_next_call_begins():
    async def test(site):
        site.begin("e0")
        await site.guest.hears(type="execute", id="e0")
        tidied, go = trio.Event(), trio.Event()

        async def end_children(_stays):
            tidied.set()
            await go.wait()
            return ("7 sleep",)

        site.guest.end_children = end_children
        site.guest.say({"children": True, "type": "result", "id": "e0", "seconds": 0.0, "value": 1})
        await tidied.wait()
        site.begin("e1")
        await trio.sleep(1)
        assert site.guest.heard == []
        go.set()
        await site.guest.hears(type="execute", id="e1")
        site.guest.say({"type": "result", "id": "e1", "seconds": 0.0, "value": 1})
        await site.ended("e0", "e1")

        assert site.outcomes["e0"].killed == ("7 sleep",)

    run(test)


def test_output_of_no_single_call_goes_to_those_that_run():
    async def test(site):
        for name in ("e0", "e1"):
            site.begin(name)
            await site.guest.hears(type="execute", id=name)
        site.guest.say({"type": "result", "id": "e0", "seconds": 0.0, "value": 1})
        await site.ended("e0")
        site.shared.print(Stream.STDERR, b"by C")
        site.guest.say({"type": "printed", "id": "e1", "stream": "stderr", "text": "own"})
        site.guest.say({"type": "result", "id": "e1", "seconds": 0.0, "value": 1})
        await site.ended("e1")

        assert not site.calls["e0"].log.kept()
        assert [(each.text, each.shared) for each in site.calls["e1"].log.kept()] == [("by C", True), ("own", False)]

    run(test)


def test_a_refused_file_is_the_failure_of_its_call_only():
    async def test(site):
        site.begin("e1")
        call = site.begin("e0")
        call.store = None
        for name in ("e0", "e1"):
            await site.guest.hears(type="execute", id=name)
            site.guest.say({"type": "store", "id": name, "name": "a", "media_type": ""})
        site.guest.say({"type": "part", "id": "e0"}, b"\0abc", {"type": "part", "id": "e1"}, b"\0def")
        await site.guest.hears(type="refused", id="e0")
        site.guest.say({"type": "error", "id": "e0", "kind": "unavailable", "message": ""})
        site.guest.say({"type": "part", "id": "e1"}, b"\0")
        await site.guest.hears(type="stored", id="e1")
        site.guest.say({"type": "result", "id": "e1", "seconds": 0.0, "value": 1})
        await site.ended("e0", "e1")

        assert site.outcomes["e0"].failure.kind is ErrorKind.UNAVAILABLE
        assert site.stored == {"e0": [], "e1": [("a", b"def")]}

    run(test)


# -- seats -----------------------------------------------------------------------------------------------------------


class Taking:
    """The parts of a worker that seats look at."""

    def __init__(self):
        self.calls, self.reusable, self.guest = 0, True, SimpleNamespace(exit_code=None)


@given(st.integers(2, 4), st.integers(1, 9), st.integers(0, 5), st.lists(st.integers(0, 20)))
def test_seats_hold_their_limits(calls, concurrency, max_calls, choices):
    seats, workers, taken = Seats(calls, concurrency, max_calls), [], []
    for choice in choices:
        if choice % 3 == 0 and taken:
            worker = taken.pop(choice % len(taken))
            last = seats.give_back(worker, keeps=not 0 < max_calls <= worker.calls)
            assert last == (worker not in taken)
            continue
        worker = seats.next()
        if worker is None:
            if seats.full():
                continue
            worker = Taking()
            workers.append(worker)
        else:
            assert 0 < taken.count(worker) == max(taken.count(each) for each in taken if room(each, taken, seats))
        seats.take(worker)
        taken.append(worker)

        assert seats.lent == len(taken) <= concurrency
        assert all(taken.count(each) <= calls for each in workers)
        assert all(not max_calls or each.calls <= max_calls for each in workers)
    assert {each: taken.count(each) for each in taken} == seats.taken


def room(worker, taken, seats):
    return taken.count(worker) < seats.calls and not 0 < seats.max_calls <= worker.calls


def test_a_worker_that_has_ended_takes_no_other_call():
    seats, first, second = Seats(3, 9, 0), Taking(), Taking()
    for worker in (first, first, second):
        seats.take(worker)
    assert seats.next() is first
    first.guest.exit_code = -9
    assert seats.next() is second
    second.reusable = False
    assert seats.next() is None
