"""The checks of a cluster: its servers and their settings, its streams, its runners, and what is missing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from attrs import frozen

from actors.registry import specs_digest
from config.cluster import CLUSTER_EXTRA
from config.load import Loaded
from config.settings import ClusterSettings
from protocol.errors import RunnerError
from protocol.nodes import Presence
from runner.cli.doctor.findings import Finding, State
from runner.cli.doctor.servers import NO_CONNECTION, Greeting, Monitored, greet, monitor, seconds_of
from runner.terminal import size

if TYPE_CHECKING:
    from actors.cluster import Engine
TOPIC: Final = "cluster"
LEAST_VERSION: Final = (2, 12)
LEAST_PAYLOAD_BYTES: Final = 1024 * 1024
CLOCK_SECONDS: Final = 1.0
"""Clocks that differ by more make times of records confusing, and time limits of tokens and schedules wrong."""
LAG: Final = 1000
"""States of executions; a runner with more of them to read shows old lists."""
_FULL: Final = 0.9
_JETSTREAM: Final = 'jetstream { store_dir: "/var/lib/nats", sync_interval: always }'
_MONITOR: Final = (
    "write `http: 127.0.0.1:8222` into nats-server.conf of each server, and `cluster_monitor: [http://HOST:8222]`"
    " into the settings"
)
_READ_SECONDS: Final = 5.0
_REPLICAS: Final = 3


@frozen
class _Stream:
    """A stream as the engine describes it; `None` in place of it if it is missing."""

    name: str
    replicas: int
    messages: int
    taken: int
    consumers: int
    behind: tuple[str, ...]
    """Replicas that are away or lag, in words."""
    leader: str


async def examine_cluster(loaded: Loaded) -> list[Finding]:
    """Return the results of the checks of the cluster. Nothing is changed or made in it."""
    settings = loaded.settings.cluster
    findings = [finding async for finding in _servers(settings)]
    here = [each for each in findings if each.name in settings.servers]
    reached = any(not finding.says.startswith(NO_CONNECTION) for finding in here)
    monitored = [(address, await monitor(address)) for address in settings.monitor]
    findings += _sync(settings, monitored)
    findings += _storage(monitored)
    if not reached:
        return findings
    try:
        from actors.cluster import open_engine
    except ImportError:
        text = "the client of NATS is not installed"
        return [*findings, Finding(TOPIC, "client", State.FAILED, text, CLUSTER_EXTRA)]
    try:
        async with open_engine(settings, prepares=False) as engine:
            findings.append(Finding(TOPIC, "connection", State.OK, "signed in, and JetStream answers"))
            findings += await _inside(loaded, engine, monitored)
    except RunnerError as problem:
        remedy = "correct `cluster`, `cluster_credentials` or `cluster_ca`, or the servers, as the reason says"
        findings.append(Finding(TOPIC, "connection", State.FAILED, problem.failure.message, remedy))
    return findings


async def _servers(settings: ClusterSettings) -> AsyncIterator[Finding]:
    greetings: dict[str, Greeting | str] = {}

    async def ask(server: str) -> None:
        greetings[server] = await greet(server)

    async with trio.open_nursery() as nursery:
        for server in settings.servers:
            nursery.start_soon(ask, server)
    none = all(isinstance(each, str) for each in greetings.values())
    for server in settings.servers:
        yield _server(server, greetings[server], State.FAILED if none else State.NOTE)
    number = len(settings.servers)
    if number < _REPLICAS:
        text = f"`cluster` names {number} {'server' if number == 1 else 'servers'}: the loss of one stops the cluster"
        remedy = (
            "run three servers, with `cluster { name: NAME, routes: [nats://ONE:6222, nats://TWO:6222] }` in each"
            " nats-server.conf, and name all of them in `cluster`"
        )
        yield Finding(TOPIC, "number of servers", State.NOTE, text, remedy)


def _server(server: str, found: Greeting | str, otherwise: State) -> Finding:
    if isinstance(found, str):
        remedy = "start it, or correct its address in `cluster`; a server with TLS first greets nobody"
        return Finding(TOPIC, server, otherwise, found, remedy)
    text = f"NATS {found.version}"
    if version_of(found.version) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        return Finding(TOPIC, server, State.FAILED, text, f"install nats-server {least} or later on it")
    if not found.jetstream:
        remedy = f"write `{_JETSTREAM}` into its nats-server.conf; if it is there, make room on its disk and restart it"
        return Finding(TOPIC, server, State.FAILED, f"{text}, JetStream is off", remedy)
    if found.max_payload < LEAST_PAYLOAD_BYTES:
        text = f"{text} takes messages of {size(found.max_payload)} at most; letters have up to 1 MiB"
        return Finding(TOPIC, server, State.FAILED, text, "write `max_payload: 1MB` into its nats-server.conf")
    return Finding(TOPIC, server, State.OK, f"{text}, JetStream is on")


def version_of(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(part) for part in text.split("-", maxsplit=1)[0].split(".")[:2] if part.isdigit())


def _sync(settings: ClusterSettings, monitored: Sequence[tuple[str, Monitored | str]]) -> Iterator[Finding]:
    if not settings.monitor:
        text = "unknown, as clients cannot see it: the default of two minutes loses accepted executions at a power loss"
        yield Finding(TOPIC, "sync_interval", State.NOTE, text, f"{_MONITOR}; and write `{_JETSTREAM}`")
    for address, found in monitored:
        if isinstance(found, str):
            text = f"{address} does not tell it: {found}"
            yield Finding(TOPIC, "sync_interval", State.NOTE, text, _MONITOR)
        elif found.synced:
            yield Finding(TOPIC, "sync_interval", State.OK, f"{found.name}: always")
        else:
            text = f"{found.name}: {found.sync_seconds:g} s; accepted executions of that time are lost at a power loss"
            remedy = f"write `{_JETSTREAM}` into its nats-server.conf, and restart it"
            yield Finding(TOPIC, "sync_interval", State.FAILED, text, remedy)


def _storage(monitored: Sequence[tuple[str, Monitored | str]]) -> Iterator[Finding]:
    for _, found in monitored:
        if isinstance(found, str):
            continue
        text = f"{found.name}: {size(found.storage)} of {size(found.max_storage)} are taken"
        if found.storage > found.max_storage * _FULL:
            remedy = (
                "write `jetstream { max_file_store: ... }` with more into its nats-server.conf, or shorten retention"
            )
            state = State.NOTE if found.storage < found.max_storage else State.FAILED
            yield Finding(TOPIC, "storage", state, text, remedy)
        else:
            yield Finding(TOPIC, "storage", State.OK, text)
        yield _clock(found.name, found.offset, found.doubt)


def _clock(name: str, offset: float, doubt: float) -> Finding:
    text = f"{name}: {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} this machine, ±{doubt:.1f} s"
    if abs(offset) < 0.05:
        text = f"{name}: as that of this machine, ±{doubt:.1f} s"
    if abs(offset) - doubt > CLOCK_SECONDS:
        remedy = "have both clocks set by NTP, such as with chrony or systemd-timesyncd"
        return Finding(TOPIC, "clock", State.NOTE, text, remedy)
    return Finding(TOPIC, "clock", State.OK, text)


async def _inside(loaded: Loaded, engine: Engine, monitored: Sequence[tuple[str, Monitored | str]]) -> list[Finding]:
    from actors.cluster import EngineError

    names, findings = engine.names, list[Finding]()
    wanted = min(_REPLICAS, len(loaded.settings.cluster.servers))
    try:
        for name in (names.log, names.queue, names.feed, names.keys, names.nodes, f"OBJ_{names.files}"):
            began, at = time.monotonic(), time.time()
            found = await _asked(engine, f"STREAM.INFO.{name}")
            taken = time.monotonic() - began
            findings.append(_stream(name, found, wanted))
            if name == names.log and not any(isinstance(each, Monitored) for _, each in monitored) and "ts" in found:
                leader = found.get("cluster", {}).get("leader", "the server")
                findings.append(_clock(leader, seconds_of(found["ts"]) - at - taken / 2, taken / 2))
        findings += _account(await _asked(engine, "INFO"))
        findings += _queue(await _asked(engine, f"CONSUMER.LIST.{names.queue}"))
        findings += await _runners(loaded, engine)
    except EngineError as problem:
        text = f"the engine does not answer: {problem}"
        remedy = "check that most of the servers run and reach each other: `nats server report jetstream`"
        findings.append(Finding(TOPIC, "streams", State.FAILED, text, remedy))
    return findings


async def _asked(engine: Engine, subject: str) -> Mapping[str, Any]:
    """Return an answer of the engine's own interface. Raises EngineError."""
    answer: Mapping[str, Any] = msgspec.json.decode(await engine.ask(f"$JS.API.{subject}", b""))
    return answer


