"""The face of the room."""

from runner.cli.commands import main

__all__ = ["main"]
