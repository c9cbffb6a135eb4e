"""Contract: the runners of a cluster over REST, gRPC, the command line, in the metrics and in the dashboard."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from actors.executions import Here
from protocol.errors import ErrorKind, RunnerError
from protocol.nodes import ClusterState, Load, Presence
from runner.auth import Principal
from runner.cli.commands import cli
from runner.client import list_nodes
from runner.client.connection import Address, Answer
from runner.grpc.messages import nodes_message
from tests.pages import Reader, open_dashboard
from tests.support import ANYBODY, inline

ONE = Presence("one", "1", "2.0.0", 1, 1_700_000_000.0, ("gpu", "zone=eu"), {"inline": Load(4, 3, 1)}, running=3, lag=7)
TWO = Presence("two<b>", "2", "2.1.0", 1, 1_700_000_000.0, (), {"inline": Load(2), "venv": Load(2)}, draining=True)
STATE = ClusterState("one", True, (ONE, TWO), lag=7, unsent=2, unreadable=0, forwarded=5)
ECHO = inline("echo", "def handler(input): return input")


class Clustered(Here):
    """This runner as one of a cluster."""

    state = STATE

    def cluster(self) -> ClusterState:
        return self.state


@pytest.fixture
async def reader(tmp_path):
    async with open_dashboard(tmp_path, (ECHO,)) as opened:
        yield opened


def join(reader, **changes):
    """Make the runner one of a cluster."""
    owners = reader.service.runs.owners = Clustered(reader.service.runs)
    owners.state = replace(STATE, **changes)


async def test_a_single_machine_shows_no_runners(reader):
    shown = await reader.site.json("GET", "/nodes")
    assert shown == {
        **dict.fromkeys(("lag", "unsent", "unreadable", "forwarded"), 0),
        "node": None,
        "connected": None,
        "items": [],
    }
    assert nodes_message(shown).nodes == []
    assert "operato_cluster" not in (await reader.site.ask("GET", "/metrics"))[2].decode()
    assert (await reader.get("/nodes")).status == 404
    assert "/ui/nodes" not in (await reader.get("/")).html


async def test_runners_are_shown_with_labels_load_and_lag(reader):
    join(reader)
    shown = await reader.site.json("GET", "/nodes")
    one, two = shown["items"]
    assert (shown["node"], shown["connected"], shown["forwarded"]) == ("one", True, 5)
    assert (one["this"], one["labels"], one["places"], one["busy"], one["lag"]) == (True, ["gpu", "zone=eu"], 4, 3, 7)
    assert one["kinds"] == {"inline": {"places": 4, "busy": 3, "waiting": 1}}
    assert (two["this"], two["draining"], two["places"], two["release"]) == (False, True, 4, "2.1.0")
    found = nodes_message(shown)
    assert (found.node, [each.node for each in found.nodes], list(found.nodes[0].labels)) == (
        "one",
        ["one", "two<b>"],
        ["gpu", "zone=eu"],
    )
    with pytest.raises(RunnerError) as refused:
        reader.service.machine.nodes(Principal("x", frozenset({"modules:read"})))
    assert refused.value.failure.kind is ErrorKind.FORBIDDEN
    assert reader.service.machine.nodes(ANYBODY) == shown

    text = (await reader.site.ask("GET", "/metrics"))[2].decode()
    found = dict(re.findall(r'^(operato_cluster_\w+)\{node="one"\} (\S+)$', text, re.MULTILINE))
    assert found == {
        "operato_cluster_connected": "1.0",
        "operato_cluster_nodes": "2.0",
        "operato_cluster_lag_executions": "7.0",
        "operato_cluster_unsent_executions": "2.0",
        "operato_cluster_unreadable_messages_total": "0.0",
        "operato_cluster_forwarded_calls_total": "5.0",
    }


async def test_the_dashboard_has_a_view_of_the_runners(reader):
    join(reader)
    overview = await reader.get("/")
    assert "/ui/nodes" in overview.html
    assert "2 runners" in overview.text
    page = await reader.get("/nodes")
    assert "3 of 4" in page.text
    assert "zone=eu" in page.text
    assert "draining" in page.text
    assert "two<b>" in page.text
    assert "two<b>" not in page.html
    assert "does not reach" not in page.text
    korean = (await reader.get("/nodes", Accept_Language="ko")).text
    assert "이 러너" in korean
    some = await Reader(reader.site).sign_in("modules:read")
    assert (await some.get("/nodes")).status == 403


async def test_a_lost_connection_is_told_with_what_goes_on(reader):
    join(reader, connected=False, unreadable=3)
    page = (await reader.get("/nodes")).text
    assert "one does not reach the NATS servers of the cluster" in page
    assert "Nothing accepted is lost" in page
    assert "asynchronous calls" in page
    assert "3 messages of other releases could not be read" in page
    assert "does not reach the NATS servers" in (await reader.get("/")).text


async def test_the_command_prints_a_table(reader, capsys):
    class Client:
        async def request(self, method, path):
            assert (method, path) == ("GET", "/nodes")
            status, headers, body = await reader.site.ask(method, path)
            return Answer(status, headers, body, Address("http", "127.0.0.1", 1))

    assert await list_nodes(Client(), as_json=False) == 0
    assert "in no cluster" in capsys.readouterr().err
    join(reader)
    assert await list_nodes(Client(), as_json=False) == 0
    head, one, two = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["NODE", "RELEASE", "BUSY", "RUNNING", "QUEUED", "LAG"]
    assert one.split()[:6] == ["one", "2.0.0", "3/4", "3", "0", "7"]
    assert one.split()[-2:] == ["gpu,zone=eu", "here"]
    assert two.split()[-2:] == ["-", "draining"]
    join(reader, connected=False)
    assert await list_nodes(Client(), as_json=False) == 1
    assert "no connection" in capsys.readouterr().err
    assert "--json" in CliRunner().invoke(cli, ["nodes", "--help"]).output