def _stream(name: str, found: Mapping[str, Any], wanted: int) -> Finding:
    label = f"stream {name}"
    if problem := found.get("error"):
        if problem.get("code") == 404:
            return Finding(TOPIC, label, State.NOTE, "missing", "the first start of a runner makes it")
        return Finding(TOPIC, label, State.FAILED, str(problem.get("description")), "restore it, or its servers")
    replicas, state = int(found["config"]["num_replicas"]), found["state"]
    text = f"{replicas} of {wanted} replicas, {state['messages']} messages, {size(state['bytes'])}"
    behind = [_behind(each) for each in found.get("cluster", {}).get("replicas") or () if _is_behind(each)]
    if behind:
        remedy = (
            "start these servers, and wait until they have caught up before you stop another one; if all run,"
            " look whether `max_file_store` is reached"
        )
        return Finding(TOPIC, label, State.NOTE, f"{text}; {', '.join(behind)}", remedy)
    if replicas < wanted:
        remedy = f"restart a runner when {wanted} servers are there, or `nats stream update {name} --replicas={wanted}`"
        return Finding(TOPIC, label, State.NOTE, text, remedy)
    return Finding(TOPIC, label, State.OK, text)


def _is_behind(replica: Mapping[str, Any]) -> bool:
    return bool(replica.get("offline")) or not replica.get("current", False)


