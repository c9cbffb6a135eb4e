"""Unit: the pure parts of the guest program: values as JSON, calls of handlers, exceptions as data."""

from __future__ import annotations

import ast
import datetime as dt
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import threading
from enum import IntEnum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import frames, messages
from tests.programs import FILES, FOLDER, guest, source, values
from tests.pythons import PYTHONS
from tests.values import CONVERTED, REFUSED, SETUP

BadOutput, converted, encode_value = values.BadOutput, values.converted, values.encode_value
describe = guest.describe

same_each_time = settings(derandomize=True, deadline=None)


# -- values ----------------------------------------------------------------------------------------------------------


class Number(IntEnum):
    ONE = 1


SAYABLE = {
    "null": (None, b"null"),
    "true": (True, b"true"),
    "an integer": (2**100, b"1267650600228229401496703205376"),
    "a float": (1e100, b"1e+100"),
    "text": ('é"\n\U0001f600', '"é\\"\\n\U0001f600"'.encode()),
    "a control character": ("\0\x7f", b'"\\u0000\x7f"'),
    "a list": ([1, [2]], b"[1,[2]]"),
    "a tuple": ((1, ()), b"[1,[]]"),
    "an object": ({"b": 1, "a": {}}, b'{"b":1,"a":{}}'),
    "other keys": ({None: 1, True: 2, 3: 4, 1.5: 6}, b'{"null":1,"true":2,"3":4,"1.5":6}'),
    "an enum": ([Number.ONE], b"[1]"),
    "twice the same": ([SHARED := [1], SHARED], b"[[1],[1]]"),
}


@pytest.mark.parametrize(("value", "data"), SAYABLE.values(), ids=SAYABLE)
def test_what_json_can_say(value, data):
    assert encode_value(value) == data
    assert bytes(messages.check_json(data)) == data
    assert converted(value) == json.loads(data)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_table_of_values_under_every_python(python):
    """Every Python converts and refuses the same values, with the same paths and reasons."""
    path = Path(values.__file__)
    code = f"""
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("values", {str(path)!r})
values = importlib.util.module_from_spec(spec)
spec.loader.exec_module(values)
exec(json.loads(sys.argv[1]), globals())
answers = []
for source in json.loads(sys.argv[2]):
    try:
        answers.append([values.encode_value(eval(source)).decode(), None])
    except values.BadOutput as problem:
        answers.append([problem.path, str(problem)])
print(json.dumps(answers))
"""
    expected = [*CONVERTED.values(), *REFUSED.values()]
    sources = json.dumps([row[0] for row in expected])
    asked = [PYTHONS[python], "-I", "-W", "error", "-c", code, json.dumps(SETUP), sources]
    answers = json.loads(subprocess.run(asked, check=True, capture_output=True, timeout=60).stdout)

    for row, (said, reason) in zip(expected, answers, strict=True):
        if len(row) == 2:
            assert (reason, json.loads(said, object_pairs_hook=unique)) == (None, row[1]), row
        else:
            assert said == row[1], row
            assert reason is not None, row
            assert reason.startswith(row[2].replace("NAME", "__main__")), row


def deep(levels, *, of=list):
    value = 1
    for _ in range(levels):
        value = {"a": value} if of is dict else [value]
    return value


@pytest.mark.parametrize("of", [list, dict])
@pytest.mark.parametrize("levels", [values.MAX_DEPTH + 1, 900, 100_000])
def test_nesting_is_limited_alike_on_every_python(levels, of):
    deepest = encode_value(deep(values.MAX_DEPTH, of=of))

    assert bytes(messages.check_json(deepest)) == deepest
    with pytest.raises(BadOutput, match=f"nested too deeply; the limit is {values.MAX_DEPTH} levels") as caught:
        encode_value(deep(levels, of=of))
    assert len(caught.value.path) <= values.MAX_PATH + 3
    assert caught.value.path.endswith("...")


def test_many_brackets_are_not_deep():
    value = [[{}] * 1000, "[" * 1000, '"[{\\' * 1000, {'[\\"': []}]

    assert json.loads(encode_value(value)) == value


