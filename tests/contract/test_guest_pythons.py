"""Contract: the guest program under every Python of this machine from 3.8 on, by frames only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from protocol import frames, messages
from tests.programs import install
from tests.pythons import PYTHONS

PATIENCE = 30


class Host:
    """The host's end of a guest: blocking, with a time limit."""

    def __init__(self, python: str, folder: Path) -> None:
        boot = f"import sys;sys.path.insert(0,{str(folder)!r});import guest;del sys.path[0];guest.main()"
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(PATIENCE)
        life_r, self.lifeline = os.pipe()
        self.decoder = frames.FrameDecoder(1 << 24)
        self.pending: list[bytes] = []
        with theirs:
            self.process = subprocess.Popen(
                [python, "-I", "-S", "-X", "utf8", "-W", "error", "-c", boot, str(theirs.fileno()), str(life_r)],
                pass_fds=(theirs.fileno(), life_r),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env={"PATH": os.defpath},
            )
        os.close(life_r)

    def say(self, message: messages.HostMessage) -> None:
        self.channel.sendall(frames.encode(messages.encode(message)))

    def hear(self) -> messages.GuestMessage | bytes:
        while not self.pending:
            data = self.channel.recv(65536)
            assert data, f"the guest is gone: {self.process.stderr.read().decode()}"
            self.pending = self.decoder.feed(data)
        payload = self.pending.pop(0)
        return payload[1:] if payload[:1] == frames.MARK else messages.decode(payload)

    def call(self, identity: str, value: object, **fields: object) -> messages.GuestMessage:
        self.say(
            messages.Execute(
                id=identity, attempt=1, deadline=9.0, input=messages.check_json(json.dumps(value).encode()), **fields
            )
        )
        return self.hear()

    def close(self) -> tuple[str, str]:
        """Return the output."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return out.decode(), err.decode()


MANY = """
import asyncio
from operato import context

async def handler(value, /):
    print("for", value, end="")
    await asyncio.sleep(0.01 * value)
    print("!")
    if value == 1:
        raise ValueError(value)
    yield {"id": context().execution_id, "file": b"abc"}
"""


@pytest.fixture(params=PYTHONS or [pytest.param("none", marks=pytest.mark.skip("no Python from 3.8 up was found"))])
def host(request, tmp_path) -> Iterator[Host]:
    folder = tmp_path / "guest"
    install(folder)
    started = Host(PYTHONS[request.param], folder)
    started.version = request.param
    yield started
    if started.process.poll() is None:
        started.process.kill()
    started.process.wait()
    started.channel.close()
    for end in (started.process.stdout, started.process.stderr):
        end.close()
    if started.lifeline is not None:
        os.close(started.lifeline)


CODE = """
import asyncio, os, sys
count = 0
def handler(input, context):
    global count
    count += 1
    print("call", count, input["do"])
    if input["do"] == "async": return later(input)
    if input["do"] == "items": return items()
    if input["do"] == "exit": os._exit(4)
    if input["do"] == "nan": return {"x": [float("nan")]}
    if input["do"] == "raise": deep()
    if input["do"] == "progress": context.progress(1, 2, "half")
    return [input, count, context.execution_id, "å"]
def deep(): raise KeyError("é")
def items():
    yield 1
    yield 2
async def later(input):
    await asyncio.sleep(0)
    return "late"
"""


@pytest.mark.parametrize("isolation", ["warm", "fork"])
def test_a_handler_under_every_python(host, tmp_path, isolation):
    entry = tmp_path / "module.py"
    entry.write_text(CODE)
    host.say(messages.Hello(str(entry), str(tmp_path), "handler", isolation=isolation, variables={"A": "b"}))

    ready = host.hear()
    assert isinstance(ready, messages.Ready)
    assert ready.python.startswith(host.version + ".")
    assert ready.pid == host.process.pid

    first, second = host.call("e1", {"do": "x"}), host.call("e2", {"do": "x"})
    assert json.loads(bytes(first.value)) == [{"do": "x"}, 1, "e1", "å"]
    assert json.loads(bytes(second.value)) == [{"do": "x"}, 2 if isolation == "warm" else 1, "e2", "å"]
    assert bytes(host.call("e3", {"do": "async"}).value) == b'"late"'

    assert bytes(host.call("e4", {"do": "items"}).value) == b"1"
    assert bytes(host.hear().value) == b"2"
    assert bytes(host.hear().value) == b"[1,2]"

    nan = host.call("e5", {"do": "nan"})
    assert (nan.kind, nan.field) == ("bad_output", "$.x[0]")
    raised = host.call("e6", {"do": "raise"})
    assert (raised.kind, raised.error_type, raised.message) == ("handler_error", "KeyError", "'é'")
    assert "in deep" in raised.traceback
    assert "guest.py" not in raised.traceback
    told = host.call("e7", {"do": "progress"})
    assert (told.done, told.total, told.text) == (1.0, 2.0, "half")
    assert isinstance(host.hear(), messages.Result)

    if isolation == "fork":
        died = host.call("e8", {"do": "exit"})
        assert died.kind == "worker_crashed"
        assert "exit code 4" in died.message
    host.say(messages.Ping())
    assert isinstance(host.hear(), messages.Pong)
    host.say(messages.Shutdown())
    out, err = host.close()

    assert out.count("call") == 7 + (isolation == "fork")
    assert err == "", "a warning, or an error of the guest itself"
    assert host.process.returncode == 0


STORES = """
import io
def handler(input):
    yield {"a": b"x" * input, "b": io.BytesIO(b"in memory")}
    yield 2
