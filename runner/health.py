"""`python -m runner.health READY_FILE`: a health check for a runner on this machine.

A program of its own, with the standard library only: it runs every few seconds in an image without curl, and must start
within 0.05 s. It reads the addresses from the ready file, not from the settings: mistakes in a modules file do not
affect a running server and must not make it look unhealthy.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import ssl
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.ports import reachable

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct(">3sBB4s")
"""The head of an HTTP/2 frame: length, type, flags, stream."""
_SETTINGS = 4


class NotServingError(Exception):
    """The reason why the runner does not serve."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the state of the runner in one line; return 0 if it serves, else 1."""
    parser = argparse.ArgumentParser(prog="python -m runner.health", description="Check that a runner serves.")
    parser.add_argument("ready_file", type=Path, help="file that the runner writes (its setting `ready_file`)")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="time limit of each step  [5]")
    given = parser.parse_args(arguments)
    try:
        print(check(given.ready_file, given.timeout))  # noqa: T201  (the answer)
    except NotServingError as problem:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def check(ready_file: Path, timeout: float) -> str:
    """Return the answer of the runner of a ready file: over REST if served, else over gRPC.

    `timeout` is in seconds, for each step. Raises NotServingError.
    """
    try:
        ready = json.loads(ready_file.read_text())
    except (OSError, ValueError) as problem:
        raise NotServingError(f"not started: {ready_file} cannot be read ({problem})") from None
    try:
        for name, ask in (("rest", _ask_rest), ("grpc", _ask_grpc)):
            for host, port in ready.get(name, [])[:1]:
                return ask(reachable(host), port, tls=ready.get("tls", False), timeout=timeout)
    except (OSError, http.client.HTTPException) as problem:
        raise NotServingError(f"{host} port {port} does not answer: {problem}") from None
    raise NotServingError(f"{ready_file} has no address")


def _ask_rest(host: str, port: int, *, tls: bool, timeout: float) -> str:
    connection: http.client.HTTPConnection
    if tls:
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=_context("http/1.1"))
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.connect()
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            text = answer.read(65536).decode(errors="replace")
        except (ssl.SSLError, ConnectionError):
            if not tls:
                raise
            # It serves, but requires a client certificate, which this program does not have.
            return "serving; it requires a client certificate"
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise NotServingError(f"not ready: {answer.status} {text}")
    return text


def _ask_grpc(host: str, port: int, *, tls: bool, timeout: float) -> str:
    with socket.create_connection((host, port), timeout) as plain:
        sock: Any = _context("h2").wrap_socket(plain, server_hostname=host) if tls else plain
        try:
            sock.sendall(_PREFACE + _FRAME.pack(bytes(3), _SETTINGS, 0, bytes(4)))
            head = sock.recv(_FRAME.size)
            if tls and not head:
                raise ConnectionResetError  # it closed the connection: another way to reject the client
        except (ssl.SSLError, ConnectionError):
            if not tls:
                raise
            return "serving; it requires a client certificate"
        finally:
            sock.close()
    if len(head) <= 3 or head[3] != _SETTINGS:
        raise NotServingError(f"{host} port {port} does not use HTTP/2")
    return "serving"


def _context(protocol: str) -> ssl.SSLContext:
    """Return a context that accepts any certificate: no secret is sent, and the certificate may not name loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


if __name__ == "__main__":
    sys.exit(main())
