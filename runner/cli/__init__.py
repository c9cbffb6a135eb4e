"""The command line `operato-runner`: commands, their options and help.

The room sits on top of `runner.serve` and `runner.client`. A command imports the server, the client or the environments
when it runs, so `--version`, `--help` and `token` start fast.
"""

from runner.cli.commands import main

__all__ = ["main"]
