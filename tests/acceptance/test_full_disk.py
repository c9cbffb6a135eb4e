"""Acceptance: calls of every form on a full disk are refused before their handlers run; with space they run."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from protocol.rpc.operato.runner import v1
from tests.server_process import Server, running, wait_for

MODULES = """
modules:
  - name: pay
    env: inline
    concurrency: 8
    code: |
      import os, time
      def handler(input):
          with open(input["log"], "a") as file:
              file.write("charged\\n")
          while "until" in input and not os.path.exists(input["until"]):
              time.sleep(0.01)
          return "charged"
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system for the data of the runner."""
    path = tmp_path / "data"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(path)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> Path:
    file = disk / "filler"
    with file.open("wb", buffering=0) as target:
        try:
            while target.write(b"x" * 4096):
                pass
        except OSError:
            return file
    raise AssertionError


def ready(server: Server) -> int:
    return server.client.get("/readyz").status_code


def writable(server: Server) -> str:
    lines = server.client.get("/metrics").text.splitlines()
    return next(line for line in lines if line.startswith("operato_history_writable "))


GRPC = ("Execute", "ExecuteStream", "ExecuteBatch", "Submit")


def grpc_refusal(server: Server, method: str, value: object) -> str:
    """Return why a call over gRPC was refused: its status, or the kind of the only answer of a stream."""
    requests = [v1.ExecuteRequest(module_name="pay", input_json=json.dumps(value))]
    if method == "ExecuteBatch":
        start = v1.BatchStart(module_name="pay", parallelism=1)
        some = v1.BatchInput(id="1", input_json=json.dumps(value))
        requests = [v1.ExecuteBatchRequest(start=start), v1.ExecuteBatchRequest(input=some)]
    with grpc.insecure_channel(f"127.0.0.1:{server.ready['grpc'][0][1]}") as channel:
        many = channel.stream_stream(f"/operato.runner.v1.ExecutorService/{method}", bytes, bytes)
        metadata = (("authorization", f"Bearer {server.token}"),)
        try:
            answers = list(many(iter(requests), metadata=metadata, timeout=30))
        except grpc.RpcError as problem:
            return str(problem.code().name)
    assert b"nothing can be recorded" in answers[-1]
    return "UNAVAILABLE"


def test_a_full_disk(tmp_path: Path, disk: Path) -> None:
    log, until = tmp_path / "calls", tmp_path / "until"
    log.touch()
    value = {"log": str(log)}
    with running(tmp_path, MODULES) as server:
        assert server.execute("pay", value).status_code == 200
        answers: list[httpx.Response] = []
        held = [
            threading.Thread(
                target=lambda headers=headers: answers.append(
                    server.execute("pay", {**value, "until": str(until)}, **headers)
                )
            )
            for headers in ({}, {"idempotency-key": "held"})
        ]
        for thread in held:
            thread.start()
        wait_for(lambda: log.read_text().count("charged") == 3)

        filler = fill(disk)
        wait_for(lambda: ready(server) == 503)
        ran = log.read_text()
        refused = server.client.get("/readyz")
        assert "No space left" in refused.text or "disk is full" in refused.text
        assert refused.headers["retry-after"] == "5"
        assert writable(server).endswith(" 0.0")
        for answer in (
            server.execute("pay", value),
            server.execute("pay", value, **{"idempotency-key": "a key"}),
            server.execute("pay", value, prefer="respond-async"),
            server.client.post("/executions", json={"module": "pay", "input": value}),
        ):
            assert (answer.status_code, answer.json()["kind"]) == (503, "unavailable"), answer.text
            assert answer.headers["retry-after"] == "5"
        lines = "\n".join([json.dumps(value)] * 3)
        batch = server.client.post(
            "/modules/execute/pay/batch", content=lines, headers={"content-type": "application/x-ndjson"}
        )
        assert '"unavailable"' in batch.text
        assert '"succeeded"' not in batch.text
        assert [grpc_refusal(server, method, value) for method in GRPC] == ["UNAVAILABLE"] * len(GRPC)
        # What began before ends, is answered and recorded.
        until.touch()
        for thread in held:
            thread.join()
        assert [answer.json()["result"] for answer in answers] == ["charged"] * 2
        assert log.read_text() == ran

        filler.unlink()
        wait_for(lambda: ready(server) == 200)
        assert server.execute("pay", value).json()["result"] == "charged"
        wait_for(lambda: writable(server).endswith(" 1.0"))
        page = server.client.get("/executions").json()["items"]
        assert [item["status"] for item in page] == ["succeeded"] * 4
        assert log.read_text().count("charged") == 4
        assert server.stop() == 0
