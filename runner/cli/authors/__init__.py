"""Commands for authors and callers of modules: typed functions, and a way back to an earlier version."""

from runner.cli.authors.commands import client_commands, rollback

__all__ = ["client_commands", "rollback"]
