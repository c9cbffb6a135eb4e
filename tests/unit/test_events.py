"""Unit: the numbered events of an execution: bounded, replayed, followed without a gap or a double."""

from __future__ import annotations

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from actors.events import EventLog, Follower, log_of
from protocol.errors import ErrorKind, Failure
from protocol.events import (
    DroppedEvent,
    ErrorEvent,
    ItemEvent,
    OutputEvent,
    ProgressEvent,
    ResultEvent,
    StatusEvent,
    decode_all,
    encode,
    encode_all,
    last_event,
    text_of,
)
from protocol.model import Execution, Kind, ModuleRef, Status, Stream

OUT, ERR = Stream.STDOUT, Stream.STDERR


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def make(**fields):
    return EventLog(**{"limit": 10**9, "keep": 10**6, "keep_items": 10**6, "clock": Clock(), **fields})


def end(log):
    log.end_output()
    log.end(ResultEvent(log.next_seq, 0.0, Status.SUCCEEDED, msgspec.Raw(b"1")))


def all_of(log, start=0):
    found = []
    while events := log.read(start):
        found.extend(events)
        start = events[-1].seq + 1
    return found


def test_output_is_gathered_until_it_is_read():
    log = make()
    for _ in range(3):
        log.write(OUT, b"ab")
    assert [event.text for event in log.read(0)] == ["ababab"]

    log.write(OUT, b"c")
    log.write(ERR, b"d")
    log.write(OUT, b"e")
    events = all_of(log)

    assert [(e.seq, e.stream, e.text) for e in events] == [
        (0, OUT, "ababab"),
        (1, OUT, "c"),
        (2, ERR, "d"),
        (3, OUT, "e"),
    ]


def test_a_piece_does_not_grow_for_long():
    log = make()
    log.write(OUT, b"a")
    log._clock.now += 0.05
    log.write(OUT, b"b")
    log._clock.now += 0.06
    log.write(OUT, b"c")

    assert [(e.text, e.at) for e in log.kept()] == [("ab", 1000.0), ("c", pytest.approx(1000.11))]


def test_a_split_character_is_put_together_and_an_incomplete_one_is_replaced():
    log = make()
    data = "å😀".encode()
    for byte in data:
        log.write(OUT, bytes([byte]))
    log.write(OUT, data[:1])
    log.end_output()

    assert text_of(log.kept(), OUT) == "å😀\ufffd"


def test_the_limit_counts_each_attempt_and_is_reported_once():
    told = []
    log = make(limit=5)
    log.on_limit = lambda: told.append(log.printed)
    log.status(Status.RUNNING, 1)
    log.write(OUT, b"12345")
    assert told == []
    log.write(ERR, b"6")
    log.write(OUT, b"7")
    assert told == [6]
    log.status(Status.RUNNING, 2)
    assert (log.printed, log.exceeded) == (0, False)


def test_the_text_is_of_the_last_attempt():
    log = make()
    log.status(Status.RUNNING, 1)
    log.write(OUT, b"first")
    log.status(Status.RUNNING, 2)
    log.write(OUT, b"second")
    log.write(ERR, b"!")

    assert (text_of(log.kept(), OUT), text_of(log.kept(), ERR)) == ("second", "!")
    assert text_of(log.kept(), None) == "second!"


def test_head_and_tail_are_kept_with_one_gap_between():
    log = make(keep=2000)
    log.status(Status.RUNNING, 1)
    for i in range(100):
        log.write((OUT, ERR)[i % 2], b"%04d" % i)
    end(log)
    events = all_of(log)
    gap = next(e for e in events if isinstance(e, DroppedEvent))
    at = events.index(gap)

    assert events[1].text == "0000"
    assert events[-2].text == "0099"
    assert isinstance(events[-1], ResultEvent)
    assert gap.events == gap.seq - events[at - 1].seq
    assert events[at + 1].seq == gap.seq + 1
    assert gap.bytes == gap.events * 4 == log.store.dropped_bytes
    assert log.store.gap() == (events[at - 1].seq + 1, gap.seq + 1)


def test_states_are_never_dropped():
    log = make(keep=1000)
    for attempt in (1, 2, 3):
        log.status(Status.RUNNING, attempt)
        for _ in range(50):
            log.write(OUT, b"o" * 10)
            log.write(ERR, b"e" * 10)
    kept = log.kept()

    assert [e.attempt for e in kept if isinstance(e, StatusEvent)] == [1, 2, 3]
    numbers = [n for e in kept for n in range(e.seq - getattr(e, "events", 1) + 1, e.seq + 1)]
    assert numbers == list(range(log.next_seq))


def test_the_newest_event_stays_however_large():
    log = make(keep=100, keep_items=100)
    log.item(msgspec.Raw(b'"' + b"x" * 10_000 + b'"'))
    assert isinstance(log.kept()[-1], ItemEvent)
    log.item(msgspec.Raw(b"1"))

    assert [type(e) for e in log.kept()] == [DroppedEvent, ItemEvent]
    assert log.store.dropped_bytes == 10_002


def test_a_reader_inside_of_a_gap_gets_the_number_of_missed_events():
    log = make(keep=1000)
    for i in range(100):
        log.write((OUT, ERR)[i % 2], b"%04d" % i)
    log.seal()
    first, last = log.store.gap()
    inside = (first + last) // 2
    event = log.read(inside)[0]

    assert (type(event), event.seq, event.events) == (DroppedEvent, last - 1, last - inside)


