"""Acceptance: the health check of a runner, and the probes of the Helm chart."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpclib.health.v1 import health_pb2

from runner import health
from tests.certificates import Authority
from tests.chart import KEY, Rendered, merged
from tests.server_process import ROOT, Server, running, wait_for

MODULES = """
modules:
  - name: slow
    env: inline
    code: |
      import pathlib, time
      def handler(input):
          pathlib.Path(input).touch()
          time.sleep(1)
"""


def ask(home: Path) -> tuple[int, str]:
    """Run the program as an image does; return its exit code and output."""
    command = [sys.executable, "-m", "runner.health", str(home / "ready.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_runner_that_serves_drains_and_ends(tmp_path):
    with running(tmp_path, MODULES, "--drain-timeout", "20") as server:
        assert ask(tmp_path) == (0, '{"status":"ready","modules":1}\n')
        (tmp_path / "modules.yaml").write_text("modules: [")
        assert ask(tmp_path)[0] == 0, "a mistake in the file makes a running server look unhealthy"

        mark = tmp_path / "begun"
        thread = threading.Thread(target=server.execute, args=("slow", str(mark)))
        thread.start()
        wait_for(mark.exists)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: ask(tmp_path)[0] == 1)
        thread.join()
        assert server.stop(None) == 0

    status, printed = ask(tmp_path)
    assert status == 1
    assert "does not answer" in printed


def test_a_runner_that_has_not_started(tmp_path):
    status, printed = ask(tmp_path)

    assert status == 1
    assert "not started" in printed


def test_a_runner_without_rest(tmp_path):
    with running(tmp_path, MODULES, "--no-rest") as server:
        assert ask(tmp_path) == (0, "serving\n")
        os.kill(server.ready["pid"], signal.SIGSTOP)
        ready = tmp_path / "ready.json"
        with pytest.raises(health.NotServingError, match="does not answer: timed out"):
            health.check(ready, 0.2)
        os.kill(server.ready["pid"], signal.SIGCONT)


@pytest.mark.parametrize("door", ["rest", "grpc"])
@pytest.mark.parametrize("client", [False, True], ids=["any client", "client certificates"])
def test_a_runner_with_tls(tmp_path, door, client):
    authority = Authority(tmp_path)
    signed = authority.sign("server")
    options = ["--tls-certificate-file", str(signed.certificate), "--tls-key-file", str(signed.key)]
    options += ["--tls-client-ca-file", str(authority.file)] if client else []
    options += ["--no-rest"] if door == "grpc" else []
    with running(tmp_path, MODULES, *options):
        for _ in range(5):
            status, printed = ask(tmp_path)
            assert status == 0, printed
            assert ("requires a client certificate" in printed) == client


@pytest.mark.parametrize("door", ["rest", "grpc"])
def test_another_server_at_the_port(tmp_path, door):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready = tmp_path / "ready.json"
        ready.write_text(json.dumps({door: [list(listener.getsockname())]}))

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(b"220 mail.example.com at your service\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(health.NotServingError):
            health.check(ready, 5)
        thread.join()


@pytest.mark.parametrize("door", ["rest", "grpc"])
def test_an_open_but_silent_port(tmp_path, door):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready = tmp_path / "ready.json"
        ready.write_text(json.dumps({door: [list(listener.getsockname())]}))

        with pytest.raises(health.NotServingError, match="timed out"):
            health.check(ready, 0.2)


def serves(server: Server, probe: dict[str, Any]) -> bool:
    """Do what a kubelet does, with the ports of this server."""
    if "grpc" in probe:
        with grpc.insecure_channel(f"127.0.0.1:{server.ready['grpc'][0][1]}") as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            answer = check(health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", "")), timeout=10)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    assert probe["httpGet"]["scheme"] == "HTTP"
    url = f"http://127.0.0.1:{server.ready['rest'][0][1]}{probe['httpGet']['path']}"
    return httpx.get(url).status_code == 200


def test_the_probes_of_the_chart(tmp_path):
    rendered = Rendered(merged(KEY, {"serviceMonitor": {"enabled": True}}))
    container = rendered.container
    (endpoint,) = rendered.one("ServiceMonitor")["spec"]["endpoints"]
    with running(tmp_path, MODULES) as server:
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert serves(server, container[name]), name
        assert server.client.get(endpoint["path"]).status_code == 200