def test_a_value_may_be_exactly_as_long_as_the_limit():
    assert encode_value("x" * 8, 10) == b'"xxxxxxxx"'
    with pytest.raises(BadOutput, match="11 bytes of JSON; the limit is 10") as caught:
        encode_value("x" * 9, 10)
    assert caught.value.path == "$"


def test_a_path_begins_where_it_is_told_to():
    for value, path in (({"x": b""}, "$[3].x"), (b"", "$[3]"), ("x" * 99, "$[3]")):
        with pytest.raises(BadOutput) as caught:
            encode_value(value, 50, "$[3]")
        assert caught.value.path == path


def test_what_is_said_of_a_bad_value_is_short_and_can_be_sent():
    """A path of lone surrogates or of 2 MB would break the channel itself."""
    odd = {"k" * 2_000_000: {"\U0001f600" * 100: [{1j}] * 100}}
    with pytest.raises(BadOutput) as caught:
        encode_value(odd)
    assert len(caught.value.path) <= values.MAX_PATH + 3

    huge = type("T" * 100_000, (), {})()  # an object
    with pytest.raises(BadOutput) as caught:
        encode_value(huge)
    assert len(str(caught.value)) == values.MAX_TEXT


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
any_values = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters()) | st.floats() | st.binary(max_size=1), inner, max_size=3)
        | st.frozensets(st.integers(), max_size=1)
    ),
    max_leaves=20,
)


@same_each_time
@given(json_values)
def test_values_come_back_the_same(value):
    assert json.loads(encode_value(value)) == converted(value) == value


