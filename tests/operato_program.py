"""A program of `operato-client` users: every method once, in one of three ways. It runs under any supported Python.

    python operato_program.py sync|asyncio|trio URL TOKEN FOLDER

It prints the names of the scenes that have passed. The client without an event loop is wrapped, so that one text is
enough.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import pickle
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import anyio
import operato
from operato import AsyncClient, Client, File

WAY, URL, TOKEN, FOLDER = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
OPENED = []


class Awaited:
    """A plain client, or a part of one, with methods to await."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        found = getattr(self.inner, name)
        if not callable(found):
            return Awaited(found)

        def call(*arguments, **named):
            if name in ("batch", "events", "stream", "list"):
                return Items(found(*arguments, **named))

            async def run():
                return found(*arguments, **named)

            return run()

        return call


class Items:
    """A plain stream for `async for`."""

    def __init__(self, inner):
        self.inner = inner

    def __aiter__(self):
        return self

    async def __anext__(self):
        for item in self.inner:
            return item
        raise StopAsyncIteration

    async def __aenter__(self):
        self.inner.__enter__()
        return self

    async def __aexit__(self, *told):
        self.inner.__exit__(*told)


@contextlib.asynccontextmanager
async def opened(url=URL, token=TOKEN, **how):
    if WAY == "sync":
        with Client(url, token, **how) as client:
            yield Awaited(client)
    else:
        async with AsyncClient(url, token, **how) as client:
            yield client


@contextlib.contextmanager
def raises(kind):
    class Found:
        value = None

    try:
        yield Found
    except kind as problem:
        Found.value = problem
    else:
        raise AssertionError(f"{kind} was not raised")


class Way:
    """A way to the server with an action for each connection, one after another."""

    def __init__(self, *actions):
        self.actions = list(actions)
        self.requests = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads = []
        self.start(self.accept)

    def start(self, target, *arguments):
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            action = self.actions.pop(0) if self.actions else "pass"
            self.start(self.serve, client, action)

    def serve(self, client, action):
        with client:
            if action == "close":
                self.requests.append(self.head(client))
            elif isinstance(action, bytes):
                self.requests.append(self.head(client))
                client.sendall(action)
                self.head(client)
            else:
                self.pass_on(client, action)

    def head(self, client):
        data = b""
        while b"\r\n\r\n" not in data:
            more = client.recv(65536)
            if not more:
                break
            data += more
        return data.lower()

    def pass_on(self, client, most):
        host, _, port = URL.rpartition("/")[2].partition(":")
        with socket.create_connection((host, int(port))) as server:
            self.start(self.copy, client, server)
            sent = 0
            while most == "pass" or sent < most:
                data = server.recv(65536 if most == "pass" else most - sent)
                if not data:
                    break
                client.sendall(data)
                sent += len(data)
            for each in (client, server):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def copy(self, client, server):
        with contextlib.suppress(OSError):
            while True:
                data = client.recv(65536)
                if data[:5] in (b"POST ", b"GET /"):
                    self.requests.append(data.lower())
                if not data:
                    server.shutdown(socket.SHUT_WR)
                    return
                server.sendall(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def answer(status, body, kind="application/problem+json", more=""):
    head = "HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n"
    return (head % (status, kind, len(body), more) + body).encode()


async def calls(client):
    assert await client.call("echo", {"a": [1, None]}) == {"a": [1, None]}
    assert await client.call("echo") is None
    moment = dt.datetime(2027, 1, 31, 9, 30, tzinfo=dt.timezone.utc)
    assert await client.call("echo", [moment, (1, 2)]) == ["2027-01-31T09:30:00+00:00", [1, 2]]
    execution = await client.execute("bad", {"x": 1})
    assert (execution.status, execution.stdout, execution.ended) == ("failed", "before\n", True)
    assert execution.id == execution.error.execution_id


async def errors_have_their_kind(client):
    with raises(operato.HandlerError) as found:
        await client.call("bad", {"x": 1})
    error = found.value
    assert (error.error_type, error.kind, error.retryable) == ("KeyError", "handler_error", False)
    assert "in handler" in error.traceback
    shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "in handler" in shown
    assert "KeyError: " in shown
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.traceback) == (operato.HandlerError, error.traceback)
    with raises(operato.NotFoundError) as found:
        await client.call("ecco")
    assert "did you mean echo" in str(found.value)
    with raises(operato.BadInputError) as found:
        await client.call("strict", {"n": "x"})
    assert found.value.field == "$.n", found.value.field
    with raises(operato.BadInputError):
        await client.call("echo", {1: 2})
    with raises(operato.BadInputError):
        await client.call("echo", float("nan"))
    with raises(operato.ExecutionTimeoutError):
        await client.call("sleep", 30, timeout=0.2)
    async with opened(token=None) as stranger:
        with raises(operato.UnauthenticatedError) as found:
            await stranger.call("echo")
        assert "OPERATO_TOKEN" in str(found.value)
    with raises(operato.BadInputError):
        Client("ftp://x")
    with raises(operato.BadInputError) as found:
        Client(URL, "two words")
    assert "two" not in str(found.value)