def test_a_read_is_bounded():
    log = make(keep=10**8)
    for i in range(2000):
        log.write((OUT, ERR)[i % 2], b"x" * 4096)
    batch = log.read(0)

    assert len(batch) <= 256
    assert sum(len(e.text) for e in batch) <= 256 * 1024 + 4096
    assert len(all_of(log)) == 2000


@given(
    st.lists(st.tuples(st.sampled_from(["out", "err", "item", "progress", "status", "read"]), st.integers(0, 300))),
    st.integers(200, 4000),
)
def test_every_number_is_read_once(steps, keep):
    """A reader that comes and goes sees each number exactly once, in order, as an event or as part of a gap."""
    log = make(keep=keep, keep_items=keep)
    seen, position = [], 0

    def read():
        nonlocal position
        events = log.read(position)
        for event in events:
            first = event.seq - event.events + 1 if isinstance(event, DroppedEvent) else event.seq
            seen.extend(range(first, event.seq + 1))
            position = event.seq + 1
        return bool(events)

    for what, size in steps:
        if what in ("out", "err"):
            log.write(OUT if what == "out" else ERR, b"x" * size)
        elif what == "item":
            log.item(msgspec.Raw(b"1" * (size + 1)))
        elif what == "progress":
            log.progress(1.0, None, "p" * size)
        elif what == "status":
            log.status(Status.RUNNING, size)
        else:
            read()
    end(log)
    while read():
        pass

    assert seen == list(range(log.next_seq))
    assert log.store._head_bytes <= keep // 2


async def test_a_follower_gets_past_and_new_events():
    log = make()
    log.write(OUT, b"was")
    seen = []

    async def follow():
        follower = Follower(log)
        while (events := await follower.next()) is not None:
            seen.extend(events)
        assert follower.ended
        assert await follower.next() is None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        assert [e.text for e in seen] == ["was"]
        log.progress(1.0, 2.0, "half")
        await wait_all_tasks_blocked()
        assert isinstance(seen[-1], ProgressEvent)
        end(log)

    assert [e.seq for e in seen] == [0, 1, 2]


async def test_a_cancelled_wait_loses_nothing():
    log = make()
    follower = Follower(log)
    with trio.move_on_after(0):
        await follower.next()
    log.write(OUT, b"x")

    assert [e.text for e in await follower.next()] == ["x"]


async def test_a_follower_goes_on_in_the_log_of_another_runner():
    log, other = EventLog(limit=1000, keep=1000), EventLog(limit=1000, keep=1000)
    log.status(Status.RUNNING, 1)
    log.item(msgspec.Raw(b"1"))
    follower = Follower(log)
    assert [event.seq for event in await follower.next()] == [0, 1]
    async with trio.open_nursery() as nursery:
        found = []

        async def read():
            while (events := await follower.next()) is not None:
                found.extend(events)

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        other.restore(log.kept(), 1_000_000, 1.0)
        log.go_on_in(other)
        other.item(msgspec.Raw(b"2"))
        await wait_all_tasks_blocked()
        other.end(last_event(ended(events_count=other.next_seq)))

    assert [event.seq for event in found] == [999_999, 1_000_000, 1_000_001], "a gap, the item, the end"


async def test_a_follower_behind_the_end_has_ended():
    log = make()
    end(log)
    assert not Follower(log, 0).ended
    assert Follower(log, 1).ended
    assert await Follower(log, 7).next() is None


def ended(**fields):
    return Execution(
        id="e",
        module=ModuleRef("m", "1"),
        env=Kind.INLINE,
        created_at=1.0,
        started_at=2.0,
        finished_at=3.0,
        **{"status": Status.SUCCEEDED, "result": b"[1]", "exit_code": 0, "attempts": 1, **fields},
    )


async def test_a_replay_equals_the_live_events():
    log = make()
    log.status(Status.QUEUED, 0, "queued")
    log.status(Status.RUNNING, 1)
    log.write(OUT, b"x\n")
    log.item(msgspec.Raw(b'{"a":1}'))
    log.end_output()
    execution = ended(events=encode_all(log.kept()), events_count=log.next_seq)
    log.end(last_event(execution))

    assert list(map(encode, all_of(log_of(execution)))) == list(map(encode, all_of(log)))
    assert decode_all(execution.events) == log.kept()[:4]


def test_a_replay_without_events_has_a_begin_and_an_end():
    begin, last = all_of(log_of(ended(events_count=1)))

    assert begin == StatusEvent(0, 2.0, Status.RUNNING, 1)
    assert (last.seq, last.at, last.result, last.duration) == (1, 3.0, msgspec.Raw(b"[1]"), 2.0)


def test_numbers_missing_in_the_history_are_a_gap():
    kept = (StatusEvent(0, 1.0, Status.RUNNING, 1), OutputEvent(4, 2.0, OUT, "x"))
    failure = Failure(ErrorKind.LOST, "gone")
    execution = ended(status=Status.FAILED, failure=failure, events=encode_all(kept), events_count=1_000_000)
    events = all_of(log_of(execution))

    assert [(type(e), e.seq) for e in events] == [
        (StatusEvent, 0),
        (DroppedEvent, 3),
        (OutputEvent, 4),
        (DroppedEvent, 999_999),
        (ErrorEvent, 1_000_000),
    ]
    assert msgspec.json.decode(bytes(events[-1].error))["kind"] == "lost"


def test_events_on_the_wire():
    assert (
        encode(OutputEvent(3, 1.5, ERR, "é"))
        == '{"type":"output","seq":3,"at":1.5,"stream":"stderr","text":"é"}'.encode()
    )
    assert encode(ItemEvent(1, 1.0, msgspec.Raw(b'{"x":[1]}'))) == b'{"type":"item","seq":1,"at":1.0,"value":{"x":[1]}}'
