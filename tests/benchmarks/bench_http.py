"""Benchmark: requests a second of our server against stock hypercorn, with the same JSON work in each.

`python tests/benchmarks/bench_http.py [--seconds 2] [--rounds 3] [--only NAME ...] [--litserve PYTHON]`

Each server is a process of its own on loopback, port 0; the client is a third process: one epoll loop over raw
sockets with a ready-made request, many times faster than any server here. The rounds go over all servers in turn, so
that a noisy neighbour hits them alike; printed are the medians, their ratio to the first row, and the time of the main
thread, which a busy machine changes least. LitServe with two workers is measured too if a Python that has it is given.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as stock_serve
from quart import request
from quart_trio import QuartTrio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runner.http import HttpLimits, read_body, respond, serve
from runner.wire import Budget
from tests.benchmarks.real_server import real_doors
from tests.benchmarks.report import Report

SERVERS = {
    "stock-quart": "quart-trio on hypercorn.trio.serve",
    "runner": "operato-runner: execute in a warm worker, recorded",
    "ours-plain": "plain ASGI on runner.http.serve",
    "stock-plain": "plain ASGI on hypercorn.trio.serve",
    "ours-quart": "quart-trio on runner.http.serve",
    "litserve": "LitServe, two workers",
}
LITSERVE = """
import sys, litserve

class Hello(litserve.LitAPI):
    def setup(self, device): pass
    def decode_request(self, request): return request["name"]
    def predict(self, name): return f"Hello, {name}"
    def encode_response(self, output): return {"message": output}

if __name__ == "__main__":  # its workers import this file
    server = litserve.LitServer(Hello(), accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
"""
CONCURRENCY = (1, 16, 64)
BODY = b'{"name": "World"}'
MODULES = """
modules:
  - name: hello
    env: inline
    concurrency: 2
    code: |
      def handler(input):
          return {"message": f"Hello, {input['name']}"}
"""


def request_bytes(path: str, token: str) -> bytes:
    """Return the request that is sent all the time."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: bench\r\naccept: */*\r\n"
        f"authorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
    )
    return head.encode() + BODY


def server(name: str) -> None:
    """Serve until SIGTERM; print the port."""
    quart_app = QuartTrio("bench")

    @quart_app.post("/hello")
    async def hello() -> dict[str, str]:
        given = await request.get_json()
        return {"message": f"Hello, {given['name']}"}

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError  # how an application says that it has no lifespan
        given = json.loads(await read_body(scope, receive, 1_000_000))
        await respond(send, 200, json.dumps({"message": f"Hello, {given['name']}"}).encode())

    async def main() -> None:
        stop = trio.Event()
        kind, _, app_name = name.partition("-")
        app: Any = {"quart": quart_app, "plain": plain}[app_name]
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                if kind == "ours":
                    limits = HttpLimits(
                        keep_alive_seconds=75,
                        body_seconds=60,
                        send_seconds=30,
                        graceful_seconds=1,
                        max_connections=1000,
                        max_body_bytes=16 * 1024 * 1024,
                    )
                    started = await nursery.start(
                        partial(
                            serve, app, host="127.0.0.1", port=0, limits=limits, budget=Budget(2**28), shutdown=stop
                        )
                    )
                    print(started[0][1], flush=True)
                else:
                    config = Config()
                    config.bind = ["127.0.0.1:0"]
                    config.graceful_timeout = 1
                    config.errorlog = None
                    config.keep_alive_max_requests = 10**9
                    binds = await nursery.start(partial(stock_serve, app, config, shutdown_trigger=stop.wait))
                    print(binds[0].rpartition(":")[2], flush=True)
                async for _ in signals:
                    stop.set()
                    break

    trio.run(main)


