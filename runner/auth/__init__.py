"""Callers: tokens and the keys that verify them, the scopes and modules they allow, and the secret that signs them.

Needs no server and no event loop, so that commands which only make a token start fast.
"""

from runner.auth.issuing import issue_token, sign_for
from runner.auth.principal import Principal, Scope, require, require_module
from runner.auth.secret import find_secret, load_or_make_secret, with_secret
from runner.auth.tokens import Verifier, authenticate

__all__ = [
    "Principal",
    "Scope",
    "Verifier",
    "authenticate",
    "find_secret",
    "issue_token",
    "load_or_make_secret",
    "require",
    "require_module",
    "sign_for",
    "with_secret",
]
