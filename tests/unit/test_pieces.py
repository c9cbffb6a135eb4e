"""Unit: pieces of events: joined by number without doubles, and bounded while they wait."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.history import pieces
from actors.history.pending import Batch, Pending
from actors.history.pieces import Forgotten, Piece, Waiting, joined, seqs_of
from actors.journal import Entry
from protocol.model import Execution, Kind, ModuleRef, Status


def array(first, last, **fields):
    return msgspec.json.encode([{"type": "progress", "seq": seq, "at": 1.0, **fields} for seq in range(first, last)])


def numbers(data):
    return [event["seq"] for event in msgspec.json.decode(data)]


def test_the_numbers_of_an_array():
    assert seqs_of(array(3, 7)) == (3, 7)
    assert seqs_of(b" [ ] ") is None
    with pytest.raises(msgspec.MsgspecError):
        seqs_of(b'[{"seq": 1}')


@given(st.lists(st.integers(1, 5), max_size=8), st.randoms(use_true_random=False))
def test_pieces_in_any_order_are_the_whole(sizes, random):
    pieces, at = [], 0
    for size in sizes:
        pieces.append(array(at, at + size, text='],[{"seq": 9}'))
        at += size
    random.shuffle(pieces)

    assert numbers(joined(pieces)) == list(range(at))
    assert joined(pieces) == array(0, at, text='],[{"seq": 9}')


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=6))
def test_overlapping_pieces_have_every_event_once(ranges):
    pieces = [array(first, first + size) for first, size in ranges]

    assert numbers(joined(pieces)) == sorted({n for first, size in ranges for n in range(first, first + size)})


def test_one_piece_is_not_touched_and_white_space_does_not_matter():
    assert joined([b"[nonsense"]) == b"[nonsense"
    assert joined([]) == b"[]"
    assert numbers(joined([b' [ {"seq": 1} ]\n', b"[]", b'\t[{"seq":0}] '])) == [0, 1]


def piece(first, name="a", events=None):
    return Piece(name, first, array(first, first + 1) if events is None else events)


def test_with_too_many_the_oldest_are_dropped_and_counted():
    waiting = Waiting(3)
    for first in range(5):
        waiting.add(piece(first, "ab"[first % 2]))
    taken, _ = waiting.take()
    assert [one.first_seq for one in taken] == [2, 3, 4]
    assert (len(waiting), waiting.dropped) == (3, 2)
    waiting.add(piece(5))
    assert (len(waiting), waiting.dropped) == (3, 3)


def test_with_too_many_bytes_the_oldest_are_dropped(monkeypatch):
    monkeypatch.setattr(pieces, "MAX_BYTES", 100)
    waiting = Waiting(1000)
    for first in range(4):
        waiting.add(piece(first, events=b"x" * 40))
    assert [one.first_seq for one in waiting.take()[0]] == [2, 3]
    waiting.settle(stored=True)
    waiting.add(piece(9, events=b"x" * 101))
    assert (len(waiting), waiting.dropped) == (0, 3)
    waiting.add(piece(10, events=b"x" * 100))
    assert len(waiting) == 1


def test_what_was_not_stored_waits_again_in_front():
    waiting = Waiting(10)
    waiting.add(piece(0))
    waiting.forget("a", (0, 1))
    waiting.take()
    waiting.add(piece(1))
    waiting.forget("a", (1, 2))
    assert waiting.find("a") == (array(0, 1), array(1, 2))
    waiting.settle(stored=False)
    taken, forgotten = waiting.take()
    assert [one.first_seq for one in taken] == [0, 1]
    assert forgotten == (Forgotten("a", (0, 2)),)
    waiting.settle(stored=True)
    assert (len(waiting), waiting.due, waiting.find("a")) == (0, False, ())


def test_an_execution_that_has_ended_leaves_nothing_also_of_what_was_taken():
    waiting = Waiting(10)
    waiting.add(piece(0))
    waiting.forget("a", (0, 1))
    waiting.take()
    waiting.add(piece(1))
    waiting.forget("a", (0, 1))
    waiting.add(piece(0, "b"))
    waiting.discard("a")
    waiting.settle(stored=False)
    assert waiting.take() == ((piece(0, "b"),), ())


def test_ranges_that_touch_are_forgotten_as_one():
    waiting = Waiting(10)
    waiting.forget("a", (2, 4))
    waiting.forget("a", (4, 6))
    assert waiting.take()[1] == (Forgotten("a", (2, 6)),)
    waiting.settle(stored=True)
    waiting.forget("a", (0, 2))
    waiting.forget("a", (10, 12))
    assert waiting.take()[1] == (Forgotten("a", (10, 12)),)


# Beside the rows


def entry(name, status=Status.RUNNING, revision=1, key=None, at=0.0):
    module = ModuleRef("m", "1")
    return Entry(revision, Execution(name, module, Kind.INLINE, status, at, subject="kim", idempotency_key=key))


def test_a_piece_takes_its_execution_along():
    pending = Pending(10)
    pending.begin(100.0, entry("a"))
    pending.begin(100.0, entry("b"))
    pending.append(piece(0, "b"), None)
    assert pending.take(before=50.0) == Batch((entry("b"),), (piece(0, "b"),))


def test_nothing_is_added_to_what_has_ended():
    pending = Pending(10)
    pending.append(piece(0), None)
    pending.put(entry("a", Status.SUCCEEDED))
    pending.append(piece(1), (0, 1))
    assert pending.take(before=0.0) == Batch((entry("a", Status.SUCCEEDED),))


def test_a_key_is_known_as_long_as_its_execution_is_here():
    pending, key = Pending(10), ("kim", "m", "k")
    pending.put(entry("a", Status.QUEUED, key="k", at=1.0))
    pending.begin(0.0, entry("a", key="k", at=1.0))
    pending.begin(0.0, entry("b", key="k", at=2.0))
    pending.begin(0.0, entry("c", key="other", at=3.0))
    pending.begin(0.0, entry("d", at=3.0))
    assert pending.find_keyed(key).id == "b"
    pending.take(before=0.0)
    pending.put(entry("a", Status.SUCCEEDED, key="k", at=1.0))
    assert pending.find_keyed(key).id == "b"
    pending.settle(stored=True)
    assert pending.find_keyed(key).id == "a"
    pending.take(before=0.0)
    pending.settle(stored=False)
    assert pending.find_keyed(key).status is Status.SUCCEEDED
    pending.take(before=0.0)
    pending.settle(stored=True)
    assert pending.find_keyed(key) is None
    assert pending._keyed == {}
