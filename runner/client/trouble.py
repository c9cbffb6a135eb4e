"""Errors of a connection to a runner: the address, the reason and the remedy."""

from __future__ import annotations

import errno
import os
import socket
import ssl

from config.client import Address
from protocol.errors import ErrorKind, RunnerError, error

NO_HOST = "there is no such host"
_START = "start one with `operato-runner serve` or set OPERATO_URL"


def unreachable(address: Address, why: BaseException | str) -> RunnerError:
    """Return the error for a failed connection attempt."""
    found = why if isinstance(why, str) else root_of(why)
    if isinstance(found, ssl.SSLCertVerificationError):
        text = f"the certificate of {address} is not trusted ({found.verify_message}); {_trust_remedy(found)}"
        return error(ErrorKind.UNAVAILABLE, text)
    if _wants_certificate(found):
        return _certificate_wanted(address, found)
    if isinstance(found, ssl.SSLError):
        text = f"TLS with {address} failed ({_reason(found)}); if it does not use TLS, write http:// in OPERATO_URL"
        return error(ErrorKind.UNAVAILABLE, text)
    return error(ErrorKind.UNAVAILABLE, f"no runner answers at {address} ({_reason(found)}); {_START}")


def _trust_remedy(problem: ssl.SSLCertVerificationError) -> str:
    if problem.verify_code in (62, 64):  # another host, another address
        return "write the name in the certificate in OPERATO_URL"
    return "name the PEM file of the CA that signed it with --ca or OPERATO_CA"


def _wants_certificate(problem: BaseException | str) -> bool:
    """Return whether a server rejected the client certificate. In TLS 1.3 this comes after the handshake."""
    words = "" if isinstance(problem, str) or not isinstance(problem, ssl.SSLError) else problem.reason or ""
    return "ALERT" in words and any(word in words for word in ("CERTIFICATE", "UNKNOWN_CA"))


def _certificate_wanted(address: Address, problem: BaseException | str) -> RunnerError:
    text = f"{address} requires a client certificate that it trusts ({_reason(problem)})"
    return error(ErrorKind.UNAVAILABLE, f"{text}; name yours with --cert or OPERATO_CERT, and its key with --cert-key")


def no_answer(address: Address, seconds: float | None) -> RunnerError:
    """Return the error for a missing answer."""
    within = "" if seconds is None else f" within {seconds:g} s"
    return error(
        ErrorKind.UNAVAILABLE,
        f"{address} accepted the connection but did not answer{within}; see the log of the runner",
    )


def not_a_runner(address: Address, why: str) -> RunnerError:
    """Return the error for a server that is not a runner."""
    hint = "" if address.secure else ", or use https:// if it uses TLS"
    text = f"the server at {address} is not an Operato Runner: {why}; check OPERATO_URL{hint}"
    return error(ErrorKind.UNAVAILABLE, text)


def lost(address: Address, why: BaseException | str) -> RunnerError:
    """Return the error for a broken connection."""
    found = why if isinstance(why, str) else root_of(why)
    if _wants_certificate(found):
        return _certificate_wanted(address, found)
    return error(ErrorKind.LOST, f"the connection to {address} was lost ({_reason(found)})")


def root_of(problem: BaseException) -> BaseException:
    """Return the cause of an exception: the error of TLS or of the system, if there is one."""
    last, seen = problem, problem
    for _ in range(20):
        if isinstance(seen, ssl.SSLError) or (isinstance(seen, OSError) and seen.errno is not None):
            return seen
        last = seen
        following = seen.__cause__ or seen.__context__
        if isinstance(seen, BaseExceptionGroup):
            following = seen.exceptions[0]
        if following is None:
            return last
        seen = following
    return last


def _reason(problem: BaseException | str) -> str:
    if isinstance(problem, str):
        return problem
    if isinstance(problem, ssl.SSLError):
        return (problem.reason or "protocol error").replace("_", " ").lower()
    if isinstance(problem, socket.gaierror):
        return NO_HOST
    if isinstance(problem, OSError) and problem.errno is not None and problem.errno in errno.errorcode:
        return os.strerror(problem.errno)
    return str(problem).strip().rstrip(".") or type(problem).__name__