async def asynchronous_calls(client):
    accepted = await client.submit("echo", 5, priority=7)
    assert await client.wait(accepted) == 5
    assert (await client.executions.get(accepted.id)).fields["priority"] == 7
    failing = await client.submit("bad", {"x": 1})
    with raises(operato.HandlerError):
        await client.wait(failing.id)
    later = await client.submit("echo", "later", delay=0.3)
    assert later.status == "scheduled"
    assert await client.wait(later) == "later"
    slow = await client.submit("sleep", 60)
    began = time.monotonic()
    with raises(TimeoutError):
        await client.wait(slow, timeout=0.3)
    assert time.monotonic() - began < 14, "it waited for the comment of the runner"
    assert (await client.executions.cancel(slow.id)).status == "cancelled"
    with raises(operato.CancelledError):
        await client.wait(slow)


async def many_calls(client):
    assert await client.map("echo", range(40), parallel=5) == list(range(40))
    assert await client.map("echo", []) == []
    since = time.time()
    with raises(operato.HandlerError):
        await client.map("some", (n for n in [0, 1, 13, *range(100)]), parallel=2)
    begun = [each async for each in client.executions.list(module="some", since=since)]
    assert len(begun) < 30, "the rest was not left out"
    with raises(ValueError):
        await client.map("echo", [], parallel=0)
    own = time.time_ns()
    assert await client.map("echo", "ab", key=f"m{own}") == await client.map("echo", "ab", key=f"m{own}")


async def batches(client):
    outcomes = [each async for each in client.batch("some", iter(range(1200)), parallel=4)]
    assert [each.index for each in outcomes] == list(range(1200))
    assert outcomes[12].value() == 12
    assert outcomes[1199].value() == 1199
    with raises(operato.HandlerError):
        outcomes[13].value()
    refused = [each.error async for each in client.batch("strict", [{"n": 1}, {"n": "x"}])]
    assert refused[0] is None
    assert isinstance(refused[1], operato.BadInputError)
    with raises(operato.NotFoundError):
        async for _ in client.batch("ecco", [1]):
            pass
    async with client.batch("sleep", [0.01, 60]) as some:
        async for each in some:
            assert each.value() == 0.01
            break
    for _ in range(200):
        left = [each async for each in client.executions.list(module="sleep", status="running")]
        if not left:
            return
        await anyio.sleep(0.05)
    raise AssertionError("leaving a batch did not end its executions")


async def events(client):
    found = [each async for each in client.stream("counts", 3)]
    assert [each.value for each in found if each.type == "item"] == [0, 1, 2]
    assert "".join(each.text for each in found if each.type == "output") == "n 0\nn 1\nn 2\n"
    assert (found[-1].last, found[-1].type) == (True, "result")
    execution = await client.submit("counts", 200)
    async with client.events(execution) as some:
        async for each in some:
            if each.type == "item":
                break
    rest = [each.seq async for each in client.events(execution, start=each.seq + 1)]
    assert rest[0] == each.seq + 1
    assert rest == sorted(set(rest))
    assert [each async for each in client.events(execution, start=rest[-1] + 1)] == []
    with Way(3000, 2000, 2500) as way:  # each of these connections breaks in the middle of an event
        async with opened(way.url) as broken:
            seen = [each async for each in broken.events(execution)]
            assert len(way.requests) >= 4
    whole = [each.fields async for each in client.events(execution)]
    assert [each.fields for each in seen] == whole
    with raises(operato.NotFoundError):
        async for _ in client.events("01a20df2-d85f-79da-9bea-b4f267cc57b9"):
            pass


async def files(client):
    place = FOLDER / (f"{WAY}.txt")
    place.write_bytes(b"abc" * 300000)
    named = await client.files.upload(place)
    assert named["$file"]["name"] == place.name
    assert named["$file"]["size"] == 900000
    assert await client.files.download(named) == b"abc" * 300000
    to = FOLDER / (f"{WAY}.copy")
    assert await client.files.download(named["$file"]["id"], to) == b""
    assert to.read_bytes() == place.read_bytes()
    result = await client.call("reverse", {"file": File(place), "text": "xyz"})
    assert await client.files.download(result["file"]) == b"cba" * 300000
    assert result["text"] == "zyx"
    execution = await client.execute("reverse", {"file": b"123", "text": ""})
    assert b'"text"' in await client.files.result(execution.id)
    assert [each async for each in client.files.list(limit=1)]
    alone = await client.files.upload(b"alone %d" % time.time_ns(), name="a.bin", type="x/y")
    assert alone["$file"]["type"] == "x/y"
    await client.files.delete(alone)
    with raises(operato.NotFoundError):
        await client.files.download(alone)
    with raises(OSError):
        await client.call("echo", File("/no/such/file"))
    assert sorted(each.name for each in FOLDER.iterdir() if each.name.endswith(".part")) == []


