"""Unit: execution ids are UUIDs of version 7; each sorts after all earlier ones, even if the clock goes back."""

from __future__ import annotations

import itertools
import re
import time
import uuid

import pytest

from protocol import ids

MILLISECOND = 1_000_000


@pytest.fixture
def clock(monkeypatch):
    """Let the test set the time in nanoseconds since the epoch; no id exists before."""

    class Clock:
        now = 1_700_000_000_123 * MILLISECOND

        def time_ns(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(ids, "time", clock)
    monkeypatch.setattr(ids, "_last", 0)
    return clock


def ticks(text):
    """Return the 48 bits of milliseconds and the 12 bits below them as one number."""
    value = uuid.UUID(text).int
    return (value >> 80) << 12 | (value >> 64 & 0xFFF)


def test_the_fields_are_those_of_rfc_9562():
    before = time.time_ns() // MILLISECOND
    text = ids.execution_id()
    after = time.time_ns() // MILLISECOND
    parsed = uuid.UUID(text)

    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", text)
    assert before <= parsed.int >> 80 <= after


def test_the_time_of_the_example_of_the_rfc(clock, monkeypatch):
    """RFC 9562, appendix A.6: 0x17F22E279B0 milliseconds, and these random bits."""
    clock.now = 0x17F22E279B0 * MILLISECOND
    monkeypatch.setattr(ids.os, "urandom", lambda _: bytes.fromhex("18c4dc0c0c07398f"))

    assert ids.execution_id() == "017f22e2-79b0-7000-98c4-dc0c0c07398f"


@pytest.mark.parametrize("random", [b"\x00" * 8, b"\xff" * 8])
def test_version_and_variant_do_not_depend_on_the_random_bits(monkeypatch, random):
    monkeypatch.setattr(ids.os, "urandom", lambda _: random)
    parsed = uuid.UUID(ids.execution_id())

    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int & (1 << 62) - 1 == int.from_bytes(random, "big") & (1 << 62) - 1


def test_a_hundred_thousand_in_a_row_are_in_order():
    made = [ids.execution_id() for _ in range(100_000)]

    assert all(a < b for a, b in itertools.pairwise(made))


def test_the_order_holds_while_the_clock_stands_still(clock):
    made = [ids.execution_id() for _ in range(10_000)]

    assert made == sorted(set(made))
    assert [ticks(b) - ticks(a) for a, b in itertools.pairwise(made)] == [1] * 9_999, "4096 to a millisecond"


def test_the_order_holds_when_the_clock_goes_back(clock):
    made = []
    for step in (0, 5, -3_600_000, 1, -1, 0, 7_200_000, -1):
        clock.now += step * MILLISECOND
        made += [ids.execution_id() for _ in range(50)]

    assert made == sorted(set(made))


def test_the_time_is_right_again_when_the_clock_has_caught_up(clock):
    ids.execution_id()
    clock.now -= 1000 * MILLISECOND
    ids.execution_id()
    clock.now += 2000 * MILLISECOND

    assert ticks(ids.execution_id()) == clock.now * 4096 // MILLISECOND


def test_order_within_a_millisecond(clock):
    first = ids.execution_id()
    clock.now += MILLISECOND // 2

    assert ticks(ids.execution_id()) - ticks(first) == 2048
