"""Cluster: what `doctor` finds out about servers, streams and runners."""

from __future__ import annotations

import msgspec
import pytest
from attrs import evolve

from actors.cluster.engine import open_engine
from config.load import load_settings
from protocol.nodes import Load, Presence
from runner.cli.doctor import State, servers
from runner.cli.doctor import cluster as checks
from runner.cli.doctor.cluster import examine_cluster
from tests.cluster.servers import free_port


@pytest.fixture
def loaded(tmp_path, nats):
    (tmp_path / "modules.yaml").write_text(
        'modules: {m: {env: inline, needs: [gpu], code: "def handler(input): return input"}}'
    )
    found = load_settings({"config": str(tmp_path / "modules.yaml")}, {})
    settings = nats.settings(monitor=tuple(server.monitor_url for server in nats.all))
    return evolve(found, settings=evolve(found.settings, cluster=settings))


def given(loaded, **changes):
    return evolve(loaded, settings=evolve(loaded.settings, cluster=evolve(loaded.settings.cluster, **changes)))


async def examined(loaded):
    return {finding.name: finding for finding in await examine_cluster(loaded)}


async def test_a_cluster_that_no_runner_has_used_yet(loaded):
    findings = await examined(loaded)

    (server,) = loaded.settings.cluster.servers
    assert findings[server].state is State.OK
    assert findings["connection"].state is State.OK
    assert findings["sync_interval"].state is State.OK
    assert findings["clock"].state is State.OK
    assert findings["storage"].state is State.OK
    assert "routes" in findings["number of servers"].remedy
    assert findings["runners"].says == "no runner is there"
    streams = {name: each.says for name, each in findings.items() if name.startswith("stream ")}
    assert len(streams) == 6
    assert set(streams.values()) == {"missing"}, "doctor made streams"


async def test_runners_that_differ(loaded):
    settings = loaded.settings.cluster
    runner = Presence("one", "b1", "1.0.0", 1, 0.0, ("cpu",), {"inline": Load(4)}, modules="a" * 64)
    other = Presence("two", "b2", "1.1.0", 1, 0.0, (), {"inline": Load(4)}, lag=5000, modules="b" * 64)
    async with open_engine(settings) as engine:
        for each in (runner, other):
            await engine.publish(engine.names.presence(each.node), msgspec.msgpack.encode(each))
        await engine.publish(engine.names.presence("later"), b"\x93unreadable")
        findings = await examined(loaded)

    assert all(each.state is State.OK for name, each in findings.items() if name.startswith("stream "))
    assert (findings["runner one"].state, findings["runner two"].state) == (State.OK, State.NOTE)
    assert findings["releases"].says == "runners have different releases: 1.0.0 (one); 1.1.0 (two)"
    assert "aaaaaaaaaaaa (one); bbbbbbbbbbbb (two)" in findings["modules.yaml"].says
    assert "this file modules.yaml" in findings["modules.yaml"].says
    assert findings["module m"].says == "needs gpu, which no runner has together"


async def test_without_the_monitoring_port_the_sync_interval_is_a_warning_with_the_line_to_write(loaded):
    findings = await examined(given(loaded, monitor=()))

    assert findings["sync_interval"].state is State.NOTE
    assert "http: 127.0.0.1:8222" in findings["sync_interval"].remedy
    assert "sync_interval: always" in findings["sync_interval"].remedy
    assert "storage" not in findings


async def test_servers_that_are_not_there(loaded):
    absent = f"nats://127.0.0.1:{free_port()}"
    findings = await examined(given(loaded, servers=(absent,), monitor=(absent.replace("nats", "http"),)))

    assert findings[absent].state is State.FAILED
    assert findings[absent].says.startswith("no connection")
    assert findings["sync_interval"].state is State.NOTE
    assert "connection" not in findings, "it would take its whole time limit"


@pytest.mark.parametrize(("taken", "state"), [(8, State.OK), (95, State.NOTE), (101, State.FAILED)])
async def test_a_full_server_accepts_nothing(loaded, monkeypatch, taken, state):
    async def monitor(_):
        return servers.Monitored("n0", True, 0.0, taken, 100, 0.0, 0.0)

    monkeypatch.setattr(checks, "monitor", monitor)
    absent = f"nats://127.0.0.1:{free_port()}"
    storage = (await examined(given(loaded, servers=(absent,))))["storage"]

    assert storage.state is state
    assert state is State.OK or "max_file_store" in storage.remedy


async def test_another_server_is_no_nats_server(nats, monkeypatch):
    monkeypatch.setattr(servers, "ASK_SECONDS", 0.2)

    assert await servers.greet(nats.all[0].monitor_url) == "no greeting within 0.2 s"
    assert isinstance(await servers.monitor(nats.all[0].url.replace("nats", "http")), str)
