"""Contract: the client against servers that do something wrong: each ends in one RunnerError that says what to do."""

from __future__ import annotations

import base64
import hashlib
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio

from config.client import Address, ClientSettings
from config.mistakes import ConfigError
from protocol.errors import ErrorKind, RunnerError
from runner.client import connection as client_module
from runner.client import events as client_events
from runner.client import socket as client_socket
from runner.client.connection import Client, open_client
from runner.client.events import Begun, End, follow, read_events
from runner.client.local_token import Credentials
from tests.certificates import Authority

PATIENCE = 20
Serve: TypeAlias = Callable[[trio.SocketStream], Awaitable[None]]


async def head_of(stream: trio.SocketStream) -> bytes:
    """Read a request's head, and what came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            break
        data += more
    return data


@asynccontextmanager
async def answering(
    serve: Serve, *, prefix: str = "", context: ssl.SSLContext | None = None, **trust: Path
) -> AsyncIterator[Client]:
    """Yield a client of a server on loopback that treats each connection with `serve`."""

    async def one(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            listeners = [listener if context is None else trio.SSLListener(listener, context, https_compatible=True)]
            await nursery.start(trio.serve_listeners, one, listeners)
            scheme = "https" if trust or context is not None else "http"
            settings = ClientSettings(Address(scheme, "127.0.0.1", port, prefix), **trust)
            async with open_client(settings, Credentials(lambda: "the-token", "set OPERATO_TOKEN")) as client:
                yield client
            nursery.cancel_scope.cancel()


def sends(text: bytes, *, keep: bool = False) -> Serve:
    """Return a server that reads a request, sends this, and closes (or waits)."""

    async def serve(stream: trio.SocketStream) -> None:
        await head_of(stream)
        await stream.send_all(text)
        if keep:
            await trio.sleep_forever()

    return serve


def http(status: str, body: bytes, kind: str = "text/html", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", f"Content-Type: {kind}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def frame(opcode: int, data: bytes) -> bytes:
    length = bytes([len(data)]) if len(data) < 126 else b"\x7e" + struct.pack("!H", len(data))
    return bytes([0x80 | opcode]) + length + data


async def shake(stream: trio.SocketStream) -> str:
    """Agree to a websocket; return the request line."""
    head = (await head_of(stream)).decode()
    key = next(line[19:] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key: "))
    accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    await stream.send_all("\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept}"]).encode() + b"\r\n\r\n")
    return head.split("\r\n")[0]


async def ask(client: Client) -> Any:
    return (await client.request("GET", "/executions")).read(dict[str, Any])


async def open_one(client: Client) -> Any:
    async with client.socket("/modules/stream/m") as socket:
        return await read_events(client, socket, nothing)


async def nothing(event: object) -> None:
    del event


def refused(problem: Any) -> tuple[ErrorKind, str]:
    assert isinstance(problem.value, RunnerError)
    return problem.value.failure.kind, problem.value.failure.message


PROBLEM = http("404 X", b'{"kind": "not_found", "detail": "no such", "field": "name"}', "application/problem+json")
UNKNOWN = http("401 X", b'{"kind": "unauthenticated", "detail": "who?"}', "application/problem+json")

WRONG: dict[str, tuple[Serve, ErrorKind, str]] = {
    "a problem": (sends(PROBLEM), ErrorKind.NOT_FOUND, "no such"),
    "unknown caller": (sends(UNKNOWN), ErrorKind.UNAUTHENTICATED, "who?; set OPERATO_TOKEN"),
    "a greeting": (sends(b"SSH-2.0-OpenSSH_9.2\r\n"), ErrorKind.LOST, "check OPERATO_URL"),
    "no HTTP": (sends(b"+OK\r\n\r\n"), ErrorKind.UNAVAILABLE, "is not an Operato Runner: it does not"),
    "an alert of TLS": (sends(b"\x15\x03\x01\x00\x02\x02\x46"), ErrorKind.UNAVAILABLE, "use https:// if it uses TLS"),
    "nothing": (sends(b""), ErrorKind.LOST, "was lost"),
    "half an answer": (sends(b"HTTP/1.1 200 OK\r\nContent-Le"), ErrorKind.LOST, "was lost"),
    "another site": (sends(http("502 Bad Gateway", b"<html>")), ErrorKind.UNAVAILABLE, "answered 502 Bad Gateway"),
    "a redirect": (sends(http("301 X", b"", "x/y", "Location: https://h/")), ErrorKind.UNAVAILABLE, "https://h/"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("begin", [ask, open_one])
async def test_other_servers(case: str, begin: Callable[[Client], Awaitable[Any]]) -> None:
    serve, kind, text = WRONG[case]
    async with answering(serve) as client:
        with pytest.raises(RunnerError) as problem:
            await begin(client)

    found = refused(problem)
    if begin is ask:
        assert found[0] is kind
        assert text in found[1]
    else:  # a websocket library does not tell silence from nonsense; the kind of what a runner says is exact
        assert found[0] is kind or {found[0], kind} <= {ErrorKind.UNAVAILABLE, ErrorKind.LOST}
        assert text in found[1] or kind in (ErrorKind.UNAVAILABLE, ErrorKind.LOST)
    assert str(client.address) in found[1] or "no such" in found[1] or "who?" in found[1]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"\xff", b"[" * 100_000])
async def test_an_answer_that_is_not_from_a_runner(body: bytes) -> None:
    async with answering(sends(http("200 OK", body))) as client:
        with pytest.raises(RunnerError) as problem:
            await ask(client)

    assert "its answer cannot be read" in refused(problem)[1]


async def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 100_000)

    async def serve(stream: trio.SocketStream) -> None:
        await head_of(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while True:
            await stream.send_all(b"[" * 65536)

    async with answering(serve) as client:
        with pytest.raises(RunnerError) as problem:
            await ask(client)

    assert refused(problem)[0] is ErrorKind.TOO_LARGE


async def test_a_message_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 1000)

    async def serve(stream: trio.SocketStream) -> None:
        await shake(stream)
        await stream.send_all(frame(1, b"x" * 1001))
        await trio.sleep_forever()

    async with answering(serve) as client:
        with pytest.raises(RunnerError) as problem:
            await open_one(client)

    assert refused(problem)[0] is ErrorKind.TOO_LARGE


@pytest.mark.parametrize("begin", [ask, open_one])
async def test_the_wait_for_a_silent_server_is_bounded(
    begin: Callable[[Client], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 0.2)

    async def ask_shortly(client: Client) -> Any:
        return await client.request("GET", "/executions", seconds=0.2)

    begin = ask_shortly if begin is ask else begin

    async def serve(stream: trio.SocketStream) -> None:
        await head_of(stream)
        await trio.sleep_forever()

    async with answering(serve) as client:
        with pytest.raises(RunnerError) as problem:
            await begin(client)

    assert refused(problem)[0] is ErrorKind.UNAVAILABLE
    assert "within 0.2 s" in refused(problem)[1]


async def test_a_protocol_error_after_the_handshake_is_a_lost_connection() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await shake(stream)
        await stream.send_all(frame(1, b'{"type": "execution", "id": "e1"}') + b"\xff" * 100)
        await trio.sleep_forever()

    seen = []

    async def show(event: object) -> None:
        seen.append(event)

    async with answering(serve) as client, client.socket("/modules/stream/m") as socket:
        assert await read_events(client, socket, show) is None

    assert seen == [Begun("e1")]
    assert socket.code != client_socket.NORMAL


async def test_an_endless_answer_to_a_handshake_is_cut_off() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await head_of(stream)
        await stream.send_all(b"HTTP/1.1 404 X\r\nContent-Type: text/html\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            await stream.send_all(b"x" * 65536)

    async with answering(serve) as client:
        with pytest.raises(RunnerError) as problem:
            await open_one(client)

    assert refused(problem)[0] in (ErrorKind.LOST, ErrorKind.UNAVAILABLE)


async def test_a_server_that_does_not_answer_pings_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_socket, "_PING_SECONDS", 0.1)

    async def serve(stream: trio.SocketStream) -> None:
        await shake(stream)
        await trio.sleep_forever()

    async with answering(serve) as client, client.socket("/x") as socket:
        assert await socket.receive() is None
        assert socket.code == 1006


async def test_token_prefix_and_query_are_sent() -> None:
    seen = []

    async def serve(stream: trio.SocketStream) -> None:
        seen.append((await head_of(stream)).decode())
        await stream.send_all(http("200 OK", b"{}", "application/json"))

    async with answering(serve, prefix="/runner") as client:
        assert (await client.request("POST", "/a", query={"q": "b c", "no": None}, body=b"[]")).read(dict) == {}

    assert seen[0].startswith("POST /runner/a?q=b+c HTTP/1.1\r\n")
    assert "authorization: Bearer the-token\r\n" in seen[0].lower().replace("bearer", "Bearer")


# -- following over lost connections -----------------------------------------------------------------------------------


def output(seq: int) -> bytes:
    return frame(1, b'{"type": "output", "seq": %d, "at": 1.0, "stream": "stdout", "text": "%d"}' % (seq, seq))


LAST = frame(1, b'{"type": "result", "seq": 4, "at": 1.0, "status": "succeeded", "result": [1]}')


async def test_following_continues_after_the_last_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off, closed with 1012, refused, answered by a proxy; then it continues to the end."""
    monkeypatch.setattr(client_events, "_FIRST_PAUSE", 0.001)
    asked = []

    async def serve(stream: trio.SocketStream) -> None:
        number = len(asked)
        if number == 2:
            asked.append((await head_of(stream)).decode().split("\r\n")[0])
            await stream.send_all(http("503 X", b'{"kind": "shutdown", "detail": "later"}', "application/problem+json"))
        elif number == 3:
            asked.append((await head_of(stream)).decode().split("\r\n")[0])
            await stream.send_all(http("502 Bad Gateway", b"<html>"))
        else:
            asked.append(await shake(stream))
            if number == 0:
                await stream.send_all(output(5) + output(6))
            elif number == 1:
                await stream.send_all(output(7) + frame(8, struct.pack("!H", 1012)))
                await head_of(stream)
            else:
                await stream.send_all(output(8) + LAST)
                await trio.sleep_forever()

    seen: list[int] = []
    lost = []

    async def show(event: Any) -> None:
        seen.append(event.seq)

    async with answering(serve) as client:
        end = await follow(client, "e1", 5, show, lambda: lost.append(len(seen)))

    assert end == End(result=b"[1]")
    assert seen == [5, 6, 7, 8]
    assert [line.split()[1] for line in asked] == [f"/executions/e1/stream?from={n}" for n in (5, 7, 8, 8, 8)]
    assert lost == [2, 3, 3, 3]