async def kept(client):
    name = f"every-{WAY}-{time.time_ns()}"
    made = await client.schedules.create(name, "echo", every="1h", input={"n": 1})
    assert made["id"] == name
    assert (await client.schedules.update(made["id"], every="2h"))["every"] == 7200
    assert len(await client.schedules.next(made["id"], count=3)) == 3
    await client.schedules.pause(made["id"])
    await client.schedules.resume(made["id"])
    fired = await client.schedules.fire(made["id"])
    assert await client.wait(fired.id) == {"n": 1}
    assert made["id"] in [each["id"] async for each in client.schedules.list(module="echo")]
    await client.schedules.delete(made["id"])
    with raises(operato.NotFoundError):
        await client.schedules.get(made["id"])
    again = await client.executions.rerun(fired.id, input={"n": 2})
    assert await client.wait(again) == {"n": 2}
    same = await client.executions.rerun(fired.id)
    assert await client.wait(same) == {"n": 1}
    tried = await client.executions.rerun_all(module="echo", limit=3, dry_run=True)
    assert len(tried["items"]) <= 3
    found = [each async for each in client.executions.list(module="echo", status="succeeded", limit=120)]
    assert found
    assert all(each.module == "echo" for each in found)
    with raises(operato.BadInputError):
        [each async for each in client.executions.list(colour="red")]
    assert (await client.executions.output((await client.execute("bad", {"x": 1})).id)) == "before\n"
    assert "echo" in [each["name"] async for each in client.modules.list()]
    assert (await client.modules.get("strict"))["input_schema"]["type"] == "object"
    assert (await client.modules.stats("echo"))["total"]


async def retries(client):
    busy = answer("429 Too Many", '{"title": "x", "status": 429, "kind": "overloaded"}', more="retry-after: 0\r\n")
    own = f"key-{WAY}-{time.time_ns()}"
    with Way(busy, "close", busy) as way:
        async with opened(way.url) as other:
            assert await other.call("echo", 1, key=own) == 1
        assert len(way.requests) == 4
        assert all(b"idempotency-key: %s\r\n" % own.encode() in each for each in way.requests)
    with Way("close") as way:
        async with opened(way.url) as other:
            with raises(operato.LostError):  # it may have begun
                await other.call("echo", 1)
        assert len(way.requests) == 1
    with Way("close") as way:
        async with opened(way.url) as other:
            assert await other.wait(await other.submit("echo", 2)) == 2
    slow = answer("503 Away", '{"title": "x", "kind": "unavailable", "detail": "away"}', more="retry-after: 3600\r\n")
    with Way(slow) as way:
        async with opened(way.url) as other:
            with raises(operato.UnavailableError) as found:
                await other.call("echo", 1)
            assert (found.value.retry_after, found.value.message) == (3600, "away")
    with Way(busy, busy) as way:
        async with opened(way.url, retries=1) as other:
            with raises(operato.OverloadedError):
                await other.call("echo", 1)
        assert len(way.requests) == 2
    with Way(answer("200 OK", "<html>", "text/html"), answer("404 No", "<html>", "text/html")) as way:
        async with opened(way.url) as other:
            for _ in range(2):
                with raises(operato.InternalError) as found:
                    await other.call("echo", 1)
                assert "is not an Operato Runner" in str(found.value)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with opened(f"http://127.0.0.1:{bound.getsockname()[1]}", retries=1) as other:
            with raises(operato.UnavailableError) as found:
                await other.call("echo", 1)
            assert "OPERATO_URL" in str(found.value)
    tokens = iter(["wrong", TOKEN])
    async with opened(token=lambda: next(tokens)) as other:
        with raises(operato.UnauthenticatedError):
            await other.call("echo", 1)
        assert await other.call("echo", 1) == 1


async def cancelling(client):
    """Cancel calls, alone and in a map: they are cancelled on the runner."""
    if WAY == "sync":
        return
    with anyio.move_on_after(0.5) as scope:
        await client.call("sleep", 61)
    assert scope.cancelled_caught
    began = time.monotonic()
    with raises(operato.HandlerError):
        await client.map("nap", [62, 62, "x"], parallel=3)
    assert time.monotonic() - began < 30
    with raises(TimeoutError):
        with anyio.fail_after(0.5):
            async for _ in client.stream("sleep", 0.8):
                pass
    for _ in range(200):
        found = [each async for each in client.executions.list(status="running")]
        if not found:
            return
        await anyio.sleep(0.05)
    raise AssertionError(f"they still run: {found}")


SCENES = [
    calls, errors_have_their_kind, asynchronous_calls, many_calls, batches, events, files, kept, retries, cancelling,
]  # fmt: skip


async def main():
    for scene in SCENES:
        began = time.monotonic()
        async with opened() as client:
            await scene(client)
        print(f"{scene.__name__} {time.monotonic() - began:.2f}", flush=True)


anyio.run(main, backend="asyncio" if WAY == "sync" else WAY)