def client(port: int, concurrency: int, seconds: float, path: str, token: str) -> None:
    """Keep `concurrency` requests in flight for `seconds`; print requests a second, and p50 and p99 in ms."""
    poll = select.epoll()
    ready_made = request_bytes(path, token)
    sockets: dict[int, socket.socket] = {}
    buffers: dict[int, bytes] = {}
    begun: dict[int, float] = {}
    times: list[float] = []
    for _ in range(concurrency):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fd = sock.fileno()
        sockets[fd], buffers[fd] = sock, b""
        poll.register(fd, select.EPOLLIN)
    clock = time.perf_counter
    start = clock()
    warm = start + min(0.3, seconds / 4)
    end = start + seconds
    for fd, sock in sockets.items():
        begun[fd] = clock()
        sock.sendall(ready_made)
    now = start
    while now < end:
        for fd, _ in poll.poll(1.0):
            data = buffers[fd] + sockets[fd].recv(65536)
            head, found, body = data.partition(b"\r\n\r\n")
            if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
                if not data:
                    raise SystemExit("the server closed a connection")
                buffers[fd] = data
                continue
            if not head.startswith(b"HTTP/1.1 200") or b"Hello, World" not in body:
                raise SystemExit(data.decode())
            buffers[fd] = b""
            now = clock()
            if now > warm:
                times.append(now - begun[fd])
            begun[fd] = now
            sockets[fd].sendall(ready_made)
    quantiles = statistics.quantiles(times, n=100)
    print(json.dumps([len(times) / (now - warm), quantiles[49] * 1000, quantiles[98] * 1000]))


@contextmanager
def started_litserve(python: str) -> Iterator[tuple[int, str, str, str]]:
    """Run LitServe, which cannot choose a port itself; give the same as `started`."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        program = Path(folder, "program.py")
        program.write_text(LITSERVE)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([python, str(program), str(port)], cwd=folder, start_new_session=True, **quiet)
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as sock:
                    sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                    if b" 200 " in sock.recv(1000):
                        break
                time.sleep(0.2)
            yield process.pid, str(port), "/predict", "none"
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # it leaves processes behind
            process.wait(10)


@contextmanager
def started(name: str, litserve: str) -> Iterator[tuple[int, str, str, str]]:
    """Run one server; give its process id, its port, the path to call and a token."""
    if name == "litserve":
        with started_litserve(litserve) as found:
            yield found
        return
    if name == "runner":
        with real_doors(MODULES) as (ports, token):
            yield ports["pid"], str(ports["rest"]), "/modules/execute/hello", token
        return
    process = subprocess.Popen([sys.executable, __file__, "--server", name], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().strip(), "/hello", "none"
    finally:
        process.terminate()
        process.wait(10)


def main_thread_seconds(pid: int) -> float:
    """Return the processor time that the main thread of a process has used."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def measure(names: list[str], seconds: float, rounds: int, litserve: str) -> None:
    """Run all servers and print the table."""
    results: dict[tuple[str, int], list[list[float]]] = {}
    with ExitStack() as stack:
        running = {name: stack.enter_context(started(name, litserve)) for name in names}
        for _ in range(rounds):
            for concurrency in CONCURRENCY:
                for name, (pid, port, path, token) in running.items():
                    command = [sys.executable, __file__, "--client", port, str(concurrency), str(seconds), path, token]
                    used = main_thread_seconds(pid)
                    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 20)
                    found = json.loads(out.stdout)
                    cpu = (main_thread_seconds(pid) - used) / seconds / found[0]  # its rate holds for all the time
                    results.setdefault((name, concurrency), []).append([*found, cpu * 1e6])
    report = Report(__file__)
    for name in names:
        for concurrency in CONCURRENCY:
            rates, halves, mosts, cpus = zip(*results[name, concurrency], strict=True)
            base = statistics.median(row[0] for row in results[names[0], concurrency])
            rate, half, most, cpu = (statistics.median(each) for each in (rates, halves, mosts, cpus))
            text = (
                f"{rate:,.0f}/s, x{rate / base:.2f} of {names[0]}; p50 {half:.2f} ms, p99 x{most / half:.1f} of it"
                + f"; main thread {cpu:.0f} us" * (name != "litserve")  # it serves in processes below
            )
            measures = {"per_second": rates, "ms": halves, "ms_p99": mosts, "cpu_us": cpus, "ratio": rate / base}
            report.line(f"{SERVERS[name]}, {concurrency} at once", text, **measures)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=SERVERS)
    parser.add_argument("--client", nargs=5, metavar=("PORT", "CONCURRENCY", "SECONDS", "PATH", "TOKEN"))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SERVERS, default=["stock-quart", "runner"])
    parser.add_argument("--litserve", default="", metavar="PYTHON")
    given = parser.parse_args()
    if given.server:
        server(given.server)
    elif given.client:
        client(int(given.client[0]), int(given.client[1]), float(given.client[2]), *given.client[3:])
    else:
        names = [*given.only, *(["litserve"] if given.litserve and "litserve" not in given.only else [])]
        measure(names, given.seconds, given.rounds, given.litserve)


if __name__ == "__main__":
    main()
