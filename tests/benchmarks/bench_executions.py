"""Benchmark: the cost of an execution besides its handler: record, followers, the asynchronous path, waiting.

`python tests/benchmarks/bench_executions.py [--calls 4000] [--waiting 10000] [--rounds 3]`

Record and lease are compared inside this process, call by call in turn. The other numbers come from a real server on
loopback, with this process as the client: one epoll loop over raw sockets, and one websocket.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog
import trio
from trio_websocket import ConnectionClosed, open_websocket_url

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from config.settings import Settings
from environments import proc
from runner.api.service import Service
from runner.auth.principal import Principal
from tests.benchmarks.bench_workers import call, opened
from tests.benchmarks.real_server import real_doors
from tests.benchmarks.report import Report

MODULES = """
modules:
  - name: hello
    env: inline
    concurrency: 2
    code: |
      def handler(input):
          return {"message": f"Hello, {input['name']}"}
  - name: prints
    env: inline
    concurrency: 1
    code: |
      def handler(input):
          for number in range(input):
              print("line", number, "of what is printed by a handler", flush=True)
  - name: held
    env: inline
    concurrency: 1
    timeout: 10m
    code: |
      import os, time
      def handler(input):
          while not os.path.exists(input["flag"]):
              time.sleep(0.05)
"""
INPUT = b'{"name": "World"}'
LINES = 1000
ANYBODY = Principal("bench", frozenset({"admin"}), ())


async def record_ratio(times: int) -> tuple[float, float]:
    """Return the milliseconds of a warm call that is recorded, and of the same lease and call without a record."""
    recorded, bare = [], []
    with tempfile.TemporaryDirectory() as name:
        async with opened(Path(name)) as system:
            service = Service(system.registry, system.executors, system.history, system.runs, system.files, Settings())
            await call(system, "warm", INPUT)
            for _ in range(times):
                began = time.perf_counter()
                await call(system, "warm", INPUT)
                between = time.perf_counter()
                await service.execute(ANYBODY, "warm", INPUT)
                bare.append(between - began)
                recorded.append(time.perf_counter() - between)
    return statistics.median(recorded) * 1000, statistics.median(bare) * 1000


def request(method: str, path: str, token: str, body: bytes = b"") -> bytes:
    """Return a request as bytes."""
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answers(port: int, asked: bytes, times: int, connections: int) -> float:
    """Send a request `times` times over some connections, one at a time on each; return the seconds that it took."""
    poll, sockets, buffers = select.epoll(), {}, {}
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[sock.fileno()], buffers[sock.fileno()] = sock, b""
        poll.register(sock.fileno(), select.EPOLLIN)
    began, sent, done = time.perf_counter(), 0, 0
    for sock in sockets.values():
        sock.sendall(asked)
        sent += 1
    while done < times:
        for number, _ in poll.poll(10.0):
            received = sockets[number].recv(65536)
            data = buffers[number] = buffers[number] + received
            head, found, body = data.partition(b"\r\n\r\n")
            if not received or (found and not head.startswith(b"HTTP/1.1 20")):
                raise SystemExit(f"the server answered {data[:500]!r}")
            if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
                continue
            buffers[number] = b""
            done += 1
            if sent < times:
                sockets[number].sendall(asked)
                sent += 1
    taken = time.perf_counter() - began
    for sock in sockets.values():
        sock.close()
    return taken


def ask(port: int, asked: bytes) -> Any:
    """Send one request; return the JSON of its answer."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(asked)
        data = b""
        while True:
            received = sock.recv(65536)
            data += received
            head, found, body = data.partition(b"\r\n\r\n")
            if not received:
                raise SystemExit(f"the server answered {data[:500]!r}")
            if found and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
                return json.loads(body)


def ended(port: int, token: str, name: str) -> int:
    """Return how many executions of a module have ended."""
    total: int = ask(port, request("GET", f"/modules/{name}/stats?window=24h", token))["total"]
    return total


def asynchronous_seconds(port: int, token: str, times: int) -> tuple[float, float]:
    """Return the seconds until `times` asynchronous executions are accepted, and until all of them have ended."""
    before = ended(port, token, "hello")
    order = request("POST", "/executions", token, b'{"module": "hello", "input": %b}' % INPUT)
    began = time.perf_counter()
    accepted = answers(port, order, times - 1, 16)
    last = ask(port, order)["id"]  # they begin in the order of their acceptance, and it costs least to ask for one
    while ask(port, request("GET", f"/executions/{last}", token))["status"] != "succeeded":
        if time.perf_counter() - began > 300:
            raise SystemExit("they do not end")
        time.sleep(0.01)
    taken = time.perf_counter() - began
    while ended(port, token, "hello") < before + times:
        time.sleep(0.01)
    return accepted, taken


