"""The command line `operato-runner`: commands, their options and help.

The room sits on top of `runner.serve` and `runner.client`. A command imports the server, the client or the environments
when it runs, so `--version`, `--help` and `token` start fast.
"""

import sys

from runner.version import version_of_this


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:  # answered before click and the settings are imported, 0.1 s
        sys.stdout.write(f"operato-runner {version_of_this()}\n")
        return
    from runner.cli.commands import main as command_line

    command_line()


__all__ = ["main"]