def _behind(replica: Mapping[str, Any]) -> str:
    return f"{replica.get('name', 'a server')} {'is away' if replica.get('offline') else 'is behind'}"


def _account(found: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the limits of the account, if it has one."""
    most, taken = int(found.get("limits", {}).get("max_storage", -1)), int(found.get("storage", 0))
    if most <= 0:
        return
    text = f"the account has taken {size(taken)} of {size(most)}"
    if taken > most * _FULL:
        remedy = "raise `max_disk` of the account, or shorten `history_retention`"
        yield Finding(TOPIC, "account", State.NOTE, text, remedy)
    else:
        yield Finding(TOPIC, "account", State.OK, text)


def _queue(found: Mapping[str, Any]) -> Iterator[Finding]:
    consumers = found.get("consumers") or ()
    if not consumers:
        return
    waiting = sum(int(each.get("num_pending", 0)) for each in consumers)
    taken = sum(int(each.get("num_ack_pending", 0)) for each in consumers)
    again = sum(int(each.get("num_redelivered", 0)) for each in consumers)
    text = f"{found.get('total', len(consumers))} consumers; {waiting} jobs wait, {taken} are taken, {again} again"
    yield Finding(TOPIC, "queue", State.OK, text)


async def _runners(loaded: Loaded, engine: Engine) -> list[Finding]:
    """Return what the runners tell about themselves."""
    found: dict[str, Presence] = {}
    stream = await _asked(engine, f"STREAM.INFO.{engine.names.nodes}")
    messages = 0 if stream.get("error") else stream["state"]["messages"]
    with trio.move_on_after(_READ_SECONDS if messages else 0):
        async with engine.read(engine.names.nodes, after=0) as reader:
            while True:
                for stored in await reader.batch():
                    with suppress(msgspec.MsgspecError):  # of a release that tells it otherwise
                        presence = msgspec.msgpack.decode(stored.data, type=Presence)
                        found[presence.node] = presence
                if not reader.pending:
                    break
    there = [each for each in found.values() if not each.leaving]
    return list(_compared(loaded, there, await _own_digest(loaded)))


def _compared(loaded: Loaded, runners: Sequence[Presence], own: str | None) -> Iterator[Finding]:
    """Compare the runners that are there with each other, and with the file of this one."""
    from actors.cluster import lane_of, offered

    if not runners:
        yield Finding(TOPIC, "runners", State.NOTE, "no runner is there", "fine before the first start")
        return
    for each in sorted(runners, key=lambda runner: runner.node):
        text = f"release {each.release}, {each.running} run, {each.queued} wait, {each.lag} states behind"
        draining = "; it takes no more work" if each.draining else ""
        if each.lag > LAG:
            remedy = "wait; if it stays, its disk or its connection is too slow, or it has no processor left"
            yield Finding(TOPIC, f"runner {each.node}", State.NOTE, f"{text}{draining}", remedy)
        else:
            yield Finding(TOPIC, f"runner {each.node}", State.OK, f"{text}{draining}")
    if len({each.release for each in runners}) > 1:
        text = f"runners have different releases: {_grouped((each.release, each.node) for each in runners)}"
        yield Finding(TOPIC, "releases", State.NOTE, text, "upgrade all; a mix is for the time of an upgrade")
    digests = [(each.modules, each.node) for each in runners if each.modules is not None]
    if own is not None:
        digests.append((own, f"this file {loaded.modules.path.name}"))
    if len({digest for digest, _ in digests}) > 1:
        text = f"modules files differ: {_grouped((digest[:12], node) for digest, node in digests)}"
        remedy = "give all runners the same modules.yaml and code; or register modules, which all of them have"
        yield Finding(TOPIC, "modules.yaml", State.NOTE, text, remedy)
    elif digests:
        yield Finding(TOPIC, "modules.yaml", State.OK, "the same on all runners")
    for spec in loaded.modules.modules:
        lane = lane_of(spec)
        if not any(lane.fits(offered(each.labels, each.kinds)) for each in runners):
            text = f"needs {', '.join(lane.needs)}, which no runner has together"
            remedy = "start a runner with these `labels`, or change `needs`; `doctor` there tells what a kind lacks"
            yield Finding(TOPIC, f"module {spec.name}", State.NOTE, text, remedy)


def _grouped(pairs: Iterable[tuple[str, str]]) -> str:
    groups: dict[str, list[str]] = {}
    for value, node in pairs:
        groups.setdefault(value, []).append(node)
    return "; ".join(f"{value} ({', '.join(nodes)})" for value, nodes in sorted(groups.items()))


async def _own_digest(loaded: Loaded) -> str | None:
    try:
        return await trio.to_thread.run_sync(specs_digest, loaded.modules.modules)
    except OSError:  # other checks tell that the code cannot be read
        return None
