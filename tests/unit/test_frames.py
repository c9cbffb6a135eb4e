"""Unit: frames split anywhere are joined; a length over the limit is refused before its payload."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.frames import HEADER_BYTES, FrameDecoder, FrameTooLargeError, encode

LIMIT = 300
same_each_time = settings(derandomize=True, deadline=None)


@st.composite
def cut_streams(draw):
    """Return payloads, and the bytes of their frames in pieces, some of them empty."""
    payloads = draw(st.lists(st.binary(max_size=LIMIT)))
    stream = b"".join(map(encode, payloads))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)))))
    return payloads, [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def idle(decoder):
    """Return whether the decoder has no part of a frame."""
    return not decoder._buffer and decoder._wanted < 0


@same_each_time
@given(cut_streams())
def test_any_split_of_any_payloads_comes_out_the_same(case):
    payloads, pieces = case
    decoder = FrameDecoder(LIMIT)

    assert [payload for piece in pieces for payload in decoder.feed(piece)] == payloads
    assert idle(decoder)


@same_each_time
@given(cut_streams())
def test_a_payload_comes_out_as_soon_as_its_last_byte_is_there(case):
    """The decoder is idle exactly between two frames."""
    payloads, pieces = case
    ends = {0: 0}
    for payload in payloads:
        ends[max(ends) + HEADER_BYTES + len(payload)] = len(ends)
    decoder = FrameDecoder(LIMIT)
    fed = count = 0
    for piece in pieces:
        count += len(decoder.feed(piece))
        fed += len(piece)

        assert count == max(number for end, number in ends.items() if end <= fed)
        assert idle(decoder) is (fed in ends)


def test_one_byte_at_a_time():
    decoder = FrameDecoder(LIMIT)

    assert [decoder.feed(bytes([byte])) for byte in encode(b"ab")] == [[], [], [], [], [], [b"ab"]]


def test_an_empty_payload():
    decoder = FrameDecoder(LIMIT)

    assert encode(b"") == b"\0\0\0\0"
    assert decoder.feed(b"\0\0\0") == []
    assert not idle(decoder)
    assert decoder.feed(b"\0" * 5) == [b"", b""]
    assert idle(decoder)


def test_the_length_is_big_endian_and_unsigned():
    assert encode(b"x" * 0x010203)[:HEADER_BYTES] == b"\x00\x01\x02\x03"
    with pytest.raises(FrameTooLargeError, match="4294967295 bytes is over the limit of 300"):
        FrameDecoder(LIMIT).feed(b"\xff\xff\xff\xff")


def test_a_payload_of_exactly_the_limit_passes():
    assert FrameDecoder(LIMIT).feed(encode(b"x" * LIMIT)) == [b"x" * LIMIT]
    assert FrameDecoder(0).feed(encode(b"")) == [b""]


@same_each_time
@given(st.integers(LIMIT + 1, 2**32 - 1), st.binary(max_size=20), st.integers(0, 24))
def test_a_length_over_the_limit_is_refused_at_its_last_byte(size, rest, cut):
    stream = size.to_bytes(HEADER_BYTES, "big") + rest
    decoder = FrameDecoder(LIMIT)
    first = stream[: min(cut, HEADER_BYTES - 1)]

    assert decoder.feed(first) == []
    with pytest.raises(FrameTooLargeError) as caught:
        decoder.feed(stream[len(first) :])
    assert (caught.value.size, caught.value.limit) == (size, LIMIT)


def test_a_length_over_the_limit_behind_good_frames():
    with pytest.raises(FrameTooLargeError):
        FrameDecoder(LIMIT).feed(encode(b"good") + (LIMIT + 1).to_bytes(4, "big"))


def test_payloads_are_independent_of_what_was_fed():
    data = bytearray(encode(b"abc"))
    (payload,) = FrameDecoder(LIMIT).feed(data)
    data[:] = bytes(len(data))

    assert payload == b"abc"
    assert type(payload) is bytes


def test_many_small_frames_in_one_piece_take_linear_time():
    """Four million steps if the rest were copied for each of them; it would take minutes."""
    count = 100_000

    assert len(FrameDecoder(LIMIT).feed(encode(b"0123456789abcdef") * count)) == count
