"""TLS of REST and gRPC: an `ssl.SSLContext` from certificate, key and client CA, or the mistakes in them."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from config.mistakes import ConfigError, Mistake
from config.settings import ServerSettings


def server_context(settings: ServerSettings, protocols: Sequence[str]) -> ssl.SSLContext | None:
    """Return the context for a server of `protocols` (ALPN), None if no certificate is configured. Blocks.

    TLS 1.2 and later. With `tls_client_ca_file` clients must present a certificate of that CA. Raises ConfigError for
    an unreadable or invalid file, and for a key that does not match the certificate.
    """
    certificate, key = settings.tls_certificate_file, settings.tls_key_file
    if certificate is None or key is None:
        return None
    for name, path in (("tls_certificate_file", certificate), ("tls_key_file", key)):
        _check_readable(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(protocols))
    try:
        # OpenSSL would ask for a password on the terminal, and a server often has none.
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as problem:
        if problem.reason == "KEY_VALUES_MISMATCH":
            raise _mistake("tls_key_file", f"{key} is not the key of {certificate}") from None
        text = f"{certificate} and {key} are not a certificate and its unencrypted key in PEM format ({problem.reason})"
        raise _mistake("tls_certificate_file", text) from None
    authority = settings.tls_client_ca_file
    if authority is not None:
        _check_readable("tls_client_ca_file", authority)
        try:
            context.load_verify_locations(authority)
        except ssl.SSLError as problem:
            text = f"{authority} has no certificate in PEM format ({problem.reason})"
            raise _mistake("tls_client_ca_file", text) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _no_password() -> str:
    return ""


def _check_readable(name: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as problem:
        raise _mistake(name, f"{path} cannot be read: {problem.strerror}") from None


def _mistake(name: str, message: str) -> ConfigError:
    return ConfigError([Mistake(message, None, None, name)])
