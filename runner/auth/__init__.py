"""The face of the room."""

from runner.auth.access import authenticate, require, require_module
from runner.auth.secret import find_secret, load_or_make_secret, with_secret
from runner.auth.tokens import Principal, Scope, Verifier, sign

__all__ = [
    "Principal",
    "Scope",
    "Verifier",
    "authenticate",
    "find_secret",
    "load_or_make_secret",
    "require",
    "require_module",
    "sign",
    "with_secret",
]
