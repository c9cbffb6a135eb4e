"""Unit: host and guest write and read exactly the example frames of protocol/SPEC.md."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path

import msgspec
import pytest

from protocol import frames, messages
from tests.programs import guest, many, parts, values
from tests.programs import source as guest_source

SPEC = Path(__file__).parents[2] / "protocol" / "SPEC.md"
PID = 4242
GREETS = b"""
def handler(value, /, context):
    context.progress(1, 2, "half")
    yield "Hello " + value["name"]
"""
CALLS = """
def handler(value, /, context):
    try:
        %s
    except Exception as problem:
        assert isinstance(problem, ZeroDivisionError) or problem.kind == "timeout"
    return ["Hello " + value["name"]]
"""
CONVERSATIONS = {
    "a call": (GREETS, ["execute"], ["ready", "progress", "item", "result"]),
    "liveness": (GREETS, ["ping"], ["ready", "pong"]),
    "it raises": (b"def handler(value, /):\n    return value['title']\n", ["execute"], ["ready", "error: it raised"]),
    "a bad value": (
        b"def handler(value, /):\n    return {'rows': [{'price': float('nan')}]}\n",
        ["execute"],
        ["ready", "error: bad value"],
    ),
    "equal keys": (
        b"def handler(value, /):\n    return {'rows': [{1: 'a', '1': 'b'}]}\n",
        ["execute"],
        ["ready", "error: equal keys"],
    ),
    "a converted value": (
        b"import datetime\ndef handler(value, /):\n    return {datetime.date(2027, 1, 31): {'b'}}\n",
        ["execute"],
        ["ready", "result: converted"],
    ),
    "a file": (
        b"def handler(value, /):\n    return {'plot': b'\\x89PNG'}\n",
        ["execute", "stored"],
        ["ready", "store", "piece", "end", "result: a file"],
    ),
    "a file of the input": (GREETS, ["execute: a file"], ["ready", "progress", "item", "result"]),
    "a file is refused": (
        b"def handler(value, /):\n    return {'plot': b'\\x89PNG'}\n",
        ["execute", "refused"],
        ["ready", "store", "error: refused"],
    ),
    "a call of a module": (
        CALLS % "context.call('price', {'id': 7})",
        ["execute", "called"],
        ["ready", "call", "result"],
    ),
    "a call that fails": (
        CALLS % "context.call('price', {'id': 7})",
        ["execute", "call_failed"],
        ["ready", "call", "result"],
    ),
    "a call that is withdrawn": (
        CALLS % "context.map('price', ({'id': 7 // n} for n in (1, 0)))",
        ["execute", "called"],
        ["ready", "call", "withdraw", "result"],
    ),
    "no import": (b"import no_such_library\n", [], ["load_failed"]),
    "what a worker does not know": (GREETS, ["cancel", "file", "last piece", "kill", "ping"], ["ready", "pong"]),
}
"""What the module is, what the host says after `hello`, and what the guest says to it, by the names of the vectors."""
MANY = [
    (["hello: many calls"], ["ready"]),
    (["execute"], ["printed", "store", "part", "piece", "part", "end"]),
    (["execute: another"], ["printed: another", "store: another", "part: another", "piece", "part: another", "end"]),
    (["cancel: another"], ["error: one of many"]),
    (["stored"], ["result: one of many"]),
    (["shutdown"], []),
]
"""What the host says to a guest of many calls, and its answers."""


def read_vectors():
    """Return name -> (sender, whole frame, its JSON) of every block marked `vector`."""
    found = {}
    for who, name, body in re.findall(
        r"^```vector (\w+) ([^\n]+)\n(.*?)^```$", SPEC.read_text(), re.DOTALL | re.MULTILINE
    ):
        *dump, text = body.splitlines()
        assert name not in found, f"two vectors are named {name!r}"
        found[name] = (who, bytes.fromhex("".join(dump)), text.encode())
    return found


def read_byte_vectors():
    """Return name -> (sender, whole frame, its bytes) of every block marked `bytes`."""
    found = re.findall(r"^```bytes (\w+) ([^\n]+)\n(\w+)\n(\w*)\n```$", SPEC.read_text(), re.MULTILINE)
    return {name: (who, bytes.fromhex(frame), bytes.fromhex(content)) for who, name, frame, content in found}


VECTORS = read_vectors()
PIECES = read_byte_vectors()
SAID = {**VECTORS, **PIECES}


def said_by(*who):
    return pytest.mark.parametrize("name", [name for name, vector in VECTORS.items() if vector[0] in who])


def tags(union):
    return {kind.__struct_config__.tag for kind in union.__args__}


def test_every_message_has_a_vector():
    said = {
        who: {name.partition(":")[0] for name, v in VECTORS.items() if v[0] == who}
        for who in ("host", "guest", "relay")
    }

    assert set(said) == {who for who, _, _ in VECTORS.values()}
    assert said["host"] == tags(messages.HostMessage)
    assert said["guest"] | said["relay"] == tags(messages.GuestMessage)
    assert all(json.loads(text)["type"] == name.partition(":")[0] for name, (_, _, text) in VECTORS.items())


@pytest.mark.parametrize("name", VECTORS)
def test_the_frame_is_the_length_and_the_json(name):
    _, frame, text = VECTORS[name]

    assert frames.encode(text) == frame
    assert frames.FrameDecoder(len(text)).feed(frame) == [text]


@pytest.mark.parametrize("name", PIECES)
def test_a_byte_frame_is_the_length_a_zero_and_the_bytes(name):
    _, frame, content = PIECES[name]

    assert frames.encode_bytes(content) == frame
    (payload,) = frames.FrameDecoder(1 + len(content)).feed(frame)
    assert payload == frames.MARK + content


def test_each_side_has_byte_vectors_and_an_end():
    assert {who for who, _, _ in PIECES.values()} == {"host", "guest"}
    assert b"" in {content for _, _, content in PIECES.values()}


@said_by("host")
def test_the_host_says_it(name):
    _, frame, text = VECTORS[name]
    message = msgspec.json.decode(text, type=messages.HostMessage)

    assert frames.encode(messages.encode(message)) == frame


@said_by("guest", "relay")
def test_the_host_reads_it(name):
    """Every sent field arrives with its value; a missing one has its default."""
    _, frame, text = VECTORS[name]
    (payload,) = frames.FrameDecoder(1 << 20).feed(frame)

    message = messages.decode(payload)

    said = json.loads(text)
    assert message.__struct_config__.tag == said["type"]
    assert json.loads(msgspec.json.encode(message)).items() >= said.items()
    assert said.keys() - {"type"} <= set(message.__struct_fields__)


@said_by("host")
def test_the_guest_reads_it(name):
    _, frame, text = VECTORS[name]
    reader, writer = os.pipe()
    os.write(writer, frame + frame)
    os.close(writer)
    channel = guest.Channel(reader)
    try:
        assert [channel.receive(), channel.receive(), channel.receive()] == [json.loads(text), json.loads(text), None]
    finally:
        os.close(reader)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_guest_says_it(name, monkeypatch):
    source, host, expected = CONVERSATIONS[name]

    said = converse(monkeypatch, source, [SAID[each][1] for each in ("hello", *host, "shutdown")])

    assert said == b"".join(SAID[each][1] for each in expected)


def test_the_conversations_use_every_vector_of_the_guest():
    used = {name for _, host, guests in CONVERSATIONS.values() for name in (*host, *guests)} | {"hello", "shutdown"}
    used |= {name for turn in MANY for names in turn for name in names}

    assert used == {name for name, (who, _, _) in SAID.items() if who != "relay"}


def test_a_guest_of_many_calls_says_it(monkeypatch):
    source = b"async def handler(value, /):\n    print(value['name'])\n    return {'plot': b'\\x89PNG'}\n"
    said, expected = [], []
    stub_all(monkeypatch, source)
    stub(monkeypatch, os, many, getpid=lambda: PID)
    stub(monkeypatch, signal, many, signal=lambda *_: None)
    stub(monkeypatch, time, many, perf_counter=guest.time.perf_counter)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    ours, theirs = socket.socketpair()

    def host():
        for sends, answers in MANY:
            ours.sendall(b"".join(SAID[each][1] for each in sends))
            expected.append(b"".join(SAID[each][1] for each in answers))
            said.append(b"")
            while len(said[-1]) < len(expected[-1]) and (part := ours.recv(len(expected[-1]) - len(said[-1]))):
                said[-1] += part

    with ours, theirs:
        ours.settimeout(20)
        thread = threading.Thread(target=host)
        thread.start()
        worker = guest.Guest(guest.Channel(theirs.fileno()))
        calls = many.Many(worker)
        calls.serve(calls.channel.receive())
        calls.loop.close()
        thread.join()

    assert said == expected


def converse(monkeypatch, source, host):
    """Return all bytes that the guest answers to these frames, with clock, pid and version of the vectors."""
    stub_all(monkeypatch, source)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for frame in host:
            ours.sendall(frame)
        worker = guest.Guest(guest.Channel(theirs.fileno()))
        if worker.load(worker.channel.receive()):
            worker.serve(forked=False)
        theirs.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: ours.recv(65536), b""))


def stub_all(monkeypatch, source):
    """Let the guest find this source, and clock, pid and version of the vectors."""
    clock = iter(range(1, 100))
    stub(monkeypatch, os, environ={}, getpid=lambda: PID, waitid=no_children, killpg=None, _exit=None)
    modules = {"__main__": types.ModuleType("__main__"), "threading": threading, "traceback": traceback}
    stub(monkeypatch, sys, path=[], meta_path=[*sys.meta_path], modules=modules, version_info=(3, 11, 7))
    stub(monkeypatch, time, perf_counter=lambda: next(clock) * 0.25)
    monkeypatch.setitem(sys.modules, "operato", None)  # another test may have imported one
    monkeypatch.setattr(guest, "peak_memory", lambda: 12_582_912)
    monkeypatch.setitem(guest._MORE, "calling", str(guest_source("calling.py")))
    monkeypatch.setattr(guest.Memory, "forget", lambda _: None)
    monkeypatch.setattr(guest, "_LIBC", types.SimpleNamespace(fflush=lambda _: 0))
    monkeypatch.setattr(SourceFileLoader, "get_code", lambda self, _: compile(code(self.path), self.path, "exec"))

    def code(path):
        return source if path.startswith("/srv/") else Path(path).read_bytes()


def stub(monkeypatch, module, program=guest, **instead):
    """Replace some names of a module for a file of the guest program only."""
    monkeypatch.setattr(program, module.__name__, types.SimpleNamespace(**{**vars(module), **instead}))


def no_children(*_):
    raise ChildProcessError


# -- the tables ------------------------------------------------------------------------------------------------------


def rows(heading):
    """Return the cells of each row of the first table under a heading."""
    _, _, rest = SPEC.read_text().partition(f"\n## {heading}\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_message_table_has_every_field():
    written = {}
    for message, field, kind, default, *_ in rows("Messages"):
        if message:
            current = written.setdefault(message.strip("`"), {})
        if field:
            current[field.strip("`")] = (kind, default.strip("`"))

    expected = {}
    for struct in (*messages.HostMessage.__args__, *messages.GuestMessage.__args__):
        info = msgspec.inspect.type_info(struct)
        expected[info.tag] = {field.name: (json_type(field.type), default_of(field)) for field in info.fields}
    assert written == expected


def json_type(info):
    names = {"StrType": "string", "IntType": "integer", "FloatType": "number", "BoolType": "boolean", "RawType": "any"}
    names |= {"VarTupleType": "array"}
    if isinstance(info, msgspec.inspect.UnionType):
        return " or ".join(json_type(part) for part in info.types)
    return names.get(type(info).__name__, {"DictType": "object", "NoneType": "null"}.get(type(info).__name__))


def default_of(field):
    if field.required:
        return ""
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return json.dumps(default)


def test_the_limits_are_the_same_on_both_sides():
    assert guest.PROTOCOL_VERSION == messages.PROTOCOL_VERSION
    assert parts.HEADER_BYTES == frames.HEADER_BYTES
    assert parts.MAX_PIECE == frames.MAX_PIECE
    assert frames.MARK == parts.END
    assert values.MAX_DEPTH == messages.MAX_DEPTH


def test_the_limits_are_as_written():
    limits = "\n".join(" ".join(row) for row in rows("Limits"))

    for number in (
        values.MAX_DEPTH,
        values.MAX_TEXT,
        guest.MAX_TRACEBACK,
        values.MAX_TEXT // 4,
        values.MAX_PATH,
        parts.MAX_NAME,
    ):
        assert f"{number:,}" in limits
