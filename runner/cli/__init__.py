"""The command line `operato-runner`: commands, their options and help.

The room sits on top of `runner.serve` and `runner.client`. A command imports the server, the client or the environments
when it runs, so `--version`, `--help` and `token` start fast.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:
        # Scripts ask for it at each start, and the commands take 0.1 s to import.
        from runner.version import version_of_this

        sys.stdout.write(f"operato-runner {version_of_this()}\n")
        return
    from runner.cli.commands import main as run

    run()
