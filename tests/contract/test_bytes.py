"""Contract: bytes and files of inputs and results, in every kind of worker; nothing of a broken one is kept."""

from __future__ import annotations

import json
import os

import pytest
import trio

from environments.local.exchange import Exchange
from environments.local.inprocess import InProcess
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.events import ItemEvent
from protocol.model import Isolation, Kind
from tests import engines
from tests.stored import id_of, open_store
from tests.support import PATIENCE, open_rig, wait_until
from tests.workers import WORKERS, chosen

MIB = 1 << 20
SERVED = ("inline-warm", "inline-fork", "docker-warm", "docker-fork")


@pytest.fixture(params=WORKERS)
def how(request):
    """Return the fields that choose the kind of worker."""
    return chosen(request)


@pytest.fixture(params=SERVED)
def served(request):
    """Return the same, for the two ways in which the guest program serves a call."""
    return chosen(request)


@pytest.fixture
async def stored(tmp_path):
    async with open_store(tmp_path / "store", max_file_bytes=8 * MIB) as found:
        yield found


SHAPES = """
import collections, dataclasses, io, tempfile
from operato import File
Point = collections.namedtuple("Point", "x data")
@dataclasses.dataclass
class Report:
    title: str
    pages: list
def handler(input):
    size = input
    data = bytes(range(256)) * (size // 256)
    with open("own.bin", "w+b") as own:
        own.write(data)
        own.flush()
        plot = io.BytesIO()
        plot.write(data)
        temporary = tempfile.NamedTemporaryFile(suffix=".csv")
        temporary.write(data)
        with open("other.png", "wb") as other:
            other.write(data)
        return [data[:], {
            "bytearray": bytearray(data),
            "view": memoryview(data)[1:],
            "every other": memoryview(data)[::2],
            "own": own.__class__ and open("own.bin", "rb"),
            "io": plot,
            "temporary": temporary,
            "file": File("other.png", type="image/x-own"),
            "named": File(data, name="a b.txt"),
            "empty": b"",
            "report": Report("t", [Point(1, data)]),
            "plain": "x",
        }]
"""