@same_each_time
@given(json_values)
def test_a_plain_value_is_written_by_json_alone(value):
    assert values.is_plain(value)
    assert encode_value(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@pytest.mark.parametrize("source", [row[0] for row in CONVERTED.values()])
def test_a_value_counts_as_plain_only_if_json_writes_it_alike(source):
    """At any place, and below any container."""
    names = {"__name__": "builtins"}  # a module that there is, for the dataclass
    exec(SETUP, names)
    value = eval(source, names)
    for around in (value, [value], {"a": [1, (value,)]}, {1: value}, [{"a": 1}, {"b": value}]):
        if values.is_plain(around):
            assert json.loads(json.dumps(around)) == converted(around)
        assert json.loads(encode_value(around)) == converted(around)


def test_objects_of_attrs_and_pydantic_are_converted():
    attrs, pydantic = pytest.importorskip("attrs"), pytest.importorskip("pydantic")
    pair = attrs.make_class("Pair", ["left", "_right"])
    model = pydantic.create_model("Model", day=(dt.date, ...), price=(float, 1.0))
    day = dt.date(2027, 1, 31)

    value = pair(1, [pair(day, None), model(day=day)])

    assert converted(value) == {
        "left": 1,
        "_right": [{"left": "2027-01-31", "_right": None}, {"day": "2027-01-31", "price": 1.0}],
    }
    with pytest.raises(BadOutput) as caught:
        encode_value([model(day=day, price=math.nan)])
    assert caught.value.path == "$[0].price"


NUMPY = """
import numpy as np
def check(value, expected): assert values.encode_value(value).decode() == expected, (value, expected)
def refuse(value, text):
    try: made = values.encode_value(value)
    except values.BadOutput as problem: assert str(problem.path + ": " + str(problem)).startswith(text), problem
    else: raise AssertionError(made)
check({"ok": np.float64(1) > 0, np.int64(3): np.float32(0.5), np.str_("k"): np.str_("x")},
      '{"ok":true,"3":0.5,"k":"x"}')
check([np.arange(4).reshape(2, 2), np.array(5), np.float64(0.1)], '[[[0,1],[2,3]],5,0.1]')
check(np.array(["2027-01-31T00:00:00.000000001"], "M8[ns]"), '["2027-01-31T00:00:00.000000001"]')
check([np.datetime64("2027-01-31"), np.array("2027-01-31", "M8[D]")], '["2027-01-31","2027-01-31"]')
check(np.array([1, None, "x"], object), '[1,null,"x"]')
refuse({"a": np.array([1.5, np.nan])}, "$.a[1]: nan is not a JSON number; return None")
refuse([np.float64("inf")], "$[0]: inf is not a JSON number")
refuse(np.datetime64("NaT"), "$: NaT of type numpy.datetime64 is not JSON; return None")
refuse(np.array([5], "m8[ns]"), "$[0]: numpy.timedelta64 is not JSON")
refuse(np.longdouble(1), "$: numpy.longdouble is not JSON; return float(value)")
refuse({np.int64(1): 1, "1": 2}, "$: two keys,")
"""


def test_values_of_numpy():
    """With every Python that has it; the names of its types are all that the guest knows of it."""
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import values\n" + NUMPY
    found = [path for path in PYTHONS.values() if run_python(path, "import numpy").returncode == 0]
    if not found:
        pytest.skip("no Python here has numpy")
    for path in found:
        assert run_python(path, code).stderr == b""


def run_python(path, code):
    return subprocess.run([path, "-W", "error", "-c", code], capture_output=True, check=False, timeout=60)


class Frame:
    """A type that refuses and advises by its methods, as those of pandas and polars do."""

    def to_records(self): ...
    def __iter__(self): ...


def test_a_table_is_refused_with_its_own_method():
    with pytest.raises(BadOutput) as caught:
        encode_value({"table": Frame()})
    name = f"{__name__}.Frame"
    assert str(caught.value) == f'{name} is not JSON; return value.to_dict("records")'
    assert caught.value.path == "$.table"


def unique(pairs):
    """Return an object. Fails if a key comes twice."""
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


@same_each_time
@given(any_values)
def test_any_value_is_strict_json_or_has_a_path_and_a_reason(value):
    try:
        plain = converted(value)
    except BadOutput:
        with pytest.raises(BadOutput) as caught:
            encode_value(value)
        assert caught.value.path.startswith("$")
        assert (caught.value.path + str(caught.value)).encode()
    else:
        data = encode_value(value)
        assert bytes(messages.check_json(data)) == data
        assert json.loads(data, object_pairs_hook=unique) == plain


# -- exceptions ------------------------------------------------------------------------------------------------------


def caught(function):
    try:
        function()
    except BaseException as problem:  # noqa: BLE001  (all of them are described)
        return problem
    raise AssertionError("it did not raise")


def raiser(problem):
    def fail():
        raise problem

    return fail


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("no")


def test_type_message_and_traceback():
    kind, message, text = describe(caught(raiser(KeyError("name"))))

    assert (kind, message) == ("KeyError", "'name'")
    assert text.startswith("Traceback (most recent call last):\n")
    assert "in fail\n    raise problem" in text
    assert text.endswith("KeyError: 'name'\n")


def test_frames_of_the_guest_are_left_out():
    """Those above the user's code."""
    module = object.__new__(guest.Module)
    module.handler, module.plan, module.with_context = lambda _: raiser(ValueError("x"))(), None, False
    problem = caught(lambda: module.call(1, None, None))
    problem.__traceback__ = problem.__traceback__.tb_next.tb_next  # as `Guest.run` sees it
    assert problem.__traceback__.tb_frame.f_code is guest.Module.call.__code__

    text = describe(problem)[2]

    assert guest.__file__ not in text
    assert "in fail" in text


def test_sys_exit_is_said_in_words():
    assert describe(caught(lambda: sys.exit(3)))[:2] == ("SystemExit", "the handler called sys.exit(3)")


def test_an_exception_without_words():
    kind, message, text = describe(caught(raiser(MuteError())))

    assert (kind, message) == ("MuteError", "<no message: __str__ raised RuntimeError>")
    assert "MuteError" in text


def test_everything_is_cut_to_its_limit():
    class LongError(Exception):
        __qualname__ = "Q" * 100_000

    kind, message, text = describe(caught(raiser(LongError("m" * 1_000_000))))

    assert (len(kind), len(message)) == (values.MAX_PATH, values.MAX_TEXT)
    assert guest.MAX_TRACEBACK <= len(text) <= guest.MAX_TRACEBACK + 10
    assert text.startswith("Traceback")
    assert text.endswith("m\n"), "the end of a traceback says what happened"


def test_lone_surrogates_can_be_sent():
    class OddError(Exception):
        __qualname__ = "Odd\udc80"

    described = describe(caught(raiser(OddError("\udc80"))))

    assert described[:2] == ("Odd\\udc80", "\\udc80")
    assert messages.decode(
        b'{"type":"load_failed",'
        + json.dumps(dict(zip(("error_type", "message"), described, strict=False)))[1:].encode()
    )


def test_causes_and_groups_are_told():
    def fail():
        try:
            {}["first"]
        except KeyError as problem:
            raise ExceptionGroup("both", [ValueError("second")]) from problem

    text = describe(caught(fail))[2]

    assert all(word in text for word in ("first", "second", "both", "direct cause"))


def test_an_endless_recursion():
    def again():
        return again() + 1

    kind, message, text = describe(caught(again))

    assert kind == "RecursionError"
    assert "recursion" in message
    assert "repeated" in text


def test_a_failure_fits_into_the_smallest_frame():
    fields = {"message": "\udc80" * values.MAX_TEXT, "traceback": "\U0001f600" * guest.MAX_TRACEBACK, "error_type": "E"}

    assert json.loads(guest.failed(1 << 24, **fields)) == fields
    small = guest.failed(1024, **fields)
    assert json.loads(small) == {"message": "\udc80" * values.MAX_PATH, "traceback": "", "error_type": "E"}
    assert len(small) < 65_536


# -- the channel -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, guest.Channel(theirs.fileno())


payloads = st.lists(st.dictionaries(st.text(), st.integers(), max_size=5), max_size=8)


@same_each_time
@given(payloads, st.lists(st.integers(0, 500)))
def test_host_and_guest_cut_the_same_frames(said, cuts):
    """The guest reads the host's frames however they are split, and the host reads the guest's."""
    stream = b"".join(frames.encode(json.dumps(each).encode()) for each in said)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(places) if a < b]
    channel = guest.Channel(-1)
    channel.more = lambda _size: bool(pieces) and not channel._buffer.extend(pieces.pop(0))

    assert [channel.receive() for _ in said] == said
    assert channel.receive() is None

    sent = []
    channel.send = sent.append
    for each in said:
        channel.say(each)
    assert [json.loads(each) for each in sent] == said


