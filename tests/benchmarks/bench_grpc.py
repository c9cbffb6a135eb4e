"""Benchmark: gRPC calls a second of our server against a bare grpclib echo, batches against a worker, REST beside them.

`python tests/benchmarks/bench_grpc.py [--seconds 2] [--rounds 3] [--soak 50000]`; a soak makes so many calls of all
kinds and fails when descriptors are left, or memory that grows with the calls.

The echo is a grpclib server on trio-asyncio with the messages of betterproto, which returns its input: no token, no
worker, no record. Each server is a process of its own on loopback; the client is a third one. Rounds go over all in
turn, so that a noisy neighbour hits them alike; printed are medians.

There are two clients. One sends the same call all the time by nghttp2 and costs a tenth of the servers, so it shows
what they can do. grpcio with real stubs, in threads, takes as much of two cores as a server, so it shows what is left
to a Python client beside it.
"""

from __future__ import annotations

import argparse
import http.client
import importlib
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_workers import call, median_call_ms, opened
from tests.benchmarks.real_server import ROOT, real_doors
from tests.benchmarks.report import Report

CONCURRENCY = (1, 16, 64)
BATCH = 2000
MODULES = """
modules:
  - name: hello
    env: inline
    concurrency: 2
    code: |
      def handler(input):
          return {"message": f"Hello, {input['name']}"}
"""
INPUT = '{"name": "World"}'


def echo() -> None:
    """Serve until SIGTERM; print the port."""
    from grpclib.server import Server  # noqa: PLC0415 - this process only
    from trio_asyncio import aio_as_trio, open_loop  # noqa: PLC0415

    from protocol.rpc.operato.runner import v1  # noqa: PLC0415

    class Echo(v1.ExecutorServiceBase):
        async def execute(self, request: v1.ExecuteRequest) -> v1.ExecuteResponse:
            return v1.ExecuteResponse(result_json=request.input_json)

    async def main() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with open_loop():
                server = Server([Echo()])
                await aio_as_trio(server.start)("127.0.0.1", 0)
                print(server._server.sockets[0].getsockname()[1], flush=True)
                async for _ in signals:
                    break
                server.close()

    trio.run(main)


def client(port: int, rest: int, pid: int, token: str, seconds: float) -> None:
    """Measure one server; print JSON: calls a second and CPU of a call by concurrency, of REST too, and of an input."""
    import grpc  # noqa: PLC0415 - this process only

    pb, stubs = made_stubs()
    metadata = (("authorization", f"Bearer {token}"),)
    results: dict[str, float] = {}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        executor = stubs.ExecutorServiceStub(channel)
        request = pb.ExecuteRequest(module_name="hello", input_json=INPUT)

        def execute() -> Callable[[], Any]:
            return lambda: executor.Execute(request, metadata=metadata, timeout=30)

        call = request.SerializeToString()
        for concurrency in CONCURRENCY:
            results[f"grpcio {concurrency}"] = rate(execute, concurrency, seconds)
            before = threads_us(pid)
            results[f"grpc {concurrency}"] = light_rate(port, call, token, concurrency, seconds)
            results[f"cpu {concurrency}"] = used_us(pid, before) / (results[f"grpc {concurrency}"] * seconds)
        if rest:
            for concurrency in CONCURRENCY:
                results[f"rest {concurrency}"] = rate(lambda: rest_caller(rest, token), concurrency, seconds)
            before = threads_us(pid)
            results["batch"] = batch_us(executor, pb, metadata)
            results["batch cpu"] = used_us(pid, before) / BATCH
            before = threads_us(pid)
            results["rest batch"] = rest_batch_us(rest, token)
            results["rest batch cpu"] = used_us(pid, before) / BATCH
    print(json.dumps(results))


