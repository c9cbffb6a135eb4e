"""Callers: tokens, API keys, the scopes and modules that they allow, the keys and the secret behind tokens.

Needs no server and no event loop, so that commands which only make a token start fast.
"""

from runner.auth.callers import SEVERAL, anonymous_caller, authenticate, foreign_name
from runner.auth.issuing import issue_token, sign_for
from runner.auth.principal import SCOPES, Principal, Scope, require, require_module
from runner.auth.secret import find_secret, load_or_make_secret, with_secret
from runner.auth.tokens import Verifier

__all__ = [
    "SCOPES",
    "SEVERAL",
    "Principal",
    "Scope",
    "Verifier",
    "anonymous_caller",
    "authenticate",
    "find_secret",
    "foreign_name",
    "issue_token",
    "load_or_make_secret",
    "require",
    "require_module",
    "sign_for",
    "with_secret",
]
