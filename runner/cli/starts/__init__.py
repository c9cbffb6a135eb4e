"""The commands for what happens without a caller: notices."""

from runner.cli.starts.notices import notice_commands

__all__ = ["notice_commands"]