def test_large_frames_go_through_whole_both_ways(ends):
    ours, channel = ends
    value = {"text": "é" * 3_000_000}
    payload = json.dumps(value).encode()
    host = threading.Thread(target=ours.sendall, args=(frames.encode(payload) * 2,))
    host.start()
    assert [channel.receive(), channel.receive()] == [value, value]
    host.join()

    worker = threading.Thread(target=channel.send, args=(payload,))
    worker.start()
    decoder, got = frames.FrameDecoder(len(payload)), []
    while not got:
        got = decoder.feed(ours.recv(65536))
    worker.join()
    assert got == [payload]
    assert not decoder._buffer


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x05", b'\0\0\0\x05{"a"'])
def test_the_end_of_input_is_the_same_within_a_frame(ends, sent):
    ours, channel = ends
    ours.sendall(sent)
    ours.shutdown(socket.SHUT_WR)

    assert channel.receive() is None
    assert channel.receive() is None


def test_a_host_that_was_reset_is_gone(ends):
    ours, channel = ends
    channel.send(b"{}")
    ours.close()  # with unread data, which is a reset for the peer

    assert channel.receive() is None


@pytest.mark.parametrize("value", [b"1" * 5000, b"[" * 100_000 + b"]" * 100_000], ids=["digits", "depth"])
def test_an_input_that_this_python_does_not_read_is_not_the_end(ends, value):
    """The envelope is read without it; `serve` answers `bad_input`."""
    ours, channel = ends
    payload = b'{"type":"execute","id":"x","attempt":1,"deadline":1.0,"input":' + value + b"}"
    host = threading.Thread(target=ours.sendall, args=(frames.encode(payload) + frames.encode(b'{"type":"ping"}'),))
    host.start()

    message = channel.receive()
    host.join()

    assert message.pop("unreadable")
    assert message == {"type": "execute", "id": "x", "attempt": 1, "deadline": 1.0}
    assert channel.receive() == {"type": "ping"}