"""


@pytest.mark.parametrize("isolation", ["warm", "fork"])
def test_bytes_under_every_python(host, tmp_path, isolation):
    entry = tmp_path / "module.py"
    entry.write_text(STORES)
    host.say(messages.Hello(str(entry), str(tmp_path), "handler", isolation=isolation))
    assert isinstance(host.hear(), messages.Ready)
    size = 2_500_000

    heard = host.call("e1", size, files={"sha256:0": "/nowhere"})
    for content in (b"x" * size, b"in memory"):
        assert heard == messages.Store("e1", "", "")
        pieces = []
        while piece := host.hear():
            pieces.append(piece)
        assert b"".join(pieces) == content
        host.say(messages.Stored("e1", {"id": str(len(content))}))
        heard = host.hear()
    stored = {"a": {"$file": {"id": str(size)}}, "b": {"$file": {"id": "9"}}}
    assert json.loads(bytes(heard.value)) == stored
    assert bytes(host.hear().value) == b"2"
    assert json.loads(bytes(host.hear().value)) == [stored, 2]

    assert host.call("e2", 1) == messages.Store("e2", "", "")
    host.say(messages.Refused("e2", "out_of_storage", "no room"))
    while isinstance(refused := host.hear(), bytes):
        pass
    assert (refused.kind, refused.message) == ("out_of_storage", "no room")
    host.say(messages.Shutdown())
    _, err = host.close()
    assert err == ""
    assert host.process.returncode == 0


def test_a_module_that_cannot_be_loaded(host, tmp_path):
    entry = tmp_path / "module.py"
    entry.write_text("def handler(input): return undefined\nimport no_such_thing")
    host.say(messages.Hello(str(entry), str(tmp_path), "handler"))

    failed = host.hear()
    assert isinstance(failed, messages.LoadFailed)
    assert failed.error_type == "ModuleNotFoundError"
    host.close()
    assert host.process.returncode == 0


@pytest.mark.parametrize("state", ["waiting", "spinning"])
def test_it_ends_when_the_host_is_gone(host, tmp_path, state):
    """The kernel ends it, even while code spins that never gives up the interpreter."""
    entry = tmp_path / "module.py"
    entry.write_text("import re\ndef handler(input): re.match('(a|aa)+$', 'a' * 60 + 'b')")
    host.say(messages.Hello(str(entry), str(tmp_path), "handler"))
    assert isinstance(host.hear(), messages.Ready)
    if state == "spinning":
        host.say(messages.Execute(id="e1", attempt=1, deadline=9.0, input=messages.check_json(b"null")))

    os.close(host.lifeline)
    host.lifeline = None
    host.process.wait(timeout=PATIENCE)
    assert host.process.returncode == -9


def test_several_pythons_are_here():
    """A machine with one only proves little; CI has them all."""
    if len(PYTHONS) < 2:
        pytest.skip(f"only {list(PYTHONS)} was found")


def test_it_runs_many_calls_at_a_time(host, tmp_path):
    (tmp_path / "many_calls.py").write_text(MANY)
    entry = str(tmp_path / "many_calls.py")
    host.say(messages.Hello(entry=entry, root=str(tmp_path), handler="handler", calls=3))
    assert isinstance(host.hear(), messages.Ready)
    for number in range(3):
        host.say(messages.Execute(id=f"e{number}", attempt=1, deadline=9.0, input=msgspec.Raw(b"%d" % number)))
    host.say(messages.Cancel("e2"))
    heard, place = {f"e{number}": [] for number in range(3)}, ""
    while (
        len([each for said in heard.values() for each in said if isinstance(each, messages.Result | messages.Error)])
        < 3
    ):
        said = host.hear()
        if isinstance(said, bytes):
            heard[place].append(said)
            if not said:
                host.say(messages.Stored(place, {"id": "sha256:x"}))
        elif isinstance(said, messages.Part):
            place = said.id
        else:
            heard[said.id].append(said)

    first, failed, stopped = heard.values()
    assert [type(each).__name__ for each in first] == ["Printed", "Store", "bytes", "bytes", "Item", "Result"]
    assert json.loads(bytes(first[-1].value)) == [{"id": "e0", "file": {"$file": {"id": "sha256:x"}}}]
    assert [each.text for each in (first[0], failed[0])] == ["for 0!\n", "for 1!\n"]
    assert (failed[-1].kind, failed[-1].error_type, stopped[-1].kind) == ("handler_error", "ValueError", "cancelled")
    assert "many.py" not in failed[-1].traceback
    host.say(messages.Shutdown())
    assert host.close() == ("", "")
