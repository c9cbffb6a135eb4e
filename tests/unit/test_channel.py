"""Unit: bytes on the worker channel: any split of any conversation, pieces of any source, copies of files."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import threading
import tracemalloc
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.channel import Channel
from environments.base import MAX_STORED, ChannelClosedError
from environments.local.copies import Copies
from protocol import frames, messages
from protocol.errors import ErrorKind, error
from tests.programs import parts, values

same_each_time = settings(derandomize=True, deadline=None, max_examples=60)


# -- the host --------------------------------------------------------------------------------------------------------


class Guest:
    """Delivers given bytes in given pieces, then it is gone; keeps what it is sent."""

    def __init__(self, pieces):
        self.pieces = list(pieces)
        self.decoder = frames.FrameDecoder(1 << 20)
        self.heard = []

    async def send(self, frame):
        await trio.lowlevel.checkpoint()
        self.heard += map(json.loads, self.decoder.feed(frame))

    async def receive(self):
        await trio.lowlevel.checkpoint()
        if not self.pieces:
            raise ChannelClosedError
        return self.pieces.pop(0)

    def has_spoken(self):
        return bool(self.pieces)


class Memory:
    """Stores files in memory; the log of an execution too."""

    def __init__(self, limit=1 << 30):
        self.limit = limit
        self.kept, self.begun, self.items, self.reports = [], 0, [], 0

    @asynccontextmanager
    async def store(self, name, media_type):
        self.begun += 1
        data = bytearray()

        async def write(piece):
            await trio.lowlevel.checkpoint()
            data.extend(piece)
            if len(data) > self.limit:
                raise error(ErrorKind.TOO_LARGE, "too large")

        async def finish():
            await trio.lowlevel.checkpoint()
            self.kept.append((name, media_type, bytes(data)))
            return SimpleNamespace(described={"id": f"f{len(self.kept)}"})

        yield SimpleNamespace(write=write, finish=finish)

    def item(self, value):
        self.items.append(json.loads(bytes(value)))

    def progress(self, *_):
        self.reports += 1


def said(**fields):
    return frames.encode(json.dumps(fields).encode())


PROGRESS = said(type="progress", id="e")
END = said(type="result", id="e", seconds=0, value=1)


def answered(stream_pieces, memory):
    """Return the answer, the refusal, and what the guest was sent."""
    guest = Guest(stream_pieces)

    async def main():
        return await Channel(guest, 1 << 16).answer("e", memory.store, memory, lambda: None)

    answer, refused = trio.run(main)
    return answer, refused, guest.heard


class SlowGuest(Guest):
    """Takes a frame byte by byte, as one whose buffer is full."""

    async def send(self, frame):
        for place in range(len(frame)):
            await super().send(frame[place : place + 1])


def test_answers_to_calls_and_files_do_not_mix():
    stream = said(type="call", id="e", number=1, module="m", input=None)
    stream += said(type="call", id="e", number=2, module="m", input=None)
    stream += said(type="store", id="e", name="n", media_type="a/b") + frames.encode_bytes(b"") + END
    guest, memory = SlowGuest([stream]), Memory()

    async def main():
        async with trio.open_nursery() as nursery:

            def begin(message, reply):
                nursery.start_soon(reply, messages.Called("e", message.number, "c", message.input))

            nested = SimpleNamespace(begin=begin, open=0)
            await Channel(guest, 1 << 16).answer("e", memory.store, memory, lambda: None, nested)

    trio.run(main)

    assert sorted(each.get("number", 0) for each in guest.heard) == [0, 1, 2]


@st.composite
def conversations(draw):
    """Return files as lists of pieces with progress between them, and the bytes of all messages in pieces."""
    files = draw(st.lists(st.lists(st.binary(min_size=1, max_size=300) | st.none(), max_size=6), max_size=4))
    stream = b""
    for number, pieces in enumerate(files):
        stream += said(type="store", id="e", name=f"n{number}", media_type="a/b")
        stream += b"".join(PROGRESS if piece is None else frames.encode_bytes(piece) for piece in pieces)
        stream += frames.encode_bytes(b"") + said(type="item", id="e", value=number)
    stream += END
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    return files, [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]


@same_each_time
@given(conversations())
def test_any_split_of_any_files_is_stored_the_same(case):
    files, pieces = case
    memory = Memory()

    answer, refused, heard = answered(pieces, memory)

    contents = [b"".join(filter(None, each)) for each in files]
    assert memory.kept == [(f"n{number}", "a/b", data) for number, data in enumerate(contents)]
    assert heard == [{"type": "stored", "id": "e", "file": {"id": f"f{n + 1}"}} for n in range(len(files))]
    assert memory.items == list(range(len(files)))
    assert memory.reports == sum(each.count(None) for each in files)
    assert isinstance(answer, messages.Result)
    assert refused is None


@pytest.mark.parametrize("ends", [True, False])
def test_a_refusal_comes_at_once_and_the_rest_is_dropped(ends):
    """The guest may have sent the end already, when the refusal reaches it."""
    memory = Memory(limit=5)
    rest = [frames.encode_bytes(b"x" * 3)] * 4 + [frames.encode_bytes(b"")] * ends
    failed = said(type="error", id="e", kind="other", message="m")

    answer, refused, heard = answered([said(type="store", id="e", name="", media_type=""), *rest, failed], memory)

    assert heard == [{"type": "refused", "id": "e", "kind": "too_large", "message": "too large"}]
    assert refused.kind is ErrorKind.TOO_LARGE
    assert answer.kind == "other"
    assert memory.kept == []


def test_an_error_abandons_a_file():
    memory = Memory()
    pieces = [said(type="store", id="e", name="", media_type=""), frames.encode_bytes(b"x")]

    answer, refused, heard = answered([*pieces, said(type="error", id="e", kind="bad_output", message="m")], memory)

    assert (answer.kind, refused, heard, memory.kept) == ("bad_output", None, [], [])
    with pytest.raises(ChannelClosedError):
        answered(pieces, memory)
    assert memory.kept == []


def test_the_number_of_files_of_an_execution_is_limited():
    memory = Memory()
    one = said(type="store", id="e", name="", media_type="") + frames.encode_bytes(b"")
    failed = said(type="error", id="e", kind="bad_output", message="m")

    _, refused, heard = answered([one] * (MAX_STORED + 1) + [failed], memory)

    assert refused.kind is ErrorKind.BAD_OUTPUT
    assert "10000 files" in refused.message
    assert len(memory.kept) == MAX_STORED == len(heard) - 1


def test_the_name_shows_a_missing_type():
    memory = Memory()
    stream = [
        said(type="store", id="e", name=name, media_type="") + frames.encode_bytes(b"") for name in ("a.png", "b")
    ]

    answered([*stream, END], memory)

    assert [kept[:2] for kept in memory.kept] == [("a.png", "image/png"), ("b", "")]


def test_a_large_file_takes_little_memory():
    """Its pieces are written as they come; the bound does not depend on its size."""
    frame, count, sizes = frames.encode_bytes(bytes(frames.MAX_PIECE)), 64, []

    class Large(Guest):
        async def receive(self):
            if not self.pieces:
                nonlocal count
                whole = frame if count else frames.encode_bytes(b"") + END
                count -= 1
                self.pieces = [whole[at : at + 200_000] for at in range(0, len(whole), 200_000)]
            return await super().receive()

    @asynccontextmanager
    async def store(_name, _type):
        async def write(piece):
            await trio.lowlevel.checkpoint()
            sizes.append(len(piece))

        async def finish():
            await trio.lowlevel.checkpoint()
            return SimpleNamespace(described={})

        yield SimpleNamespace(write=write, finish=finish)

    async def main():
        guest = Large([said(type="store", id="e", name="", media_type="")])
        return await Channel(guest, 2 << 20).answer("e", store, Memory(), lambda: None)

    tracemalloc.start()
    try:
        trio.run(main)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert sizes == [frames.MAX_PIECE] * 64
    assert peak < 8 << 20


# -- the guest -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = parts.Channel(theirs.fileno())
        channel.speak_for("e")
        yield ours, channel


def heard(ours, count):
    """Return the next payloads that a guest sends."""
    decoder, found = frames.FrameDecoder(1 << 24), []
    while len(found) < count:
        found += decoder.feed(ours.recv(1 << 16))
    return found


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("kind", ["buffer", "file"])
def test_a_source_of_any_size_is_cut_into_pieces(ends, size, kind):
    ours, channel = ends
    data = os.urandom(size)
    kept = []
    thread = threading.Thread(
        target=lambda: kept.append(channel.store(data if kind == "buffer" else io.BytesIO(data), "n", "t"))
    )
    thread.start()
    count = -(-size // (1 << 20))

    store, *pieces = heard(ours, count + 2)
    ours.sendall(said(type="cancelled?") + said(type="stored", id="other", file={}))
    for byte in said(type="stored", id="e", file={"id": "f"}):
        ours.sendall(bytes([byte]))
    thread.join(30)

    assert json.loads(store) == {"type": "store", "id": "e", "name": "n", "media_type": "t"}
    assert pieces[-1] == b"\0"
    assert all(piece[:1] == b"\0" and 1 < len(piece) <= (1 << 20) + 1 for piece in pieces[:-1])
    assert b"".join(piece[1:] for piece in pieces) == data
    assert kept == [{"id": "f"}]
    assert not channel.storing


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"type": "refused", "id": "e", "kind": "too_large", "message": "m"}, parts.Refused),
        ({"type": "cancel", "id": "e"}, parts.Stop),
    ],
)
def test_what_the_host_says_in_the_middle_is_the_end(ends, message, expected):
    ours, channel = ends
    ours.sendall(said(**message))

    with pytest.raises(expected):
        channel.store(bytes(10 << 20), "", "")

    assert [json.loads(payload)["type"] for payload in heard(ours, 1)] == ["store"]
    assert not channel.storing
    assert channel.cancelled is (expected is parts.Stop)
    if channel.cancelled:
        assert channel.waiting(), "the signal that follows would end the process"
        with pytest.raises(parts.Stop):
            channel.store(b"x", "", "")


def test_a_small_limit_of_frames_makes_small_pieces(ends):
    ours, channel = ends
    channel.max_bytes = 1000
    ours.sendall(said(type="stored", id="e", file={}))

    channel.store(bytes(2500), "x" * 500 + ".txt", "t" * 500)

    store, *pieces = heard(ours, 5)
    assert [len(piece) for piece in pieces] == [1001, 1001, 501, 1]
    assert json.loads(store)["name"] == "x" * 196 + ".txt"
    assert json.loads(store)["media_type"] == "t" * 200


def test_a_source_that_reads_too_much_is_cut_too():
    answers = iter([b"abcde", bytearray(b"f"), b""])
    source = SimpleNamespace(seekable=lambda: False, read=lambda _size: next(answers))

    assert [bytes(piece) for piece in values.pieces_of(source, 2)] == [b"ab", b"cd", b"e", b"f"]


# -- files of a container --------------------------------------------------------------------------------------------


def test_files_of_a_container(tmp_path):
    inbox = parts.Inbox(str(tmp_path))
    for path, pieces in (("code/m/a.py", [b"x = 1\n", b"y"]), ("files/1/a", [b"data"]), ("files/2/empty", [])):
        inbox.begin(path)
        for piece in [*pieces, b""]:
            inbox.take(b"\0" + piece)

    assert (tmp_path / "code/m/a.py").read_bytes() == b"x = 1\ny"
    assert (tmp_path / "files/1/a").read_bytes() == b"data"
    assert (tmp_path / "files/2/empty").read_bytes() == b""
    inbox.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code"]
    assert inbox.problem() == ""


def test_a_file_that_cannot_be_written_in_a_container(tmp_path):
    inbox = parts.Inbox(str(tmp_path))
    (tmp_path / "files").write_text("in the way")
    inbox.begin("files/1/a")
    inbox.take(b"\0data")
    inbox.take(b"\0")

    assert "files" in inbox.problem()
    inbox.take(b"\0stray bytes")
    first = inbox.problem()
    inbox.begin("code/" + "x" * 300)  # the first reason counts
    assert inbox.problem() == first
    inbox.clear()
    assert inbox.problem() == ""


# -- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100_000])
@pytest.mark.parametrize("problem", [None, errno.EXDEV, errno.EINVAL])
def test_a_copy_has_the_content_and_is_no_link(tmp_path, monkeypatch, size, problem):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    source.chmod(0o400)
    if problem is not None:
        monkeypatch.setattr(os, "copy_file_range", lambda *_: (_ for _ in ()).throw(OSError(problem, "no")))
    copies = Copies(tmp_path)
    first, second = (copies.add(source, "a.txt", lambda: None) for _ in range(2))

    assert first != second
    assert first.name == second.name == "a.txt"
    assert first.read_bytes() == second.read_bytes() == source.read_bytes()
    assert first.stat().st_ino != source.stat().st_ino
    assert first.stat().st_mode & 0o777 == 0o600
    copies.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    copies.remove()
    assert copies.add(source, "b", lambda: None).exists(), "there is no next call"


def test_a_copy_ends_when_it_is_told_to(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(bytes(100))

    def check():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Copies(tmp_path).add(source, "a", check)


def test_another_error_of_a_copy_is_an_error(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(b"x")
    monkeypatch.setattr(os, "copy_file_range", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))

    with pytest.raises(OSError, match="full"):
        Copies(tmp_path).add(source, "a", lambda: None)