def test_an_unreadable_input_is_answered(monkeypatch, ends):
    ours, channel = ends
    worker = guest.Guest(channel)
    monkeypatch.setattr(worker, "children", lambda: False)
    execute = messages.Execute(id="x", attempt=1, deadline=1.0, input=messages.check_json(b"1" * 5000))
    for message in (execute, messages.Shutdown()):
        ours.sendall(frames.encode(messages.encode(message)))

    worker.serve(forked=False)

    (payload,) = frames.FrameDecoder(1 << 20).feed(ours.recv(65536))
    answer = messages.decode(payload)
    assert isinstance(answer, messages.Error)
    assert (answer.id, answer.kind) == ("x", "bad_input")
    assert "4300" in answer.message


# -- the context -----------------------------------------------------------------------------------------------------


@pytest.fixture
def context(ends):
    ours, channel = ends

    def said():
        return [messages.decode(payload) for payload in frames.FrameDecoder(1 << 20).feed(ours.recv(1 << 20))]

    channel.speak_for("x")
    return guest.Context(channel, {"id": "x", "attempt": 2, "deadline": 60.0}), said


def test_the_context_says_what_it_is_part_of(monkeypatch, context):
    context, _ = context

    assert (context.execution_id, context.attempt) == ("x", 2)
    monkeypatch.setattr(guest.time, "time", lambda: context.deadline - 1.5)
    assert context.remaining == 1.5
    monkeypatch.setattr(guest.time, "time", lambda: context.deadline + 1.5)
    assert context.remaining == 0.0


def test_progress_is_a_message(context):
    context, said = context
    context.progress()
    context.progress(1, 2, "half")
    context.progress(text=3)

    assert said() == [
        messages.Progress("x"),
        messages.Progress("x", 1.0, 2.0, "half"),
        messages.Progress("x", text="3"),
    ]


def test_nothing_is_said_of_an_execution_that_was_answered(ends, context):
    _, channel = ends
    context, said = context
    channel.speak_for(None)
    context.progress(1)
    channel.speak_for("y")
    context.progress(2)
    channel.say({"type": "pong"})

    assert said() == [messages.Pong()]


