"""`python -m runner.health READY_FILE`: ask a runner on this machine whether it serves, for who looks after it.

A program of its own that uses the standard library only: it runs every few seconds in an image without curl, and must
be there in a twentieth of a second. Where the doors are it reads from the ready file, not from the settings: a modules
file with mistakes changes nothing for a runner that serves, and must not make it look ill.
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
    """Why the runner does not serve."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Say in one line how the runner is; return 0 when it serves, else 1."""
    parser = argparse.ArgumentParser(prog="python -m runner.health", description="Ask a runner whether it serves.")
    parser.add_argument("ready_file", type=Path, help="what the runner was given as `ready_file`")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="how long it may take  [5]")
    given = parser.parse_args(arguments)
    try:
        print(check(given.ready_file, given.timeout))  # noqa: T201  (the answer)
    except NotServingError as problem:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def check(ready_file: Path, timeout: float) -> str:
    """Return what the runner of a ready file says: its REST door when it has one, else that of gRPC.

    `timeout` is in seconds, for each step. Raises NotServingError.
    """
    try:
        ready = json.loads(ready_file.read_text())
    except (OSError, ValueError) as problem:
        raise NotServingError(f"the doors are not open: {ready_file} cannot be read ({problem})") from None
    try:
        for name, ask in (("rest", _ask_rest), ("grpc", _ask_grpc)):
            for host, port in ready.get(name, [])[:1]:
                return ask(reachable(host), port, tls=ready.get("tls", False), timeout=timeout)
    except (OSError, http.client.HTTPException) as problem:
        raise NotServingError(f"{host} port {port} does not answer: {problem}") from None
    raise NotServingError(f"{ready_file} names no door")


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
            # It has shown its certificate and wants one that this program does not have: it serves.
            return "the door answers, and asks for a client certificate"
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise NotServingError(f"it is not ready: {answer.status} {text}")
    return text


def _ask_grpc(host: str, port: int, *, tls: bool, timeout: float) -> str:
    with socket.create_connection((host, port), timeout) as plain:
        sock: Any = _context("h2").wrap_socket(plain, server_hostname=host) if tls else plain
        try:
            sock.sendall(_PREFACE + _FRAME.pack(bytes(3), _SETTINGS, 0, bytes(4)))
            head = sock.recv(_FRAME.size)
            if tls and not head:
                raise ConnectionResetError  # it hung up, which is another way to say the same
        except (ssl.SSLError, ConnectionError):
            if not tls:
                raise
            return "the door answers, and asks for a client certificate"
        finally:
            sock.close()
    if len(head) <= 3 or head[3] != _SETTINGS:
        raise NotServingError(f"{host} port {port} does not speak HTTP/2")
    return "the door answers"


def _context(protocol: str) -> ssl.SSLContext:
    """Return a context that takes any certificate: nothing is told to the server, and its name is not `localhost`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


if __name__ == "__main__":
    sys.exit(main())