def threads_us(pid: int) -> dict[str, float]:
    """Return the CPU microseconds of each thread of a process, without its children."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return {thread.parent.name: int(thread.read_text().split()[0]) / 1000 for thread in threads}


def used_us(pid: int, before: dict[str, float]) -> float:
    """Return the CPU microseconds of a process since `before`, without those of threads that have ended."""
    return sum(now - before.get(thread, 0.0) for thread, now in threads_us(pid).items())


def made_stubs() -> tuple[Any, Any]:
    """Return the messages and stubs that grpcio-tools makes of the .proto."""
    with tempfile.TemporaryDirectory() as folder:
        out = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "protocol"), *out, "executor.proto"]
        subprocess.run(command, check=True)
        sys.path.insert(0, folder)
        return importlib.import_module("executor_pb2"), importlib.import_module("executor_pb2_grpc")


def rate(make: Callable[[], Callable[[], Any]], concurrency: int, seconds: float) -> float:
    """Return the calls a second of so many threads, each with a caller of its own."""
    counts = [0] * concurrency
    end = time.perf_counter() + seconds

    def run(number: int) -> None:
        once = make()
        while time.perf_counter() < end:
            once()
            counts[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(concurrency)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def light_rate(port: int, call: bytes, token: str, concurrency: int, seconds: float) -> float:
    """Return the calls a second of one connection that keeps so many calls in flight."""
    import ngh2  # noqa: PLC0415 - this process only

    head = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"127.0.0.1")]
    head += [(b":path", b"/operato.runner.v1.ExecutorService/Execute"), (b"content-type", b"application/grpc")]
    head += [(b"te", b"trailers"), (b"grpc-timeout", b"30S"), (b"authorization", f"Bearer {token}".encode())]
    body = b"\0" + len(call).to_bytes(4, "big") + call
    http = ngh2.Connection(ngh2.Role.CLIENT)
    http.initiate_connection()
    begun = done = 0
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        while done < begun or time.perf_counter() < began + seconds:
            while begun < done + concurrency and time.perf_counter() < began + seconds:
                http.send_data(http.send_request(head), body, end_stream=True)
                begun += 1
            while data := http.data_to_send():
                sock.sendall(data)
            http.receive_data(sock.recv(65536))
            for event in http.events():
                if isinstance(event, ngh2.TrailersReceived):
                    if (b"grpc-status", b"0") not in event.headers:
                        raise SystemExit(str(event.headers))
                    done += 1
                elif isinstance(event, ngh2.ResponseReceived) and event.end_stream:
                    raise SystemExit(str(event))
    return done / (time.perf_counter() - began)


def rest_caller(port: int, token: str) -> Callable[[], Any]:
    """Return a function that calls the module over REST on a connection that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}

    def once() -> bytes:
        connection.request("POST", "/modules/execute/hello", INPUT, headers)
        return connection.getresponse().read()

    return once


def batch_us(executor: Any, pb: Any, metadata: Any) -> float:
    """Return the microseconds for each input of a batch, one at a time."""

    def messages() -> Iterator[Any]:
        yield pb.ExecuteBatchRequest(start=pb.BatchStart(module_name="hello", parallelism=1))
        for number in range(BATCH):
            yield pb.ExecuteBatchRequest(input=pb.BatchInput(id=str(number), input_json=INPUT))

    began = time.perf_counter()
    answers = list(executor.ExecuteBatch(messages(), metadata=metadata, timeout=60))
    taken = (time.perf_counter() - began) / BATCH * 1e6
    if len(answers) != BATCH or any(not answer.response.result_json for answer in answers):
        raise SystemExit(f"{len(answers)} answers, {answers[-1:]}")
    return taken


def rest_batch_us(port: int, token: str) -> float:
    """Return the microseconds for each input of a batch of JSON lines over REST, one at a time."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"authorization": f"Bearer {token}", "content-type": "application/x-ndjson"}
    began = time.perf_counter()
    connection.request("POST", "/modules/execute/hello/batch?parallel=1", (INPUT + "\n") * BATCH, headers)
    answers = [json.loads(line) for line in connection.getresponse()]
    taken = (time.perf_counter() - began) / BATCH * 1e6
    if len(answers) != BATCH or any(answer["status"] != "succeeded" for answer in answers):
        raise SystemExit(f"{len(answers)} answers, {answers[-1:]}")
    return taken


def soaking(port: int, token: str, calls: int) -> None:
    """Make `calls` calls: answered, refused, cancelled, late, streamed, each thousand on a channel of its own."""
    import grpc  # noqa: PLC0415 - this process only

    pb, stubs = made_stubs()
    metadata = (("authorization", f"Bearer {token}"),)
    request, wrong = pb.ExecuteRequest(module_name="hello", input_json=INPUT), pb.ExecuteRequest(module_name="nothing")

    def one(executor: Any, number: int) -> None:
        match number % 5:
            case 0:
                executor.Execute(request, metadata=metadata, timeout=30)
            case 1:
                executor.Execute.future(wrong, metadata=metadata).code()
            case 2:
                executor.Execute.future(request, metadata=metadata).cancel()
            case 3:
                executor.Execute.future(request, metadata=metadata, timeout=0.0005).code()
            case 4:
                list(executor.ExecuteStream(request, metadata=metadata))

    for begin in range(0, calls, 1000):
        with grpc.insecure_channel(f"127.0.0.1:{port}", (("grpc.use_local_subchannel_pool", 1),)) as channel:
            executor = stubs.ExecutorServiceStub(channel)
            for number in range(begin, min(begin + 1000, calls)):
                one(executor, number)


def soak(calls: int) -> None:
    """Print what so many calls leave behind. Raises SystemExit when that is anything."""
    with real_doors(MODULES) as (ports, token):
        seen = []
        for part in (calls // 10, calls // 2, calls - calls // 2):  # the first is to warm up
            command = [sys.executable, __file__, "--soaking", str(ports["grpc"]), token, str(part)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=60 + part / 50)
            process = Path(f"/proc/{ports['pid']}")
            memory = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS"))
            seen.append((len(list((process / "fd").iterdir())), int(memory.split()[1]) / 1024))
    (before, _), (_, half), (after, full) = seen
    print(f"{calls:,} calls of all kinds: {after - before:+d} descriptors, {full - half:+.1f} MB in the second half")
    if after > before or full - half > 10:
        raise SystemExit("the server keeps something of its calls")


@contextmanager
def started_echo() -> Iterator[tuple[int, int]]:
    """Run the echo; give its port and process."""
    process = subprocess.Popen([sys.executable, __file__, "--echo"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.wait(10)


def measured(port: int, rest: int, pid: int, token: str, seconds: float) -> dict[str, float]:
    """Run the client in a process of its own."""
    command = [sys.executable, __file__, "--client", str(port), str(rest), str(pid), token, "--seconds", str(seconds)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds * 12 + 90)
    result: dict[str, float] = json.loads(out.stdout)
    return result


async def worker_trip_us() -> float:
    """Return the round trip of a warm worker, frame out to frame in, in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder)) as system:
            await call(system, "warm", b"1")
            return await median_call_ms(system, "warm", INPUT.encode(), 2000) * 1000


