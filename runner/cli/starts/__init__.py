"""The commands about modules that run by themselves: the group `schedules`."""

from runner.cli.starts.commands import schedules

__all__ = ["schedules"]
