"""The rules between the settings of a cluster, and what must be on this machine for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from config.cluster.credentials import read_credentials
from config.mistakes import Mistake, Wrong

CLUSTER_EXTRA: Final = "pip install 'operato-runner[cluster]'"
"""The remedy where the client of the engine is not installed."""


def cluster_rules(values: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield mistakes between settings, given by their dotted names; none without `cluster`."""
    if not values["cluster.servers"]:
        return
    if find_spec("nats") is None:
        yield _mistake("cluster", f"needs the extra `cluster`, which is not installed: {CLUSTER_EXTRA}", CLUSTER_EXTRA)
    for name, other in (("cert", "key"), ("key", "cert")):
        if values[f"cluster.{name}"] is not None and values[f"cluster.{other}"] is None:
            yield _mistake(f"cluster_{name}", f"needs cluster_{other}", f"cluster_{other}")


def file_mistakes(
    credentials: Path | None, authority: Path | None, certificate: Path | None, key: Path | None
) -> Iterator[Mistake]:
    """Yield the files of a cluster's settings that cannot be used. Blocks."""
    try:
        if credentials is not None:
            read_credentials(credentials)
    except Wrong as wrong:
        yield _mistake("cluster_credentials", wrong.message, wrong.allowed or "")
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