async def test_following_gives_up_on_a_runner_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_events, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(client_events, "PATIENCE_SECONDS", 0.2)
    asked = []

    async def serve(stream: trio.SocketStream) -> None:
        asked.append(1)
        if len(asked) == 1:
            await shake(stream)

    async with answering(serve) as client:
        with pytest.raises(RunnerError) as problem:
            await follow(client, "e1", 0, nothing, lambda: None)

    assert refused(problem)[0] is ErrorKind.LOST
    assert len(asked) > 2


async def test_following_fails_at_once_without_a_first_connection() -> None:
    async with answering(sends(b"")) as client:
        with pytest.raises(RunnerError):
            await follow(client, "e1", 0, nothing, lambda: pytest.fail("it tried again"))


async def test_a_refusal_ends_following(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_events, "_FIRST_PAUSE", 0.001)
    asked = []

    async def serve(stream: trio.SocketStream) -> None:
        asked.append(1)
        if len(asked) == 1:
            await shake(stream)
        else:
            await sends(PROBLEM)(stream)

    async with answering(serve) as client:
        with pytest.raises(RunnerError) as problem:
            await follow(client, "e1", 0, nothing, lambda: None)

    assert refused(problem)[0] is ErrorKind.NOT_FOUND
    assert len(asked) == 2


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [ask, open_one])
async def test_a_certificate_of_an_unknown_ca(tmp_path: Any, begin: Callable[[Client], Awaitable[Any]]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    signed = Authority(tmp_path).sign("server")
    context.load_cert_chain(signed.certificate, signed.key)
    async with answering(sends(PROBLEM), context=context) as client:
        with pytest.raises(RunnerError) as problem:
            await begin(client)

    assert refused(problem)[0] is ErrorKind.UNAVAILABLE
    assert "is not trusted" in refused(problem)[1]
    assert "--ca or OPERATO_CA" in refused(problem)[1]


class Guarded:
    """A server that accepts only clients with a certificate of its CA."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        signed = self.authority.sign("server")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(signed.certificate, signed.key)
        self.context.load_verify_locations(self.authority.file)
        self.context.verify_mode = ssl.CERT_REQUIRED

    async def __call__(self, stream: trio.SocketStream) -> None:
        # By hand: a stream of trio goes without the alert that says why.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self.context.wrap_bio(incoming, outgoing, server_side=True)
        with suppress(ssl.SSLError):
            while True:
                with suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    break
                await stream.send_all(outgoing.read())
                incoming.write(await stream.receive_some())
        await stream.send_all(outgoing.read())
        while await stream.receive_some():  # what is left unread would take the alert away from the client
            pass


@pytest.mark.parametrize("begin", [ask, open_one])
@pytest.mark.parametrize("shown", ["none", "of a stranger"])
async def test_a_server_that_requires_another_certificate(
    tmp_path: Path, begin: Callable[[Client], Awaitable[Any]], shown: str
) -> None:
    server = Guarded(tmp_path)
    trust = {"ca_file": server.authority.file}
    if shown != "none":
        stranger = Authority(tmp_path, "other").sign("stranger")
        trust |= {"cert_file": stranger.certificate, "key_file": stranger.key}

    async with answering(server, **trust) as client:
        with pytest.raises(RunnerError) as problem:
            await begin(client)

    kind, message = refused(problem)
    assert kind is ErrorKind.UNAVAILABLE
    assert "requires a client certificate that it trusts" in message
    assert "name yours with --cert or OPERATO_CERT" in message


def test_unusable_client_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine, other, locked = authority.sign("mine"), authority.sign("other"), authority.sign("locked", password=b"x")
    nowhere, nothing_of_it = tmp_path / "none.pem", tmp_path / "text.pem"
    nothing_of_it.write_text("text")

    def mistake(certificate: Path, key: Path | None = None) -> str:
        settings = ClientSettings(Address("https", "127.0.0.1", 1), cert_file=certificate, key_file=key)
        with pytest.raises(ConfigError) as caught:
            client_module.make_context(settings)
        (mistake,) = caught.value.mistakes
        return str(mistake)

    alone = f"--cert: {mine.certificate} has no certificate with its unencrypted key in PEM format"
    assert mistake(mine.certificate).startswith(alone)
    assert mistake(nowhere) == f"--cert: {nowhere} cannot be read: No such file or directory"
    assert mistake(mine.certificate, nowhere) == f"--cert-key: {nowhere} cannot be read: No such file or directory"
    assert (
        mistake(mine.certificate, other.key) == f"--cert-key: {other.key} does not have the key of {mine.certificate}"
    )
    assert "are not a certificate and its unencrypted key in PEM" in mistake(locked.certificate, locked.key)
    assert "are not a certificate and its unencrypted key in PEM" in mistake(nothing_of_it, mine.key)