async def followed_seconds(port: int, token: str) -> tuple[float, int]:
    """Return the duration of one execution that prints and is followed on a websocket, and how many events came."""
    url = f"ws://127.0.0.1:{port}/modules/stream/prints"
    events = []
    async with open_websocket_url(url, extra_headers=[("authorization", f"Bearer {token}")]) as opened_socket:
        await opened_socket.send_message(str(LINES))
        try:
            while True:
                events.append(await opened_socket.get_message())
        except ConnectionClosed:
            pass
    last = json.loads(events[-1])
    if last["type"] != "result":
        raise SystemExit(str(last))
    return last["duration"], len(events)


def unfollowed_seconds(port: int, token: str) -> float:
    """Return the duration of the same execution without a follower."""
    asked = ask(port, request("POST", "/modules/execute/prints", token, str(LINES).encode()))
    if asked["stdout"].count("\n") != LINES:
        raise SystemExit(str(asked)[:500])
    duration: float = asked["duration"]
    return duration


def waiting_bytes(port: int, pid: int, token: str, number: int, flag: Path) -> tuple[float, float]:
    """Return the memory that each waiting execution takes in the server, in bytes, and executions accepted a second."""
    body = json.dumps({"module": "held", "input": {"flag": str(flag)}}).encode()
    order = request("POST", "/executions", token, body)
    answers(port, order, 500, 16)  # the first ones fill the buffers that are kept in any case
    settle(pid)
    before = proc.resident_bytes(pid)
    taken = answers(port, order, number, 16)
    settle(pid)
    grown = proc.resident_bytes(pid) - before
    flag.touch()
    return grown / number, number / taken


def settle(pid: int) -> None:
    """Wait until the server's memory does not change: then the records are on the disk."""
    last, same = 0, 0
    for _ in range(150):
        if same >= 5:
            return
        time.sleep(0.2)
        now = proc.resident_bytes(pid)
        same, last = (same + 1, now) if now == last else (0, now)


def measure(calls: int, waiting: int, rounds: int) -> None:
    """Print one line for each measure."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    recorded, bare = trio.run(record_ratio, calls)
    report = Report(__file__)
    text = f"{recorded:.3f} ms, x{recorded / bare:.2f} of the same without a record ({bare:.3f} ms)"
    report.line("warm call, recorded", text, ms=recorded, ratio=recorded / bare)
    with real_doors(MODULES) as (ports, token):
        port = int(ports["rest"])
        call_hello = request("POST", "/modules/execute/hello", token, INPUT)
        answers(port, call_hello, 200, 16)
        sync, accepted, whole, alone, followed = [], [], [], [], []
        for _ in range(rounds):
            sync.append(answers(port, call_hello, calls, 16))
            one, both = asynchronous_seconds(port, token, calls)
            accepted.append(one)
            whole.append(both)
        for _ in range(10 * rounds):
            alone.append(unfollowed_seconds(port, token))
            seconds, events = trio.run(followed_seconds, port, token)
            followed.append(seconds)
    waits, runs, enters = (calls / statistics.median(taken) for taken in (sync, whole, accepted))
    text = f"{runs:,.0f}/s, x{runs / waits:.2f} of {waits:,.0f}/s that wait for their answer (16 callers, 2 workers)"
    rates = [calls / taken for taken in whole]
    report.line("asynchronous, from the first POST to the last end", text, per_second=rates, ratio=runs / waits)
    report.line("asynchronous, accepted", f"{enters:,.0f}/s", per_second=[calls / taken for taken in accepted])
    report.line("calls that wait", f"{waits:,.0f}/s", per_second=[calls / taken for taken in sync])
    one, two = statistics.median(alone) * 1000, statistics.median(followed) * 1000
    text = f"{two:.1f} ms, x{two / one:.2f} of the same without a follower ({events} messages)"
    report.line(f"{LINES} printed lines, followed on a websocket", text, ms=two, ratio=two / one)
    with (
        tempfile.TemporaryDirectory() as folder,
        real_doors(MODULES, "--max-queued", str(waiting + 1000)) as (ports, token),
    ):
        size, rate = waiting_bytes(int(ports["rest"]), int(ports["pid"]), token, waiting, Path(folder) / "flag")
    text = f"{size / 1024:.2f} KiB; {rate:,.0f} accepted a second"
    report.line(f"memory of a waiting execution, of {waiting:,}", text, kib=size / 1024, per_second=rate)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    measure(given.calls, given.waiting, given.rounds)


if __name__ == "__main__":
    main()
