"""Tokens signed with the secret that the settings name."""

from __future__ import annotations

from collections.abc import Sequence

from config.settings import AuthSettings, Settings
from protocol.errors import ErrorKind, error
from runner.auth.secret import load_or_make_secret, with_secret
from runner.auth.tokens import sign


def issue_token(
    settings: Settings, subject: str, scopes: Sequence[str], seconds: float, modules: Sequence[str] = ()
) -> str:
    """Return a token signed with the configured secret, else with the runner's own, which is made if missing. Blocks.

    `modules` are globs of module names, none for all modules. Raises RunnerError `unavailable` where the settings name
    only a public key, ConfigError for an unusable secret.
    """
    auth = with_secret(settings.auth)
    if auth.public_key_file or auth.jwks_url:
        text = "this runner verifies tokens with a public key and cannot sign any; sign them with the private key"
        raise error(ErrorKind.UNAVAILABLE, text)
    secret = auth.secret or load_or_make_secret(settings.store.data_dir)[0]
    return sign_for(auth, secret, subject, scopes, seconds, modules)


def sign_for(
    auth: AuthSettings, secret: str, subject: str, scopes: Sequence[str], seconds: float, modules: Sequence[str] = ()
) -> str:
    """Return a token with the issuer and audience of these settings, valid for `seconds`."""
    return sign(
        secret,
        subject=subject,
        scopes=scopes,
        expires_seconds=seconds,
        issuer=auth.issuer,
        audience=auth.audience,
        modules=modules,
    )
