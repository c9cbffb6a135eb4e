"""Cluster: opening the engine: versions, TLS, credentials, streams; a refusal names its reason and the field."""

from __future__ import annotations

import json
from functools import partial

import pytest
import trio

from actors.cluster.engine import engine as opening
from actors.cluster.engine import open_engine
from config.settings import ClusterSettings
from protocol.errors import ErrorKind, RunnerError
from tests.certificates import Authority
from tests.cluster.servers import running
from tests.nats_users import Account
from tests.proxies import refusing_port


@pytest.fixture
def soon(monkeypatch):
    """Give up after a short time."""
    monkeypatch.setattr(opening, "OPEN_SECONDS", 1.5)


async def refusal(settings):
    with pytest.raises(RunnerError) as caught:
        async with open_engine(settings):
            pass
    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.UNAVAILABLE, "cluster")
    return caught.value.failure.message


async def pretend(version, listening, max_payload=1024 * 1024):
    """Be a server of this version for those who connect, without any stream."""

    async def serve(stream):
        info = {"server_id": "x", "version": version, "headers": True, "max_payload": max_payload, "proto": 1}
        await stream.send_all(b"INFO " + json.dumps(info).encode() + b"\r\n")
        async for data in stream:
            if b"PING" in data:
                await stream.send_all(b"PONG\r\n")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        await listening(ClusterSettings(servers=(f"nats://127.0.0.1:{port}",)))
        nursery.cancel_scope.cancel()


async def test_a_port_without_a_server_is_named(soon):
    with refusing_port() as port:
        message = await refusal(ClusterSettings(servers=(f"nats://127.0.0.1:{port}",)))

    assert f"nats://127.0.0.1:{port}" in message


async def test_an_old_server_is_refused_with_the_version_that_is_needed():
    async def listening(settings):
        assert "is NATS 2.11.9: version 2.12 or later is needed" in await refusal(settings)

    await pretend("2.11.9", listening)


async def test_a_server_that_takes_too_small_messages_is_refused_with_the_line_to_write():
    async def listening(settings):
        message = await refusal(settings)
        assert "takes messages of 307200 bytes at most: write `max_payload: 1MB`" in message

    await pretend("2.12.0", listening, max_payload=307200)


async def test_a_server_without_jetstream_is_refused(soon):
    async def listening(settings):
        assert "JetStream does not answer" in await refusal(settings)

    await pretend("2.12.0", listening)


async def test_a_server_without_tls_is_not_used_where_tls_is_expected(soon, tmp_path):
    async def listening(settings):
        secured = ClusterSettings(servers=settings.servers, ca=Authority(tmp_path).file)
        assert "does not offer TLS" in await refusal(secured)

    await pretend("2.12.0", listening)


async def test_tls_and_credentials_are_used_and_needed(soon, nats_server, tmp_path):
    authority, account = Authority(tmp_path), Account()
    server, client = authority.sign("server"), authority.sign("client")
    tls = f"cert_file: {server.certificate}, key_file: {server.key}, ca_file: {authority.file}, verify: true"
    user = tmp_path / "user.creds"
    user.write_text(account.user().credentials)
    with running(tmp_path, 1, extra=f"tls {{ {tls} }}\n{account.configuration}") as servers:
        files = {"ca": authority.file, "cert": client.certificate, "key": client.key}
        async with open_engine(servers.settings(**files, credentials=user)) as engine:
            assert await engine.publish(engine.names.state("a"), b"a", expect=0) == 1
        without_user = await refusal(servers.settings(**files))
        without_certificate = await refusal(servers.settings(ca=authority.file, credentials=user))
        user.write_text("nothing")
        damaged = await refusal(servers.settings(**files, credentials=user))

    assert "Authorization Violation" in without_user
    assert "cluster cannot be used" in without_certificate
    assert "has no user JWT with its seed" in damaged


async def stream(engine, name):
    return json.loads(await engine.ask(f"$JS.API.STREAM.INFO.{name}", b""))["config"]


async def test_streams_are_made_once_and_changed_where_they_differ(servers):
    settings = servers.settings()
    async with open_engine(settings) as engine:
        name = engine.names.log
        first = await stream(engine, name)
        await engine.publish(engine.names.state("a"), b"a")
        assert (first["num_replicas"], first["max_msgs_per_subject"]) == (3, 1)
        changed = json.dumps({**first, "num_replicas": 1, "duplicate_window": 10**9}).encode()
        assert "error" not in json.loads(await engine.ask(f"$JS.API.STREAM.UPDATE.{name}", changed))
        later = json.dumps({**await stream(engine, engine.names.feed), "metadata": {"operato.layout": "999"}}).encode()
        assert "error" not in json.loads(await engine.ask(f"$JS.API.STREAM.UPDATE.{engine.names.feed}", later))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(opened, settings)
    async with open_engine(settings) as engine:
        again = await stream(engine, name)
        assert {key: again[key] for key in first if key != "metadata"} == {
            key: first[key] for key in first if key != "metadata"
        }
        assert (await engine.last(engine.names.state("a"))).data == b"a"
        assert (await stream(engine, engine.names.feed))["metadata"]["operato.layout"] == "999"


async def opened(settings):
    async with open_engine(settings):
        pass


async def test_runners_that_start_together_make_the_streams_together(nats):
    settings = nats.settings()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(opened, settings)


async def test_three_servers_that_are_no_cluster_are_refused(soon, nats):
    url = nats.urls[0]
    message = await refusal(nats.settings(servers=(url, url.replace("127.0.0.1", "localhost"), url)))

    assert "fewer than 3 of the servers run as one cluster" in message
