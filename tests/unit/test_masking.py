"""Unit: secrets in text: the masked text does not depend on cuts; only possible values wait."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import msgspec
import pytest
import structlog
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from actors.events import EventLog, Follower
from actors.workers.masking import HOLD_SECONDS, MASK, MaskedLog, Masker, Reading, look_up
from config.mistakes import ConfigError, Mistake
from config.modules.spec import ModuleSpec
from config.secrets import read
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.events import ItemEvent, OutputEvent, ProgressEvent
from protocol.messages import Item, Progress
from protocol.model import Kind, Stream

TOKEN = "s3cr3t-token"


def masker(*values):
    made = Masker.of(values)
    assert made is not None
    return made


def cut_up(text, cuts):
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[begin:end] for begin, end in pairwise(places)]


def plainly(patterns, data):
    """Return the expected text by looking at every byte: the definition, which is slow."""
    covers = [0] * (len(data) + 1)
    joined = set()
    for pattern in patterns:
        for start in range(len(data)):
            if data.startswith(pattern, start):
                for place in range(start, start + len(pattern)):
                    covers[place] = 1
                joined.update(range(start + 1, start + len(pattern)))
    out = b""
    for place in range(len(data)):
        if not covers[place]:
            out += data[place : place + 1]
        elif place not in joined:
            out += b"***"
    return out


# -- texts -------------------------------------------------------------------------------------------------------------


letters = st.text("ab\n", max_size=40)
values = st.lists(st.text("ab\n", min_size=4, max_size=9), min_size=1, max_size=4)
cuts = st.lists(st.integers(0, 200), max_size=8)


@given(values, letters, cuts)
@example(["abab"], "ababab", [1, 2, 3, 4, 5])
@example(["aaaa", "aaaaaaaa"], "aaaaaaa", [4])
@example(["abaa", "aabb"], "abaabb", [4, 5])
@example(["abab", "baab"], "ababaab", [6])
def test_every_cut_of_a_text_gives_the_expected_text(values, text, cuts):
    made = Masker.of(values)
    patterns = [pattern for found in made._by_head.values() for pattern in found]
    reading = Reading(made)
    data = text.encode()
    out = [reading.feed(piece) for piece in cut_up(data, cuts)]
    out.append(reading.flush())

    assert b"".join(out) == plainly(patterns, data)
    assert reading.holds == 0
    assert made.text(text).encode() == b"".join(out)


@given(st.lists(st.text(min_size=4, max_size=8), min_size=1, max_size=3), st.data())
def test_no_value_is_left_in_a_text_full_of_values(values, data):
    parts = st.one_of(st.sampled_from(values), st.text(max_size=5))
    text = "".join(data.draw(st.lists(parts, max_size=8)))
    pieces = cut_up(text.encode(), data.draw(cuts))
    reading = Reading(masker(*values))
    said = b"".join([*(reading.feed(piece) for piece in pieces), reading.flush()]).decode()

    assert [value for value in values if value in said.replace(MASK, "\0")] == []


@given(values, letters, cuts)
def test_only_the_beginning_of_a_value_stays_back(values, text, cuts):
    made = Masker.of(values)
    patterns = [pattern for found in made._by_head.values() for pattern in found]
    reading = Reading(made)
    for piece in cut_up(text.encode(), cuts):
        reading.feed(piece)
        held = reading._held
        assert not held or any(pattern.startswith(held) and pattern != held for pattern in patterns)


TEXTS = {
    "the value": (["abcdef"], "abcdef", "***"),
    "within a text": (["abcdef"], "x=abcdef;", "x=***;"),
    "twice": (["abcdef"], "abcdefabcdef abcdef", "****** ***"),
    "a beginning of it": (["abcdef"], "abcde", "abcde"),
    "one is the beginning of another": (["abcd", "abcdef"], "abcdef abcde", "*** ***e"),
    "they overlap": (["abcdef", "defghi"], "abcdefghi", "***"),
    "one within another": (["abcdef", "bcde"], "abcdef bcde", "*** ***"),
    "four characters": (["abcd"], "abcd", "***"),
    "each line of several": (["first line\n  second\r\nabc\n"], "first line | second | abc", "*** | *** | abc"),
    "several lines as they are": (["first\nsecond"], "first\nsecond", "***"),
    "not ASCII": (["비밀번호"], "암호는 비밀번호입니다", "암호는 ***입니다"),
    "as repr writes it": (['it\'s\t\\d"x"'], repr({"k": 'it\'s\t\\d"x"'}), "{'k': '***'}"),
    "as JSON writes it": (['비밀"번호"'], json.dumps(['비밀"번호"']), '["***"]'),
    "stars": (["****"], "******", "***"),
    "what an expression would read otherwise": (["a.c|[d"], "a.c|[d abcd", "*** abcd"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text(case):
    given_values, text, masked = TEXTS[case]

    assert masker(*given_values).text(text) == masked


def test_short_values_are_left_as_they_are():
    assert Masker.of([]) is None
    assert Masker.of(["", "abc", "\n\n", "a\nb\n"]) is not None, "four characters in all"
    assert Masker.of(["", "abc", "\n\n", "é\né"]) is None
    assert masker("abc", TOKEN).text(f"abc {TOKEN}") == "abc ***"


def test_half_characters_pass():
    assert masker(TOKEN).text(f"\udc80 {TOKEN}\ud800") == "\udc80 ***\ud800"


def test_a_message_that_was_cut_within_a_value_ends_before_it():
    long = "x" * 5000

    assert masker(TOKEN).text(f"{long} {TOKEN[:8]}") == f"{long} ***"
    assert masker(TOKEN).text(f"{long} {TOKEN[:3]}") == f"{long} {TOKEN[:3]}"
    assert masker(TOKEN).text(f"short {TOKEN[:8]}") == f"short {TOKEN[:8]}"
    assert masker("abcdef", "defghijkl").text(f"{long} abcdefghij") == f"{long} ***", "it is the rest of one"


def test_a_failure():
    failure = Failure(
        ErrorKind.HANDLER_ERROR, f"no {TOKEN}", f"T{TOKEN}", f"{'x' * 5000}{TOKEN[:9]}\n...\n{TOKEN}", f"$.{TOKEN}", 3.0
    )

    assert masker(TOKEN).failure(failure) == Failure(
        ErrorKind.HANDLER_ERROR, "no ***", "T***", f"{'x' * 5000}***\n...\n***", "$.***", 3.0
    )
    assert masker(TOKEN).failure(Failure(ErrorKind.TIMEOUT, "late")) == Failure(ErrorKind.TIMEOUT, "late")


def test_progress_of_a_handler_in_the_runner():
    heard = []
    tell = masker(TOKEN).before(heard.append)
    item = Item("e", msgspec.Raw(f'"{TOKEN}"'.encode()))
    tell(Progress("e", 1, 2, f"with {TOKEN}"))
    tell(item)

    assert heard == [Progress("e", 1, 2, "with ***"), item]


# -- what it costs -----------------------------------------------------------------------------------------------------


def seconds(work):
    began = time.process_time()
    work()
    return time.process_time() - began


def test_a_value_of_many_lines_is_found_in_bounded_time():
    """A key store of 64 KiB, against a megabyte of unrelated output and one of output that begins like it."""
    lines = [f"{number * 2654435761 % 2**32:08x}" * 8 for number in range(1000)]
    made = masker("\n".join(lines))
    other = b"0123456789abcdef" * 65536

    assert made.text(f"{lines[0]} {lines[999]}") == "*** ***"
    assert min(seconds(lambda: Reading(made).feed(other)) for _ in range(3)) < 2
    assert min(seconds(lambda: Reading(made).feed(lines[7][:60].encode() * 17000)) for _ in range(3)) < 2


def test_of_too_many_lines_the_first_are_masked():
    made = masker("\n".join(f"line {number}" for number in range(10_000)))

    assert made.text("line 17|") == "***|"
    assert sum(map(len, made._by_head.values())) == 4096


# -- logs --------------------------------------------------------------------------------------------------------------


class Site:
    def __init__(self, *values):
        self.log = EventLog(limit=1000, keep=100_000, keep_items=100_000)
        self.masked = MaskedLog(masker(*values)).before(self.log)

    @property
    def said(self):
        return [event.text if isinstance(event, OutputEvent) else event for event in self.log.kept()]


async def test_streams_are_masked_apart():
    site = Site(TOKEN)
    site.masked.write(Stream.STDOUT, b"a s3cr3t")
    site.masked.write(Stream.STDERR, b"-token b ")
    site.masked.write(Stream.STDOUT, b"-token c ")

    assert site.said == ["a ", "-token b ", "*** c "]


async def test_items_and_progress_come_behind_the_output_before_them():
    site = Site(TOKEN)
    site.masked.write(Stream.STDOUT, b"it is s3c")
    site.masked.flush()
    site.masked.progress(1.0, 2.0, f"using {TOKEN}")
    site.masked.flush()
    site.masked.item(msgspec.Raw(f'"{TOKEN}"'.encode()))

    *printed, progress, item = site.said
    assert "".join(printed) == "it is s3c"
    assert isinstance(progress, ProgressEvent)
    assert progress.text == "using ***"
    assert isinstance(item, ItemEvent)
    assert bytes(item.value).decode() == f'"{TOKEN}"', "answers are not masked"


async def test_held_bytes_of_one_execution_do_not_reach_the_next():
    site = Site(TOKEN)
    site.masked.write(Stream.STDOUT, b"s3cr3t")
    after = EventLog(limit=1000, keep=1000)
    site.masked.before(after).write(Stream.STDOUT, b"-token")

    assert [event.text for event in after.kept()] == ["-token"]


async def test_held_bytes_are_written_when_no_output_follows(autojump_clock, nursery):
    site = Site(TOKEN)
    nursery.start_soon(site.masked.run)
    follower = Follower(site.log)
    began = trio.current_time()
    site.masked.write(Stream.STDOUT, b"s")
    with trio.fail_after(1):
        events = await follower.next()

    assert [event.text for event in events] == ["s"]
    assert trio.current_time() - began == pytest.approx(HOLD_SECONDS)
    assert HOLD_SECONDS < 0.05
    site.masked.close()


async def test_other_output_is_written_at_once(autojump_clock):
    site = Site(TOKEN)
    site.masked.write(Stream.STDOUT, b"hello\n")

    assert site.said == ["hello\n"]


async def test_output_on_one_stream_does_not_hold_back_the_other(autojump_clock, nursery):
    site = Site(TOKEN)
    nursery.start_soon(site.masked.run)
    site.masked.write(Stream.STDOUT, b"s3")
    for character in b"s3cr3t-t":
        await trio.sleep(HOLD_SECONDS / 2)
        site.masked.write(Stream.STDERR, bytes([character]))

    assert site.said == ["s3"], "the other may still be a value"
    site.masked.write(Stream.STDERR, b"oken")
    assert site.said == ["s3", "***"]
    site.masked.close()


async def test_it_ends_when_it_is_closed(autojump_clock):
    site = Site(TOKEN)
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.masked.run)
            site.masked.write(Stream.STDOUT, b"s3")
            await trio.testing.wait_all_tasks_blocked()
            site.masked.close()


# -- looking up --------------------------------------------------------------------------------------------------------


async def test_a_missing_value_is_named_to_the_caller_and_its_place_in_the_log():
    def missing(wanted):
        raise ConfigError(Mistake(f"/run/{name} does not exist", None, None, name) for name in wanted)

    spec = ModuleSpec("m", Kind.INLINE, code="x = 1", secrets=read(["A", "B"]))
    with structlog.testing.capture_logs() as lines, pytest.raises(RunnerError) as caught:
        await look_up(spec, missing)

    assert caught.value.failure == Failure(
        ErrorKind.UNAVAILABLE,
        "the value of A, B in `secrets` is missing; the runner's log has the places that were searched",
        field="secrets",
    )
    assert [line["why"] for line in lines] == ["/run/A does not exist", "/run/B does not exist"]


async def test_without_secrets_there_is_no_look_up_and_no_checkpoint():
    def never(_wanted):
        raise AssertionError

    with trio.testing.assert_no_checkpoints():
        assert await look_up(ModuleSpec("m", Kind.INLINE, code="x = 1"), never) == {}
