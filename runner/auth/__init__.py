"""The face of the room."""

from runner.auth.access import authenticate, require, require_module
from runner.auth.issuing import issue_token, sign_for
from runner.auth.secret import find_secret, load_or_make_secret, with_secret
from runner.auth.tokens import Principal, Scope, Verifier

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
