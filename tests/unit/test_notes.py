"""Unit: the lines of the log about clients have a bound; further ones are counted."""

import structlog
import trio

from runner.wire import Notes
from runner.wire.notes import MOST, PERIOD_SECONDS


async def test_many_events_become_one_number_in_a_period(autojump_clock):
    with structlog.testing.capture_logs() as logs:
        notes = Notes(structlog.get_logger())
        for number in range(MOST + 1000):
            notes.add("client cut off", client=number)
        assert [entry["client"] for entry in logs] == list(range(MOST))
        await trio.sleep(PERIOD_SECONDS)
        notes.add("client cut off", client=-1)
        assert [entry.get("number") for entry in logs[MOST:]] == [1000, None]
        assert logs[-1]["client"] == -1


async def test_the_number_is_told_at_the_end(autojump_clock):
    with structlog.testing.capture_logs() as logs:
        notes = Notes(structlog.get_logger())
        for _ in range(MOST + 1):
            notes.add("client cut off")
        notes.tell()
        notes.tell()
    assert [entry["event"] for entry in logs] == ["client cut off"] * MOST + ["more events of clients were not logged"]
    assert logs[-1]["number"] == 1