@pytest.mark.parametrize("size", [512, 3 * MIB])
async def test_every_form_of_bytes_at_any_depth(rig, how, stored, size):
    module = await rig.publish(SHAPES, **how)
    data = bytes(range(256)) * (size // 256)

    first, rest = (await rig.call(module, size, store=stored.store)).value

    contents = {name: stored.content(value) for name, value in rest.items() if name not in ("report", "plain")}
    assert stored.content(first) == data
    assert contents.pop("view") == data[1:]
    assert contents.pop("every other") == data[::2]
    assert contents.pop("empty") == b""
    assert contents == dict.fromkeys(["bytearray", "own", "io", "temporary", "file", "named"], data)
    assert stored.content(rest["report"]["pages"][0]["data"]) == data
    assert (rest["report"]["title"], rest["report"]["pages"][0]["x"], rest["plain"]) == ("t", 1, "x")
    described = {name: value["$file"] for name, value in rest.items() if name not in ("report", "plain")}
    assert (described["own"]["name"], described["own"]["type"]) == ("own.bin", "application/octet-stream")
    assert described["temporary"]["type"] == "text/csv"
    assert (described["file"]["name"], described["file"]["type"]) == ("other.png", "image/x-own")
    assert (described["named"]["name"], described["named"]["type"]) == ("a b.txt", "text/plain")
    assert (described["io"]["name"], described["io"]["type"]) == ("file", "application/octet-stream")


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_items_are_stored_once_and_as_they_come(rig, served, stored, kind):
    """Each file is closed before the generator continues."""
    code = f"""
    import threading
    {kind} handler(input, context):
        stop = threading.Event()
        def report():
            while not stop.wait(0.001): context.progress(1, 2, "meanwhile")
        threading.Thread(target=report).start()
        for number in range(3):
            with open("part", "w+b") as file:
                file.write(b"%d" % number * 2_000_000)
                yield {{"part": file, "number": number}}
        yield "end"
        stop.set()
    """
    begun = []
    module = await rig.publish(code, **served)

    async with open_store(stored.path / "counting") as counting:

        def store(name, media_type):
            begun.append(name)
            return counting.store(name, media_type)

        ran = await rig.call(module, store=store)

        *parts, end = ran.value
        assert end == "end"
        assert [counting.content(part["part"]) for part in parts] == [b"%d" % n * 2_000_000 for n in range(3)]
    items = [json.loads(bytes(event.value)) for event in ran.events if isinstance(event, ItemEvent)]
    assert items == ran.value
    assert begun == ["part"] * 3
    assert len(ran.events) > len(items), "no progress came between"


TAKES = """
import os
from operato import File
def handler(input):
    found = [File(each) for each in input]
    before = [file.read_bytes().decode() for file in found]
    for file in found:
        with open(file.path, "w") as changed:
            changed.write("changed")
    folders = {os.path.dirname(file.path) for file in found}
    return [before, [file.name for file in found], [file.path for file in found], len(folders)]
"""


async def test_files_of_an_input_are_copies_of_the_call(rig, how, stored):
    module = await rig.publish(TAKES, **how)
    contents = {id_of(data): (data, await stored.add(data, name)) for name, data in (("x.txt", b"one"), ("y", b"two"))}
    twice = {name: (path, "same name.txt") for name, (_, (path, _)) in contents.items()}
    value = [{"$file": {"id": name}} for name in contents]

    before, names, paths, folders = (await rig.call(module, value, files=twice)).value

    assert before == ["one", "two"]
    assert names == ["same name.txt"] * 2
    assert [os.path.basename(path) for path in paths] == ["same name.txt"] * 2
    assert folders == 2
    assert sorted(stored.contents()) == [b"one", b"two"], "user code changed a stored file"
    assert (await rig.call(module, value, files=twice)).value[0] == ["one", "two"], "the copies are not fresh"


async def test_files_of_the_last_call_are_gone(rig, served, stored):
    code = """
    import os
    def handler(input):
        import operato
        if "path" in input: return [os.path.exists(input["path"]), os.listdir()]
        return operato.File(input["f"]).path
    """
    module = await rig.publish(code, **served)
    source = await stored.add(b"x")

    path = (await rig.call(module, {"f": {"$file": {"id": "a"}}}, files={"a": source})).value
    found = await rig.call(module, {"path": path})

    assert found.value == [False, []]


async def test_a_large_file_goes_in_and_out(rig, served, stored):
    code = "from operato import File\ndef handler(input): return File(input)"
    data = os.urandom(5 * MIB + 3)
    source = await stored.add(data, "in.bin")

    ran = await rig.run(code, {"$file": {"id": "a"}}, call={"files": {"a": source}, "store": stored.store}, **served)

    assert stored.content(ran.value) == data


# -- refused and unreadable ------------------------------------------------------------------------------------------

READS = """
class Source(__import__("io").RawIOBase):
    count = 0
    def readable(self): return True
    def seekable(self): return False
    def read(self, size=-1):
        self.count += 1
        return self.next(self.count)
    def next(self, count): return b"x" * (1 << 20) if count <= 300 else b""
"""


async def test_a_file_over_the_limit_is_refused_in_the_middle(rig, served, stored):
    code = READS + "reads = Source()\ndef handler(input):\n    return [reads, 1] if input else reads.count\n"
    module = await rig.publish(code, **served)

    ran = await rig.call(module, 1, store=stored.store)

    assert ran.kind is ErrorKind.TOO_LARGE
    assert "`max_file`" in ran.failure.message
    assert stored.contents() == []
    again = await rig.call(module, 0)
    assert again.pid == ran.pid, "the worker could not be used any more"
    if served["isolation"] is Isolation.WARM:
        assert again.value < 100, "it did not notice the refusal"


async def test_an_item_that_is_refused_is_the_failure_of_the_execution(rig, served, stored):
    code = (
        READS
        + """
closed = []
def handler(input):
    if not input:
        return closed
    try:
        yield 1
        yield Source()
        yield 2
    finally:
        closed.append(1)
"""
    )
    code = code.replace("return closed", "yield closed; return")
    module = await rig.publish(code, **served)

    ran = await rig.call(module, 1, store=stored.store)

    assert ran.kind is ErrorKind.TOO_LARGE
    assert [json.loads(bytes(event.value)) for event in ran.events] == [1]
    assert stored.contents() == []
    if served["isolation"] is Isolation.WARM:
        assert (await rig.call(module, 0)).value == [[1]]


async def test_no_store_no_files(rig, served):
    ran = await rig.run("def handler(input): return b'x'", **served)

    assert ran.kind is ErrorKind.UNAVAILABLE
    assert "files are not stored here" in ran.failure.message


async def test_a_name_and_a_type_that_are_none_are_faults_of_the_author(rig, stored):
    code = "from operato import File\ndef handler(input):\n    f = File(b'x', name='a.txt', type=input['type'])\n    f.name = input['name']\n    return f"  # noqa: E501
    module = await rig.publish(code)

    for name, media_type in (("a\nb", "text/plain"), ("../a", "text/plain"), ("a", "nothing\r\nx: y")):
        ran = await rig.call(module, {"name": name, "type": media_type}, store=stored.store)
        assert ran.kind is ErrorKind.BAD_OUTPUT
        assert stored.contents() == []
    long = (await rig.call(module, {"name": "x" * 500 + ".txt", "type": "a/b"}, store=stored.store)).value
    assert len(long["$file"]["name"]) == 200
    assert long["$file"]["name"].endswith("x.txt")


UNREADABLE = {
    "closed": ("f = open('x', 'w+b'); f.close(); v = f", "closed"),
    "write only": ("v = open('x', 'wb')", "w+b"),
    "text": ("v = open('x', 'w+')", '"rb"'),
    "text in memory": ("v = __import__('io').StringIO('x')", '"rb"'),
    "an error in the middle": ("v = Broken()", "Input/output error"),
    "not blocking": ("v = Silent()", "does not block"),
    "text of a binary file": ("v = Wrong()", "bytes-like"),
}


@pytest.mark.parametrize("case", UNREADABLE)
async def test_a_file_that_cannot_be_read_is_named_by_its_path(rig, served, stored, case):
    code, hint = UNREADABLE[case]
    code = f"""{READS}
class Broken(Source):
    def next(self, count):
        if count > 3: raise OSError(5, "Input/output error")
        return b"x" * 1000
class Silent(Source):
    def next(self, count): return b"x" if count < 3 else None
class Wrong(Source):
    def next(self, count): return b"x" if count < 3 else "text"
def handler(input):
    if input: return input
    {code}
    return [{{"a": v}}]
"""
    module = await rig.publish(code, **served)

    ran = await rig.call(module, store=stored.store)

    assert ran.kind is ErrorKind.BAD_OUTPUT
    assert ran.failure.field == "$[0].a"
    assert hint in ran.failure.message
    assert stored.contents() == []
    assert (await rig.call(module, 7)).value == 7


async def test_a_source_that_raises_is_an_error_of_the_handler(rig, served, stored):
    code = (
        READS
        + """
class Wrong(Source):
    def next(self, count):
        if count > 2: raise KeyError("page")
        return b"x" * 3_000_000
def handler(input): return Wrong()
"""
    )
    ran = await rig.run(code, call={"store": stored.store}, **served)

    assert (ran.kind, ran.failure.type) == (ErrorKind.HANDLER_ERROR, "KeyError")
    assert "in next" in ran.failure.traceback
    assert "parts.py" not in ran.failure.traceback.partition("in next")[0].rpartition("File")[2]
    assert stored.contents() == []


# -- ends in the middle ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a result", "an item", "an item of an async generator"])
@pytest.mark.parametrize("end", ["cancel", "timeout"])
async def test_the_end_of_an_execution_that_stores(rig, served, stored, kind, end):
    """The source never ends; the guest notices the announcement between two pieces."""
    ways = {"a result": "def handler(input): return", "an item": "def handler(input): yield"}
    begin = ways.get(kind, "async def handler(input): yield")
    code = READS.replace("count <= 300", "count").replace("1 << 20", "1") + f"\n{begin} Source()\n"
    module = await rig.publish(code, timeout=15 if end == "cancel" else 0.5, **served)
    calls = []

    async with trio.open_nursery() as nursery:

        async def cancel():
            await wait_until(lambda: stored.files.statistics().writing_bytes > 0, "nothing is stored")
            if end == "cancel":
                calls[0].cancel(Failure(ErrorKind.CANCELLED, "by the test"))

        nursery.start_soon(cancel)
        ran = await rig.call(module, store=stored.store, on_call=calls.append)

    assert ran.kind is (ErrorKind.CANCELLED if end == "cancel" else ErrorKind.TIMEOUT)
    assert stored.contents() == []
    await rig.settled(rig.executors[served["env"]])


@pytest.mark.parametrize("kind", ["a result", "an item"])
@pytest.mark.parametrize("death", ["os._exit(3)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 11)"])
async def test_a_worker_that_dies_while_it_stores_leaves_nothing(rig, served, stored, kind, death):
    verb = "return" if kind == "a result" else "yield"
    code = f"""import os{READS}
class Deadly(Source):
    def next(self, count):
        if count > 3: {death}
        return b"x" * 1_000_000
def handler(input):
    {verb} Deadly() if not input else 1
"""
    module = await rig.publish(code, **served)

    ran = await rig.call(module, store=stored.store)

    assert ran.kind is ErrorKind.WORKER_CRASHED
    assert stored.contents() == []
    assert (await rig.call(module, 1)).value in (1, [1])


async def test_a_fork_of_the_handler_that_returns_bytes_stores_nothing(rig, served, stored):
    code = """
    import os
    def handler(input):
        pid = os.fork()
        if pid: os.waitpid(pid, 0)
        return b"parent" if pid else b"child"
    """
    ran = await rig.run(code, call={"store": stored.store}, **served)

    assert stored.content(ran.value) == b"parent"
    assert stored.contents() == [b"parent"]


async def test_an_alarm_of_user_code_that_hits_a_byte_frame_is_no_hang(rig, served, stored):
    """It may cut off a frame; then the worker ends at once instead of waiting for its time limit."""
    code = """
    import signal
    def stop(*_): raise TimeoutError("alarm")
    def handler(input):
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        return [b"x" * 4_000_000] * 50
    """
    async with open_store(stored.path / "more") as store:
        ran = await rig.run(code, call={"store": store.store}, **served)

    assert ran.kind in (ErrorKind.WORKER_CRASHED, ErrorKind.HANDLER_ERROR)


# -- guests that do not keep to the order ----------------------------------------------------------------------------

RAW = """
import json, os, socket, stat
def frame(data): return len(data).to_bytes(4, "big") + data
def piece(data): return frame(b"\\0" + data)
def say(**fields): return frame(json.dumps(fields).encode())
def channel():
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and stat.S_ISSOCK(os.fstat(fd).st_mode): return fd
        except OSError:
            continue
def send(*parts):
    for part in parts:
        view = memoryview(part)
        while view: view = view[os.write(channel(), view):]
"""
STORE = "say(type='store', id=context.execution_id, name='', media_type='')"
ANSWER = "say(type='result', id=context.execution_id, seconds=0, value=1)"
ATTACKS = {
    "bytes without a file": "send(piece(b'x'))",
    "an end without a file": "send(piece(b''))",
    "a file of another execution": f"send({STORE.replace('context.execution_id', repr('other'))}, piece(b'x'))",
    "a file within a file": f"send({STORE}, piece(b'x'), {STORE}, piece(b'x'), piece(b''))",
    "a result within a file": f"send({STORE}, piece(b'x'), {ANSWER})",
    "an error of another one within a file": f"send({STORE}, say(type='error', id='e', kind='x', message='m'))",
    "an item within a file": f"send({STORE}, piece(b'x'), say(type='item', id=context.execution_id, value=1))",
    "progress of another one within a file": f"send({STORE}, say(type='progress', id='other'))",
    "no JSON within a file": f"send({STORE}, frame(b'x'))",
    "a byte frame that is too long": f"send({STORE}, piece(bytes((1 << 20) + 1)))",
    "an empty frame": "send(frame(b''))",
    "a file without a name": "send(say(type='store', id=context.execution_id))",
    "bytes without an end after a refusal": f"send({STORE})\n    while True: send(piece(bytes(1 << 20)))",
}


@pytest.mark.parametrize("case", ATTACKS)
async def test_a_guest_that_does_not_keep_to_the_order_is_ended(rig, served, stored, case):
    code = f"{RAW}\ndef handler(input, context):\n    {ATTACKS[case]}\n    import time\n    time.sleep(600)\n"

    ran = await rig.run(code, call={"store": stored.store}, **served)

    assert ran.kind is ErrorKind.WORKER_CRASHED
    assert "channel" in ran.failure.message
    assert stored.contents() == []


async def test_endless_bytes_end_at_the_limit_of_a_file(rig, served, stored):
    """Then they are an offence; and a guest that answers is believed only that it failed."""
    code = (
        f"{RAW}\ndef handler(input, context):\n    send({STORE})\n    for _ in range(20): send(piece(bytes(1 << 20)))\n"
    )
    code += "    send(say(type='error', id=context.execution_id, kind='handler_error', message='no'))\n"
    code += "    import time\n    time.sleep(600)\n"

    ran = await rig.run(code, call={"store": stored.store}, **served)

    assert ran.kind is ErrorKind.TOO_LARGE
    assert stored.contents() == []


# -- files that do not fit -------------------------------------------------------------------------------------------


async def test_a_file_that_is_gone_before_it_is_copied(rig, served, stored):
    module = await rig.publish("def handler(input): return input", **served)

    ran = await rig.call(module, 1, files={"a": (stored.path / "none", "a")})

    assert ran.kind is ErrorKind.UNAVAILABLE
    assert "a file of the input cannot be copied" in ran.failure.message
    again = await rig.call(module, 1)
    assert (again.value, again.pid) == (1, ran.pid)


@pytest.mark.usefixtures("engine")
async def test_a_file_that_does_not_fit_into_a_container_docker(tmp_path, stored):
    big, small = await stored.add(bytes(3 * MIB), "big"), await stored.add(b"small", "small")
    code = "from operato import File\ndef handler(input): return File(input).read_text()"
    async with open_rig(tmp_path / "rig", docker=engines.settings(scratch_bytes=1 << 20)) as rig:
        module = await rig.publish(code, env=Kind.DOCKER)
        value = {"$file": {"id": "a"}}
        ran = await rig.call(module, value, files={"a": big})
        again = await rig.call(module, value, files={"a": small})

    assert ran.kind is ErrorKind.OUT_OF_STORAGE
    assert "No space left" in ran.failure.message
    assert (again.value, again.pid) == ("small", ran.pid), "the space was not given back"


async def test_a_cancel_while_files_are_copied(rig, served, stored, monkeypatch):
    """The call has not begun, so no soft stop is tried."""
    module = await rig.publish("def handler(input): return input", **served)
    calls, begun = [], trio.Event()
    source = await stored.add(b"x")

    async def never(*_):
        begun.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:

        async def cancel():
            await begun.wait()
            calls[0].cancel(Failure(ErrorKind.CANCELLED, "by the test"))

        nursery.start_soon(cancel)
        with trio.fail_after(PATIENCE):
            ran = await rig.call(
                module,
                files={"a": source},
                on_call=calls.append,
                on_worker=lambda worker: (
                    setattr(worker.guest.inbox, "put", never)
                    if not hasattr(worker.guest.inbox, "__slots__")
                    else monkeypatch.setattr(type(worker.guest.inbox), "put", never)
                ),
            )

    assert ran.kind is ErrorKind.CANCELLED


# -- in the runner's own process -------------------------------------------------------------------------------------


@pytest.fixture
async def inside(rig, stored, tmp_path):
    """Return what calls a handler in this process."""
    runner = InProcess()

    async def call(code, value=None, *, files=None, seconds=PATIENCE, items=None):
        module = await rig.publish(code, isolation=Isolation.NONE)
        arguments = module.digest, module.entry, module.function, 2, json.dumps(value).encode()
        exchange = Exchange(files or {}, stored.store, tmp_path)
        result = await runner.call(
            *arguments, seconds=seconds, exchange=exchange, on_event=None if items is None else items.append
        )
        return json.loads(result)

    yield call
    runner.close()


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_bytes_in_the_runner(inside, stored, kind):
    items = []
    code = f"import io\n{kind} handler(input):\n    for n in range(2):\n"
    code += "        with io.BytesIO(b'%d' % n * 2_000_000) as file: yield [file]\n"

    value = await inside(code, items=items)

    assert [stored.content(file) for (file,) in value] == [b"%d" % n * 2_000_000 for n in range(2)]
    assert [json.loads(bytes(item.value)) for item in items] == value


async def test_a_refusal_in_the_runner(inside, stored):
    with pytest.raises(RunnerError) as caught:
        await inside(READS + "def handler(input): return [Source()]")

    assert caught.value.failure.kind is ErrorKind.TOO_LARGE
    assert stored.contents() == []


async def test_a_timeout_while_the_runner_stores(inside, stored):
    code = READS.replace("count <= 300", "count").replace("1 << 20", "1") + "def handler(input): return Source()"

    with pytest.raises(RunnerError) as caught:
        await inside(code, seconds=0.2)

    assert caught.value.failure.kind is ErrorKind.TIMEOUT
    await wait_until(lambda: stored.contents() == [] and not stored.files.statistics().writing, "it is still stored")


async def test_files_in_the_runner_are_removed_with_the_call(inside, stored, tmp_path):
    source = await stored.add(b"x")
    code = f"import glob\ndef handler(input): return glob.glob({str(tmp_path)!r} + '/files-*/1/a.txt')"

    (path,) = await inside(code, files={"a": source})

    assert not os.path.exists(os.path.dirname(os.path.dirname(path)))
    with pytest.raises(RunnerError) as caught:
        await inside(code, files={"a": (tmp_path / "none", "a")})
    assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
