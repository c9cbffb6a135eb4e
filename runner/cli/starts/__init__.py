"""The commands about what happens without a caller: the groups `schedules` and `notices`."""

from runner.cli.starts.commands import schedules
from runner.cli.starts.notices import notice_commands

__all__ = ["notice_commands", "schedules"]
