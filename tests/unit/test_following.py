"""Unit: waiting on behalf of a caller ends with its token, and loses nothing."""

from __future__ import annotations

import time

import pytest
import trio

from actors.events import EventLog
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Status
from runner.api.following import Following, check_valid, while_valid
from runner.auth.principal import Principal


def caller(seconds: float) -> Principal:
    return Principal("kim", frozenset(), (), time.time() + seconds)


def log() -> EventLog:
    return EventLog(limit=1000, keep=1000)


async def test_a_silent_wait_ends_with_the_token(autojump_clock):
    began = trio.current_time()
    with pytest.raises(RunnerError) as caught:
        await Following(log(), 0, caller(3600.0)).next()

    assert caught.value.failure.kind is ErrorKind.UNAUTHENTICATED
    assert trio.current_time() - began == pytest.approx(3600.0, abs=60)


async def test_events_come_before_and_not_after(autojump_clock):
    events = log()
    events.status(Status.RUNNING, 1)
    assert [event.seq for event in await Following(events, 0, caller(10.0)).next()] == [0]
    expired = Following(events, 0, caller(-1.0))
    with pytest.raises(RunnerError, match="the token has expired"):
        await expired.next()
    assert expired.position == 0


async def test_a_caller_without_an_end_waits_for_ever(autojump_clock):
    with trio.move_on_after(1e9) as scope:
        await Following(log(), 0, Principal("kim", frozenset())).next()
    assert scope.cancelled_caught


async def test_another_end_of_the_block_is_its_own(autojump_clock):
    with pytest.raises(KeyError), while_valid(caller(10.0)):
        raise KeyError
    with trio.move_on_after(1) as scope, while_valid(caller(10.0)):
        await trio.sleep_forever()
    assert scope.cancelled_caught


def test_a_check_needs_no_wait():
    check_valid(caller(10.0))
    with pytest.raises(RunnerError, match="the token has expired"):
        check_valid(caller(-1.0))
