"""Addresses of the server: how clients on this machine reach them, and why a port cannot be used."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explaining_bind_errors(host: str, port: int, option: str) -> Iterator[None]:
    """Raise a failed bind as an OSError that names the cause and the setting `option`; other errors pass."""
    try:
        yield
    except OSError as problem:
        text = port_problem(problem, host, port, option)
        if text is None:
            raise
        raise OSError(problem.errno, text) from None
    except UnicodeError:
        raise OSError(errno.EADDRNOTAVAIL, _wrong_host(host)) from None


def port_problem(problem: OSError, host: str, port: int, option: str) -> str | None:
    """Return the cause and remedy of a failed bind, None for another error."""
    if isinstance(problem, socket.gaierror) or problem.errno == errno.EADDRNOTAVAIL:
        return _wrong_host(host)
    if problem.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another with {option}, or 0 for a free one"
    if problem.errno == errno.EACCES:
        return f"port {port} is reserved for privileged processes; choose one above 1023 with {option}"
    return None


def _wrong_host(host: str) -> str:
    return f"{host!r:.80} is not an address of this machine; change --host"


def try_port(host: str, port: int, option: str) -> str | None:
    """Return why a server cannot listen there now, or None if it can. Resolves names, so it may block."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except OSError as problem:
        return port_problem(problem, host, port, option) or str(problem)
    except UnicodeError:
        return _wrong_host(host)
    return None


def reachable(host: str) -> str:
    """Return the address under which this machine reaches a server on `host`: loopback for all addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (compared, not bound)


def in_url(host: str) -> str:
    """Return an address as written before `:PORT` in a URL."""
    return f"[{host}]" if ":" in host else host
