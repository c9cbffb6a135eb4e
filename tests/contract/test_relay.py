"""Contract: the relay under every Python of this machine from 3.8 on, as the first process of its own namespace."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time

import pytest

from environments.docker.container import BASE
from environments.docker.docker import _START, _program
from protocol import frames, messages
from tests.contract.test_guest_pythons import PYTHONS
from tests.support import gone

PATIENCE = 30
UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def unusable():
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    told = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"a pid namespace cannot be made here: {told.stderr.strip()}" if told.returncode else ""


REASON = unusable()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


class Host:
    """The host of a relay: blocking, with a time limit."""

    def __init__(self, python, base, *, max_frame_bytes=1 << 20):
        start = _START.replace(repr(BASE), repr(str(base)))
        self.process = subprocess.Popen(
            [*UNSHARE, python, "-I", "-S", "-X", "utf8", "-W", "error", "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.max_frame_bytes = max_frame_bytes
        self.decoder = frames.FrameDecoder(1 << 24)
        self.pending = []
        self.process.stdin.write(_program())

    def say(self, message):
        self.process.stdin.write(frames.encode(messages.encode(message)))
        self.process.stdin.flush()

    def bring(self, path, data):
        self.say(messages.File(path))
        for piece in (data[:7], data[7:], b""):
            self.process.stdin.write(frames.encode_bytes(piece))
        self.process.stdin.flush()

    def hear(self):
        """Return the next message, or None at the end; of a byte frame its bytes."""
        until = time.monotonic() + PATIENCE
        while not self.pending:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))
            assert ready, "the relay says nothing"
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                return None
            self.pending = self.decoder.feed(data)
        payload = self.pending.pop(0)
        return payload[1:] if payload[:1] == frames.MARK else messages.decode(payload)

    def load(self, code, isolation="warm"):
        self.bring("code/m/main.py", code.encode())
        folder = f"{self.base}/code/m"
        hello = messages.Hello(f"{folder}/main.py", folder, "handler", isolation=isolation)
        hello.max_frame_bytes = self.max_frame_bytes
        self.say(hello)
        return self.hear()

    def call(self, value=None, name="e1"):
        """Return the text of both streams, the other messages, and the answer."""
        raw = messages.check_json(json.dumps(value).encode())
        self.say(messages.Execute(id=name, attempt=1, deadline=10.0, input=raw))
        printed, others = {"stdout": "", "stderr": ""}, []
        numbers = []
        while isinstance(message := self.hear(), messages.Output | messages.Item | messages.Progress | messages.Limit):
            if isinstance(message, messages.Output):
                assert message.id == name
                numbers.append(message.seq)
                printed[message.stream] += message.text
            else:
                others.append(message)
        assert numbers == list(range(len(numbers)))
        return printed, others, message


@pytest.fixture(params=sorted(PYTHONS, key=lambda version: [int(part) for part in version.split(".")]))
def host(request, tmp_path):
    hosts = []

    def start(**options):
        started = Host(PYTHONS[request.param], tmp_path, **options)
        started.base = tmp_path
        hosts.append(started)
        return started

    yield start
    for each in hosts:
        with contextlib.suppress(BrokenPipeError):
            each.process.stdin.close()  # which ends it, and all below it before
        each.process.wait(PATIENCE)
        each.process.stdout.close()
        each.process.stderr.close()


def test_a_call(host):
    relay = host()
    code = "import os\ndef handler(x, /):\n    print('o' * x)\n    os.write(2, b'e')\n    yield x"
    assert isinstance(relay.load(code), messages.Ready)

    printed, others, answer = relay.call(70_000)

    assert printed == {"stdout": "o" * 70_000 + "\n", "stderr": "e"}
    assert [json.loads(bytes(item.value)) for item in others] == [70_000]
    assert json.loads(bytes(answer.value)) == [70_000]


def test_characters_and_bytes_that_are_none(host):
    relay = host()
    code = "import os\ndef handler(x, /):\n    for b in '語é'.encode(): os.write(1, bytes([b]))\n"
    relay.load(code + "    os.write(1, b'\\xff\\xe8')")

    assert relay.call()[0]["stdout"] == "語é\ufffd\ufffd"


def test_what_an_execution_leaves_is_ended_and_told(host):
    relay = host()
    code = """
import os, subprocess, sys
HELPER = subprocess.Popen(["sleep", "600"], start_new_session=True)
def handler(x, /):
    left = subprocess.Popen(["sleep", "600"], start_new_session=True)
    return [HELPER.pid, left.pid, HELPER.poll()]