def test_text_of_progress_is_short_and_can_be_sent(context):
    """A file name of os.listdir() may have lone surrogates."""
    context, said = context
    context.progress(text="a\udc80")
    context.progress(text="\U0001f600" * 100_000)

    assert [message.text for message in said()] == ["a\\udc80", "\U0001f600" * (values.MAX_TEXT // 4)]


def test_progress_that_is_no_number_fails_in_the_handler_and_says_nothing(context):
    context, said = context
    for done in (math.nan, math.inf, "half", [1]):
        with pytest.raises((ValueError, TypeError)):
            context.progress(done)
    context.progress(7)

    assert said() == [messages.Progress("x", 7.0)]


# -- the answer of a forked child ------------------------------------------------------------------------------------


@pytest.fixture
def child():
    """Return a function that runs a child which writes to a pipe; the reader and the pid."""
    processes, fds = [], set()

    def start(code, *, hold=False):
        reader, writer = os.pipe()
        fds.update((reader, writer))
        code = f"import os; w = {writer}; {code}"
        processes.append(subprocess.Popen([sys.executable, "-ISc", code], pass_fds=[writer]))
        if not hold:
            fds.remove(writer)
            os.close(writer)
        return reader, processes[-1].pid

    yield start
    for fd in fds:
        os.close(fd)
    for process in processes:
        process.wait()


@pytest.mark.parametrize("hold", [False, True], ids=["alone", "a grandchild holds the pipe"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os.write(w, (3).to_bytes(8, 'big') + b'abc')", b"abc"),
        ("os.write(w, bytes(8))", b""),
        ("os.write(w, bytes(4)); os.write(w, b'\\0\\0\\0\\2xy')", b"xy"),
        ("b = (300000).to_bytes(8, 'big') + b'x' * 300000\nwhile b: b = b[os.write(w, b):]", b"x" * 300_000),
        ("pass", None),
        ("os.write(w, b'\\0\\0')", None),
        ("os.write(w, (9).to_bytes(8, 'big') + b'short')", None),
    ],
    ids=["whole", "empty", "in pieces", "more than a pipe holds", "nothing", "half a length", "cut off"],
)
@pytest.mark.parametrize("stores", [False, True], ids=["", "after storing"])
def test_the_answer_of_a_child_or_its_end(child, code, expected, hold, stores):
    reader, pid = child("os.write(w, b'\\xff' * 8)\n" * stores + code, hold=hold)

    assert guest.read_answer(reader, pid) == (expected, stores)


def test_the_answer_is_found_without_pidfd(monkeypatch, child):
    """As before Python 3.9; the end of the child is looked for now and then."""
    monkeypatch.delattr(guest.os, "pidfd_open")
    reader, pid = child("pass", hold=True)

    assert guest.read_answer(reader, pid) == (None, False)


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch):
    """Return a record of memory, its page faults, the readings of the kernel's, and the resets."""
    memory, faults, read, resets = guest.Memory(), [0], [], []
    monkeypatch.setattr(memory, "count", lambda: faults[0])
    monkeypatch.setattr(memory, "reset", lambda: resets.append(1) or True)
    monkeypatch.setattr(guest, "peak_memory", lambda: read.append(1) or 1000 * len(read))
    yield memory, faults, read, resets
    if memory.fd is not None:
        os.close(memory.fd)


def test_the_peak_is_read_again_only_when_memory_may_have_grown(memory):
    memory, faults, read, resets = memory
    memory.forget()
    peaks = []
    for grown in (0, 0, 0, 3, 0, 0, 1):
        faults[0] += grown
        peaks.append(memory.peak())
        memory.forget()

    assert peaks == [1000, 1000, 1000, 2000, 3000, 3000, 4000]
    assert len(read) == 4
    assert len(resets) == 3, "at the beginning, and after a call in which memory may have grown"


def test_the_peak_of_a_fork_is_its_own(memory):
    memory, _, read, _ = memory
    memory.prepare()
    held = bytearray(64 << 20)
    del held
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            memory.begin()
            kept = bytearray(16 << 20)
            os.write(writer, b"%d" % memory.peak())
            os._exit(len(kept) == 0)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        found = int(file.read())

    assert 16 << 20 < found < (16 << 20) + resident()
    assert not read


def resident():
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") + (1 << 20)


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [*FILES, "relay.py"])
def test_it_imports_the_standard_library_only(file):
    tree = ast.parse(source(file).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    ours = {"guest", "parts", "values", "protocol.values", "protocol.authors.readers"}
    ours |= {"protocol.guest", "protocol.parts", "protocol.sharing"}
    assert {name.partition(".")[0] for name in names - ours} <= sys.stdlib_module_names


@pytest.mark.parametrize("file", [*FILES, "relay.py"])
def test_its_language_is_that_of_python_3_8(file):
    ast.parse(source(file).read_text(), feature_version=(3, 8))


def test_what_costs_time_is_not_imported_at_the_start():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import guest; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-ISc", code, FOLDER], check=True, capture_output=True, text=True)

    assert (
        set(ran.stdout.split()) & {"asyncio", "inspect", "traceback", "typing", "subprocess", "tokenize", "logging"}
        == set()
    )


MOST = values.MAX_CONTAINERS


def test_the_host_has_the_same_limits_as_the_guest():
    assert (MOST, values.MAX_DEPTH) == (messages.MAX_CONTAINERS, messages.MAX_DEPTH)


@pytest.mark.parametrize(
    "make", [lambda count: [[]] * (count - 1), lambda count: [{}] * (count - 1), lambda count: [()] * (count - 1)]
)
def test_a_value_of_very_many_containers_is_refused_with_place_and_remedy(make):
    assert len(encode_value(make(MOST))) > 2 * MOST
    with pytest.raises(BadOutput, match="more than 2,000,000 lists and dicts; return fewer") as caught:
        encode_value(make(MOST + 1), root="$[3]")
    assert caught.value.path == "$[3]"


def test_brackets_in_texts_are_no_containers():
    text = "[{" * MOST + '\\"['
    assert json.loads(encode_value([text, {text[:5]: 1}])) == [text, {text[:5]: 1}]
