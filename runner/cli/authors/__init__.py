"""Commands for authors and callers of modules, besides those of a running module: typed functions, a way back."""

from runner.cli.authors.stubs import client_commands

__all__ = ["client_commands"]
