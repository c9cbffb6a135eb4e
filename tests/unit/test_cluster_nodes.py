"""Unit: which runners of a cluster are there, which of them have free places, and how questions are read."""

from __future__ import annotations

import msgspec
import pytest

from actors.cluster.nodes import wording
from actors.cluster.nodes.presence import ECHO_SECONDS, RENEW_SECONDS, TTL_SECONDS, Neighbours, decode, encode
from protocol.errors import ErrorKind, Failure
from protocol.model import Kind
from protocol.nodes import Load, Presence


def present(node, boot="1", *, free=1, **fields):
    """Return the presence of a runner."""
    kinds = fields.pop("kinds", {"inline": Load(4, 4 - free)})
    return Presence(node, f"{node}{boot}", "2.0", 1, 0.0, kinds=kinds, **fields)


@pytest.fixture
def neighbours():
    found = Neighbours("me", "me1")
    found.hear(present("me"), 0.0)
    return found


def names(neighbours, now):
    return [each.node for each in neighbours.all(now)]


def test_a_runner_is_there_until_it_is_silent_for_too_long_or_leaves(neighbours):
    neighbours.hear(present("a"), 1.0)
    neighbours.hear(present("b"), 2.0)
    assert names(neighbours, 3.0) == ["a", "b", "me"]
    neighbours.hear(present("b", leaving=True), 4.0)
    neighbours.hear(present("me"), 9.0)
    assert names(neighbours, 1.0 + TTL_SECONDS - 0.1) == ["a", "me"]
    assert names(neighbours, 1.0 + TTL_SECONDS) == ["me"]
    assert neighbours.get("a", 1.0 + TTL_SECONDS) is None


def test_without_a_connection_nobody_is_known_to_be_gone(neighbours):
    neighbours.hear(present("a"), 0.0)
    assert neighbours.boots(1.0) == {"a1", "me1"}
    neighbours.away(5.0)
    assert names(neighbours, 500.0) == ["a", "me"]
    assert neighbours.boots(500.0) is None
    neighbours.back(500.0)
    assert neighbours.boots(501.0) == {"a1", "me1"}
    assert names(neighbours, 500.0 + TTL_SECONDS) == []


def test_while_the_engine_tells_nothing_nobody_is_known_to_be_gone(neighbours):
    """As during an election: the own presence does not come back either."""
    for at in (0.0, 3.0):
        neighbours.hear(present("a"), at)
        neighbours.echo(at)
    neighbours.hear(present("me"), 12.0)
    assert neighbours.boots(3.0 + ECHO_SECONDS) == {"a1", "me1"}
    assert names(neighbours, 60.0) == ["a", "me"]
    assert neighbours.boots(60.0) is None

    neighbours.echo(60.0)
    rest = TTL_SECONDS - ECHO_SECONDS
    assert rest > RENEW_SECONDS, "the others have time to renew theirs"
    for at in (62.0, 64.0):
        neighbours.hear(present("me"), at)
        neighbours.echo(at)
    assert neighbours.boots(60.0 + rest - 0.1) == {"a1", "me1"}
    assert neighbours.boots(60.0 + rest) == {"me1"}


def test_a_restart_is_another_boot_and_a_second_runner_of_the_name_is_noticed(neighbours):
    neighbours.hear(present("a", "1"), 0.0)
    neighbours.hear(present("a", "2"), 1.0)
    assert neighbours.boots(2.0) == {"a2", "me1"}
    assert neighbours.doubled is None
    neighbours.hear(present("me", "2"), 2.0)
    assert neighbours.doubled == "me2"

    restarted = Neighbours("me", "me2")
    restarted.hear(present("me", "1"), 0.0)
    assert (restarted.doubled, restarted.boots(0.0)) == (None, None)


def test_the_runner_with_most_free_places_comes_first_and_is_not_chosen_by_all_at_once(neighbours):
    neighbours.hear(present("a", free=2), 0.0)
    neighbours.hear(present("b", free=1), 0.0)
    neighbours.hear(present("full", free=0), 0.0)
    neighbours.hear(present("drains", free=4, draining=True), 0.0)
    neighbours.hear(present("other", kinds={"docker": Load(4)}), 0.0)
    neighbours.hear(present("besieged", kinds={"inline": Load(4, 2, 2)}), 0.0)
    assert neighbours.free(Kind.INLINE, (), 1.0) == ["a", "b"]
    assert neighbours.free(Kind.INLINE, (), 1.0, without=["a"]) == ["b"]
    neighbours.lend("a")
    neighbours.lend("a")
    assert neighbours.free(Kind.INLINE, (), 1.0) == ["b"]
    neighbours.hear(present("a", free=2), 2.0)
    assert neighbours.free(Kind.INLINE, (), 2.0) == ["a", "b"]
    assert neighbours.free(Kind.INLINE, (), 2.0, even_full=True) == ["a", "b", "besieged", "full"]


def test_a_module_runs_where_its_needs_are_met(neighbours):
    neighbours.hear(present("a", labels=("zone=eu",)), 0.0)
    neighbours.away(0.5)
    assert neighbours.free(Kind.INLINE, ("zone",), 1.0, even_full=True) == []
    neighbours.back(1.0)
    neighbours.hear(present("b", free=0, labels=("gpu", "zone=us")), 0.0)
    assert neighbours.free(Kind.INLINE, ("zone",), 1.0) == ["a"]
    assert neighbours.free(Kind.INLINE, ("gpu",), 1.0) == []
    assert neighbours.free(Kind.INLINE, ("gpu", "zone=us"), 1.0, even_full=True) == ["b"]
    assert neighbours.free(Kind.INLINE, ("zone=asia",), 1.0, even_full=True) == []


def test_a_presence_of_another_release_is_read_as_far_as_it_is_known():
    sent = present("a", labels=("gpu",), lag=3)
    assert decode(encode(sent)) == sent
    later = msgspec.msgpack.encode({**msgspec.msgpack.decode(encode(sent)), "mood": "good"})
    assert decode(later) == sent
    assert decode(b"\xff") is None
    assert (sent.places, sent.busy) == (4, 3)


def test_questions_and_answers_of_later_releases_are_refused_with_a_reason():
    question = wording.Cancel("x", Failure(ErrorKind.CANCELLED, "why"), 1.0)
    assert wording.read_question(wording.write("a", "2.0", question)) == ("a", question)
    answer = wording.Refused(Failure(ErrorKind.OVERLOADED, "full", retry_after=1), began=True)
    assert wording.read_answer(wording.write("a", "2.0", answer)) == answer

    raw = msgspec.msgpack.decode(wording.write("a", "3.0", question))
    for changed, reason in (
        ({"version": wording.VERSION + 1}, "it has version 2, known are 1 and below"),
        ({"body": {"type": "sing"}}, "Invalid value 'sing'"),
    ):
        node, found = wording.read_question(msgspec.msgpack.encode({**raw, **changed}))
        assert isinstance(found, wording.Broken)
        assert f"{reason}" in found.why
        assert "release 3.0" in found.why
        assert node in ("a", "")
    assert isinstance(wording.read_answer(b"\xff"), wording.Broken)