"""
    assert relay.load(code).children
    for _ in range(3):
        _, _, answer = relay.call()
        helper, left, ended = json.loads(bytes(answer.value))
        assert answer.killed == (f"{left} sleep",)
        assert answer.children is False
        assert ended is None
    relay.say(messages.Kill())
    last = relay.hear()
    assert last == messages.Ended(-9, (f"{helper} sleep",))
    assert relay.hear() is None
    assert relay.process.wait(PATIENCE) == 0


def test_fork_and_cancel(host):
    relay = host()
    relay.load("import time\ndef handler(x, /):\n    print('begun', flush=True)\n    time.sleep(600)", isolation="fork")
    relay.say(messages.Execute(id="e1", attempt=1, deadline=10.0, input=messages.check_json(b"1")))
    assert relay.hear().text == "begun\n"
    relay.say(messages.Cancel("e1"))

    answer = relay.hear()
    assert (answer.kind, answer.id) == ("cancelled", "e1")


@pytest.mark.parametrize(
    ("code", "exit_code"), [("os._exit(3)", 3), ("os.kill(os.getpid(), 11)", -11), ("os._exit(0)", 0)]
)
def test_the_end_of_the_worker(host, code, exit_code):
    relay = host()
    relay.load(f"import os\ndef handler(x, /):\n    os.write(1, b'last words')\n    {code}")

    printed, _, last = relay.call()
    assert printed["stdout"] == "last words"
    assert last == messages.Ended(exit_code)


def test_an_orderly_end(host):
    relay = host()
    relay.load("import atexit\natexit.register(lambda: print('bye'))\ndef handler(x, /): pass")
    relay.say(messages.Shutdown())

    assert relay.hear().text == "bye\n"
    assert relay.hear() == messages.Ended(0)


def test_the_end_of_input_is_the_end_of_all(host):
    relay = host()
    relay.load("def handler(x, /):\n    print('begun', flush=True)\n    while True: pass")
    relay.say(messages.Execute(id="e1", attempt=1, deadline=10.0, input=messages.check_json(b"1")))
    assert relay.hear().text == "begun\n"
    relay.process.stdin.close()

    assert relay.hear() == messages.Ended(-9)
    assert relay.process.wait(PATIENCE) == 0


def test_output_outside_of_executions(host, tmp_path):
    relay = host()
    answered = tmp_path / "answered"
    code = f"""
import os, threading, time
print("importing")
again = threading.Event()
def later():
    again.wait()
    os.write(1, b"stray")
    done.set()
done = threading.Event()
threading.Thread(target=later, daemon=True).start()
def handler(x, /):
    if x: again.set(); done.wait()
    else: threading.Thread(target=after_the_answer, daemon=True).start()
def after_the_answer():
    while not os.path.exists({str(answered)!r}): time.sleep(0.002)
    os.write(1, b"later")
"""
    first = relay.load(code)
    assert (first.id, first.text) == ("", "importing\n")
    assert isinstance(relay.hear(), messages.Ready)
    printed, _, _ = relay.call(1)
    assert printed["stdout"] == "stray"
    relay.call(0)
    answered.touch()
    stray = relay.hear()
    assert (stray.id, stray.text) == ("", "later")


def test_a_frame_over_the_limit_is_told_by_its_length(host):
    relay = host(max_frame_bytes=10_000)
    code = """
import os
def handler(x, /):
    for fd in range(3, 20):
        try: os.write(fd, b"junk" * 10)
        except OSError: pass
"""
    relay.load(code)
    relay.say(messages.Execute(id="e1", attempt=1, deadline=10.0, input=messages.check_json(b"1")))

    with pytest.raises(frames.FrameTooLargeError):
        relay.hear()


def test_files_that_cannot_be_written(host):
    relay = host()
    relay.bring("home", b"in the way")
    relay.bring("home/code/x", b"its folder can be made")
    relay.bring("home/code/x/y", b"but not in a file")

    failed = relay.load("def handler(x, /): pass")
    assert isinstance(failed, messages.LoadFailed)
    assert "cannot be written" in failed.message


def test_it_is_the_first_process_or_none():
    """It ends all others that it can see."""
    python = next(iter(PYTHONS.values()))
    started = subprocess.run([python, "-I", "-c", _START], input=_program(), capture_output=True, check=False)

    assert started.returncode == 1
    assert b"first process of a container" in started.stderr
    assert not gone(os.getpid())
