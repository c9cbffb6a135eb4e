"""The rules between the settings of a cluster, and what must be on this machine for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Final

from config.mistakes import Mistake

CLUSTER_EXTRA: Final = "pip install 'operato-runner[cluster]'"
"""The remedy where the client of the engine is not installed."""
_JWT: Final = b"BEGIN NATS USER JWT"
_SEED: Final = b"BEGIN USER NKEY SEED"
_MAX_CREDENTIALS: Final = 64 * 1024


def cluster_rules(values: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield mistakes in the settings of a cluster by their dotted names; none without `cluster`."""
    if not values["cluster.servers"]:
        return
    if find_spec("nats") is None:
        yield _mistake("cluster", f"needs the extra `cluster`, which is not installed: {CLUSTER_EXTRA}", CLUSTER_EXTRA)
    certificate, key = values["cluster.cert"], values["cluster.key"]
    if certificate is not None and key is None:
        yield _mistake("cluster_cert", "needs cluster_key", "cluster_key")
    if key is not None and certificate is None:
        yield _mistake("cluster_key", "needs cluster_cert", "cluster_cert")
    yield from _credentials(values)
    yield from _tls(values)


def _credentials(values: Mapping[str, Any]) -> Iterator[Mistake]:
    path = values["cluster.credentials"]
    if path is None:
        return
    allowed = "a file of credentials, as `nsc generate creds` writes it"
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_CREDENTIALS)
    except OSError as problem:
        yield _mistake("cluster_credentials", f"{path}: {problem.strerror}", allowed)
        return
    if _JWT not in content or _SEED not in content:
        yield _mistake("cluster_credentials", f"{path}: has no user JWT with its seed; give {allowed}", allowed)


def _tls(values: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield files that TLS could not use."""
    authority, certificate, key = (values[f"cluster.{name}"] for name in ("ca", "cert", "key"))
    if authority is None and (certificate is None or key is None):
        return
    import ssl  # noqa: PLC0415  (10 ms to import, and few runners have the settings)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority is not None:
        try:
            context.load_verify_locations(authority)
        except OSError as problem:
            why = "has no certificate in PEM form" if isinstance(problem, ssl.SSLError) else problem.strerror
            yield _mistake("cluster_ca", f"{authority}: {why}", "a PEM file with certificates of CAs")
    if certificate is not None and key is not None:
        try:
            # OpenSSL would ask for a password on the terminal, and a server often has none.
            context.load_cert_chain(certificate, key, password=lambda: "")
        except ssl.SSLError as problem:
            mismatch = problem.reason == "KEY_VALUES_MISMATCH"
            why = f"{key} is not its key" if mismatch else f"it and {key} are no certificate and key in plain PEM form"
            yield _mistake("cluster_cert", f"{certificate}: {why}", "PEM files of a certificate and of its key")
        except OSError as problem:
            yield _mistake("cluster_cert", f"{certificate}, {key}: {problem.strerror}", "two readable files")


def _mistake(name: str, message: str, allowed: str) -> Mistake:
    return Mistake(message, None, None, name, allowed)
