"""Addresses: where one that was listened on is reached, and ports that cannot be had: why, with the remedy."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explaining_bind_errors(host: str, port: int, option: str) -> Iterator[None]:
    """Turn the system's error about an address into one that names the setting `option`; others go on as they are."""
    try:
        yield
    except OSError as problem:
        text = port_problem(problem, host, port, option)
        if text is None:
            raise
        raise OSError(problem.errno, text) from None
    except UnicodeError:
        raise OSError(errno.EADDRNOTAVAIL, _no_address(host)) from None


def port_problem(problem: OSError, host: str, port: int, option: str) -> str | None:
    """Return what is wrong with an address and the remedy; None when `problem` is about something else."""
    if isinstance(problem, socket.gaierror) or problem.errno == errno.EADDRNOTAVAIL:
        return _no_address(host)
    if problem.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another one with {option}, or 0 for a free one"
    if problem.errno == errno.EACCES:
        return f"port {port} is for privileged processes only; choose one above 1023 with {option}"
    return None


def _no_address(host: str) -> str:
    return f"{host!r:.80} is no address of this machine; change --host"


def try_port(host: str, port: int, option: str) -> str | None:
    """Return why a server could not listen there now, or None when it could. Resolves names, so it may block."""
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
        return _no_address(host)
    return None


def reachable(host: str) -> str:
    """Return where what listens on `host` is found from this machine: every address means loopback too."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (compared, not bound)


def in_url(host: str) -> str:
    """Return an address as it is written before `:PORT`."""
    return f"[{host}]" if ":" in host else host