def measure(seconds: float, rounds: int) -> None:
    """Run all servers and print the lines."""
    echos: list[dict[str, float]] = []
    runners: list[dict[str, float]] = []
    with started_echo() as (port, pid), real_doors(MODULES) as (ports, token):
        for _ in range(rounds):
            echos.append(measured(port, 0, pid, "none", seconds))
            runners.append(measured(ports["grpc"], ports["rest"], ports["pid"], token, seconds))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    trip = trio.run(worker_trip_us)

    def median(of: list[dict[str, float]], name: str) -> float:
        return statistics.median(result[name] for result in of)

    report = Report(__file__)
    for concurrency in CONCURRENCY:
        grpc, rest = median(runners, f"grpc {concurrency}"), median(runners, f"rest {concurrency}")
        bare = median(echos, f"grpc {concurrency}")
        callers = f"{concurrency} caller{'s' * (concurrency > 1)}"
        cpu, bare_cpu = median(runners, f"cpu {concurrency}"), median(echos, f"cpu {concurrency}")
        text = f"{grpc:,.0f}/s, x{grpc / bare:.2f} of a bare grpclib echo ({bare:,.0f}/s)"
        text += f"; {cpu:.0f} us of CPU for a call, x{cpu / bare_cpu:.2f} of the echo's"
        rates = [result[f"grpc {concurrency}"] for result in runners]
        report.line(f"gRPC Execute, client in C, {callers}", text, per_second=rates, ratio=grpc / bare)
        grpc, bare = median(runners, f"grpcio {concurrency}"), median(echos, f"grpcio {concurrency}")
        rates = [result[f"grpcio {concurrency}"] for result in runners]
        text = f"{grpc:,.0f}/s, x{grpc / bare:.2f} of the echo ({bare:,.0f}/s)"
        report.line(f"gRPC Execute, {callers}", text, per_second=rates, ratio=grpc / bare)
        text = f"{rest:,.0f}/s, gRPC is x{grpc / rest:.2f} of it (http.client and grpcio)"
        rates = [result[f"rest {concurrency}"] for result in runners]
        report.line(f"REST execute, {callers}", text, per_second=rates, ratio=grpc / rest)
    grpc, rest = median(runners, "batch"), median(runners, "rest batch")
    text = f"{grpc:.0f} us for each input, x{grpc / trip:.1f} of a worker's round trip ({trip:.0f} us)"
    text += f"; {median(runners, 'batch cpu'):.0f} us of CPU"
    report.line("gRPC batch, one at a time", text, us=[result["batch"] for result in runners], ratio=grpc / trip)
    text = f"{rest:.0f} us, x{rest / trip:.1f} of a round trip, x{rest / grpc:.2f} of gRPC"
    text += f"; {median(runners, 'rest batch cpu'):.0f} us of CPU"
    report.line("REST batch likewise", text, us=[result["rest batch"] for result in runners], ratio=rest / trip)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--echo", action="store_true")
    parser.add_argument("--client", nargs=4, metavar=("PORT", "REST", "PID", "TOKEN"))
    parser.add_argument("--soaking", nargs=3, metavar=("PORT", "TOKEN", "CALLS"))
    parser.add_argument("--soak", type=int, metavar="CALLS")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.echo:
        echo()
    elif given.client:
        port, rest, pid, token = given.client
        client(int(port), int(rest), int(pid), token, given.seconds)
    elif given.soaking:
        soaking(int(given.soaking[0]), given.soaking[1], int(given.soaking[2]))
    elif given.soak:
        soak(given.soak)
    else:
        measure(given.seconds, given.rounds)


if __name__ == "__main__":
    main()
